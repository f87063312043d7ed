"""Draws the pictures of the tutorial and of the README, from the drawn sample and with the package's own functions.

    python docs/figures.py        (or: make figures)

It trains the paper's net twice, once with each border, where output/figures/ doesn't hold both runs already: 31 million
parameters and their AdamW take a gigabyte there. The pictures go to docs/figures/, and so do the tables that the
tutorial quotes, runs.csv, zoom.csv and ceiling.csv, which are printed too.
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
from data.dataset import TestImageDataset, read  # noqa: E402
from data.fetcher import DatasetFetcher  # noqa: E402
from data.layout import make_layout  # noqa: E402
from img.augmentation import augment_img  # noqa: E402
from img.transformer import decode_image, decode_mask, reflect_pad, resize  # noqa: E402
from nn.classifier import CarvanaClassifier  # noqa: E402
from nn.metrics import dice_per_image  # noqa: E402
from nn.unet_origin import ConvBnRelu, UNetOriginal, center_crop  # noqa: E402
from runtime import errors, files  # noqa: E402
from runtime.run import saved_runs  # noqa: E402

OUT = ROOT / "docs" / "figures"
BORDERS = ("reflect", "stretch")
TRAINING = (  # of both runs, which differ in --padding alone
    "--dataset sample --input-img-resize 284 284 --output-img-resize 100 100 --batch-size 4 --optimizer AdamW "
    "--learning-rate 0.001 --schedule one_cycle --epochs 5 --no-predict"
)
SMALL = (256, 384)  # (height, width) of a photo in a picture
DARK, GREY, CAR, WRONG, COPY, VIOLET = "#222222", "#6b7280", "#0b6fc2", "#d1401f", "#2f8f46", "#7a3fb0"
matplotlib.use("agg")
plt.rcParams |= {"font.size": 10, "text.color": DARK, "axes.edgecolor": GREY, "axes.labelcolor": DARK}


# What the pictures show ----------------------------------------------------------------------------------------------

def pair(index: int, size: tuple[int, int] = SMALL) -> tuple[Tensor, Tensor]:
    """A photo to train on and its mask: (3, *size) and (1, *size), uint8."""
    X_train, y_train, _, _ = fetcher().get_train_files()
    return resize(read(X_train[index], decode_image), size), resize(read(y_train[index], decode_mask), size)


def fetcher() -> DatasetFetcher:
    return DatasetFetcher(make_layout("sample", ROOT / "input"))


def levels(net: nn.Module) -> list[tuple[str, str, tuple[int, int, int]]]:
    """Each step of a net on one image: (the module's name, its type, the (channels, height, width) that it makes).

    The net lies on torch's meta device, which knows shapes and computes nothing.
    """
    steps = [("image", "image", net.in_shape)]
    for name, module in net.named_modules():
        if isinstance(module, ConvBnRelu | nn.MaxPool2d | nn.ConvTranspose2d) or name == "head":
            module.register_forward_hook(
                lambda module, _, out, name=name: steps.append((name, type(module).__name__, tuple(out.shape[1:])))
            )
    net(torch.empty(1, *net.in_shape, device="meta"))
    return steps


def run_of(border: str) -> Path:
    """The folder of the run with that border, which main.py trains first, or goes on with, if it isn't there whole."""
    output, logs = (Path(folder, "figures", border) for folder in ("output", "logs"))
    if not saved_runs(ROOT / output, "score.csv"):
        resume = ["--resume", "last"] if saved_runs(ROOT / output) else [*TRAINING.split(), "--padding", border]
        folders = ["--output-dir", output, "--logs-dir", logs]
        code = subprocess.run([sys.executable, "main.py", *resume, *folders], cwd=ROOT).returncode
        if code:  # it has said why
            sys.exit(code)
    return saved_runs(ROOT / output, "score.csv")[-1]


def probabilities(border: str, photos: list[Path]) -> Tensor:
    """What the best epoch of that run says of photos: (N, *SMALL), the probability of car."""
    checkpoint = run_of(border) / "best.pt"
    net = UNetOriginal((3, 284, 284))
    classifier = CarvanaClassifier(net, epochs=0)
    classifier.restore_model(checkpoint)
    dataset = TestImageDataset(photos, net.in_shape[1:], net.output_size, border=border)
    probs = torch.cat([classifier.predict_probs(photo[None]) for photo, _ in dataset])
    return F.interpolate(probs[:, None], SMALL, mode="bilinear", align_corners=False)[:, 0]


def in_tensorboard(border: str) -> dict[tuple[str, int], np.ndarray]:
    """The pictures that TensorboardVisualizerCallback wrote in that run, (height, width, 3), by tag and epoch."""
    images, run = {}, run_of(border).name.removeprefix("model_")
    for file in sorted((ROOT / "logs" / "figures" / border / "tb_viz" / run).glob("events.*")):
        for event in LegacyEventFileLoader(str(file)).Load():
            for value in event.summary.value:
                encoded = value.image.encoded_image_string
                images[value.tag, event.step] = np.array(Image.open(io.BytesIO(encoded)).convert("RGB"))
    return images


# The pictures --------------------------------------------------------------------------------------------------------

def photo_mask_cutout() -> None:
    """A photo, its mask, and the photo under its mask."""
    photo, mask = pair(1)
    cutout = (photo * (mask / 255.0) + 255 * (1 - mask / 255.0)).round().to(torch.uint8)
    figure, axes = panels(1, 3, 10, titles=["the photo", "its mask", "the car, cut out"])
    for axis, image in zip(axes, (photo, mask.expand(3, -1, -1), cutout), strict=True):
        show(axis, image)
    save(figure, "photo_mask_cutout.png")


def unet_levels() -> None:
    """The U of UNetOriginal at 572, as its own modules make it. The heights of the boxes are to scale."""
    figure, axis = whole((10, 6.6))
    top, x, level, last, traces = [0, 802, 1316, 1686, 1984], 0, 0, None, {}  # top: of the boxes of each level
    for _, kind, (channels, height, _) in levels(original()):
        wide = 10 + channels // 16
        level += {"MaxPool2d": 1, "ConvTranspose2d": -1}.get(kind, 0)
        if kind == "MaxPool2d":
            x = last["middle"] - wide / 2
            lines = (last["middle"], last["bottom"] + 62), (last["middle"], top[level] - 62), WRONG
        elif kind == "ConvTranspose2d":  # the trace of the way down stands in front of what comes up
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
        traces[level] = last  # until the way down leaves the level
    left = 0.68 * last["right"]
    for place, (color, line, meaning) in enumerate((
        (DARK, "-", "3x3 convolution, BatchNorm, ReLU"), (WRONG, "-", "2x2 max pooling"),
        (VIOLET, "-", "2x2 up-convolution"), (COPY, "--", "its center, cut out and put beside"),
    )):
        arrow(axis, (left, 1740 + 88 * place), (left + 70, 1740 + 88 * place), color, line)
        axis.text(left + 88, 1740 + 88 * place, meaning, va="center")
    axis.text(left, 1605, "above a box: its channels\nbelow it: its height and width", va="center")
    axis.set(xlim=(-40, last["right"] + 40), ylim=(2085, -85))
    save(figure, "levels.png")


def box(
    axis, x: float, y: float, wide: float, high: float, label: str, face: str, edge: str, before: float = 0
) -> dict[str, float]:
    """A tensor of the U, seen from the side; the text stands over the middle of it and of `before` in front of it."""
    axis.add_patch(Rectangle((x, y), wide, high, fc=face, ec=edge, lw=0.9))
    middle = x + (wide - before) / 2
    if label:
        axis.text(middle, y - 8, label, ha="center", va="bottom", fontsize=9)
        axis.text(middle, y + high + 8, f"{high}", ha="center", va="top", fontsize=9, color=GREY)
    return dict(right=x + wide, middle=x + wide / 2, top=y, bottom=y + high, high=high)


def geometry() -> None:
    """To scale: the window of 388 pixels in its mirrored border, and the mask that the net makes of it."""
    net = original()
    (high, wide), (mask_high, mask_wide) = net.in_shape[1:], net.output_size
    edge, gap = (wide - mask_wide) // 2, 110
    photo, mask = pair(1, net.output_size)
    figure, axis = whole((10, 5.4))
    axis.imshow(whiter(reflect_pad(photo, (high, wide)), edge), extent=(0, wide, high, 0))
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
    axis.text(wide / 2, edge - 10, "the photo, in the window; around it, its mirror image", ha="center", va="bottom")
    axis.text(wide + gap + mask_wide / 2, edge - 10, "the mask of that window", ha="center", va="bottom")
    axis.set(xlim=(-50, wide + gap + mask_wide + 8), ylim=(high + 40, -8))
    save(figure, "geometry.png")


def stretch() -> None:
    """Where an output pixel looks, and where its label stands, for both borders, on the net's own input."""
    net = original()
    size, mask_size = net.in_shape[1], net.output_size[0]
    edge, zoom = (size - mask_size) // 2, size / mask_size
    titles = [f"border stretch: looks at i + {edge}, label at {zoom:.3f} i", f"border mirror: both at i + {edge}"]
    figure, axes = panels(1, 2, 10, ratio=1, titles=titles, below=0.3)
    for axis, border in zip(axes, ("stretch", "reflect"), strict=True):
        window = net.output_size if border == "reflect" else net.in_shape[1:]
        photo, _ = pair(1, window)
        label = pair(1, net.output_size)[1][0]
        show(axis, reflect_pad(photo, net.in_shape[1:]))
        places = np.arange(mask_size)
        axis.contour(places + edge, places + edge, label.numpy(), [127], colors=[WRONG], linewidths=2)
        for i in np.linspace(24, mask_size - 24, 5):
            for j in np.linspace(24, mask_size - 24, 5):
                looks = np.array([j, i]) + edge
                stands = zoom * np.array([j, i]) if border == "stretch" else looks
                axis.plot(*looks, "o", color=CAR, ms=3.5)
                if np.hypot(*(stands - looks)) > 8:
                    arrow(axis, looks, stands, CAR, size=8)
        axis.add_patch(Rectangle((edge, edge), mask_size, mask_size, fill=False, ec=DARK, lw=1, ls="--"))
    handles = [plt.Line2D([], [], color=CAR, marker="o", ms=4, lw=1), plt.Line2D([], [], color=WRONG, lw=2),
               plt.Line2D([], [], color=DARK, lw=1, ls="--")]
    meanings = ["from where an output pixel looks to where its label stands", "the label, laid where the net looks",
                "the window"]
    figure.legend(handles, meanings, loc="outside lower center", ncols=3, frameon=False, handlelength=1.6)
    save(figure, "stretch.png")


def runs() -> None:
    """The Dice of each epoch of both runs, what each says of three validation photos, and runs.csv."""
    metrics = {border: pd.read_csv(run_of(border) / "metrics.csv") for border in BORDERS}
    table = pd.concat({border: metrics[border] for border in BORDERS}, names=["border"]).reset_index("border")
    keep_table(table[["border", "epoch", "train_dice", "valid_dice", "score"]].round(4), "runs.csv")

    _, _, X_valid, y_valid = fetcher().get_train_files()
    chosen = [4, 15, 22]  # a view from the side, one from the front, and one of the other car
    photos = [resize(read(X_valid[index], decode_image), SMALL) for index in chosen]
    masks = [resize(read(y_valid[index], decode_mask), SMALL)[0] > 127 for index in chosen]
    figure = plt.figure(figsize=(10, 3.9))
    grid = figure.add_gridspec(2, 4, width_ratios=[1.2, 1, 1, 1], left=0.045, right=0.995, top=0.93, bottom=0.125,
                               wspace=0.04, hspace=0.04)
    axis = figure.add_subplot(grid[:, 0])
    for border, color in (("reflect", CAR), ("stretch", WRONG)):
        axis.plot(metrics[border]["epoch"], metrics[border]["valid_dice"], color=color, marker="o", ms=4)
        axis.plot(metrics[border]["epoch"], metrics[border]["train_dice"], ":", color=color)
    axis.set(xlabel="epoch", xticks=metrics["reflect"]["epoch"], ylim=(0.3, 1))
    axis.set_title("Dice", loc="left", fontsize=10)
    axis.grid(axis="y", color="#e5e7ea")
    axis.spines[["top", "right"]].set_visible(False)
    handles = [plt.Line2D([], [], color=CAR), plt.Line2D([], [], color=WRONG),
               plt.Line2D([], [], color=DARK, marker="o", ms=4), plt.Line2D([], [], color=DARK, ls=":")]
    axis.legend(handles, ["reflect", "stretch", "validation", "training"], loc="lower right", fontsize=9, frameon=False)
    for row, border in enumerate(BORDERS):
        probs = probabilities(border, [X_valid[index] for index in chosen])
        for column, (photo, prob, mask) in enumerate(zip(photos, probs, masks, strict=True)):
            axis = figure.add_subplot(grid[row, column + 1])
            axis.set_axis_off()
            show(axis, error_map(photo, prob > 0.5, mask))
            dice = dice_per_image((prob > 0.5)[None], mask[None]).item()
            axis.text(8, 10, f"{border} {dice:.3f}", color="white", va="top", fontsize=9.5)
    save(figure, "runs.png")


def error_map(photo: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
    """The middle of TensorBoard's three pictures: (3, h, w), green hits, red misses, yellow false alarms."""
    height, width = mask.shape
    return side_by_side(photo, prediction, mask)[:, :height, width : 2 * width]


def tensorboard() -> None:
    """One photo's picture of TensorBoard after the first and after the last epoch, as the callback wrote it."""
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
    """A photo under the outline of its mask: as it is, six draws, and a draw of light and blur."""
    photo, mask = pair(4)
    titles = ["as it was taken", *(f"draw {draw}" for draw in range(1, 7)), "draw 6, in other light and blurred"]
    figure, axes = panels(2, 4, 10, titles=titles)
    for draw, axis in enumerate(axes):
        torch.manual_seed(min(draw, 6))
        light = dict(color_jitter=0.2, blur=2.0) if draw == 7 else {}
        image, moved = augment_img(photo, mask, **light) if draw else (photo, mask)
        show(axis, image)
        axis.contour(moved[0].numpy(), [127], colors=[WRONG], linewidths=1.2)
    save(figure, "augmentation.png")


def ceiling() -> None:
    """ceiling.csv: the best Dice that a mask of so many pixels can reach at the photo's own size, enlarged and then
    cut, and cut and then enlarged; the mean over the validation masks of the sample.
    """
    _, _, _, y_valid = fetcher().get_train_files()
    sums = {side: [0.0, 0.0] for side in (100, 128, 256, 388, 512, 1024)}
    for path in y_valid:
        mask = read(path, decode_mask)
        truth = mask > 127  # (1, H, W)
        for side in sums:
            shares = resize(mask, (side, side))[None].float() / 255
            for way, small in enumerate((shares, (shares > 0.5).float())):
                mode = dict(mode="bilinear", align_corners=False) if way == 0 else dict(mode="nearest-exact")
                large = F.interpolate(small, truth.shape[1:], **mode)[0] > 0.5
                sums[side][way] += dice_per_image(large, truth).item() / len(y_valid)
    rows = [(side, *dice) for side, dice in sums.items()]
    keep_table(pd.DataFrame(rows, columns=["side", "enlarged_first", "cut_first"]).round(4), "ceiling.csv")


def zoom() -> None:
    """zoom.csv: how far border stretch enlarges the photo over its mask, and the Dice of a net that finds exactly the
    car that its window shows, against the label that it is given; the mean over the validation masks of the sample.
    """
    _, _, _, y_valid = fetcher().get_train_files()
    rows = []
    for size, mask_size in ((284, 100), (572, 388)):
        dice = []
        for path in y_valid:
            mask = read(path, decode_mask)
            seen = center_crop(resize(mask, (size, size)), (mask_size, mask_size)) > 127
            dice.append(dice_per_image(seen, resize(mask, (mask_size, mask_size)) > 127).item())
        rows.append((size, mask_size, round(size / mask_size, 3), round(float(np.mean(dice)), 4)))
    keep_table(pd.DataFrame(rows, columns=["image", "mask", "zoom", "dice_of_what_is_seen"]), "zoom.csv")


# What draws them -----------------------------------------------------------------------------------------------------

def original() -> UNetOriginal:
    with torch.device("meta"):
        return UNetOriginal((3, 572, 572))


def panels(
    rows: int, columns: int, width: float, titles: list[str], ratio: float = SMALL[0] / SMALL[1], below: float = 0
):
    """A figure `width` inches wide, and its axes, row by row, for pictures of that ratio of height to width; so many
    inches are left below them.
    """
    height = rows * (width / columns * ratio + 0.27) + below
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", squeeze=False)
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.03, wspace=0, hspace=0)
    for axis, title in zip(axes.flat, titles, strict=True):
        axis.set_axis_off()
        axis.set_title(title, fontsize=10, loc="left", pad=3)
    return figure, list(axes.flat)


def whole(size: tuple[float, float]):
    """A figure of that width and height, in inches, and axes that are all of it, with no frame."""
    figure = plt.figure(figsize=size)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    return figure, axis


def show(axis, image: Tensor) -> None:
    axis.imshow(image.permute(1, 2, 0).numpy())


def whiter(image: Tensor, edge: int) -> np.ndarray:
    """(3, H, W) -> (H, W, 3), with a paler border of `edge` pixels."""
    pale = image.float() * 0.55 + 255 * 0.45
    pale[:, edge:-edge, edge:-edge] = image[:, edge:-edge, edge:-edge].float()
    return pale.permute(1, 2, 0).round().byte().numpy()


def arrow(axis, start, end, color: str, line: str = "-", size: int = 11) -> None:
    style = dict(arrowstyle="-|>", color=color, ls=line, lw=1.1, shrinkA=0, shrinkB=0, mutation_scale=size)
    axis.annotate("", end, start, arrowprops=style)


def measure(axis, x: float, y: float, length: float, upright: bool) -> None:
    """A line with an arrow at either end and its length in pixels in the middle."""
    end = (x, y + length) if upright else (x + length, y)
    axis.annotate("", end, (x, y), arrowprops=dict(arrowstyle="<->", color=DARK, lw=1, shrinkA=0, shrinkB=0))
    middle = (x, y + length / 2) if upright else (x + length / 2, y)
    axis.text(*middle, f"{length}", ha="center", va="center", rotation=90 * upright,
              bbox=dict(fc="white", ec="none", pad=1.5))


def save(figure: plt.Figure, name: str, colors: int | None = 256) -> None:
    """Write it with a palette of so many colors, which takes a third of the bytes, or with all of them (None)."""
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=100)
        image = Image.open(file).convert("RGB")
    image = image if colors is None else image.quantize(colors, dither=Image.Dither.NONE)
    plt.close(figure)
    with files.save_atomically(OUT / name) as file:
        image.save(file, format="png", optimize=True)
    print(f"{name:24} {image.width}x{image.height}  {(OUT / name).stat().st_size / 1000:.0f} kB", flush=True)


def keep_table(table: pd.DataFrame, name: str) -> None:
    with files.save_atomically(OUT / name) as file:
        table.to_csv(file, index=False)
    print(f"\n{name}\n{table.to_string(index=False, na_rep='')}\n", flush=True)


def main() -> None:
    fetcher().download_dataset()
    for border in BORDERS:
        run_of(border)
    for draw in (photo_mask_cutout, unet_levels, geometry, stretch, augmentation, zoom, ceiling, tensorboard, runs):
        draw()
    total = sum(path.stat().st_size for path in OUT.iterdir())
    print(f"{OUT.relative_to(ROOT)}: {total / 1000:.0f} kB together")


if __name__ == "__main__":
    with errors.friendly_errors():
        main()
