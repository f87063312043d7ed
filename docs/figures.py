"""Draw the figures of the tutorial and of the README from the drawn sample, with the package's own functions.

    python docs/figures.py        (or: make figures)

Trains the paper's net twice, once with each padding, unless output/figures/ has both runs; they take a gigabyte there.
Writes the figures to docs/figures/, and the tables that the tutorial quotes: runs.csv, zoom.csv and ceiling.csv.
"""

import io
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from torch import Tensor, nn

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from callbacks.tensorboard import side_by_side  # noqa: E402
from data.dataset import TestImageDataset  # noqa: E402
from data.fetcher import DatasetFetcher  # noqa: E402
from data.layout import make_layout  # noqa: E402
from data.reader import read  # noqa: E402
from img.augmentation import augment_img  # noqa: E402
from img.mask import decode_mask  # noqa: E402
from img.transformer import decode_image, reflect_pad, resize, resize_size, upsample  # noqa: E402
from nn.classifier import CarvanaClassifier  # noqa: E402
from nn.metrics import dice_per_image  # noqa: E402
from nn.unet_origin import ConvBnRelu, UNetOriginal, center_crop  # noqa: E402
from runtime.errors import friendly_errors  # noqa: E402
from runtime.files import save_atomically  # noqa: E402
from runtime.run import saved_runs  # noqa: E402

OUT = ROOT / "docs" / "figures"
PADDINGS = ("reflect", "stretch")
TRAINING = (  # of both runs, which differ in --padding alone
    "--dataset sample --input-img-resize 284 284 --output-img-resize 100 100 --batch-size 4 --optimizer AdamW "
    "--learning-rate 0.001 --schedule one_cycle --epochs 5 --no-predict"
)
SMALL = (256, 384)  # (height, width) of an image in a figure
DARK, GRAY, CAR, WRONG, COPY, VIOLET = "#222222", "#6b7280", "#0b6fc2", "#d1401f", "#2f8f46", "#7a3fb0"
matplotlib.use("agg")
plt.rcParams |= {"font.size": 10, "text.color": DARK, "axes.edgecolor": GRAY, "axes.labelcolor": DARK}


# What the figures show -----------------------------------------------------------------------------------------------

def pair(index: int, size: tuple[int, int] = SMALL) -> tuple[Tensor, Tensor]:
    """A training image and its mask: (3, *size) and (1, *size), uint8."""
    X_train, y_train, _, _ = fetcher().get_train_files()
    return resize(read(X_train[index], decode_image), size), resize(read(y_train[index], decode_mask), size)


def fetcher() -> DatasetFetcher:
    return DatasetFetcher(make_layout("sample", ROOT / "input", hq_files=None, group_regex=None))


def levels(net: nn.Module) -> list[tuple[str, str, tuple[int, int, int]]]:
    """Each layer of a net applied to one image: (its name, its type, the (channels, height, width) of its output).

    net: on PyTorch's meta device, which computes shapes only.
    """
    steps = [("image", "image", net.in_shape)]
    for name, module in net.named_modules():
        if isinstance(module, ConvBnRelu | nn.MaxPool2d | nn.ConvTranspose2d) or name == "head":
            module.register_forward_hook(
                lambda module, _, out, name=name: steps.append((name, type(module).__name__, tuple(out.shape[1:])))
            )
    net(torch.empty(1, *net.in_shape, device="meta"))
    return steps


def run_of(padding: str) -> Path:
    """The folder of the run with that padding. Trains it, or resumes it, if it is not finished."""
    output, logs = (Path(folder, "figures", padding) for folder in ("output", "logs"))
    if not saved_runs(ROOT / output, "score.csv"):
        resume = ["--resume", "last"] if saved_runs(ROOT / output) else [*TRAINING.split(), "--padding", padding]
        folders = ["--output-dir", output, "--logs-dir", logs]
        code = subprocess.run([sys.executable, "main.py", *resume, *folders], cwd=ROOT).returncode
        if code:  # it has printed why
            sys.exit(code)
    return saved_runs(ROOT / output, "score.csv")[-1]


