"""Paths to tensors: the data sets that the loaders read. They hand out uint8, so that little memory moves."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from helpers import seed_everything
from img import transformer
from img.tta import tta_view
from runtime.errors import UserError, ran_out_of_memory, require


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


def read(path: Path, decode: Callable[..., Tensor], *min_size: tuple[int, int]) -> Tensor:
    """The image at `path`, as decode gives it. Raises UserError if it can't be read."""
    with reading(path):
        return decode(Path(path).read_bytes(), *min_size)


def format_size(size: Sequence[int]) -> str:
    """(height, width) as people write it: width x height."""
    return f"{size[1]}x{size[0]}"


def check_pair(photo_path: Path, size: Sequence[int], mask_path: Path, mask_size: Sequence[int]) -> None:
    """Raises UserError where the sizes (height, width) of a photo and of its mask differ."""
    require(
        tuple(size) == tuple(mask_size),
        f"{mask_path} is {format_size(mask_size)} pixels, but its photo {photo_path} is {format_size(size)}; they must be "
        f"of one size{', both upright: EXIF data may turn a photo' * (tuple(size) == tuple(mask_size)[::-1])}.",
    )


def resize_size(input_img_resize: tuple[int, int], output_img_resize: tuple[int, int], padding: str) -> tuple[int, int]:
    """The (height, width) that a photo is squeezed to. Which part of the net's input it becomes:

    padding "reflect": the window that the mask stands for; around it the photo is mirrored, as in the paper.
    padding "stretch": all of it, as in the tutorial; the mask, of the whole photo too, is then on another scale.
    """
    return tuple(output_img_resize if padding == "reflect" else input_img_resize)


def resize_to_cover(window: Sequence[int], size: Sequence[int]) -> tuple[int, int]:
    """The smallest (height, width) in the proportions of `size` that loses none of the detail seen at `window`."""
    scale = min(1.0, max(window[0] / size[0], window[1] / size[1]))
    return round(size[0] * scale), round(size[1] * scale)


def preprocess(
    photo: Tensor,
    input_img_resize: tuple[int, int],
    output_img_resize: tuple[int, int],
    padding: str = "reflect",
    whole: Tensor | None = None,
) -> Tensor:
    """photo (3, H, W) uint8, as decode_image gives it for resize_size -> what a net predicts it from, (3, *input).

    whole: the photo at its full size, for the second view of img/tta.py; then both views, (2, 3, *input).
    """
    window = resize_size(input_img_resize, output_img_resize, padding)
    views = [transformer.resize(photo, window)]
    if whole is not None:
        views.append(tta_view(whole, output_img_resize, window))
    images = [transformer.reflect_pad(view, input_img_resize) for view in views]
    return images[0] if whole is None else torch.stack(images)


class TrainImageDataset(Dataset):
    """Pairs of a photo and its mask.

    X, y: paths of the photos and of their masks, in the same order.
    input_img_resize, output_img_resize: (height, width) of the photos and of the masks handed out.
    X_transform: called with (photo, mask), both uint8 of the same size and in the photo's proportions; returns the two.
    seed: what X_transform draws from torch's generator is a function of (seed, epoch, index) and of nothing else.
    soft_labels: a mask's pixel keeps the fraction of it that is car (0..255); else it is 255 above one half, or 0.
    padding: see resize_size.
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
        soft_labels: bool = True,
        padding: str = "reflect",
        seed: int = 0,
        half_size_epochs: int = 0,
    ):
        self.X, self.y, self.seed = list(X), list(y), seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # worker processes see it change
        self.input_img_resize, self.output_img_resize = input_img_resize, output_img_resize
        self.X_transform, self.soft_labels, self.padding = X_transform, soft_labels, padding
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
        window = resize_size(image_size, mask_size, self.padding)
        photo = read(self.X[index], transformer.decode_image, window)  # (3, H, W)
        mask = read(self.y[index], transformer.decode_mask, window)  # (1, H, W)
        if photo.shape[1:] != mask.shape[1:]:
            sizes = [transformer.get_image_size(path) for path in (self.X[index], self.y[index])]
            check_pair(self.X[index], sizes[0], self.y[index], sizes[1])
        if self.X_transform is not None:
            small = resize_to_cover(window, photo.shape[1:])
            with torch.random.fork_rng(devices=[]):
                seed_everything(self.seed, int(self.epoch), index)
                photo, mask = self.X_transform(transformer.resize(photo, small), transformer.resize(mask, small))
        photo = transformer.reflect_pad(transformer.resize(photo, window), image_size)
        mask = transformer.resize(mask, mask_size)[0]
        if not self.soft_labels:
            mask = (mask > 127).to(torch.uint8) * 255
        return photo, mask


class TestImageDataset(Dataset):
    """Photos to predict, with their names.

    X: paths of the photos. input_img_resize, output_img_resize, padding: as in TrainImageDataset.
    tta: hand out both views of img/tta.py.
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
        self.resize_size = resize_size(*self.sizes)

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        """-> photo (3, *input_img_resize) uint8, or with tta both views (2, 3, *input_img_resize); the file's name."""
        path = Path(self.X[index])
        return read(path, self._to_net), path.name

    def _to_net(self, encoded: bytes) -> Tensor:
        if not self.tta:
            return preprocess(transformer.decode_image(encoded, self.resize_size), *self.sizes)
        whole = photo = transformer.decode_image(encoded)
        if transformer.draft_scale(whole.shape[1:], self.resize_size) != 1:
            photo = transformer.decode_image(encoded, self.resize_size)
        return preprocess(photo, *self.sizes, whole)
