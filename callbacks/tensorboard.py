"""What TensorBoard shows: the curves of a training, and how the same few photos get better from epoch to epoch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tensorboardX import SummaryWriter
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import center_crop

from callbacks.callback import Callback
from img.transformer import resize

if TYPE_CHECKING:
    from nn.classifier import CarvanaClassifier

HIT, MISS, FALSE_ALARM = (0, 170, 80), (220, 40, 40), (250, 200, 0)  # RGB of the pixels of a prediction


def new_writer(path: Path) -> SummaryWriter:
    # its thread writes what it gets after a second, not two minutes; its flush() doesn't wait for that thread
    return SummaryWriter(str(path), flush_secs=1)


class TensorboardLoggerCallback(Callback):
    """Loss, Dice and pixel accuracy of each epoch, one tag each, with a curve for train and one for valid in one chart.

    path: the folder of this run, such as logs/tb_logs/<timestamp>.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def on_train_begin(self, classifier: CarvanaClassifier, valid_loader: DataLoader) -> None:
        self.writers = {phase: new_writer(self.path / phase) for phase in ("train", "valid")}

    def on_epoch_end(self, classifier: CarvanaClassifier, epoch: int, metrics: dict[str, float]) -> None:
        for phase, writer in self.writers.items():
            for name in ("loss", "dice", "pixel_accuracy", "images_per_second"):
                writer.add_scalar(name, metrics[f"{phase}_{name}"], epoch)
        self.writers["train"].add_scalar("learning_rate", metrics["learning_rate"], epoch)

    def on_train_end(self, classifier: CarvanaClassifier) -> None:
        for writer in self.writers.values():
            writer.close()


class TensorboardVisualizerCallback(Callback):
    """The same few validation photos each epoch, under one tag each, so that a slider runs through the epochs.

    Side by side: the photo; the prediction, coloured where it hits the car (green), misses it (red) or raises a false
    alarm (yellow); the photo under the predicted mask.

    path: the folder of this run, such as logs/tb_viz/<timestamp>. count: how many photos.
    """

    def __init__(self, path: str | Path, count: int = 4):
        self.path, self.count = Path(path), count

    def on_train_begin(self, classifier: CarvanaClassifier, valid_loader: DataLoader) -> None:
        self.writer = new_writer(self.path)
        dataset = valid_loader.dataset
        indices = spread(self.count, len(dataset))
        self.names = [Path(dataset.X[index]).name for index in indices]
        pairs = [dataset[index] for index in indices]
        self.images = torch.stack([image for image, _ in pairs])  # (count, 3, H, W) uint8
        self.masks = torch.stack([mask for _, mask in pairs]) > 127  # (count, h, w)
        self.border = dataset.border

    def on_epoch_end(self, classifier: CarvanaClassifier, epoch: int, metrics: dict[str, float]) -> None:
        probs = torch.cat([classifier.predict_probs(image[None]).cpu() for image in self.images])  # one at a time
        predictions = probs > classifier.threshold
        for name, image, prediction, mask in zip(self.names, self.images, predictions, self.masks, strict=True):
            photo = center_crop(image, mask.shape) if self.border == "mirror" else resize(image, mask.shape)
            strip = side_by_side(photo, prediction, mask)
            self.writer.add_image(f"validation/{name}", strip.numpy(), epoch, dataformats="CHW")

    def on_train_end(self, classifier: CarvanaClassifier) -> None:
        self.writer.close()


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
