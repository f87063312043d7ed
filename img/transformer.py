"""Decode images and masks, and bring them to the size of a net and back.

Images are (3, H, W) uint8 tensors in RGB, masks (1, H, W) uint8. Sizes are (height, width).
"""

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

from img.pillow import draft_scale, from_pillow, reduce
from img.tta import tta_view

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "JPEG2000")  # none of which starts another program


def preprocess(
    image: Tensor,
    input_size: tuple[int, int],
    mask_size: tuple[int, int],
    padding: str = "reflect",
    tta: bool = False,
    downsampled: bool = False,
) -> Tensor:
    """Bring an image (3, H, W) uint8 to the size of the net's input: resize it, then pad it -> (3, *input_size) uint8.

    Training, validation, testing and predict.py all use this function.

    input_size, mask_size: sizes of the net's images and masks.
    padding: "reflect" or "stretch", see `resize_size`.
    tta: return both views for test-time augmentation, (2, 3, *input_size). Requires an image of full size.
    downsampled: whether the image may have been halved already, by `decode_image` with `min_size`.
    """
    window = resize_size(input_size, mask_size, padding)
    scale = 1 if downsampled else draft_scale(image.shape[1:], window)
    views = [resize(reduce(image, scale), window)]
    if tta:
        views.append(tta_view(image, mask_size, window))
    views = [reflect_pad(view, input_size) for view in views]
    return torch.stack(views) if tta else views[0]


