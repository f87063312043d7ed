"""Read all images and masks of a data set in the same way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers import format_size
from img.headers import SIDEWAYS, Header, open_image
from img.mask import MaskValues, decode_mask
from img.transformer import decode_image, exif_transpose, resize
from runtime.errors import UserError, ran_out_of_memory, require


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an error of reading or decoding the image at `path` into a UserError."""
    try:
        yield
    except Exception as error:  # decoders raise many types
        if ran_out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{path} cannot be read ({error.strerror}).") from error
        reason = f"{type(error).__name__}: {error!s:.200}"
        raise UserError(f"{path} cannot be read as an image ({reason}). Replace it.") from error


def read(path: Path, decode: Callable[..., Tensor], *options: Any) -> Tensor:
    """Read a file with decode_image or decode_mask, and their options. Raises UserError."""
    with reading(path):
        return decode(path.read_bytes(), *options)


def get_header(path: Path) -> Header:
    """The size and EXIF orientation of an image or a mask. Raises UserError."""
    with reading(path), path.open("rb", buffering=0) as file:
        return open_image(file, pixels=False)[1]


def check_pair(image_path: Path, image_size: tuple[int, int], mask_path: Path, mask_size: tuple[int, int]) -> None:
    """Raise UserError if the sizes (height, width) of an image and of its mask differ."""
    require(image_size == mask_size, f"{mask_path} is {format_size(mask_size)} pixels (height x width), but its image "
            f"{image_path} is {format_size(image_size)}. Both must have the same size (after the rotation of their "
            "EXIF data).")


@dataclass(eq=False)
class Reader:
    """Reads image files and mask files. The defaults are for Kaggle's.

    values: what the values of masks mean. bits: how many of them 16-bit images use; None: all.
    parts: the name of a mask -> those of others of the same image, which are merged with it.
    rotations: the name of a mask -> the EXIF orientation of its image, which it needs too.
    """

    values: MaskValues = MaskValues()
    bits: int | None = None
    parts: dict[str, list[str]] = field(default_factory=dict)
    rotations: dict[str, int] = field(default_factory=dict)

    def image(self, path: Path, min_size: tuple[int, int] | None = None) -> Tensor:
        return read(path, decode_image, min_size, self.bits or 16)

    def mask(self, path: Path, min_size: tuple[int, int] | None = None) -> Tensor:
        """The result of decode_mask, after merging and rotation. Raises UserError."""
        masks = []
        for file in self.files(path):
            orientation = self.rotations.get(file.name, 1)
            size = min_size[::-1] if min_size and orientation in SIDEWAYS else min_size
            mask = read(file, decode_mask, size, self.values)
            masks.append(exif_transpose(mask, orientation))
        return torch.stack(masks).amax(dim=0)

    def files(self, mask_path: Path) -> list[Path]:
        """A mask and those that are merged with it."""
        return [mask_path.with_name(name) for name in (mask_path.name, *self.parts.get(mask_path.name, ()))]

    def pair(self, image_path: Path, mask_path: Path, size: tuple[int, int]) -> tuple[Tensor, float]:
        """An image and its mask, resized -> (4, *size) uint8, and their width / height before. Raises UserError."""
        image, mask = self.image(image_path, size), self.mask(mask_path, size)
        if image.shape[1:] != mask.shape[1:]:
            check_pair(image_path, get_header(image_path).size, mask_path, get_header(mask_path).size)
        return torch.cat([resize(image, size), resize(mask, size)]), image.shape[2] / image.shape[1]

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Reader":
        return cls(MaskValues(*state["values"]), state["bits"])

    def state(self) -> dict[str, Any]:
        """What decides how pixels are read, to be saved with a run."""
        return {"values": list(self.values), "bits": self.bits}
