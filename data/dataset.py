"""Paths to tensors: the data sets that the loaders read. They hand out uint8, so that little memory moves."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from helpers import UserError, ran_out_of_memory, require, seed_everything
from img import transformer
from img.tta import second_view


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Tells in a sentence that the image at `path` can't be read."""
    try:
        yield
    except Exception as error:  # decoders raise a dozen types, according to what is broken
        if ran_out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{path} can't be read ({error.strerror}).") from error
        reason = f"{type(error).__name__}: {error!s:.200}"
        raise UserError(f"{path} can't be read as an image ({reason}); replace it.") from error


def read(path: Path, decode: Callable[..., Tensor], *at_least: tuple[int, int]) -> Tensor:
    """The image at `path`, as decode gives it. Raises UserError if it can't be read."""
    with reading(path):
        return decode(Path(path).read_bytes(), *at_least)


def size_text(size: Sequence[int]) -> str:
    """(height, width) as people write it: width x height."""
    return f"{size[1]}x{size[0]}"


def check_pair(photo_path: Path, size: Sequence[int], mask_path: Path, mask_size: Sequence[int]) -> None:
    """Raises UserError where the sizes (height, width) of a photo and of its mask differ."""
    require(
        tuple(size) == tuple(mask_size),
        f"{mask_path} is {size_text(mask_size)} pixels, but its photo {photo_path} is {size_text(size)}; they must be "
        f"of one size{', both upright: EXIF data may turn a photo' * (tuple(size) == tuple(mask_size)[::-1])}.",
    )


def photo_size(input_img_resize: tuple[int, int], output_img_resize: tuple[int, int], border: str) -> tuple[int, int]:
    """The (height, width) that a photo is squeezed to. Which part of the net's input it becomes:

    border "mirror": the window that the mask stands for; around it the photo is mirrored, as in the paper.
    border "stretch": all of it, as in the tutorial; the mask, of the whole photo too, is then on another scale.
    """
    return tuple(output_img_resize if border == "mirror" else input_img_resize)


def smallest_cover(window: Sequence[int], size: Sequence[int]) -> tuple[int, int]:
    """The smallest (height, width) in the proportions of `size` that loses none of the detail seen at `window`."""
    scale = min(1.0, max(window[0] / size[0], window[1] / size[1]))
    return round(size[0] * scale), round(size[1] * scale)


def to_net(
    photo: Tensor,
    input_img_resize: tuple[int, int],
    output_img_resize: tuple[int, int],
    border: str = "mirror",
    whole: Tensor | None = None,
) -> Tensor:
    """photo (3, H, W) uint8, as decode_photo gives it for photo_size -> what a net predicts it from, (3, *input).

    whole: the photo at its full size, for the second view of img/tta.py; then both views, (2, 3, *input).
    """
    window = photo_size(input_img_resize, output_img_resize, border)
    views = [transformer.resize(photo, window)]
    if whole is not None:
        views.append(second_view(whole, output_img_resize, window))
    images = [transformer.mirror_border(view, input_img_resize) for view in views]
    return images[0] if whole is None else torch.stack(images)


class TrainImageDataset(Dataset):
    """Pairs of a photo and its mask.

    X, y: paths of the photos and of their masks, in the same order.
    input_img_resize, output_img_resize: (height, width) of the photos and of the masks handed out.
    X_transform: called with (photo, mask), both uint8 of the same size and in the photo's proportions; returns the two.
    seed: what X_transform draws from torch's generator is a function of (seed, epoch, index) and of nothing else.
    threshold: a mask's pixel becomes 255 where more than this share of it is car, else 0; None keeps the share.
    border: see photo_size.
    half_size_epochs: in so many epochs, from the first, photos and masks are of half the height and width. A net that
        takes both learns there from up to three times as many a second, and goes on with what it knows at full size.
    """

    def __init__(
        self,
        X: Sequence[Path],
        y: Sequence[Path],
        input_img_resize: tuple[int, int],
        output_img_resize: tuple[int, int],
        X_transform: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        threshold: float | None = None,
        border: str = "mirror",
        seed: int = 0,
        half_size_epochs: int = 0,
    ):
        self.X, self.y, self.seed = list(X), list(y), seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # worker processes see it change
        self.input_img_resize, self.output_img_resize = input_img_resize, output_img_resize
        self.X_transform, self.threshold, self.border = X_transform, threshold, border
        self.half_size_epochs = half_size_epochs

    def set_epoch(self, epoch: int) -> None:
        """Call it before each epoch, as one calls DistributedSampler's."""
        self.epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """-> photo (3, *input_img_resize) uint8, mask (*output_img_resize) uint8, 255 where all of a pixel is car."""
        parts = 2 if 0 < self.epoch <= self.half_size_epochs else 1
        sizes = self.input_img_resize, self.output_img_resize
        image_size, mask_size = ([side // parts for side in size] for size in sizes)
        window = photo_size(image_size, mask_size, self.border)
        photo = read(self.X[index], transformer.decode_photo, window)  # (3, H, W)
        mask = read(self.y[index], transformer.decode_mask, window)  # (1, H, W)
        if photo.shape[1:] != mask.shape[1:]:
            sizes = [transformer.get_image_size(path) for path in (self.X[index], self.y[index])]
            check_pair(self.X[index], sizes[0], self.y[index], sizes[1])
        if self.X_transform is not None:
            small = smallest_cover(window, photo.shape[1:])
            with torch.random.fork_rng(devices=[]):
                seed_everything(self.seed, int(self.epoch), index)
                photo, mask = self.X_transform(transformer.resize(photo, small), transformer.resize(mask, small))
        photo = transformer.mirror_border(transformer.resize(photo, window), image_size)
        mask = transformer.resize(mask, mask_size)[0]
        if self.threshold is not None:
            mask = (mask > 255 * self.threshold).to(torch.uint8) * 255
        return photo, mask


class TestImageDataset(Dataset):
    """Photos to predict, with their names.

    X: paths of the photos. input_img_resize, output_img_resize, border: as in TrainImageDataset.
    tta: hand out both views of img/tta.py.
    """

    def __init__(
        self,
        X: Sequence[Path],
        input_img_resize: tuple[int, int],
        output_img_resize: tuple[int, int],
        border: str = "mirror",
        tta: bool = False,
    ):
        self.X, self.tta = list(X), tta
        self.sizes = input_img_resize, output_img_resize, border
        self.photo_size = photo_size(*self.sizes)

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        """-> photo (3, *input_img_resize) uint8, or with tta both views (2, 3, *input_img_resize); the file's name."""
        path = Path(self.X[index])
        return read(path, self._to_net), path.name

    def _to_net(self, encoded: bytes) -> Tensor:
        if not self.tta:
            return to_net(transformer.decode_photo(encoded, self.photo_size), *self.sizes)
        whole = photo = transformer.decode_photo(encoded)
        if transformer.step_to_cover(whole.shape[1:], self.photo_size) != 1:
            photo = transformer.decode_photo(encoded, self.photo_size)
        return to_net(photo, *self.sizes, whole)
