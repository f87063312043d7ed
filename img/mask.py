"""Decode a mask file to the fraction of each pixel that is the object."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from img.transformer import draft_scale, exif_transpose, load

TOLERANCE = 20  # levels by which JPEG may change background and object
KINDS = {"gray": "gray levels", "index": "palette indices", "color": "colors", "": "values", "nonzero": "values"}
EXACT = ("index", "color")  # kinds that have no soft edges


class MaskValues(NamedTuple):
    """What the values of a data set's masks mean. The defaults are Kaggle's.

    kind: one of KINDS. "color" is 0xRRGGBB; "" is gray levels or palette indices, as each file has; "nonzero" is any.
    objects: the values that are the object; empty: all but 0
    soft: whether the values between 0 and the only one in `objects` are the fraction of a pixel that is object
    """

    kind: str = "gray"
    objects: Sequence[float] = (255,)
    soft: bool = True

    def __str__(self) -> str:
        objects = ", ".join(format_value(value, self.kind) for value in self.objects) or "all but 0"
        between = "; values between 0 and it are soft labels" if self.soft and self.kind not in EXACT else ""
        return f"{KINDS[self.kind]}: the object is {objects}{between}"

    def mismatch(self, kind: str, highest: float, tolerance: int, exact: bool = False) -> str:
        """What is wrong with a mask of that kind and highest value, or "". exact: whether it has no soft edges."""
        low = min([highest or 255, *self.objects])  # an empty mask fits all
        if tolerance and low <= 2 * tolerance:
            return f"was compressed as JPEG, which changes values as low as {low:g}: save the original mask as PNG"
        if highest == 0 or self.kind == "nonzero":
            return ""
        if self.kind == "" and kind not in ("gray", "index"):
            return f"has {KINDS[kind]}, so --mask-values must be a color such as '#ff0000', or nonzero"
        if self.kind not in ("", kind):
            return f"has {KINDS[kind]}, unlike this data set: {KINDS[self.kind]}"
        if self.soft:
            wanted = self.objects[0]
            if abs(float(highest) - wanted) > (tolerance or (0 if exact else 0.05 * wanted)):
                found, wanted = format_value(highest, kind), format_value(wanted, kind)
                return f"has {found} as its highest value, unlike {wanted}, the object of this data set"
        return ""


def format_value(value: float, kind: str) -> str:
    """Return a value as --mask-values takes it."""
    return f"#{int(value):06x}" if kind == "color" else f"{value:.15g}"


def decode_mask(encoded: bytes, min_size: tuple[int, int] | None = None, values: MaskValues = MaskValues()) -> Tensor:
    """Decode a file's bytes to a mask (1, H, W) uint8: the fraction of each pixel that is object, from 0 to 255 (all).

    `min_size` and errors are those of `decode_image`. Also raises ValueError if its values do not fit `values`.
    """
    image, header = load(encoded)
    tolerance = tolerance_of(encoded)
    kind, pixels = read_values(image, tolerance, values.kind)
    highest = value_of_object(count_values(pixels), tolerance) if tolerance else pixels.max()
    if problem := values.mismatch(kind, highest, tolerance):
        raise ValueError(f"it {problem}")
    mask = Image.fromarray(fraction_of_object(pixels, values, tolerance)).reduce(draft_scale(header.size, min_size))
    return exif_transpose(torch.from_numpy(np.array(mask))[None], header.orientation)


def read_values(image: Image.Image, tolerance: int, kind: str | None = None) -> tuple[str, np.ndarray]:
    """Return the kind of a mask's values, and the values (H, W).

    kind: that of its data set; None: not known yet. Raises ValueError if its values are invalid or ambiguous.
    """
    if kind != "gray" and image.has_transparency_data:
        lowest, highest = image.convert("RGBA").getchannel("A").getextrema()
        if lowest < highest or highest == 0:
            raise ValueError("it is partly or fully transparent; save it as white on black, without transparency")
    if image.mode == "P" and kind != "color":
        palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        levels = np.pad(palette[:, 0], (0, 256 - len(palette)))
        used = levels[np.flatnonzero(image.histogram())]  # if it is complete, they differ
        if (palette == palette[:, :1]).all() and (kind == "gray" or len({*used}) == len(used)):
            return "gray", levels[np.asarray(image)]
        if kind == "" or (not palette[0].any() and (kind == "index" or not palette.any())):
            return "index", np.asarray(image)  # otherwise by color, as each file may have its own palette
    elif kind != "color" and (image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;16")):
        values = np.asarray(image.getchannel(0) if image.mode == "LA" else image)
        if (values.dtype.kind == "f" and not np.isfinite(values).all()) or values.min() < 0:
            raise ValueError("it has values that are negative, infinite or not a number")
        return "gray", values * np.uint8(255) if image.mode == "1" else values
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")), -1, 0)  # (H, W) uint8 each
    highest, lowest = (each.reduce([red, green, blue]) for each in (np.maximum, np.minimum))
    if kind != "color" and (highest - lowest).max() <= tolerance:
        return "gray", highest
    if tolerance:
        raise ValueError("its colors were changed by lossy compression, as of JPEG; save the original as PNG")
    return "color", red.astype(np.int32) << 16 | green.astype(np.int32) << 8 | blue


def fraction_of_object(pixels: np.ndarray, values: MaskValues, tolerance: int) -> np.ndarray:
    """Values (H, W) -> how much of each pixel is object, in 255ths, uint8."""
    if not values.objects:
        return (pixels > tolerance) * np.uint8(255)
    if not values.soft:
        distances = [abs(pixels.astype(np.float64) - value) for value in values.objects]
        return (np.min(distances, axis=0) <= tolerance) * np.uint8(255)
    if pixels.dtype == np.uint8 and values.objects[0] == 255 and not tolerance:
        return pixels
    fraction = (pixels.astype(np.float32) - tolerance) / (values.objects[0] - 2 * tolerance)
    return np.rint(fraction.clip(0, 1) * 255).astype(np.uint8)


def tolerance_of(encoded: bytes) -> int:
    """By how many levels compression may have changed a value: 0, or TOLERANCE for JPEG, JPEG 2000 and most of WebP."""
    lossy_webp = encoded[8:12] == b"WEBP" and b"VP8L" not in encoded[:64]
    return TOLERANCE if lossy_webp or encoded.startswith((b"\xff\xd8", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")) else 0


def count_values(values: np.ndarray) -> list[tuple[float, int]]:
    """The values that occur, the most frequent first, and how often each does."""
    values = values.astype(np.uint16) if values.dtype == np.uint8 else values  # NumPy counts these faster
    unique, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return list(zip(unique[order].tolist(), counts[order].tolist(), strict=True))


def is_class_map(values: np.ndarray, kind: str, top: float, tolerance: int) -> bool:
    """Whether the values (H, W) between 0 and `top` are classes, ids or an image, and not soft edges.

    Classes: most of these pixels are in a block (2x2) of one value, and most jumps around such blocks are above 2% of
    `top`, or a fifth of the range has no value. An image: almost all pixels but 0 are between, and differ irregularly.
    """
    from scipy import ndimage  # importing it takes a while

    between = (values > tolerance) & (values < top - tolerance)
    count = between.sum()
    if kind in EXACT or count == 0 or (top < 64 and values.dtype.kind != "f"):
        return bool(count)

    def spread(side: int) -> np.ndarray:  # highest minus lowest of the pixels around each
        return ndimage.maximum_filter(values, side) - ndimage.minimum_filter(values, side)

    in_block = between & ndimage.maximum_filter(spread(2) <= tolerance / 10, 2, origin=-1)
    if in_block.sum() > 0.5 * count:
        jumps, levels = spread(3)[in_block], np.unique(values[between])
        gap = np.diff(levels, prepend=0, append=top).max()
        return bool(gap > 0.2 * top or (jumps > 0.02 * top).sum() > 0.5 * (jumps > tolerance / 10).sum())
    if count < 512 or count < 0.9 * (values > tolerance).sum():
        return False
    rows = values.astype(np.float32)
    jump, change = (np.median(abs(ndimage.convolve1d(rows, weights))[between]) for weights in ((1, -1), (1, -2, 1)))
    return bool(jump > 0.01 * top and change > 0.75 * jump)


def value_of_object(counts: Sequence[tuple[float, int]], tolerance: int) -> float:
    """The value that the object seems to have: the highest or, as JPEG overshoots, the most frequent high one."""
    highest = max(value for value, _ in counts)
    if not tolerance:
        return highest
    likely = next(value for value, _ in counts if value >= highest / 2)
    above, about = (sum(count for value, count in counts if value > likely + sign * tolerance) for sign in (1, -1))
    likely = likely if above < 0.05 * about else highest
    return 255 if likely >= 255 - tolerance else likely
