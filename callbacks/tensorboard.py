"""TensorBoard: the curves of a training, its hyperparameters, and its predictions from epoch to epoch."""

import shutil
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
from torch.utils.data import DataLoader, default_collate

from img.transformer import from_pillow, resize
from nn.callback import Callback
from nn.classifier import CarvanaClassifier
from nn.metrics import dice_per_image
from nn.unet_origin import center_crop
from runtime.files import write_errors

TRUE_POSITIVE, FALSE_NEGATIVE, FALSE_POSITIVE = (0, 170, 80), (220, 40, 40), (250, 200, 0)  # RGB in an error map
CAPTION_HEIGHT = 36  # pixels; TensorBoard shows a panel at a third of its size


class EventLog:
    """An event file of TensorBoard. Raises UserError if it cannot be written.

    The thread of SummaryWriter ends silently on a full disk, and the training then waits for it forever.

    first_epoch: TensorBoard discards what earlier files in the folder have of this epoch and later ones.
    """

    def __init__(self, folder: Path, first_epoch: int):
        self.folder = folder
        start = SessionLog(status=SessionLog.START)
        with write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.writer = EventsWriter(str(folder / "events"), f".{time.time_ns()}")
            self.writer.write_event(Event(wall_time=time.time(), step=first_epoch, session_log=start))

    def add(self, epoch: int, content: summary.Summary) -> None:
        with write_errors(self.folder):
            self.writer.write_event(Event(wall_time=time.time(), step=epoch, summary=content))
            self.writer.flush()


def flatten(hyperparameters: Any) -> dict[str, bool | int | float | str]:
    """The values of a dataclass instance and of those in it, by name."""
    values = {}
    for name, value in vars(hyperparameters).items():
        values |= vars(value) if is_dataclass(value) else {name: value}
    return {name: value if isinstance(value, int | float) else str(value) for name, value in values.items()}


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

    def on_epoch_end(self, classifier: CarvanaClassifier, epoch: int, metrics: dict[str, float]) -> None:
        for part, log in self.logs.items():  # TensorBoard groups charts by the part before the slash
            for name in ("loss", "dice", "pixel_accuracy"):
                log.add(epoch, summary.scalar(f"masks/{name}", metrics[f"{part}_{name}"]))
            log.add(epoch, summary.scalar("step/images_per_second", metrics[f"{part}_images_per_second"]))
        self.logs["train"].add(epoch, summary.scalar("step/learning_rate", metrics["learning_rate"]))
        bins = np.linspace(0, 1, 101)
        self.logs["valid"].add(epoch, summary.histogram("masks/dice_per_image", classifier.valid_dice, bins))
        self._log_row({"Validation Dice": classifier.best["valid_dice"]})

    def on_score(self, classifier: CarvanaClassifier, score: float, table: pd.DataFrame) -> None:
        best, log = classifier.best, EventLog(self.path / "valid", classifier.epoch + 1)
        for name, mean in table.rename(columns={"dice": "score"}).mean(numeric_only=True).dropna().items():
            log.add(best["epoch"], summary.scalar(f"masks/{name}", mean))
        self._log_row({"Score": score, "Validation Dice": best["valid_dice"]})

    def _log_row(self, results: dict[str, float]) -> None:
        """Replace the run's row in HParams, with the hyperparameters that are not the defaults.

        TensorBoard sorts hyperparameters by name, capitals first, before any metrics; it keeps a folder's first row.
        """
        changed = flatten(self.hyperparameters).items() - flatten(type(self.hyperparameters)()).items()
        row = summary.hparams(results | dict(changed), {})[1]
        shutil.rmtree(self.path / "hparams", ignore_errors=True)
        EventLog(self.path / "hparams" / "_".join(map(str, results.values())), 0).add(0, row)


class TensorboardVisualizerCallback(Callback):
    """Shows panels of the same validation images in each epoch, and of the worst images of the epoch.

    count: of images, same and worst. width: of an image in a panel, in pixels.
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
        for tag, index in shown.items():
            self.log.add(epoch, summary.image(tag, self._panel(classifier, index)))

    def _panel(self, classifier: CarvanaClassifier, index: int) -> Tensor:
        item = self.dataset[index]  # with the aspect of the image
        images, masks = self.dataset.prepare(default_collate([item]), torch.device("cpu"))
        image, mask = (images[0] * 255).round().byte(), masks[0]  # (3, H, W) uint8, (h, w) in [0, 1]
        prediction = (classifier.predict_probs(image[None])[0] > classifier.threshold).cpu()  # (h, w)
        image = center_crop(image, mask.shape) if self.dataset.padding == "reflect" else resize(image, mask.shape)
        height = min(max(1, round(self.width / item[1])), 4 * self.width)
        return panel(image, prediction, mask > 0.5, (height, self.width), self.dataset.X[index].name)


def panel(image: Tensor, prediction: Tensor, mask: Tensor, size: tuple[int, int], title: str) -> Tensor:
    """side_by_side(), each part resized to `size`, above a caption: the Dice, the meaning of the colors, the title.

    -> (3, size[0] + CAPTION_HEIGHT, 3 * size[1]) uint8.
    """
    width = 3 * size[1]
    strip = resize(side_by_side(image, prediction, mask), (size[0], width))
    caption = Image.new("RGB", (width, CAPTION_HEIGHT), "black")
    draw, font, left = ImageDraw.Draw(caption), ImageFont.load_default(0.7 * CAPTION_HEIGHT), 4
    dice = dice_per_image(prediction[None], mask[None]).item()
    legend = [("hit", TRUE_POSITIVE), ("miss", FALSE_NEGATIVE), ("false alarm", FALSE_POSITIVE)]
    for text, color in [(f"Dice {dice:.4f}", "white"), *legend, (title, "white")]:
        draw.text((left, CAPTION_HEIGHT / 2), text, color, font, "lm")
        left += draw.textlength(f"{text}  ", font)
    return torch.cat([strip, from_pillow(caption)], dim=1)


def side_by_side(image: Tensor, prediction: Tensor, mask: Tensor) -> Tensor:
    """Image, error map and cut-out: image (3, h, w) uint8, prediction and mask (h, w) bool -> (3, h, 3 * w) uint8."""
    colors = torch.tensor([(0, 0, 0), FALSE_POSITIVE, FALSE_NEGATIVE, TRUE_POSITIVE], dtype=torch.uint8)
    error_map = colors[2 * mask + prediction].permute(2, 0, 1)  # (3, h, w)
    return torch.cat([image, error_map, image * prediction], dim=2)


def spread(count: int, total: int) -> list[int]:
    """One index of each of `count` equal parts of range(total), each from another place of its part.

    The places follow the golden ratio: among images sorted by name, both cars and angles differ.
    """
    return sorted({int((i + 0.618 * i % 1) / count * total) for i in range(count)})
