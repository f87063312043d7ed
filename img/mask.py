"""From a mask file to the fraction of each pixel that is the object, given what the values of its data set mean."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from img.headers import SIDEWAYS
from img.transformer import draft_scale, exif_transpose, load

LOSSY = 20  # levels by which JPEG may change background and object
KINDS = {"gray": "gray levels", "index": "palette indices", "color": "colors", "alpha": "transparency", "": "values"}


class MaskValues(NamedTuple):
    """What the values of a data set's masks mean. The defaults are Kaggle's.

    kind: of the values, one of KINDS ("": gray levels or palette indices, as each file has); a color is 0xRRGGBB
    objects: the values that are the object; empty: all but 0
    soft: whether the values between 0 and the only one in `objects` are the fraction of a pixel that is object
    """

    kind: str = "gray"
    objects: Sequence[float] = (255,)
    soft: bool = True

    def __str__(self) -> str:
        objects = ", ".join(show(value, self.kind) for value in self.objects) or "all but 0"
        between = "; values between 0 and it are soft labels" if self.soft and self.kind != "index" else ""
        return f"{KINDS[self.kind]}: {objects} is the object{between}"


def show(value: float, kind: str) -> str:
    """Return a value as --mask-values takes it."""
    return f"#{int(value):06x}" if kind == "color" else f"{value:g}"


def decode_mask(encoded: bytes, min_size: tuple[int, int] | None = None, values: MaskValues = MaskValues()) -> Tensor:
    """Decode a file's bytes to a mask (1, H, W) uint8: the fraction of each pixel that is object, from 0 to 255 (all).

    `min_size` and errors are those of `decode_image`. Raises ValueError too if its values are not those of its set.
    """
    image, orientation = load(encoded)
    slack = slack_of(encoded)
    kind, pixels = read_values(image, slack, values.kind)
    strange = kind == "color" and len(values.objects) > 0 if values.kind == "" else kind != values.kind
    if strange and pixels.any():
        raise ValueError(f"it has {KINDS[kind]}, but the masks of its data set have {KINDS[values.kind]}")
    decode = soft_labels if values.soft else find_objects
    mask = Image.fromarray(decode(pixels, kind, values.objects, slack))
    size = mask.size if orientation in SIDEWAYS else mask.size[::-1]
    mask = mask.reduce(draft_scale(size, min_size))
    return exif_transpose(torch.from_numpy(np.array(mask))[None], orientation)


def read_values(image: Image.Image, slack: int, kind: str | None = None) -> tuple[str, np.ndarray]:
    """Return the kind of a mask's values, and the values (H, W), or colors (H, W, 3) uint8.

    kind: that of its data set; None: not known yet. Raises ValueError if it could be read in two ways.
    """
    if kind == "alpha" and not image.has_transparency_data:
        raise ValueError("it has no transparency, which shows the object in the other masks of its data set")
    if kind == "alpha" or (kind is None and image.has_transparency_data and alpha_decides(image)):
        return "alpha", np.asarray(image.convert("RGBA").getchannel("A"))
    if image.mode == "P" and kind != "color":
        palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        if (palette == palette[:, :1]).all():
            return "gray", np.pad(palette[:, 0], (0, 256 - len(palette)))[np.asarray(image)]
        if kind == "" or not palette[0].any():  # otherwise, 0 may not be the background
            return "index", np.asarray(image)
    elif image.mode.startswith(("1", "L", "I", "F")) and kind != "color":
        values = np.asarray(image.getchannel(0) if image.mode == "LA" else image)
        if (values.dtype.kind == "f" and not np.isfinite(values).all()) or values.min() < 0:
            raise ValueError("it has values that are negative, infinite or not a number")
        return "gray", values * np.uint8(255) if image.mode == "1" else values
    colors = np.asarray(image.convert("RGB"))
    if kind != "color" and np.ptp(colors, axis=-1).max() <= slack:
        return "gray", colors.max(axis=-1)
    return "color", colors


def alpha_decides(image: Image.Image) -> bool:
    """Whether a mask is drawn in the transparency, as in a cut-out, and not in the colors.

    Raises ValueError if both are different drawings, or if all of it is transparent.
    """
    pixels = np.asarray(image.convert("RGBA"))
    opaque, brightness = pixels[..., 3] > 127, pixels[..., :3].max(axis=-1)
    lowest, highest = pixels[..., 3].min(), pixels[..., 3].max()
    if highest == 0:
        raise ValueError("it is transparent everywhere; save it as a mask without transparency")
    if lowest == highest:
        return False
    counts = np.sort(np.unique(pack(pixels[pixels[..., 3] > 0]), return_counts=True)[1])
    if len(counts) == 1 or counts[-2:].sum() < 0.9 * counts.sum():  # one color, or a photo
        return True
    drawn = brightness > brightness.max() / 2
    is_binary = np.isin(pixels[..., 3], (lowest, highest)).mean() > 0.99
    if is_binary and 0.01 < opaque.mean() < 0.99 and (drawn != opaque).any():
        raise ValueError("its colors and its transparency show different objects; save it without transparency")
    return False


def pack(colors: np.ndarray) -> np.ndarray:
    """Colors (..., 3 or 4) -> (...) int64, 0xRRGGBB."""
    return colors[..., :3].astype(np.int64) @ (65536, 256, 1)


def unpack(color: float) -> np.ndarray:
    """0xRRGGBB -> (3,) int64."""
    return int(color) >> np.array([16, 8, 0]) & 255


def find_objects(pixels: np.ndarray, kind: str, objects: Sequence[float], slack: int) -> np.ndarray:
    """255 where the value is one of `objects` or, if there are none, not 0 -> (H, W) uint8."""
    if not objects:
        found = level_of(pixels, kind) > slack
    elif kind == "color":
        found = np.any([(abs(pixels - unpack(color)) <= slack).all(axis=-1) for color in objects], axis=0)
    else:
        found = np.any([abs(pixels.astype(np.float64) - value) <= slack for value in objects], axis=0)
    return found * np.uint8(255)


def soft_labels(pixels: np.ndarray, kind: str, objects: Sequence[float], slack: int) -> np.ndarray:
    """The fraction of the way from 0 to the value of the object, in 255ths -> (H, W) uint8. Raises ValueError."""
    levels, level = level_of(pixels, kind), level_of(objects[0], kind)
    top = levels.max()
    if top > slack and not is_near(top, level, slack, exact=kind == "index"):
        raise ValueError(f"its highest value is {top:g}, but the object has {level:g} in its data set")
    if kind == "color" and has_other_colors(pixels, unpack(objects[0]), slack):
        raise ValueError(f"it has other colors than {show(objects[0], kind)}, the object in its data set")
    if levels.dtype == np.uint8 and level == 255 and not slack:
        return levels
    return np.rint(((levels.astype(np.float32) - slack) / (level - 2 * slack)).clip(0, 1) * 255).astype(np.uint8)


def level_of(pixels: np.ndarray | float, kind: str) -> np.ndarray | float:
    """The values or, for colors, how bright they are: the value of the brightest channel."""
    if kind == "color":
        return pixels.max(axis=-1) if isinstance(pixels, np.ndarray) else int(unpack(pixels).max())
    return pixels


def is_near(level: float, object_level: float, slack: int, exact: bool = False) -> bool:
    """Whether the highest level of a file can be that of the object. Small numbers are often classes."""
    exact = exact or 1 < object_level < 64
    return abs(float(level) - object_level) <= (slack or (0 if exact else 0.05 * object_level))


def has_other_colors(colors: np.ndarray, color: np.ndarray, slack: int) -> bool:
    """Whether colors (H, W, 3) are not all between black and `color`; of lossy ones, 1% may be others."""
    expected = colors.max(axis=-1, keepdims=True) * (color / color.max())
    return (abs(colors - expected) > 3 * slack + 1.5).any(axis=-1).mean() > (0.01 if slack else 0)


def slack_of(encoded: bytes) -> int:
    """By how many levels compression may have changed a value: 0, or LOSSY for JPEG, JPEG 2000 and most of WebP."""
    lossy_webp = encoded[8:12] == b"WEBP" and b"VP8L" not in encoded[:64]
    return LOSSY if lossy_webp or encoded.startswith((b"\xff\xd8", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")) else 0


def count_values(pixels: np.ndarray, kind: str) -> tuple[list[float], list[int]]:
    """The values that occur, the most frequent first, and how often each does."""
    values = pack(pixels) if kind == "color" else pixels
    if values.dtype.kind == "u" and values.itemsize <= 2:
        counts = np.bincount(values.ravel())
        unique = counts.nonzero()[0]
        counts = counts[unique]
    else:
        unique, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return unique[order].tolist(), counts[order].tolist()


def has_classes(pixels: np.ndarray, kind: str, top: float, slack: int) -> bool:
    """Whether a mask shows more than one kind of object."""
    levels = level_of(pixels, kind)
    if kind == "index":
        return bool(((levels > 0) & (levels < top)).any())
    return is_class_map(levels, slack) or (kind == "color" and has_other_colors(pixels, unpack(top), slack))


def is_class_map(levels: np.ndarray, slack: int) -> bool:
    """Whether the values (H, W) between 0 and the highest are classes or ids, and not soft edges.

    They are if most of their pixels have neighbors (3x3) of the same value, and the median jump to another value, in
    and around such areas, is above 2% of the highest value: in a slow ramp, it is smaller. Areas may be too small for
    that: they count if almost all pixels are in a block (2x2) of one value, and fewer have the highest value.
    """
    top = levels.max()
    between = (levels > slack) & (levels < top - slack)
    count = between.sum()
    if count == 0 or (top < 64 and levels.dtype.kind != "f"):  # soft edges have more levels
        return bool(count)
    rows, columns = (np.flatnonzero(between.any(axis=axis)) for axis in (1, 0))
    box = np.s_[max(rows[0] - 2, 0) : rows[-1] + 3, max(columns[0] - 2, 0) : columns[-1] + 3]
    padded, between = np.pad(levels[box].astype(np.float32), 1, mode="edge"), between[box]
    right, down = abs(np.diff(padded, axis=1)), abs(np.diff(padded, axis=0))  # the jumps to these neighbors
    same_right, same_down = right <= slack / 10, down <= slack / 10
    blocks = same_right[:-1] & same_right[1:] & same_down[:, :-1] & same_down[:, 1:]
    around = [blocks[:-1, :-1], blocks[:-1, 1:], blocks[1:, :-1], blocks[1:, 1:]]  # those that contain a pixel
    flat, in_block = (between & each.reduce(around) for each in (np.logical_and, np.logical_or))
    are_small = in_block.sum() > 0.9 * count and count > (levels >= top - slack).sum()
    if flat.sum() <= 0.5 * count and not are_small:
        return False
    area = np.pad(in_block, 1)
    jumps = np.concatenate([right[area[:, 1:] | area[:, :-1]], down[area[1:] | area[:-1]]])
    jumps = jumps[jumps > slack / 10]
    return len(jumps) > 0 and bool(np.median(jumps) > 0.02 * top)