def probabilities(padding: str, paths: list[Path]) -> Tensor:
    """Probabilities of car that the best epoch of that run predicts for images, (N, *SMALL)."""
    net = UNetOriginal((3, 284, 284))
    classifier = CarvanaClassifier(net, epochs=0)
    classifier.restore_model(run_of(padding) / "best.pt")
    dataset = TestImageDataset(paths, net.in_shape[1:], net.output_size, padding)
    return upsample(torch.cat([classifier.predict_probs(image[None]) for image, _ in dataset]), SMALL)


def in_tensorboard(padding: str) -> dict[tuple[str, int], np.ndarray]:
    """The images that TensorboardVisualizerCallback wrote in that run, (height, width, 3), by tag and epoch."""
    images, run = {}, run_of(padding).name.removeprefix("model_")
    for file in sorted((ROOT / "logs" / "figures" / padding / "tb_viz" / run).glob("events.*")):
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                encoded = value.image.encoded_image_string
                images[value.tag, event.step] = np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))
    return images


# The figures ---------------------------------------------------------------------------------------------------------

def photo_mask_cutout() -> None:
    """An image, its mask, and the image under its mask."""
    image, mask = pair(17)
    cutout = (image * (mask / 255.0) + 255 * (1 - mask / 255.0)).round().to(torch.uint8)
    figure, axes = panels(1, 3, 10, titles=["the image", "its mask", "the car, cut out"])
    for axis, each in zip(axes, (image, mask.expand(3, -1, -1), cutout), strict=True):
        show(axis, each)
    save(figure, "photo_mask_cutout.png")


def unet_levels() -> None:
    """The U of UNetOriginal at 572x572, from the shapes of its modules. The heights of the boxes are to scale."""
    figure, axis = full_axes((10, 6.6))
    top, x, level, last, traces = [0, 802, 1316, 1686, 1984], 0, 0, None, {}  # top: of the boxes of each level
    for _, kind, (channels, height, _) in levels(original()):
        wide = 10 + channels // 16
        level += {"MaxPool2d": 1, "ConvTranspose2d": -1}.get(kind, 0)
        if kind == "MaxPool2d":
            x = last["middle"] - wide / 2
            lines = (last["middle"], last["bottom"] + 62), (last["middle"], top[level] - 62), WRONG
        elif kind == "ConvTranspose2d":  # the trace is drawn in front of the upsampled features
            trace, x, y = traces[level], last["right"] + 30, top[level] + height / 2
            box(axis, x, top[level], wide, height, "", "#cfe8d5", COPY)
            arrow(axis, (trace["right"] + 8, y), (x - 8, y), COPY, "--")
            axis.text((trace["right"] + x) / 2, y - 14, f"{height} of {trace['high']}", color=COPY,
                      ha="center", va="bottom", fontsize=9)
            x += wide
            lines = (x, last["top"] - 62), (x, top[level] + height + 62), VIOLET
        else:
            x, y = last["right"] + 92 if last else 0, top[level] + height / 2
            lines = ((last["right"] + 8, y), (x - 8, y), DARK) if last else None
        if lines:
            arrow(axis, *lines)
        colors = ("#fde0d6", WRONG) if kind == "Conv2d" else ("#dbe9f6", CAR)
        label = f"{channels}+{channels}" if kind == "ConvTranspose2d" else str(channels)
        last = box(axis, x, top[level], wide, height, label, *colors, wide if kind == "ConvTranspose2d" else 0)
        traces[level] = last  # the last one of each level of the encoder stays
    left = 0.68 * last["right"]
    for place, (color, line, meaning) in enumerate((
        (DARK, "-", "3x3 convolution, BatchNorm, ReLU"), (WRONG, "-", "2x2 max pooling"),
        (VIOLET, "-", "2x2 up-convolution"), (COPY, "--", "skip connection, cropped"),
    )):
        arrow(axis, (left, 1740 + 88 * place), (left + 70, 1740 + 88 * place), color, line)
        axis.text(left + 88, 1740 + 88 * place, meaning, va="center")
    axis.text(left, 1605, "above a box: its channels\nbelow it: its height and width", va="center")
    axis.set(xlim=(-40, last["right"] + 40), ylim=(2085, -85))
    save(figure, "levels.png")


