"""TensorBoard: the curves of a training, its hyperparameters, and its predictions from epoch to epoch."""

import time
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw, ImageFont
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import center_crop

from img.transformer import get_image_size, resize
from nn.callback import Callback
from nn.classifier import CarvanaClassifier
from nn.metrics import dice_per_image
from runtime.files import write_errors

TAGS = {  # TensorBoard groups charts by the part before the slash
    "loss": "masks/loss",
    "dice": "masks/dice",
    "pixel_accuracy": "masks/pixel_accuracy",
    "score": "masks/score",
    "learning_rate": "step/learning_rate",
    "images_per_second": "step/images_per_second",
}
DICE_PER_IMAGE = "masks/dice_per_image"
TRUE_POSITIVE, FALSE_NEGATIVE, FALSE_POSITIVE = (0, 170, 80), (220, 40, 40), (250, 200, 0)  # RGB in an error map
CAPTION_HEIGHT = 36  # pixels; TensorBoard shows a panel at a third of its size


class EventLog:
    """An event file of TensorBoard. Raises UserError if it cannot be written.

    The thread of SummaryWriter ends silently on a full disk, and the training then waits for it forever.

    first_epoch: TensorBoard discards what earlier files in the folder have of this epoch and later ones.
    """

    def __init__(self, folder: Path, first_epoch: int):
        self.folder, start = folder, SessionLog(status=SessionLog.START)
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
            self.writer.write_event(Event(wall_time=time.time(), step=first_epoch, session_log=start))

    def add(self, epoch: int, *summaries: summary.Summary) -> None:
        with write_errors(self.folder):
            for each in summaries:
                self.writer.write_event(Event(wall_time=time.time(), step=epoch, summary=each))
            self.writer.flush()


def flatten(hyperparameters: Any) -> dict[str, bool | int | float | str]:
    """The values of a dataclass instance and of nested instances by name, except 0, False and None."""
    values = {}
    for name, value in vars(hyperparameters).items():
        if is_dataclass(value):
            values |= flatten(value)
        elif value:
            values[name] = value if isinstance(value, int | float) else str(value)
    return values


class TensorboardLoggerCallback(Callback):
    """Logs the metrics of each epoch, a histogram of the validation images' Dice, and the hyperparameters.

    path: the folder of the run; a resumed training continues its curves. hyperparameters: a dataclass instance.
    """

    def __init__(self, path: str | Path, hyperparameters: Any):
        self.path, self.hyperparameters = Path(path), hyperparameters

    def on_train_begin(self, classifier: CarvanaClassifier, valid_loader: DataLoader) -> None:
        # Training and validation have a folder each, so that they share charts
        self.logs = {part: EventLog(self.path / part, classifier.epoch) for part in ("train", "valid")}
        if classifier.epoch:  # a kill may have prevented its metrics from being logged
            self.on_epoch_end(classifier, classifier.epoch, classifier.metrics[-1])
        else:
            results = {TAGS[name]: 0 for name in ("dice", "loss", "score")}
            experiment, start, _end = summary.hparams(flatten(self.hyperparameters), results)
            self.logs["valid"].add(0, experiment, start)

    def on_epoch_end(self, classifier: CarvanaClassifier, epoch: int, metrics: dict[str, float]) -> None:
        for part, log in self.logs.items():
            names = ("loss", "dice", "pixel_accuracy", "images_per_second")
            log.add(epoch, *(summary.scalar(TAGS[name], metrics[f"{part}_{name}"]) for name in names))
        self.logs["train"].add(epoch, summary.scalar(TAGS["learning_rate"], metrics["learning_rate"]))
        dice, bins = classifier.valid_dice.numpy(), np.linspace(0, 1, 101)
        self.logs["valid"].add(epoch, summary.histogram(DICE_PER_IMAGE, dice, bins))

    def on_score(self, classifier: CarvanaClassifier, score: float, table: pd.DataFrame) -> None:
        log = EventLog(self.path / "valid", classifier.epoch + 1)
        log.add(classifier.best["epoch"], summary.scalar(TAGS["score"], score))


