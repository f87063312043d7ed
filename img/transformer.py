"""From a file's bytes to a tensor, to the net's size and back. Tensors are (C, H, W) uint8, sizes (height, width)."""

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageChops, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000")  # none that starts another program


def open_image(file: str | Path | BinaryIO) -> Image.Image:
    """Pillow's image, of which no pixel is read yet. Raises its errors, and one for a decompression bomb."""
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"it is none of {', '.join(FORMATS)}") from None


def decode_photo(encoded: bytes) -> Tensor:
    """The bytes of a photo -> (3, H, W) uint8 RGB, turned upright as its EXIF data say.

    Raises an exception of the decoder's where the bytes are broken or end early, or hold more pixels than a photo has.
    """
    image = open_image(io.BytesIO(encoded))
    if image.format in ("JPEG", "MPO"):
        values = simplejpeg.decode_jpeg(encoded, strict=True)  # strict: damage is an error, not a grey stripe
    elif image.mode.startswith("I;16"):
        values = np.stack([(np.asarray(image) // 257).astype(np.uint8)] * 3, axis=-1)
    else:
        values = np.array(image.convert("RGB"))
    return _upright(torch.from_numpy(values).permute(2, 0, 1), orientation(image))


def decode_mask(encoded: bytes) -> Tensor:
    """The bytes of a mask of any kind -> (1, H, W) uint8: how much of each pixel is car, 0 (nothing) to 255 (all).

    If parts of it are transparent, what is not is the car. Else the brightest value means "car", be it the 1 of
    Kaggle's palette GIFs, a grey of 255 or of 65535, or a colour. Raises an exception of the decoder's where the bytes
    are broken.
    """
    image = open_image(io.BytesIO(encoded))
    turned = orientation(image)
    if image.mode in ("RGBA", "LA", "PA") and image.getchannel("A").getextrema()[0] < 255:
        image = image.getchannel("A")
    elif image.mode == "P":
        image = image.convert("L")
    elif image.mode not in ("1", "L", "I", "F") and not image.mode.startswith("I;16"):
        red, green, blue = image.convert("RGB").split()
        image = ImageChops.lighter(red, ImageChops.lighter(green, blue))
    values = np.asarray(image).clip(min=0)
    brightest = values.max()
    if brightest not in (0, 255) or values.dtype != np.uint8:
        values = np.rint(values * (255.0 / (brightest or 1))).astype(np.uint8)
    return _upright(torch.from_numpy(np.array(values))[None], turned)


def orientation(image: Image.Image) -> int:
    """How an image that Pillow has opened lies, as EXIF counts: 1 is upright, 5 and above lie on their side."""
    if image.format == "TIFF":  # Pillow turns it
        return 1
    return image.getexif().get(ExifTags.Base.Orientation, 1)


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


def mirror_border(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Mirror a (C, H, W) image outwards, as far on either side, until it is (C, *size); no border where it already is.

    The overlap-tile strategy of the U-Net paper, section 2: "missing input data is extrapolated by mirroring". The
    outermost pixel is the mirror and stands once; an image smaller than its border is mirrored again and again.
    """
    for dim, length in ((-2, size[0]), (-1, size[1])):
        n = image.shape[dim]
        if n != length:
            period = max(2 * n - 2, 1)  # there and back again
            at = (torch.arange(length) - (length - n) // 2).remainder(period)
            image = image.index_select(dim, torch.minimum(at, period - at).clamp(max=n - 1))
    return image


def enlarge(probs: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities (N, h, w) -> (N, *size), bilinear. Cut them at the threshold afterwards, not before."""
    return F.interpolate(probs[:, None].float(), size=tuple(size), mode="bilinear", align_corners=False)[:, 0]