def box(
    axis, x: float, y: float, wide: float, high: float, label: str, face: str, edge: str, before: float = 0
) -> dict[str, float]:
    """A tensor of the U, seen from the side. Its label is centered over it and the width `before` in front of it."""
    axis.add_patch(Rectangle((x, y), wide, high, fc=face, ec=edge, lw=0.9))
    middle = x + (wide - before) / 2
    if label:
        axis.text(middle, y - 8, label, ha="center", va="bottom", fontsize=9)
        axis.text(middle, y + high + 8, f"{high}", ha="center", va="top", fontsize=9, color=GRAY)
    return dict(right=x + wide, middle=x + wide / 2, top=y, bottom=y + high, high=high)


def geometry() -> None:
    """To scale: the window of 388 pixels with its reflection padding, and the mask that the net predicts for it."""
    net = original()
    (high, wide), (mask_high, mask_wide) = net.in_shape[1:], net.output_size
    edge, gap = (wide - mask_wide) // 2, 110
    image, mask = pair(33, net.output_size)
    figure, axis = full_axes((10, 5.4))
    axis.imshow(whiten(reflect_pad(image, (high, wide)), edge), extent=(0, wide, high, 0))
    axis.imshow(mask[0].numpy(), cmap="gray", extent=(wide + gap, wide + gap + mask_wide, edge + mask_high, edge))
    axis.add_patch(Rectangle((edge, edge), mask_wide, mask_high, fill=False, ec=WRONG, lw=2))
    axis.add_patch(Rectangle((0, 0), wide, high, fill=False, ec=DARK, lw=1))
    axis.add_patch(Rectangle((wide + gap, edge), mask_wide, mask_high, fill=False, ec=WRONG, lw=2))
    for y in (edge, edge + mask_high):
        axis.plot([edge + mask_wide, wide + gap], [y, y], color=WRONG, lw=0.9, ls=":")
    arrow(axis, (wide + 18, high / 2), (wide + gap - 18, high / 2), DARK)
    axis.text(wide + gap / 2, high / 2 - 12, "the net", ha="center", va="bottom")
    for x, y, length, upright in ((0, high + 22, wide, False), (edge, edge + mask_high + 22, mask_wide, False),
                                  (0, 20, edge, False), (wide - edge, 20, edge, False),
                                  (-22, 0, high, True), (wide + gap, edge + mask_high + 22, mask_wide, False)):
        measure(axis, x, y, length, upright)
    axis.text(wide / 2, edge - 10, "the image in the window; around it, its reflection", ha="center", va="bottom")
    axis.text(wide + gap + mask_wide / 2, edge - 10, "the mask of that window", ha="center", va="bottom")
    axis.set(xlim=(-50, wide + gap + mask_wide + 8), ylim=(high + 40, -8))
    save(figure, "geometry.png")


def stretch() -> None:
    """For both paddings, the centers of receptive fields of output pixels and the positions of their labels."""
    net = original()
    size, mask_size = net.in_shape[1], net.output_size[0]
    edge, zoom = (size - mask_size) // 2, size / mask_size
    titles = [f"stretch: centered on i + {edge}, label at {zoom:.3f} i", f"reflect: both at i + {edge}"]
    figure, axes = panels(1, 2, 10, ratio=1, titles=titles, below=0.3)
    for axis, padding in zip(axes, ("stretch", "reflect"), strict=True):
        image, _ = pair(33, resize_size(net.in_shape[1:], net.output_size, padding))
        label = pair(33, net.output_size)[1][0]
        show(axis, reflect_pad(image, net.in_shape[1:]))
        places = np.arange(mask_size)
        axis.contour(places + edge, places + edge, label.numpy(), [127], colors=[WRONG], linewidths=2)
        for i in np.linspace(24, mask_size - 24, 5):
            for j in np.linspace(24, mask_size - 24, 5):
                center = np.array([j, i]) + edge
                target = zoom * np.array([j, i]) if padding == "stretch" else center
                axis.plot(*center, "o", color=CAR, ms=3.5)
                if np.hypot(*(target - center)) > 8:
                    arrow(axis, center, target, CAR, size=8)
        axis.add_patch(Rectangle((edge, edge), mask_size, mask_size, fill=False, ec=DARK, lw=1, ls="--"))
    handles = [plt.Line2D([], [], color=CAR, marker="o", ms=4, lw=1), plt.Line2D([], [], color=WRONG, lw=2),
               plt.Line2D([], [], color=DARK, lw=1, ls="--")]
    meanings = ["from the center of a receptive field to its label", "the label, drawn over the centers", "the window"]
    figure.legend(handles, meanings, loc="outside lower center", ncols=3, frameon=False, handlelength=1.6)
    save(figure, "stretch.png")


