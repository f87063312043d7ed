"""Data sets that load images and masks, as uint8 to move little memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from data.cache import PairCache
from data.reader import Reader
from img.augmentation import NUMBERS
from img.transformer import halve, reflect_pad, resize, resize_size, to_device
from img.tta import tta_view


def preprocess(image: Tensor, input_size: tuple[int, int], mask_size: tuple[int, int], padding: str,
               tta: bool = False) -> Tensor:
    """Resize and pad an image (3, H, W) uint8 for a net -> (3, *input_size) uint8.

    tta: return both views for test-time augmentation, (2, 3, *input_size). Requires an image that is not halved yet.
    """
    window = resize_size(input_size, mask_size, padding)
    if not tta:
        return reflect_pad(resize(image, window), input_size)
    views = resize(halve(image, window), window), tta_view(image, mask_size, window)
    return torch.stack([reflect_pad(view, input_size) for view in views])


@dataclass(eq=False, repr=False)
class TrainImageDataset(Dataset):
    """Pairs of an image and its mask, to train or to validate on: loaded one by one, prepared in batches on a device.

    X_transform: called with pairs, their aspect and random numbers, as img.augmentation.Augmentation.
    reader: decodes a pair; or a data.cache.PairCache, which has decoded it.
    """

    X: Sequence[Path]  # of the images
    y: Sequence[Path]  # of their masks, in the same order
    input_img_resize: tuple[int, int]  # (height, width) of the images that prepare() returns
    output_img_resize: tuple[int, int]  # (height, width) of the masks
    padding: str = "reflect"  # or "stretch", see img.transformer.resize_size
    reader: Reader | PairCache = Reader()
    X_transform: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    soft_labels: bool = True  # keep the fraction of each mask pixel that is car (0 to 1); False: 0 or 1
    half_size_epochs: int = 0  # in this many epochs, from the first, images and masks have half the height and width
    seed: int = 0

    def __post_init__(self):
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers see it change
        self.window = resize_size(self.input_img_resize, self.output_img_resize, self.padding)

    def set_epoch(self, epoch: int) -> None:
        """Call this before each epoch, counted from 1."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> tuple[Tensor, float, Tensor]:
        """-> pair (4, *window) uint8, its aspect, and random numbers that are a function of (seed, epoch, index)."""
        pair, aspect = self.reader.pair(self.X[index], self.y[index], self.window)
        numbers = np.random.default_rng([self.seed, int(self.epoch), index]).random(NUMBERS, np.float32)
        return pair, aspect, torch.from_numpy(numbers)

    def prepare(self, batch: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
        """Augment and pad a batch -> images (N, 3, *input_img_resize), masks (N, *output_img_resize), both in [0, 1].

        A pixel of 255 becomes 1. In a half-size epoch, both sizes are half as large.
        """
        pairs, aspect, numbers = batch
        pairs = to_device(pairs, device)  # (N, 4, h, w)
        divisor = 2 if 0 < self.epoch <= self.half_size_epochs else 1
        sizes = self.input_img_resize, self.output_img_resize
        input_size, mask_size = (tuple(side // divisor for side in size) for size in sizes)
        if divisor > 1:
            pairs = F.avg_pool2d(pairs.float(), divisor)
        if self.X_transform is None:
            images, masks = pairs[:, :3], pairs[:, 3:]
        else:
            images, masks = self.X_transform(pairs, aspect.float(), numbers)
        images, masks = images.float().div_(255), masks.float().div_(255)
        if masks.shape[2:] != mask_size:  # padding is "stretch"
            masks = F.interpolate(masks, mask_size, mode="bilinear", antialias=True)
        if not self.soft_labels:
            masks = (masks > 0.5).float()
        return reflect_pad(images, input_size), masks[:, 0]


@dataclass(eq=False, repr=False)
class TestImageDataset(Dataset):
    """Images to predict, with their names. What has no comment is as in TrainImageDataset."""

    X: Sequence[Path]
    input_img_resize: tuple[int, int]
    output_img_resize: tuple[int, int]
    padding: str = "reflect"
    reader: Reader = Reader()
    tta: bool = False  # return two views of each image, for test-time augmentation

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        """Return an image (3, *input_img_resize) uint8 (with tta: (2, 3, *input_img_resize)) and its file's name."""
        sizes = self.input_img_resize, self.output_img_resize, self.padding
        image = self.reader.image(self.X[index], None if self.tta else resize_size(*sizes))
        return preprocess(image, *sizes, self.tta), self.X[index].name


class EnsembleDataset(Dataset):
    """The items of several TestImageDatasets of the same files: images for several nets."""

    def __init__(self, datasets: Sequence[TestImageDataset]):
        self.datasets = datasets
        self.input_img_resize = max(each.input_img_resize for each in datasets)

    def __len__(self) -> int:
        return len(self.datasets[0])

    def __getitem__(self, index: int) -> tuple[list[Tensor], str]:
        images, names = zip(*(each[index] for each in self.datasets), strict=True)
        return list(images), names[0]
