"""Photos of your own: where they and their masks lie, which mask is whose, and which photos show one object."""

import re
from collections.abc import Container
from pathlib import Path

from PIL import Image

from helpers import first_few
from img.transformer import FORMATS
from runtime.errors import UserError

PHOTO_FOLDERS = ("train_hq", "train", "images", "imgs")
MASK_FOLDERS = ("train_masks", "masks")
LAYOUT = (
    "Photos are looked for in train/, images/ or imgs/ of --input-dir, or in itself; masks in train_masks/ or masks/ "
    "there, or beside the photos, as NAME_mask.png"
)


def is_image(path: Path) -> bool:
    """By its name, as far as Pillow knows the ending; what is hidden is none."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    return kind in FORMATS and not path.name.startswith(".") and path.is_file()


def tell_left_aside(folder: Path, what: str, names: list[str], count: int | None = 3) -> None:
    """Name the first `count` of the files in `folder` that aren't what is looked for there; None is all."""
    unknown = sorted({Path(name).suffix[1:].upper() for name in names} & {"HEIC", "HEIF", "AVIF"})
    remedy = f" ({unknown[0]} can't be read: save it as JPEG)" if unknown else ""
    print(f"left aside in {folder}, being no {what}: {first_few(names, count)}{remedy}")


def find_folders(input_dir: Path) -> tuple[Path, Path]:
    """-> the folder of the photos, and that of the masks, which is the same where there is no folder of masks.

    Each is the first of its names that holds an image.
    """

    def first(names: tuple[str, ...], otherwise: Path) -> Path:
        folders = [input_dir / name for name in names]
        return next((each for each in folders if each.is_dir() and any(map(is_image, each.iterdir()))), otherwise)

    photos = first(PHOTO_FOLDERS, input_dir)
    return photos, first(MASK_FOLDERS, photos)


def is_called_mask(path: Path) -> bool:
    return path.stem.lower().endswith("_mask")


def image_of(mask: Path, photos: Container[str]) -> str:
    """The name, without its ending, of the photo that NAME_mask.png or NAME.png belongs to.

    photos: the names there are, without their endings; the one that is returned may be none of them.
    """
    return mask.stem[: -len("_mask")] if is_called_mask(mask) and mask.stem not in photos else mask.stem


def compile_group(pattern: str | None) -> re.Pattern | None:
    """The pattern of --group-regex. Raises UserError where it is none."""
    try:
        return None if pattern is None else re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"--group-regex {pattern!r} is no regular expression ({error}); one such as '(.+)_' takes what stands before the "
            "last underscore."
        ) from error


def group_of(name: str, pattern: re.Pattern | None) -> str | None:
    """What the photos of one object share, of a photo's name without its ending: what the pattern's first parentheses
    hold, or all that it fits on. Without a pattern each photo is alone; None where it doesn't fit.
    """
    if pattern is None:
        return name
    found = pattern.search(name)
    return (found[1 if pattern.groups else 0] or None) if found else None
