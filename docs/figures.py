"""Draw the figures of the docs from the drawn sample and from tables, with the package's own functions.

    python docs/figures.py [NAME ...]        (or: make figures)

Without names it draws all of them. It trains the nets that they need, unless output/figures/ has them: the paper's net
with each padding, and the net of `make demo`. They take 1.4 GB there. Writes the figures to docs/figures/, and the
tables that the tutorial quotes: runs.csv, zoom.csv and ceiling.csv.
"""

import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from drawing import (
    CAR,
    COPY,
    DARK,
    GRAY,
    OUT,
    ROOT,
    SMALL,
    VIOLET,
    WRONG,
    arrow,
    full_axes,
    keep_table,
    measure,
    panels,
    save,
    save_png,
    show,
    whiten,
)
from matplotlib import pyplot as plt
from matplotlib.patches import Patch, Rectangle
from PIL import Image
from plots import gains, speed
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from torch import Tensor, nn

from callbacks.tensorboard import FALSE_NEGATIVE, FALSE_POSITIVE, TRUE_POSITIVE, side_by_side
from data.dataset import TestImageDataset
from data.fetcher import DatasetFetcher
from data.layout import make_layout
from data.reader import read
from img.augmentation import augment_img
from img.mask import decode_mask
from img.transformer import decode_image, from_pillow, reflect_pad, resize, resize_size, upsample
from nn.classifier import CarvanaClassifier
from nn.metrics import dice_per_image
from nn.unet_origin import ConvBnRelu, UNetOriginal, center_crop
from predict import Segmenter
from runtime.errors import UserError, friendly_errors, require
from runtime.run import saved_runs