class TensorboardVisualizerCallback(Callback):
    """Shows panels of the same validation images in each epoch, and of the worst images of the epoch.

    path: the folder of the run. count: of images, same and worst. width: of an image in a panel, in pixels.
    """

    def __init__(self, path: str | Path, count: int = 4, width: int = 320):
        self.path, self.count, self.width = Path(path), count, width

    def on_train_begin(self, classifier: CarvanaClassifier, valid_loader: DataLoader) -> None:
        self.log, self.dataset = EventLog(self.path, classifier.epoch), valid_loader.dataset
        self.same = spread(self.count, len(self.dataset))
        if classifier.epoch:  # a kill may have prevented its panels from being drawn
            self.on_epoch_end(classifier, classifier.epoch, {})

    def on_epoch_end(self, classifier: CarvanaClassifier, epoch: int, metrics: dict[str, float]) -> None:
        worst = classifier.valid_dice.argsort(stable=True)[: self.count].tolist()
        shown = {f"validation/{self.dataset.X[index].name}": index for index in self.same}
        shown |= {f"worst_of_the_epoch/{rank}": index for rank, index in enumerate(worst, start=1)}
        panels = (summary.image(tag, self._panel(classifier, index).numpy()) for tag, index in shown.items())
        self.log.add(epoch, *panels)

    def _panel(self, classifier: CarvanaClassifier, index: int) -> Tensor:
        path = self.dataset.X[index]
        image, mask = self.dataset[index]  # (3, H, W), (h, w) uint8
        prediction = (classifier.predict_probs(image[None])[0] > classifier.threshold).cpu()  # (h, w)
        image = center_crop(image, mask.shape) if self.dataset.padding == "reflect" else resize(image, mask.shape)
        height, width = get_image_size(path)
        size = round(self.width * height / width), self.width
        return panel(image, prediction, mask > 127, size, path.name)


def panel(image: Tensor, prediction: Tensor, mask: Tensor, size: tuple[int, int], title: str) -> Tensor:
    """side_by_side() above a caption with the Dice, the meaning of the colors, and the title.

    image (3, h, w) uint8, prediction and mask (h, w) bool -> (3, size[0] + CAPTION_HEIGHT, 3 * size[1]) uint8.
    """
    height, width = size[0], 3 * size[1]
    strip = resize(side_by_side(image, prediction, mask), (height, width))
    caption = Image.new("RGB", (width, CAPTION_HEIGHT), "black")
    draw, font, left = ImageDraw.Draw(caption), ImageFont.load_default(0.7 * CAPTION_HEIGHT), 4
    dice = dice_per_image(prediction[None], mask[None]).item()
    for text, color in (
        (f"Dice {dice:.4f}", "white"),
        ("hit", TRUE_POSITIVE),
        ("miss", FALSE_NEGATIVE),
        ("false alarm", FALSE_POSITIVE),
        (title, "white"),
    ):
        draw.text((left, CAPTION_HEIGHT / 2), text, color, font, "lm")
        left += draw.textlength(f"{text}  ", font)
    return torch.cat([strip, torch.from_numpy(np.array(caption)).permute(2, 0, 1)], dim=1)


def side_by_side(image: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
    """Image, error map and cut-out: image (3, h, w) uint8, prediction and mask (h, w) bool -> (3, h, 3 * w) uint8."""
    error_map = torch.zeros_like(image)
    for pixels, color in (
        (prediction & mask, TRUE_POSITIVE),
        (~prediction & mask, FALSE_NEGATIVE),
        (prediction & ~mask, FALSE_POSITIVE),
    ):
        error_map[:, pixels] = torch.tensor(color, dtype=torch.uint8)[:, None]
    return torch.cat([image, error_map, image * prediction], dim=2)


def spread(count: int, total: int) -> list[int]:
    """One index of each of `count` equal parts of range(total), each from another place of its part.

    The places follow the golden ratio: among images sorted by name, both cars and angles differ.
    """
    return sorted({int((i + 0.618 * i % 1) / count * total) for i in range(count)})
