"""TensorBoard: the curves of a training, its hyperparameters, and its predictions from epoch to epoch."""

from __future__ import annotations

import math
import time
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from torchvision.transforms.v2.functional import center_crop

from img.transformer import get_image_size, resize
from nn.callback import Callback
from nn.metrics import dice_per_image
from runtime.files import write_errors

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor
    from torch.utils.data import DataLoader

    from nn.classifier import CarvanaClassifier

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
    """An event file of TensorBoard, written without a thread: what was flushed survives a kill.

    SummaryWriter's thread ends silently on a full disk; ten events later, the training would wait for it forever.

    folder: gets another event file each time the training resumes.
    first_epoch: TensorBoard discards what earlier event files have of this epoch and later ones.
    All methods raise UserError if they cannot write.
    """

    def __init__(self, folder: Path, first_epoch: int):
        self.folder, suffix = folder, f".{time.time_ns()}"
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.writer = EventsWriter(str(folder / "events"), suffix)
            (self.file,) = folder.glob(f"*{suffix}")
        self.add(first_epoch, session_log=SessionLog(status=SessionLog.START))

    def add(self, epoch: int, **content: summary.Summary | SessionLog) -> None:
        """content: summary=, with the result of a function of tensorboardX.summary, or session_log=."""
        with write_errors(self.folder):
            self.writer.write_event(Event(wall_time=time.time(), step=epoch, **content))

    def flush(self) -> None:
        with write_errors(self.folder):
            self.writer.flush()
            self.file.stat()  # writing to a deleted file is not an error


def read_scalars(folder: Path, last_epoch: int) -> dict[tuple[str, int], float]:
    """The event files in a folder -> {(tag, epoch): latest value}, 0 for tags of another kind."""
    events = [event for file in sorted(folder.glob("events.*")) for event in LegacyEventFileLoader(str(file)).Load()]
    events = [event for event in events if event.step <= last_epoch]
    return {(value.tag, event.step): value.simple_value for event in events for value in event.summary.value}


def flatten(hyperparameters: Any) -> dict[str, bool | int | float | str]:
    """A dataclass instance -> its values by name and those of nested instances, except 0, False and None."""
    values = {}
    for name, value in vars(hyperparameters).items():
        if is_dataclass(value):
            values |= flatten(value)
        elif value:
            values[name] = value if isinstance(value, int | float) else str(value)
    return values


class TensorboardLoggerCallback(Callback):
    """Logs the metrics of each epoch, a histogram of the validation images' Dice, and the hyperparameters.

    path: the folder of the run, such as logs/tb_logs/<timestamp>. A resumed training continues its curves.
    hyperparameters: a dataclass instance, which may be nested.
    """

    def __init__(self, path: str | Path, hyperparameters: Any):
        self.path, self.hyperparameters = Path(path), hyperparameters
        self.logs: dict[str, EventLog] = {}  # of "train" and "valid", which share charts
        self.written: dict[str, dict[tuple[str, int], float]] = {}  # what their earlier event files have

    def on_train_begin(self, classifier: CarvanaClassifier, valid_loader: DataLoader) -> None:
        for part in ("train", "valid"):
            self.written[part] = read_scalars(self.path / part, last_epoch=classifier.epoch)
            self.logs[part] = EventLog(self.path / part, first_epoch=classifier.epoch + 1)
        if not any(self.written.values()):
            results = {TAGS[name]: 0 for name in ("dice", "loss", "score")}
            for content in summary.hparams(flatten(self.hyperparameters), results)[:2]:  # the third ends the session
                self.logs["valid"].add(0, summary=content)
        for metrics in classifier.metrics:  # a kill may have prevented some from being logged
            self.on_epoch_end(classifier, metrics["epoch"], metrics)

    def on_epoch_end(self, classifier: CarvanaClassifier, epoch: int, metrics: dict[str, float]) -> None:
        for part, log in self.logs.items():
            names = ("loss", "dice", "pixel_accuracy", "images_per_second")
            scalars = {TAGS[name]: metrics[f"{part}_{name}"] for name in names}
            if part == "train":
                scalars[TAGS["learning_rate"]] = metrics["learning_rate"]
            contents = {tag: summary.scalar(tag, value) for tag, value in scalars.items()}
            if part == "valid" and epoch == classifier.epoch:
                dice, bins = classifier.valid_dice.numpy(), np.linspace(0, 1, 101)
                contents[DICE_PER_IMAGE] = summary.histogram(DICE_PER_IMAGE, dice, bins)
            for tag, content in contents.items():
                if (tag, epoch) not in self.written[part]:
                    log.add(epoch, summary=content)
            log.flush()

    def on_score(self, classifier: CarvanaClassifier, score: float, table: pd.DataFrame) -> None:
        """Add the score at the best epoch, if it is new: another threshold may give another one."""
        tag, epoch, folder = TAGS["score"], classifier.best["epoch"], self.path / "valid"
        earlier = read_scalars(folder, last_epoch=epoch).get((tag, epoch), math.nan)
        if not math.isclose(earlier, score, rel_tol=1e-6):  # TensorBoard stores float32
            log = EventLog(folder, first_epoch=classifier.epoch + 1)
            log.add(epoch, summary=summary.scalar(tag, score))
            log.flush()


