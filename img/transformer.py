"""From a file's bytes to a tensor of the net's size. Tensors are (C, H, W) uint8, sizes (height, width)."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
import torch
from PIL import ExifTags, Image, ImageChops, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000")  # none that starts another program


FULL_SIZE = (2**31, 2**31)  # nothing covers it


def open_image(file: str | Path | BinaryIO) -> Image.Image:
    """Pillow's image, of which no pixel is read yet. Raises its errors, and one for a decompression bomb."""
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from None


def _open_whole(encoded: bytes) -> Image.Image:
    """open_image of a file's bytes. Raises ValueError where a PNG's sums are wrong, which Pillow decodes as it can."""
    image = open_image(io.BytesIO(encoded))
    if image.format == "PNG":
        try:
            image.verify()  # after which it can't decode
        except SyntaxError as error:
            raise ValueError(f"it was damaged: {error}") from None
        image = open_image(io.BytesIO(encoded))
    return image


def decode_image(encoded: bytes, min_size: tuple[int, int] = FULL_SIZE) -> Tensor:
    """The bytes of a photo -> (3, H, W) uint8 RGB, turned upright as its EXIF data say.

    It comes at half its size where that still covers `min_size`, and no side is odd: a JPEG is decoded so, which is a
    third faster. Raises an exception of the decoder's where the bytes are broken or end early, or hold more pixels than
    a photo has.
    """
    image = _open_whole(encoded)
    if image.format in ("JPEG", "MPO"):
        width, height = (length // _step(image, min_size) for length in image.size)
        # strict: damage is an error, not a gray stripe
        values = simplejpeg.decode_jpeg(encoded, min_height=height, min_width=width, strict=True)
        photo = torch.from_numpy(values).permute(2, 0, 1)
    elif image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, and what is white isn't said: save it with 8 or 16")
    else:
        whole = image
        if image.mode.startswith("I;16"):
            whole = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        photo = from_pillow(whole.convert("RGB").reduce(_step(image, min_size)))
    return _upright(photo, orientation(image))


def downsample(photo: Tensor, min_size: tuple[int, int]) -> Tensor:
    """photo (3, H, W) uint8 -> at half its size, each pixel the mean of four, where decode_image would halve it too.

    (Of a JPEG, that gives nearly the same: a photo of Kaggle's, to a gray level in the mean.)
    """
    return reduced(photo, draft_scale(photo.shape[1:], min_size))


def reduced(photo: Tensor, step: int) -> Tensor:
    """photo (3, H, W) uint8 -> each step x step of its pixels become their mean; with a step of 1 it is the photo."""
    return photo if step == 1 else from_pillow(to_pillow(photo).reduce(step))


def to_pillow(photo: Tensor) -> Image.Image:
    """(3, H, W) uint8 -> RGB."""
    return Image.fromarray(photo.permute(1, 2, 0).contiguous().numpy())


def from_pillow(image: Image.Image) -> Tensor:
    """RGB -> (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def decode_mask(encoded: bytes, min_size: tuple[int, int] = FULL_SIZE) -> Tensor:
    """The bytes of a mask of any kind -> (1, H, W) uint8: how much of each pixel is car, 0 (nothing) to 255 (all).

    If parts of it are transparent, what is not is the car. Else the brightest value means "car", be it the 1 of
    Kaggle's palette GIFs, a gray of 255 or of 65535, or a color. As with decode_image, it comes at half its size where
    that still covers `min_size`. Raises an exception of the decoder's where the bytes are broken.
    """
    image = _open_whole(encoded)
    step, turned = _step(image, min_size), orientation(image)
    if "transparency" in image.info:  # one color of a palette, or of what has no palette either
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "LA", "PA") and image.getchannel("A").getextrema()[0] < 255:
        image = image.getchannel("A")
    elif image.mode == "P":
        image.load()
        colors = np.zeros((256, 3), dtype=np.uint8)
        palette = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        colors[: len(palette)] = palette
        image = image.point(colors.max(axis=1).tolist(), "L")
    elif image.mode not in ("1", "L", "I", "F") and not image.mode.startswith("I;16"):
        red, green, blue = image.convert("RGB").split()
        image = ImageChops.lighter(red, ImageChops.lighter(green, blue))
    if image.mode != "L":
        values = np.asarray(image).clip(min=0)
        image = Image.fromarray(np.rint(values * (255.0 / (values.max() or 1))).astype(np.uint8))
    brightest = image.getextrema()[1]
    if brightest not in (0, 255):
        image = image.point([min(round(value * 255 / brightest), 255) for value in range(256)])
    return _upright(torch.from_numpy(np.array(image.reduce(step)))[None], turned)


def draft_scale(size: Sequence[int], min_size: tuple[int, int]) -> int:
    """2 if every second pixel of an image of that (height, width) is enough to cover `min_size`, else 1.

    And 1 where a side is odd: the half of its last pixel would count as much as each other one.
    """
    even = size[0] % 2 == size[1] % 2 == 0
    return 2 if even and size[0] >= 2 * min_size[0] and size[1] >= 2 * min_size[1] else 1


def _step(image: Image.Image, min_size: tuple[int, int]) -> int:
    """The step to cover `min_size` when an image that Pillow has opened stands upright."""
    return draft_scale(image.size if orientation(image) >= 5 else image.size[::-1], min_size)


def orientation(image: Image.Image) -> int:
    """How an image that Pillow has opened lies, as EXIF counts: 1 is upright, 5 and above lie on their side."""
    if image.format == "TIFF":  # Pillow turns it
        return 1
    told = image.getexif().get(ExifTags.Base.Orientation, 1)
    return told if told in range(1, 9) else 1


def get_image_size(file: str | Path | BinaryIO) -> tuple[int, int]:
    """(height, width) of an image, turned upright, from its header alone. Raises Pillow's errors."""
    with open_image(file) as image:
        return image.size if orientation(image) >= 5 else image.size[::-1]


def _upright(image: Tensor, orientation: int) -> Tensor:
    """(C, H, W), lying as EXIF's orientation says -> (C, H, W) or (C, W, H), upright."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(-2, -1)
    mirrored = [dim for dim, which in ((-1, (2, 3, 6, 7)), (-2, (3, 4, 7, 8))) if orientation in which]
    return image.flip(mirrored) if mirrored else image


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) uint8 -> (C, *size) uint8. Made smaller, each pixel is the weighted mean of the area that it covers.

    Photo and mask go through the same filter: an edge pixel of a small mask keeps its share of car, and the mask stays
    where its photo is, to a fraction of a pixel.
    """
    return transforms.resize(image, list(size), antialias=True)


def reflect_pad(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Mirror a (C, H, W) image outwards, as far on either side, until it is (C, *size); no padding where it already is.

    The overlap-tile strategy of the U-Net paper, section 2: "missing input data is extrapolated by mirroring". The
    outermost pixel is the mirror and stands once; an image smaller than its padding is mirrored again and again.
    """
    for dim, length in ((-2, size[0]), (-1, size[1])):
        n = image.shape[dim]
        if n != length:
            period = max(2 * n - 2, 1)  # there and back again
            at = (torch.arange(length) - (length - n) // 2).remainder(period)
            image = image.index_select(dim, torch.minimum(at, period - at).clamp(max=n - 1))
    return image