def runs() -> None:
    """The Dice of each epoch of both runs, their predictions of three validation images, and runs.csv."""
    metrics = {padding: metrics_of(run_of(padding)) for padding in PADDINGS}
    table = pd.concat(metrics, names=["padding"]).reset_index("padding")
    keep_table(table[["padding", "epoch", "train_dice", "valid_dice", "score"]].round(4), "runs.csv")

    _, _, X_valid, y_valid = fetcher().get_train_files()
    chosen = [4, 15, 22]  # a car from the side and from the front, and another one
    images = [resize(read(X_valid[index], decode_image), SMALL) for index in chosen]
    masks = [resize(read(y_valid[index], decode_mask), SMALL)[0] > 127 for index in chosen]
    figure = plt.figure(figsize=(10, 3.9))
    grid = figure.add_gridspec(2, 4, width_ratios=[1.2, 1, 1, 1], left=0.045, right=0.995, top=0.93, bottom=0.125,
                               wspace=0.04, hspace=0.04)
    axis = figure.add_subplot(grid[:, 0])
    for padding, color in (("reflect", CAR), ("stretch", WRONG)):
        axis.plot(metrics[padding]["epoch"], metrics[padding]["valid_dice"], color=color, marker="o", ms=4)
        axis.plot(metrics[padding]["epoch"], metrics[padding]["train_dice"], ":", color=color)
    axis.set(xlabel="epoch", xticks=metrics["reflect"]["epoch"], ylim=(0.1, 1))
    axis.set_title("Dice", loc="left", fontsize=10)
    axis.grid(axis="y", color="#e5e7ea")
    axis.spines[["top", "right"]].set_visible(False)
    handles = [plt.Line2D([], [], color=CAR), plt.Line2D([], [], color=WRONG),
               plt.Line2D([], [], color=DARK, marker="o", ms=4), plt.Line2D([], [], color=DARK, ls=":")]
    axis.legend(handles, ["reflect", "stretch", "validation", "training"], loc="lower right", fontsize=9, frameon=False)
    for row, padding in enumerate(PADDINGS):
        probs = probabilities(padding, [X_valid[index] for index in chosen])
        for column, (image, prob, mask) in enumerate(zip(images, probs, masks, strict=True)):
            axis = figure.add_subplot(grid[row, column + 1])
            axis.set_axis_off()
            show(axis, error_map(image, prob > 0.5, mask))
            dice = dice_per_image((prob > 0.5)[None], mask[None]).item()
            axis.text(8, 10, f"{padding} {dice:.3f}", color="white", va="top", fontsize=9.5)
    save(figure, "runs.png")


def metrics_of(run: Path) -> pd.DataFrame:
    """The metrics of each epoch of a run, and in the row of the best one its score."""
    metrics = pd.read_csv(run / "metrics.csv")
    metrics.loc[metrics["valid_dice"].idxmax(), "score"] = pd.read_csv(run / "score.csv")["dice"].mean()
    return metrics