class TensorboardVisualizerCallback(Callback):
    """Shows panels of the same validation images in each epoch, and of the worst images of the epoch.

    path: the folder of the run, such as logs/tb_viz/<timestamp>. count: of images, same and worst.
    width: of an image in a panel, in pixels. The height follows from the file, up to twice the width.
    """

    def __init__(self, path: str | Path, count: int = 4, width: int = 320):
        self.path, self.count, self.width = Path(path), count, width

    def on_train_begin(self, classifier: CarvanaClassifier, valid_loader: DataLoader) -> None:
        self.log = EventLog(self.path, first_epoch=max(classifier.epoch, 1))
        self.dataset = valid_loader.dataset
        self.same = {f"validation/{self._name(index)}": index for index in spread(self.count, len(self.dataset))}
        if classifier.epoch:  # a kill may have prevented its panels from being drawn
            self.on_epoch_end(classifier, classifier.epoch, {})

    def on_epoch_end(self, classifier: CarvanaClassifier, epoch: int, metrics: dict[str, float]) -> None:
        worst = classifier.valid_dice.argsort(stable=True)[: self.count].tolist()
        shown = self.same | {f"worst_of_the_epoch/{rank}": index for rank, index in enumerate(worst, start=1)}
        panels = {index: self._panel(classifier, index).numpy() for index in {*shown.values()}}
        for tag, index in shown.items():
            self.log.add(epoch, summary=summary.image(tag, panels[index]))
        self.log.flush()

    def _name(self, index: int) -> str:
        return Path(self.dataset.X[index]).name

    def _panel(self, classifier: CarvanaClassifier, index: int) -> Tensor:
        image, mask = self.dataset[index]  # (3, H, W), (h, w) uint8
        prediction = (classifier.predict_probs(image[None])[0] > classifier.threshold).cpu()  # (h, w)
        image = center_crop(image, mask.shape) if self.dataset.padding == "reflect" else resize(image, mask.shape)
        height, width = get_image_size(self.dataset.X[index])
        height = min(max(1, round(self.width * height / width)), 2 * self.width)
        return panel(image, prediction, mask > 127, (height, self.width), self._name(index))


def panel(image: Tensor, prediction: Tensor, mask: Tensor, size: tuple[int, int], title: str) -> Tensor:
    """side_by_side() above a caption with the title, the Dice and the meaning of the colors.

    image (3, h, w) uint8, prediction and mask (h, w) bool -> (3, size[0] + CAPTION_HEIGHT, 3 * size[1]) uint8.
    """
    height, width = size[0], 3 * size[1]
    strip = resize(side_by_side(image, prediction, mask), (height, width))
    caption = Image.new("RGB", (width, CAPTION_HEIGHT), "black")
    draw, font = ImageDraw.Draw(caption), ImageFont.load_default(0.7 * CAPTION_HEIGHT)
    dice = dice_per_image(prediction[None], mask[None]).item()
    draw.text((4, CAPTION_HEIGHT / 2), f"Dice {dice:.4f}  {title[:34]}", "white", font, "lm")
    right = width - 4
    for color, meaning in ((FALSE_POSITIVE, "false alarm"), (FALSE_NEGATIVE, "miss"), (TRUE_POSITIVE, "hit")):
        draw.text((right, CAPTION_HEIGHT / 2), meaning, color, font, "rm")
        right -= draw.textlength(f"{meaning}  ", font)
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
