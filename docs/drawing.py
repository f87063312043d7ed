"""How the figures of the docs look: colors, panels, arrows, and small PNG files."""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))
from runtime.files import save_atomically

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "figures"
SMALL = (256, 384)  # (height, width) of an image in a figure
DARK, GRAY, CAR, WRONG, COPY, VIOLET = "#222222", "#6b7280", "#0b6fc2", "#d1401f", "#2f8f46", "#7a3fb0"
matplotlib.use("agg")
plt.rcParams |= {"font.size": 10, "text.color": DARK, "axes.edgecolor": GRAY, "axes.labelcolor": DARK}


def panels(
    rows: int, columns: int, width: float, titles: list[str], ratio: float = SMALL[0] / SMALL[1], below: float = 0
):
    """A figure and its axes, row by row.

    width, below: of the figure and of the space below the axes, in inches. ratio: height / width of the images.
    """
    height = rows * (width / columns * ratio + 0.27) + below
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0, hspace=0)
    for axis, title in zip(axes.flat, titles, strict=True):
        axis.set_axis_off()
        axis.set_title(title, fontsize=10, loc="left", pad=3)
    return figure, list(axes.flat)


def full_axes(size: tuple[float, float]):
    """A figure of that width and height, in inches, and axes without a frame that fill it."""
    figure = plt.figure(figsize=size)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    return figure, axis


def show(axis, image: Tensor) -> None:
    axis.imshow(image.permute(1, 2, 0).numpy())


def whiten(image: Tensor, edge: int) -> np.ndarray:
    """(3, H, W) -> (H, W, 3), paler in a margin of `edge` pixels."""
    pale = image.float() * 0.55 + 255 * 0.45
    pale[:, edge:-edge, edge:-edge] = image[:, edge:-edge, edge:-edge].float()
    return pale.permute(1, 2, 0).round().byte().numpy()


def arrow(axis, start, end, color: str, line: str = "-", size: int = 11) -> None:
    style = dict(arrowstyle="-|>", color=color, ls=line, lw=1.1, shrinkA=0, shrinkB=0, mutation_scale=size)
    axis.annotate("", end, start, arrowprops=style)


def measure(axis, x: float, y: float, length: float, upright: bool) -> None:
    """A line with an arrowhead at both ends and its length in pixels in the middle."""
    end = (x, y + length) if upright else (x + length, y)
    axis.annotate("", end, (x, y), arrowprops=dict(arrowstyle="<->", color=DARK, lw=1, shrinkA=0, shrinkB=0))
    middle = (x, y + length / 2) if upright else (x + length / 2, y)
    axis.text(*middle, f"{length}", ha="center", va="center", rotation=90 * upright,
              bbox=dict(fc="white", ec="none", pad=1.5))


def save(figure: plt.Figure, name: str, colors: int | None = 256, rows: Sequence[tuple] = ()) -> None:
    """Write a figure, see save_png()."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=100)
        plt.close(figure)
        save_png(file.getvalue(), name, colors, rows)


def save_png(png: bytes, name: str, colors: int | None = 256, rows: Sequence[tuple] = ()) -> None:
    """Write a PNG with a palette of so many colors, which takes a third of the bytes; None: without a palette.

    rows: the numbers in it. The file keeps them, so that a test can compare them with the page.
    """
    image, info = Image.open(io.BytesIO(png)).convert("RGB"), PngInfo()
    image = image if colors is None else image.quantize(colors, dither=Image.Dither.NONE)
    if rows:
        info.add_text("rows", json.dumps(rows))
    with save_atomically(OUT / name) as file:
        image.save(file, format="png", optimize=True, pnginfo=info)
    print(f"{name:24} {image.width}x{image.height}  {(OUT / name).stat().st_size / 1000:.0f} kB", flush=True)


def keep_table(table: pd.DataFrame, name: str) -> None:
    with save_atomically(OUT / name) as file:
        table.to_csv(file, index=False)
    print(f"\n{name}\n{table.to_string(index=False, na_rep='')}\n", flush=True)
