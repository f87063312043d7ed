"""What TensorBoard shows: the curves of a training, what it was trained with, and its masks from epoch to epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import hparams
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import center_crop

from img.transformer import get_image_size, resize
from nn.callback import Callback
from nn.metrics import dice_per_image
from runtime.errors import UserError

if TYPE_CHECKING:
    from nn.classifier import CarvanaClassifier

TRUE_POSITIVE, FALSE_NEGATIVE, FALSE_POSITIVE = (0, 170, 80), (220, 40, 40), (250, 200, 0)  # RGB of the pixels of a prediction
LINE = 36  # height of the line below a panel, in pixels: TensorBoard shows a panel at a third of its size
TAGS = {  # the tag of each metric: what stands before the / is a heading in TensorBoard
    "loss": "masks/loss",
    "dice": "masks/dice",
    "pixel_accuracy": "masks/pixel_accuracy",
    "score": "masks/score",
    "learning_rate": "step/learning_rate",
    "images_per_second": "step/images_per_second",
}


class Log:
    """A SummaryWriter that writes here and now, and goes on with what an earlier run of the program left in its folder.

    SummaryWriter itself hands each event to a thread, which a full disk ends; ten events later add_scalar waits for
    ever. Without that thread a fault is an error here, and what flush() has seen survives a kill.

    path: the folder. first: the first epoch to come; TensorBoard is told to discard_partial what the log has of it and later.
    Each method raises UserError where the folder can't be written to.
    """

    def __init__(self, path: Path, first: int):
        self.path, suffix = path, f".{time.time_ns()}"
        with self._naming():
            self.writer = SummaryWriter(str(path), filename_suffix=suffix)
            (self.file,) = path.glob(f"*{suffix}")
            self.events = self.writer.file_writer.event_writer
            self.events._worker.stop()
            self.events.add_event = self.events._ev_writer.write_event
            self.events.add_event(Event(step=first, session_log=SessionLog(status=SessionLog.START)))

    def add_curve(self, name: str, value: float, epoch: int) -> None:
        """A point of one of the TAGS."""
        with self._naming():
            self.writer.add_scalar(TAGS[name], value, epoch)

    def add_histogram(self, tag: str, values: Tensor, epoch: int) -> None:
        """values: between 0 and 1."""
        if len(values):
            with self._naming():
                self.writer.add_histogram(tag, values.numpy(), epoch, bins=np.linspace(0, 1, 101))

    def add_hyperparameters(self, values: dict[str, Any], curves: tuple[str, ...]) -> None:
        """A row of the page HPARAMS, with the latest points of these curves of this log; no path, 0, False or None."""
        told = {name: value for name, value in values.items() if value and not isinstance(value, Path)}
        values = {name: value if isinstance(value, int | float) else str(value) for name, value in told.items()}
        with self._naming():
            for summary in hparams(values, {TAGS[name]: 0 for name in curves})[:2]:
                self.writer.file_writer.add_summary(summary, 0)

    def add_image(self, tag: str, image: Tensor, epoch: int) -> None:
        """image: (3, H, W) uint8."""
        with self._naming():
            self.writer.add_image(tag, image.numpy(), epoch, dataformats="CHW")

    def flush(self) -> None:
        with self._naming():
            self.writer.flush()
            self.file.stat()  # a file that was removed takes what is written to it, and it is gone

    def close(self) -> None:
        try:
            with self._naming():
                self.writer.close()
        finally:
            self.events._closed = True  # or it would try again when the program ends

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"TensorBoard's log in {self.path} can't be written ({error.strerror}). Make room or mend the folder "
                "first."
            ) from error


def points(path: Path, up_to: int) -> dict[tuple[str, str, int], float]:
    """The latest point that a log of curves has of each epoch up to that one, by name of the folder, tag and epoch."""
    events = [event for file in sorted(path.glob("events.*")) for event in LegacyEventFileLoader(str(file)).Load()]
    kept = [event for event in events if event.step <= up_to]
    return {(path.name, value.tag, event.step): value.simple_value for event in kept for value in event.summary.value}


class TensorboardLoggerCallback(Callback):
    """Loss, Dice and pixel accuracy of each epoch, one tag each, with a curve for train and one for valid in one chart.

    Beside them a histogram of the validation photos' Dice, and a row of hyperparameters with what came of them.

    path: the folder of this run, such as logs/tb_logs/<timestamp>. A run that was stopped goes on in its own curves.
    hyperparameters: by name.
    """

    DICES = "masks/dice_of_each_photo"

    def __init__(self, path: str | Path, hyperparameters: dict[str, Any]):
        self.path, self.hyperparameters, self.logs, self.there = Path(path), hyperparameters, {}, {}

    def on_train_begin(self, classifier: CarvanaClassifier, valid_loader: DataLoader) -> None:
        for phase in ("train", "valid"):
            self.there |= points(self.path / phase, up_to=classifier.epoch)
            self.logs[phase] = Log(self.path / phase, classifier.epoch + 1)
        if not self.there:
            self.logs["valid"].add_hyperparameters(self.hyperparameters, ("dice", "loss", "score"))
        for metrics in classifier.metrics:  # an epoch may have been saved, and the program killed before it came here
            self.on_epoch_end(classifier, metrics["epoch"], metrics)

    def on_epoch_end(self, classifier: CarvanaClassifier, epoch: int, metrics: dict[str, float]) -> None:
        for phase, log in self.logs.items():
            curves = {n: metrics[f"{phase}_{n}"] for n in ("loss", "dice", "pixel_accuracy", "images_per_second")}
            if phase == "train":
                curves["learning_rate"] = metrics["learning_rate"]
            elif epoch == classifier.epoch and (phase, self.DICES, epoch) not in self.there:
                log.add_histogram(self.DICES, classifier.valid_dice, epoch)
            for name, value in curves.items():
                if (phase, TAGS[name], epoch) not in self.there:
                    log.add_curve(name, value, epoch)
            log.flush()

    def on_train_end(self, classifier: CarvanaClassifier) -> None:
        for log in self.logs.values():
            log.close()

    def log_score(self, classifier: CarvanaClassifier, score: float) -> None:
        """Add the score of the best epoch's weights, once training has ended, as a point at that epoch.

        Another one may follow, of another threshold or with two views; one that is there is not added again.
        """
        epoch, path = classifier.best["epoch"], self.path / "valid"
        there = points(path, up_to=epoch).get((path.name, TAGS["score"], epoch))
        if there is None or not math.isclose(there, score, rel_tol=1e-6):  # TensorBoard keeps float32
            log = Log(path, classifier.epoch + 1)
            log.add_curve("score", score, epoch)
            log.close()

    def on_exception(self) -> None:
        for log in self.logs.values():
            with suppress(UserError):
                log.close()


class TensorboardVisualizerCallback(Callback):
    """Two rows of pictures: the same few validation photos each epoch, so that a slider runs through the epochs, and
    the worst photos of each epoch. Each is a panel (see there).

    path: the folder of this run, such as logs/tb_viz/<timestamp>. count: how many photos a row has.
    width: of a photo in a panel, in pixels; its height keeps the file's proportions, up to twice as high as wide.
    """

    def __init__(self, path: str | Path, count: int = 4, width: int = 320):
        self.path, self.count, self.width, self.log = Path(path), count, width, None

    def on_train_begin(self, classifier: CarvanaClassifier, valid_loader: DataLoader) -> None:
        self.log, self.dataset = Log(self.path, max(classifier.epoch, 1)), valid_loader.dataset
        self.shown = {f"validation/{self._name(i)}": i for i in spread(self.count, len(self.dataset))}
        if classifier.epoch:  # the program may have been killed before it came here
            self.on_epoch_end(classifier, classifier.epoch, {})

    def on_epoch_end(self, classifier: CarvanaClassifier, epoch: int, metrics: dict[str, float]) -> None:
        worst = classifier.valid_dice.argsort(stable=True)[: self.count].tolist()
        shown = self.shown | {f"worst_of_the_epoch/{place}": index for place, index in enumerate(worst, start=1)}
        panels = {index: self._panel(classifier, index) for index in {*shown.values()}}  # one at a time
        for tag, index in shown.items():
            self.log.add_image(tag, panels[index], epoch)
        self.log.flush()

    def _name(self, index: int) -> str:
        return Path(self.dataset.X[index]).name

    def _panel(self, classifier: CarvanaClassifier, index: int) -> Tensor:
        image, mask = self.dataset[index]  # (3, H, W), (h, w) uint8
        prediction = (classifier.predict_probs(image[None]).cpu() > classifier.threshold)[0]
        photo = center_crop(image, mask.shape) if self.dataset.padding == "reflect" else resize(image, mask.shape)
        height, width = get_image_size(self.dataset.X[index])
        size = min(max(1, round(self.width * height / width)), 2 * self.width), self.width
        return panel(photo, prediction, mask > 127, size, self._name(index))

    def on_train_end(self, classifier: CarvanaClassifier) -> None:
        self.log.close()

    def on_exception(self) -> None:
        if self.log is not None:
            with suppress(UserError):
                self.log.close()


def panel(photo: Tensor, prediction: Tensor, mask: Tensor, size: tuple[int, int], title: str) -> Tensor:
    """side_by_side of these, each at `size`, above a line with the title, the Dice, and what the colors mean.

    photo (3, h, w) uint8, prediction and mask (h, w) of bool -> (3, size[0] + the line, 3 * size[1]) uint8.
    """
    strip = resize(side_by_side(photo, prediction, mask), (size[0], 3 * size[1]))
    line = Image.new("RGB", (strip.shape[2], LINE), "white")
    draw, font = ImageDraw.Draw(line), ImageFont.load_default(0.7 * LINE)
    dice = dice_per_image(prediction[None], mask[None]).item()
    draw.text((4, LINE / 2), f"{title[:34]}  Dice {dice:.4f}", "black", font, "lm")
    right = strip.shape[2]
    for color, meaning in ((FALSE_POSITIVE, "false alarm"), (FALSE_NEGATIVE, "miss"), (TRUE_POSITIVE, "hit")):
        left = right - draw.textlength(meaning, font) - LINE
        draw.rectangle((left, 0, right, LINE), "white")  # over a title of wide letters
        draw.rectangle((left + LINE / 4, LINE / 4, left + 3 * LINE / 4, 3 * LINE / 4), color)
        draw.text((right - 4, LINE / 2), meaning, "black", font, "rm")
        right = left
    return torch.cat([strip, torch.from_numpy(np.array(line)).permute(2, 0, 1)], dim=1)


def side_by_side(photo: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
    """photo (3, h, w) uint8, prediction and mask (h, w) of bool -> (3, h, 3 w) uint8: photo, error_map, cut-out."""
    error_map = torch.zeros_like(photo)
    for where, color in ((prediction & mask, TRUE_POSITIVE), (~prediction & mask, FALSE_NEGATIVE), (prediction & ~mask, FALSE_POSITIVE)):
        error_map[:, where] = torch.tensor(color, dtype=torch.uint8)[:, None]
    return torch.cat([photo, error_map, photo * prediction], dim=2)


def spread(count: int, total: int) -> list[int]:
    """`count` of the numbers below `total`: one from each share of them, each from another place of its share.

    The places go by the golden ratio, so that of photos sorted by name one gets different cars and different views.
    """
    return sorted({int((i + 0.618 * i % 1) / count * total) for i in range(count)})
