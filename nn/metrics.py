"""How well predicted masks agree with the true ones: per image, and averaged over the images of an epoch."""

import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from helpers import Progress
from runtime import distributed


def dice_per_image(predictions: Tensor, targets: Tensor) -> Tensor:
    """Dice coefficient 2 |X & Y| / (|X| + |Y|) of binary masks.

    predictions, targets: (N, H, W) bool -> (N,) in [0, 1]. Two empty masks agree: 1.
    """
    predictions, targets = predictions.flatten(1), targets.flatten(1)
    sizes = predictions.sum(1) + targets.sum(1)
    return (2 * (predictions & targets).sum(1) / sizes).nan_to_num(1.0)


def overlap_per_image(predictions: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Dice, IoU, precision and recall of binary masks: (N, H, W) bool, twice -> (N,) each; 1 if both are empty."""
    groups = predictions & targets, predictions, targets
    both, predicted, true = (torch.stack([mask.count_nonzero() for mask in masks]) for masks in groups)
    sizes = predicted + true
    wholes = {"dice": sizes / 2, "iou": sizes - both, "precision": predicted, "recall": true}
    return {name: (both / whole).nan_to_num(0) + (sizes == 0) for name, whole in wholes.items()}


def boundary(mask: Tensor) -> np.ndarray:
    """Pixels of an object (H, W) bool next to the background or the edge of the image -> rows and columns (K, 2)."""
    padded = F.pad(mask, (1, 1, 1, 1))
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return np.stack(np.divmod(np.flatnonzero((mask > inner).cpu()), mask.shape[1]), axis=1)


def boundary_distance(prediction: Tensor, target: Tensor) -> float:
    """The average symmetric surface distance (Heimann et al. 2009) of masks (H, W), in pixels; NaN if one is empty."""
    from scipy.spatial import KDTree

    a, b = boundary(prediction), boundary(target)
    if not (len(a) and len(b)):
        return np.nan
    return float(np.concatenate([KDTree(b).query(a)[0], KDTree(a).query(b)[0]]).mean())


def pixel_accuracy_per_image(predictions: Tensor, targets: Tensor) -> Tensor:
    """Fraction of pixels on which binary masks agree: (N, H, W) bool, twice -> (N,) in [0, 1]."""
    return (predictions == targets).flatten(1).float().mean(1)


class Meter:
    """Loss, Dice and pixel accuracy of one pass over a loader's images, under a progress bar.

    The sums stay on the device and are fetched every LOG_INTERVAL batches, so that most steps don't wait for it.
    update() raises FloatingPointError, with the names of the images, if a loss that it fetched isn't finite.

    title: of the progress bar, such as "train 3/50". loader: its batches are counted, not read.
    """

    LOG_INTERVAL = 10

    def __init__(self, title: str, loader: DataLoader):
        self.loader, self.total, self.batches = loader, len(loader.dataset), distributed.count_batches(loader)
        self.bar = Progress(total=self.total, desc=title, unit="img")
        self.batch = self.images = 0
        self.sums = torch.zeros(3, dtype=torch.float64)  # of loss, Dice and pixel accuracy
        self.unread: list[Tensor] = []  # of each batch since the last reading

    @torch.no_grad()
    def update(self, loss: Tensor, logits: Tensor, targets: Tensor, threshold: float) -> Tensor:
        """Add a batch -> Dice of each image, (N,).

        loss: the batch's mean. logits: (N, h, w). targets: (N, h, w) in [0, 1]; a pixel is car above 0.5.
        """
        predictions, truth = logits.float().sigmoid() > threshold, targets > 0.5
        dice, accuracy = dice_per_image(predictions, truth), pixel_accuracy_per_image(predictions, truth)
        self.unread.append(torch.stack([loss.detach() * len(logits), dice.sum(), accuracy.sum()]))
        self.images += len(logits)
        self.batch += 1
        if self.batch in (1, self.batches) or self.batch % self.LOG_INTERVAL == 0:
            self.read()
            means = self.sums / self.images
            self.bar.set_postfix(loss=f"{means[0]:.3f}", dice=f"{means[1]:.4f}", refresh=False)
        seen = min(self.batch * self.loader.batch_size * distributed.WORLD_SIZE, self.total)
        self.bar.update(seen - self.bar.n)
        return dice

    def read(self) -> None:
        """Fetch the sums from the device."""
        batches = torch.stack(self.unread).cpu().double()  # (batches, 3)
        self.unread.clear()
        self.sums += batches.sum(0)
        bad = (~batches[:, 0].isfinite()).nonzero()
        if len(bad):
            batch = self.batch - len(batches) + 1 + int(bad[0])
            raise FloatingPointError(f"The loss was not finite at batch {batch} of {self.bar.title}"
                                     f"{images_of_batch(self.loader, batch)}, so training stopped.")

    def result(self, prefix: str) -> dict[str, float]:
        """The means over the images of all processes, and images per second; prefix: of their names."""
        if self.unread:
            self.read()
        sums = torch.tensor([self.images, *self.sums], dtype=torch.float64)
        distributed.all_reduce(sums)
        loss, dice, accuracy = (sums[1:] / sums[0]).tolist()
        speed = self.total / (time.monotonic() - self.bar.start)
        means = {"loss": loss, "dice": dice, "pixel_accuracy": accuracy, "images_per_second": speed}
        return {prefix + name: mean for name, mean in means.items()}


def images_of_batch(loader: DataLoader, batch: int) -> str:
    """The names of a batch's images as in ", images a.jpg, b.jpg"; "" if the order of the loader is random."""
    if not hasattr(loader.dataset, "X") or isinstance(loader.sampler, RandomSampler):
        return ""
    indices = next(islice(loader.batch_sampler, batch - 1, None))
    return f", images {', '.join(Path(loader.dataset.X[index]).name for index in indices)}"