PADDINGS = ("reflect", "stretch")
TRAINING = (  # of both runs, which differ in --padding alone
    "--dataset sample --input-img-resize 284 284 --output-img-resize 100 100 --batch-size 4 --optimizer AdamW "
    "--learning-rate 0.001 --schedule one_cycle --epochs 5 --no-predict"
)
DEMO = re.search(r"main\.py (.*?)\$\(ARGS\)", (ROOT / "Makefile").read_text(), re.DOTALL)[1].replace("\\\n", "")
OPTIONS = {padding: f"{TRAINING} --padding {padding}" for padding in PADDINGS} | {"demo": f"{DEMO} --no-predict"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NO_BROWSER = "tensorboard_page.png needs a browser. Run make .venv/installed-browser, which installs one."


# What the figures show -----------------------------------------------------------------------------------------------

def pair(index: int, size: tuple[int, int] = SMALL) -> tuple[Tensor, Tensor]:
    """A training image and its mask: (3, *size) and (1, *size), uint8."""
    X_train, y_train, _, _ = fetcher().get_train_files()
    return resize(read(X_train[index], decode_image), size), resize(read(y_train[index], decode_mask), size)


@cache
def fetcher() -> DatasetFetcher:
    sample = DatasetFetcher(make_layout("sample", ROOT / "input", hq_files=None, group_regex=None))
    sample.download_dataset()  # draws it, if it is not there
    return sample


def original() -> UNetOriginal:
    with torch.device("meta"):
        return UNetOriginal((3, 572, 572))


def layers(net: nn.Module) -> list[tuple[str, str, tuple[int, int, int]]]:
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


def run_of(name: str) -> Path:
    """The folder of that run. Trains it, or resumes it, if it is not finished."""
    output, logs = (Path(folder, "figures", name) for folder in ("output", "logs"))
    if not saved_runs(ROOT / output, "score.csv"):
        resume = ["--resume", "last"] if saved_runs(ROOT / output) else OPTIONS[name].split()
        folders = ["--output-dir", output, "--logs-dir", logs]
        code = subprocess.run([sys.executable, "main.py", *resume, *folders], cwd=ROOT).returncode
        if code:  # it has printed why
            sys.exit(code)
    return saved_runs(ROOT / output, "score.csv")[-1]


def logs_of(name: str, kind: str) -> Path:
    """What TensorBoard shows of that run. kind: tb_logs or tb_viz."""
    run = run_of(name).name.removeprefix("model_")
    return ROOT / "logs" / "figures" / name / kind / run


def demo() -> tuple[Segmenter, pd.DataFrame]:
    """The demo's net, and the score of each validation image, the worst first."""
    run = run_of("demo")
    return Segmenter(run), pd.read_csv(run / "score.csv")


def probabilities(padding: str, paths: list[Path]) -> Tensor:
    """Probabilities of car that the best epoch of that run predicts for images, (N, *SMALL)."""
    net = UNetOriginal((3, 284, 284))
    classifier = CarvanaClassifier(net, epochs=0)
    classifier.restore_model(run_of(padding) / "best.pt")
    dataset = TestImageDataset(paths, net.in_shape[1:], net.output_size, padding)
    return upsample(torch.cat([classifier.predict_probs(image[None]) for image, _ in dataset]), SMALL)


def in_tensorboard(padding: str) -> dict[tuple[str, int], np.ndarray]:
    """The images that TensorboardVisualizerCallback wrote in that run, (height, width, 3), by tag and epoch."""
    images = {}
    for file in sorted(logs_of(padding, "tb_viz").glob("events.*")):
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


def levels() -> None:
    """The U of UNetOriginal at 572x572, from the shapes of its modules. The heights of the boxes are to scale."""
    figure, axis = full_axes((10, 6.6))
    top, x, level, last, traces = [0, 802, 1316, 1686, 1984], 0, 0, None, {}  # top: of the boxes of each level
    for _, kind, (channels, height, _) in layers(original()):
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


def cutout() -> None:
    """A test image, the mask that the demo's net predicts for it, and the car that it cuts out, on two backgrounds."""
    segmenter, _ = demo()
    path = fetcher().get_test_files()[-13]
    row, column = np.indices(SMALL) // 16
    squares = Image.fromarray(np.where((row + column) % 2, 255, 215).astype(np.uint8)).convert("RGBA")
    car, on_color = (
        segmenter.cut_out(path, background).resize(squares.size, Image.Resampling.LANCZOS)
        for background in (None, Image.new("RGB", (1, 1), "#f2b632"))
    )
    mask = 255 * segmenter.mask(path).byte()
    images = [
        resize(read(path, decode_image), SMALL), resize(mask.expand(3, -1, -1), SMALL),
        from_pillow(Image.alpha_composite(squares, car).convert("RGB")), from_pillow(on_color),
    ]
    titles = ["a test image", "its predicted mask", "the cut-out: transparent", "with another background"]
    figure, axes = panels(1, 4, 10, titles)
    for axis, image in zip(axes, images, strict=True):
        show(axis, image)
    save(figure, "cutout.png")


def worst() -> None:
    """Error maps of the demo's worst validation images, all of the same part of the image."""
    segmenter, scores = demo()
    _, _, X_valid, y_valid = fetcher().get_train_files()
    paths = {image.name: (image, mask) for image, mask in zip(X_valid, y_valid, strict=True)}
    scores = scores.head(6)
    maps = [error_map(read(image, decode_image), segmenter.mask(image), read(mask, decode_mask)[0] > 127)
            for image, mask in (paths[name] for name in scores["image"])]
    rows, columns = window(torch.stack(maps).amax((0, 1)) > 0)
    figure, axes = panels(2, 3, 10, [f"{row.image}  Dice {row.dice:.4f}" for row in scores.itertuples()], below=0.3)
    for axis, each in zip(axes, maps, strict=True):
        show(axis, resize(each[:, rows, columns], SMALL))
    meanings = {"hit": TRUE_POSITIVE, "miss": FALSE_NEGATIVE, "false alarm": FALSE_POSITIVE, "background": (0, 0, 0)}
    handles = [Patch(color=np.array(color) / 255, label=meaning) for meaning, color in meanings.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    save(figure, "worst.png")


def window(mask: Tensor) -> tuple[slice, slice]:
    """The rows and columns of a part of the image that shows a mask (H, W), in the proportions of the image."""
    size, places = np.array(mask.shape), np.argwhere(mask.numpy())
    first, last = places.min(0), places.max(0)
    part = min(1, 1.15 * ((last - first) / size).max())
    start = np.clip((first + last - part * size) / 2, 0, (1 - part) * size).astype(int)
    rows, columns = map(slice, start, start + (part * size).astype(int))
    return rows, columns


def tensorboard_page() -> None:
    """The demo's curves in TensorBoard, as a browser shows them, with the values of the best epoch."""
    with open_browser() as browser:
        from tensorboard import program  # importing it takes a second

        board = program.TensorBoard()  # a thread, which ends with this script
        logs, metrics = logs_of("demo", "tb_logs"), metrics_of(run_of("demo"))
        options = "--host 127.0.0.1 --port 0 --load_fast false".split()
        board.configure(["tensorboard", "--logdir", str(logs), *options])
        page = browser.new_page(viewport={"width": 960, "height": 607})
        # Without the pane of settings, and without the time that the training took
        columns = [dict(type=name.upper(), name=name, displayName=name.title(), enabled=True)
                   for name in ("run", "value", "step")]
        settings = json.dumps({"timeSeriesSettingsPaneOpened": False, "singleSelectionHeaders": columns})
        page.add_init_script(f"localStorage._tb_global_settings = {settings!r}")
        shown = {"tagFilter": "masks/(dice|loss)$", "runFilter": "train|valid", "smoothing": 0}
        page.goto(f"{board.launch()}?{urlencode(shown)}#timeseries")
        page.locator("card-view", has_text="masks/loss").get_by_text("valid").first.wait_for()
        for step in page.get_by_label("Edit step").all():
            step.fill(str(metrics["epoch"][metrics["valid_dice"].idxmax()]))
            step.press("Enter")
        page.wait_for_timeout(3_000)  # until all is drawn
        save_png(page.screenshot(), "tensorboard_page.png")


@contextmanager
def open_browser() -> Iterator:
    """Chromium without a window, controlled by Playwright. Raises UserError if one of them is missing."""
    try:
        from playwright import sync_api
    except ImportError:
        raise UserError(NO_BROWSER) from None
    with sync_api.sync_playwright() as playwright:
        path = next(filter(None, map(shutil.which, BROWSERS)), None)
        try:
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error:
            raise UserError(NO_BROWSER) from None
        yield browser
        browser.close()


DRAW = {draw.__name__: draw for draw in (  # in this order: if there is no browser, the last one ends the script
    photo_mask_cutout, levels, geometry, stretch, augmentation, gains, speed, zoom, ceiling, cutout, worst, tensorboard,
    runs, tensorboard_page,
)}


def main(names: list[str]) -> None:
    unknown = set(names) - DRAW.keys()
    require(not unknown, f"There is no figure {', '.join(unknown)}. There are {', '.join(DRAW)}.")
    for name in names or DRAW:
        DRAW[name]()
    total = sum(path.stat().st_size for path in OUT.iterdir())
    print(f"{OUT.relative_to(ROOT)}: {total / 1000:.0f} kB in total")


if __name__ == "__main__":
    with friendly_errors():
        main(sys.argv[1:])
