"""Data sets that load images and masks. Items are uint8, to move as little memory as possible."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from helpers import format_size, seed_everything
from img.transformer import decode_image, decode_mask, get_image_size, preprocess, resize, resize_size, resize_to_cover
from runtime.errors import UserError, ran_out_of_memory, require


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Re-raise an error of reading or decoding the image at `path` as a UserError that names it."""
    try:
        yield
    except Exception as error:  # decoders raise a dozen types
        if ran_out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{path} cannot be read ({error.strerror}).") from error
        reason = f"{type(error).__name__}: {error!s:.200}"
        raise UserError(f"{path} cannot be read as an image ({reason}). Replace it.") from error


def read(path: Path, decode: Callable[..., Tensor], min_size: tuple[int, int] | None = None) -> Tensor:
    """Read an image or a mask with decode_image or decode_mask. Raises UserError if that fails."""
    with reading(path):
        return decode(Path(path).read_bytes(), min_size)


def check_pair(image_path: Path, image_size: Sequence[int], mask_path: Path, mask_size: Sequence[int]) -> None:
    """Raise UserError if the sizes (height, width) of an image and of its mask differ."""
    hint = ", after rotating both as their EXIF data say" * (tuple(image_size) == tuple(mask_size)[::-1])
    require(
        tuple(image_size) == tuple(mask_size),
        f"{mask_path} is {format_size(mask_size)} pixels (height x width), but its image {image_path} is "
        f"{format_size(image_size)}. Both must have the same size{hint}.",
    )


class TrainImageDataset(Dataset):
    """Pairs of an image and its mask, to train or to validate on.

    X, y: paths of the images and of their masks, in the same order.
    input_img_resize, output_img_resize: (height, width) of the images and masks to return.
    padding: see `img.transformer.resize_size`.
    X_transform: called with an image (3, H, W) and its mask (1, H, W), both uint8 and in the proportions of the file;
        returns both. Its random numbers, from PyTorch's generator, depend on (seed, epoch, index) only.
    soft_labels: keep the fraction of each mask pixel that is car (0 to 255); False: threshold it to 0 or 255.
    half_size_epochs: in this many epochs, from the first, images and masks have half the height and width. Such an
        epoch takes about a third of the time.
    """

    def __init__(
        self,
        X: Sequence[Path],
        y: Sequence[Path],
        input_img_resize: tuple[int, int],
        output_img_resize: tuple[int, int],
        padding: str = "reflect",
        X_transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        soft_labels: bool = True,
        half_size_epochs: int = 0,
        seed: int = 0,
    ):
        self.X, self.y = list(X), list(y)
        self.input_img_resize, self.output_img_resize = input_img_resize, output_img_resize
        self.padding, self.X_transform, self.soft_labels = padding, X_transform, soft_labels
        self.half_size_epochs, self.seed = half_size_epochs, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # shared with worker processes

    def set_epoch(self, epoch: int) -> None:
        """Call this before each epoch, as for DistributedSampler. The first epoch is 1."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image (3, *input_img_resize) and its mask (*output_img_resize), both uint8; 255 is car."""
        divisor = 2 if 0 < self.epoch <= self.half_size_epochs else 1
        input_size, mask_size = (
            tuple(side // divisor for side in size) for size in (self.input_img_resize, self.output_img_resize)
        )
        window = resize_size(input_size, mask_size, self.padding)
        image, mask = self._read_pair(index, window)
        if self.X_transform is not None:
            size = resize_to_cover(window, image.shape[1:])
            with torch.random.fork_rng(devices=[]):
                seed_everything(self.seed, int(self.epoch), index)
                image, mask = self.X_transform(resize(image, size), resize(mask, size))
        image = preprocess(image, input_size, mask_size, self.padding, downsampled=True)
        mask = resize(mask, mask_size)[0]
        if not self.soft_labels:
            mask = (mask > 127).to(torch.uint8) * 255
        return image, mask

    def _read_pair(self, index: int, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the image (3, H, W) and its mask (1, H, W). Raises UserError if one is unreadable or sizes differ."""
        image_path, mask_path = self.X[index], self.y[index]
        image, mask = read(image_path, decode_image, window), read(mask_path, decode_mask, window)
        if image.shape[1:] != mask.shape[1:]:
            check_pair(image_path, get_image_size(image_path), mask_path, get_image_size(mask_path))
        return image, mask


class TestImageDataset(Dataset):
    """Images to predict, with their names.

    X: paths of the images.
    input_img_resize, output_img_resize, padding: as for TrainImageDataset.
    tta: return two views of each image, for test-time augmentation.
    """

    def __init__(
        self,
        X: Sequence[Path],
        input_img_resize: tuple[int, int],
        output_img_resize: tuple[int, int],
        padding: str = "reflect",
        tta: bool = False,
    ):
        self.X, self.tta = list(X), tta
        self.sizes = input_img_resize, output_img_resize, padding

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        """Return an image (3, *input_img_resize) uint8, or with tta (2, 3, *input_img_resize), and its file's name."""
        path = Path(self.X[index])
        min_size = None if self.tta else resize_size(*self.sizes)
        image = read(path, decode_image, min_size)
        return preprocess(image, *self.sizes, tta=self.tta, downsampled=not self.tta), path.name
