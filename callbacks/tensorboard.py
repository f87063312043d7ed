"""What TensorBoard shows: the curves of a training, and how the same few photos get better from epoch to epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import center_crop

from callbacks.callback import Callback
from helpers import UserError
from img.transformer import resize

if TYPE_CHECKING:
    from nn.classifier import CarvanaClassifier

HIT, MISS, FALSE_ALARM = (0, 170, 80), (220, 40, 40), (250, 200, 0)  # RGB of the pixels of a prediction


class Log:
    """A SummaryWriter that writes here and now, and goes on with what an earlier run of the program left in its folder.

    SummaryWriter itself hands each event to a thread, which a full disk ends; ten events later add_scalar waits for
    ever. Without that thread a fault is an error here, and what flush() has seen survives a kill.

    path: the folder. first: the first epoch to come; TensorBoard is told to forget what the log has of it and later.
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

    def add_scalar(self, tag: str, value: float, epoch: int) -> None:
        with self._naming():
            self.writer.add_scalar(tag, value, epoch)

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

    path: the folder of this run, such as logs/tb_logs/<timestamp>. A run that was stopped goes on in its own curves.
    """

    def __init__(self, path: str | Path):
        self.path, self.logs, self.there = Path(path), {}, {}

    def on_train_begin(self, classifier: CarvanaClassifier, valid_loader: DataLoader) -> None:
        for phase in ("train", "valid"):
            self.there |= points(self.path / phase, up_to=classifier.epoch)
            self.logs[phase] = Log(self.path / phase, classifier.epoch + 1)
        for metrics in classifier.metrics:  # an epoch may have been saved, and the program killed before it came here
            self.on_epoch_end(classifier, metrics["epoch"], metrics)

    def on_epoch_end(self, classifier: CarvanaClassifier, epoch: int, metrics: dict[str, float]) -> None:
        for phase, log in self.logs.items():
            curves = {n: metrics[f"{phase}_{n}"] for n in ("loss", "dice", "pixel_accuracy", "images_per_second")}
            if phase == "train":
                curves["learning_rate"] = metrics["learning_rate"]
            for tag, value in curves.items():
                if (phase, tag, epoch) not in self.there:
                    log.add_scalar(tag, value, epoch)
            log.flush()

    def on_train_end(self, classifier: CarvanaClassifier) -> None:
        for log in self.logs.values():
            log.close()

    def log_score(self, classifier: CarvanaClassifier, score: float) -> None:
        """Add the score of the best epoch's weights, once training has ended, as a point at that epoch.

        Another one may follow, of another threshold or with flip averaging; one that is there is not added again.
        """
        epoch, path = classifier.best["epoch"], self.path / "valid"
        there = points(path, up_to=epoch).get((path.name, "score", epoch))
        if there is None or not math.isclose(there, score, rel_tol=1e-6):  # TensorBoard keeps float32
            log = Log(path, classifier.epoch + 1)
            log.add_scalar("score", score, epoch)
            log.close()

    def on_stop(self) -> None:
        for log in self.logs.values():
            with suppress(UserError):
                log.close()


class TensorboardVisualizerCallback(Callback):
    """The same few validation photos each epoch, under one tag each, so that a slider runs through the epochs.

    Side by side: the photo; the prediction, coloured where it hits the car (green), misses it (red) or raises a false
    alarm (yellow); the photo under the predicted mask.

    path: the folder of this run, such as logs/tb_viz/<timestamp>. count: how many photos.
    """

    def __init__(self, path: str | Path, count: int = 4):
        self.path, self.count, self.log = Path(path), count, None

    def on_train_begin(self, classifier: CarvanaClassifier, valid_loader: DataLoader) -> None:
        self.log = Log(self.path, max(classifier.epoch, 1))
        dataset = valid_loader.dataset
        indices = spread(self.count, len(dataset))
        self.tags = [f"validation/{Path(dataset.X[index]).name}" for index in indices]
        pairs = [dataset[index] for index in indices]
        self.images = torch.stack([image for image, _ in pairs])  # (count, 3, H, W) uint8
        self.masks = torch.stack([mask for _, mask in pairs]) > 127  # (count, h, w)
        self.border = dataset.border
        if classifier.epoch:  # the program may have been killed before it came here
            self.on_epoch_end(classifier, classifier.epoch, {})

    def on_epoch_end(self, classifier: CarvanaClassifier, epoch: int, metrics: dict[str, float]) -> None:
        probs = torch.cat([classifier.predict_probs(image[None]).cpu() for image in self.images])  # one at a time
        predictions = probs > classifier.threshold
        for tag, image, prediction, mask in zip(self.tags, self.images, predictions, self.masks, strict=True):
            photo = center_crop(image, mask.shape) if self.border == "mirror" else resize(image, mask.shape)
            self.log.add_image(tag, side_by_side(photo, prediction, mask), epoch)
        self.log.flush()

    def on_train_end(self, classifier: CarvanaClassifier) -> None:
        self.log.close()

    def on_stop(self) -> None:
        if self.log is not None:
            with suppress(UserError):
                self.log.close()


def side_by_side(photo: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
    """photo (3, h, w) uint8, prediction and mask (h, w) of bool -> (3, h, 3 w) uint8: photo, verdict, cut-out."""
    verdict = torch.zeros_like(photo)
    for where, colour in ((prediction & mask, HIT), (~prediction & mask, MISS), (prediction & ~mask, FALSE_ALARM)):
        verdict[:, where] = torch.tensor(colour, dtype=torch.uint8)[:, None]
    return torch.cat([photo, verdict, photo * prediction], dim=2)


def spread(count: int, total: int) -> list[int]:
    """`count` of the numbers below `total`: one from each share of them, each from another place of its share.

    The places go by the golden ratio, so that of photos sorted by name one gets different cars and different views.
    """
    return sorted({int((i + 0.618 * i % 1) / count * total) for i in range(count)})