def error_map(image: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
    """The middle one of TensorBoard's three images, (3, h, w): true positives are green, false negatives red, false
    positives yellow.
    """
    height, width = mask.shape
    return side_by_side(image, prediction, mask)[:, :height, width : 2 * width]


def tensorboard() -> None:
    """One validation image in TensorBoard after the first and after the last epoch, as the callback wrote it."""
    images = in_tensorboard("reflect")
    tag = min(tag for tag, _ in images if tag.startswith("validation/"))
    epochs = sorted(epoch for each, epoch in images if each == tag)
    height, width, _ = images[tag, epochs[0]].shape
    titles = [f"after epoch {epoch}" for epoch in (epochs[0], epochs[-1])]
    figure, axes = panels(2, 1, 10, titles, ratio=height / width)
    for axis, epoch in zip(axes, (epochs[0], epochs[-1]), strict=True):
        axis.imshow(images[tag, epoch], interpolation="nearest")
    save(figure, "tensorboard.png", colors=None)


def augmentation() -> None:
    """An image with the outline of its mask: as it is, six random draws, and one with color jitter and blur."""
    image, mask = pair(36)
    titles = ["the image", *(f"draw {draw}" for draw in range(1, 7)), "draw 6, color jitter and blur"]
    figure, axes = panels(2, 4, 10, titles=titles)
    for draw, axis in enumerate(axes):
        torch.manual_seed(min(draw, 6))
        options = dict(color_jitter=0.2, blur=2.0) if draw == 7 else {}
        augmented, its_mask = augment_img(image, mask, **options) if draw else (image, mask)
        show(axis, augmented)
        axis.contour(its_mask[0].numpy(), [127], colors=[WRONG], linewidths=1.2)
    save(figure, "augmentation.png")


def ceiling() -> None:
    """ceiling.csv: the highest possible Dice of a mask of each size at the image's original size, if it is upsampled
    and then thresholded, or the other way round; the mean over the validation masks of the sample.
    """
    _, _, _, y_valid = fetcher().get_train_files()
    sums = {side: [0.0, 0.0] for side in (100, 128, 256, 388, 512, 1024)}
    for path in y_valid:
        mask = read(path, decode_mask)
        truth = mask > 127  # (1, H, W)
        for side in sums:
            soft = resize(mask, (side, side)).float() / 255  # (1, side, side)
            upsampled = upsample(soft, truth.shape[1:])
            thresholded = F.interpolate((soft[None] > 0.5).float(), truth.shape[1:], mode="nearest-exact")[0]
            for way, large in enumerate((upsampled, thresholded)):
                sums[side][way] += dice_per_image(large > 0.5, truth).item() / len(y_valid)
    rows = [(side, *dice) for side, dice in sums.items()]
    keep_table(pd.DataFrame(rows, columns=["side", "upsampled_first", "thresholded_first"]).round(4), "ceiling.csv")


def zoom() -> None:
    """zoom.csv: how much --padding stretch magnifies an image relative to its mask, and the Dice, against the stretched
    label, of a net that answers its window perfectly; the mean over the validation masks of the sample.
    """
    _, _, _, y_valid = fetcher().get_train_files()
    rows = []
    for size, mask_size in ((284, 100), (572, 388)):
        dice = []
        for path in y_valid:
            mask = read(path, decode_mask)
            window = center_crop(resize(mask, (size, size)), (mask_size, mask_size)) > 127
            dice.append(dice_per_image(window, resize(mask, (mask_size, mask_size)) > 127).item())
        rows.append((size, mask_size, round(size / mask_size, 3), round(float(np.mean(dice)), 4)))
    keep_table(pd.DataFrame(rows, columns=["image", "mask", "zoom", "dice_of_window"]), "zoom.csv")


# Drawing -------------------------------------------------------------------------------------------------------------

def original() -> UNetOriginal:
    with torch.device("meta"):
        return UNetOriginal((3, 572, 572))


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


def save(figure: plt.Figure, name: str, colors: int | None = 256) -> None:
    """Write a PNG with a palette of so many colors, which takes a third of the bytes; None: without a palette."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=100)
        image = Image.open(file).convert("RGB")
    image = image if colors is None else image.quantize(colors, dither=Image.Dither.NONE)
    plt.close(figure)
    with save_atomically(OUT / name) as file:
        image.save(file, format="png", optimize=True)
    print(f"{name:24} {image.width}x{image.height}  {(OUT / name).stat().st_size / 1000:.0f} kB", flush=True)


def keep_table(table: pd.DataFrame, name: str) -> None:
    with save_atomically(OUT / name) as file:
        table.to_csv(file, index=False)
    print(f"\n{name}\n{table.to_string(index=False, na_rep='')}\n", flush=True)


def main() -> None:
    fetcher().download_dataset()
    for padding in PADDINGS:
        run_of(padding)
    for draw in (photo_mask_cutout, unet_levels, geometry, stretch, augmentation, zoom, ceiling, tensorboard, runs):
        draw()
    total = sum(path.stat().st_size for path in OUT.iterdir())
    print(f"{OUT.relative_to(ROOT)}: {total / 1000:.0f} kB in total")


if __name__ == "__main__":
    with friendly_errors():
        main()
