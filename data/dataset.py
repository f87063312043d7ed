"""Data sets that load images and masks, as uint8 to move little memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.reader import Reader, check_pair, get_header
from helpers import seed_everything
from img.transformer import halve, reflect_pad, resize, resize_size
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
    """Pairs of an image and its mask, to train or to validate on.

    X_transform: called with an image (3, H, W) and its mask (1, H, W), both uint8 and in the proportions of the file;
        returns both. Its random numbers, from PyTorch's generator, depend on (seed, epoch, index) only.
    """

    X: Sequence[Path]  # of the images
    y: Sequence[Path]  # of their masks, in the same order
    input_img_resize: tuple[int, int]  # (height, width) of the images to return
    output_img_resize: tuple[int, int]  # (height, width) of the masks
    padding: str = "reflect"  # or "stretch", see img.transformer.resize_size
    reader: Reader = Reader()  # decodes both
    X_transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None
    soft_labels: bool = True  # keep the fraction of each mask pixel that is car (0 to 255); False: 0 or 255
    half_size_epochs: int = 0  # in this many epochs, from the first, images and masks have half the height and width
    seed: int = 0

    def __post_init__(self):
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers see it change

    def set_epoch(self, epoch: int) -> None:
        """Call this before each epoch, counted from 1."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image (3, *input_img_resize) and its mask (*output_img_resize), both uint8; 255 is car."""
        divisor = 2 if 0 < self.epoch <= self.half_size_epochs else 1
        sizes = self.input_img_resize, self.output_img_resize
        input_size, mask_size = (tuple(side // divisor for side in size) for size in sizes)
        window = resize_size(input_size, mask_size, self.padding)
        image_path, mask_path = self.X[index], self.y[index]
        image = self.reader.image(image_path, window)  # (3, H, W)
        mask = self.reader.mask(mask_path, window)  # (1, H, W)
        if image.shape[1:] != mask.shape[1:]:
            check_pair(image_path, get_header(image_path).size, mask_path, get_header(mask_path).size)
        if self.X_transform is not None:
            height, width = image.shape[1:]
            scale = min(1.0, max(window[0] / height, window[1] / width))  # covers the window
            size = round(height * scale), round(width * scale)
            with torch.random.fork_rng(devices=[]):
                seed_everything(self.seed, int(self.epoch), index)
                image, mask = self.X_transform(resize(image, size), resize(mask, size))
        image = preprocess(image, input_size, mask_size, self.padding)
        mask = resize(mask, mask_size)[0]
        if not self.soft_labels:
            mask = (mask > 127).to(torch.uint8) * 255
        return image, mask


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