def to_mask(probs: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Upsample probabilities (N, h, w), then threshold them -> masks (N, *size) of bool, True where it is car."""
    return upsample(probs, size) > threshold


def upsample(probs: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate probabilities (N, h, w) bilinearly -> (N, *size)."""
    return F.interpolate(probs[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def decode_image(encoded: bytes, min_size: tuple[int, int] | None = None) -> Tensor:
    """Decode a file's bytes to an image (3, H, W) uint8 in RGB, rotated as its EXIF data say.

    If half of its size still covers `min_size`, and both sides are even, it is returned at half of its size: each
    pixel is then the mean of four. libjpeg does that while it decodes, which is a third faster.

    Raises ValueError or an error of the decoder if the file is damaged, truncated or a decompression bomb.
    """
    image = _open_checked(encoded)
    scale = draft_scale(_upright_size(image), min_size)
    if image.format in ("JPEG", "MPO"):
        width, height = (side // scale for side in image.size)
        # strict: a damaged file is an error, not an image with a gray stripe
        values = simplejpeg.decode_jpeg(encoded, min_height=height, min_width=width, strict=True)
        pixels = torch.from_numpy(values).permute(2, 0, 1)
    elif image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, whose range is unknown; save it with 8 or 16 bits")
    else:
        full = image
        if image.mode.startswith("I;16"):
            full = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
        pixels = from_pillow(full.convert("RGB").reduce(scale))
    return _exif_transpose(pixels, _orientation(image))


def decode_mask(encoded: bytes, min_size: tuple[int, int] | None = None) -> Tensor:
    """Decode a file's bytes to a mask (1, H, W) uint8: the fraction of each pixel that is car, from 0 to 255 (all).

    If the file has transparent pixels, the opaque ones are the car. Otherwise the brightest value is: the 1 of Kaggle's
    palette images, a gray of 255 or 65535, or a color. `min_size` and errors are those of `decode_image`.
    """
    image = _open_checked(encoded)
    scale, orientation = draft_scale(_upright_size(image), min_size), _orientation(image)
    image = _car_channel(image)
    if image.mode != "L":
        values = np.asarray(image).clip(min=0)
        image = Image.fromarray(np.rint(values * (255.0 / (values.max() or 1))).astype(np.uint8))
    brightest = image.getextrema()[1]
    if brightest not in (0, 255):
        image = image.point([min(round(value * 255 / brightest), 255) for value in range(256)])
    return _exif_transpose(torch.from_numpy(np.array(image.reduce(scale)))[None], orientation)


def _car_channel(image: Image.Image) -> Image.Image:
    """Reduce a mask file's image to one channel that is highest where the car is; its values keep their range."""
    if "transparency" in image.info:  # one transparent color, of a palette or not
        image = image.convert("RGBA")
    if image.mode in ("RGBA", "LA", "PA") and image.getchannel("A").getextrema()[0] < 255:
        return image.getchannel("A")
    if image.mode == "P":
        image.load()
        colors = np.zeros((256, 3), dtype=np.uint8)
        palette = np.array(image.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        colors[: len(palette)] = palette
        return image.point(colors.max(axis=1).tolist(), "L")
    if image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"):
        return image
    red, green, blue = image.convert("RGB").split()
    return ImageChops.lighter(red, ImageChops.lighter(green, blue))


def _open(file: str | Path | BinaryIO) -> Image.Image:
    """Read the header of an image with Pillow. Raises its errors, also for a decompression bomb."""
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"its format is none of {', '.join(FORMATS)}") from None


def _open_checked(encoded: bytes) -> Image.Image:
    """Open a file's bytes. Raises ValueError if a PNG's checksum is wrong, which Pillow ignores when it decodes."""
    image = _open(io.BytesIO(encoded))
    if image.format == "PNG":
        try:
            image.verify()  # afterwards the image must be opened again
        except SyntaxError as error:
            raise ValueError(f"it is damaged: {error}") from None
        image = _open(io.BytesIO(encoded))
    return image


def get_image_size(file: str | Path | BinaryIO) -> tuple[int, int]:
    """Read the size of an image, rotated as its EXIF data say, from its header. Raises Pillow's errors."""
    with _open(file) as image:
        return _upright_size(image)


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    return (width, height) if _orientation(image) >= 5 else (height, width)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation of an image: 1 is upright; from 5 on, height and width are swapped."""
    if image.format == "TIFF":  # Pillow rotates it
        return 1
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


def _exif_transpose(image: Tensor, orientation: int) -> Tensor:
    """Rotate and flip (C, H, W) by its EXIF orientation -> upright (C, H, W) or (C, W, H)."""
    if orientation in (5, 6, 7, 8):
        image = image.transpose(-2, -1)
    if orientation in (2, 3, 6, 7):
        image = image.flip(-1)
    if orientation in (3, 4, 7, 8):
        image = image.flip(-2)
    return image


def resize_size(input_size: tuple[int, int], mask_size: tuple[int, int], padding: str) -> tuple[int, int]:
    """Return the size that images are resized to before they are padded to the net's `input_size`.

    "reflect": the size of the mask, so that each pixel is aligned with its label. The margin that the net's valid
        convolutions remove is padded by reflection, as in the U-Net paper.
    "stretch": the size of the input, as in the tutorial. A smaller mask then has another scale than its image.
    """
    return tuple(mask_size if padding == "reflect" else input_size)


def resize_to_cover(min_size: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest size that covers `min_size` and has the proportions of `size`; at most `size` itself."""
    scale = min(1.0, max(min_size[0] / size[0], min_size[1] / size[1]))
    return round(size[0] * scale), round(size[1] * scale)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (C, H, W) uint8 to (C, *size), with antialiasing.

    Image and mask go through the same filter, so they stay aligned, and an edge pixel of a small mask keeps the
    fraction of it that is car.
    """
    return transforms.resize(image, list(size), antialias=True)


def reflect_pad(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad (C, H, W) by reflection, equally on opposite sides, to (C, *size).

    This is the overlap-tile strategy of the U-Net paper, section 2. The edge pixel is the mirror axis and is not
    repeated. Unlike F.pad, a padding wider than the image works: the image is reflected several times.
    """
    for dim, length in ((-2, size[0]), (-1, size[1])):
        n = image.shape[dim]
        if n != length:
            period = max(2 * n - 2, 1)  # there and back again
            index = (torch.arange(length) - (length - n) // 2).remainder(period)
            image = image.index_select(dim, torch.minimum(index, period - index).clamp(max=n - 1))
    return image
