"""Decode images and masks, and bring them to a net's size and back. Sizes are (height, width)."""

import io
import re
from functools import partial

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from img.headers import SIDEWAYS, Header, open_image, repair_jpeg

JPEG = ("JPEG", "MPO")


def decode_image(encoded: bytes, min_size: tuple[int, int] | None = None, bits: int = 16) -> Tensor:
    """Decode a file's bytes to an image (3, H, W) uint8 in RGB, rotated as its EXIF data say.

    min_size: halve the image if `draft_scale` allows it. libjpeg does it while it decodes, a third faster.
    bits: how many of the bits of 16-bit gray are used. The largest value of so many becomes 255.
    Raises ValueError or an error of the decoder if the file is damaged or a decompression bomb.
    """
    image, header = open_image(io.BytesIO(encoded))
    scale = draft_scale(header.size, min_size)
    if image.format in JPEG:
        pixels = _decode_jpeg(encoded, image, scale)
    elif image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits, whose range is unknown; save it with 8 or 16 bits")
    else:
        if header.is_16_bit:
            table = np.rint(np.arange(2**16) * 255 / (2**bits - 1)).clip(max=255).astype(np.uint8)
            image = Image.fromarray(table[np.asarray(image)])
        pixels = np.array(image.convert("RGB").reduce(scale))
    return exif_transpose(torch.from_numpy(pixels).permute(2, 0, 1), header.orientation)


def load(encoded: bytes) -> tuple[Image.Image, Header]:
    """Decode a file in its own mode (a JPEG in L or RGB) -> image as stored, its header. Raises as above."""
    image, header = open_image(io.BytesIO(encoded))
    if re.search(r"(LA|RGB)\w*;16", str(image.tile)):  # of which Pillow decodes one byte
        raise ValueError("a mask of 16 bits must be gray, without transparency; save it with 8 bits")
    if image.format not in JPEG:
        image.load()
        return image, header
    pixels = _decode_jpeg(encoded, image)
    return Image.fromarray(pixels[..., 0] if image.mode == "L" else pixels), header


def _decode_jpeg(encoded: bytes, image: Image.Image, scale: int = 1) -> np.ndarray:
    """-> (H, W, 3) uint8 in RGB, downsampled by `scale`. Raises ValueError if it is damaged."""
    width, height = (side // scale for side in image.size)
    # strict: a damaged file is an error, not an image with a gray stripe
    decode = partial(simplejpeg.decode_jpeg, min_height=height, min_width=width, strict=True)
    try:
        return decode(encoded)
    except ValueError:
        return decode(repair_jpeg(encoded))


def exif_transpose(image: Tensor, orientation: int) -> Tensor:
    """Make an image (..., H, W) upright that has this EXIF orientation."""
    if orientation in SIDEWAYS:
        image = image.transpose(-2, -1)
    if orientation in (2, 3, 6, 7):
        image = image.flip(-1)
    if orientation in (3, 4, 7, 8):
        image = image.flip(-2)
    return image


def to_pillow(image: Tensor) -> Image.Image:
    """(3, H, W) uint8 -> a Pillow image in RGB."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pillow(image: Image.Image) -> Tensor:
    """A Pillow image in RGB -> (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def draft_scale(size: tuple[int, int], min_size: tuple[int, int] | None) -> int:
    """Return by how much an image is downsampled before it is resized.

    2 (each pixel is the mean of four) if both sides are even and half of the size covers `min_size`, else 1.
    """
    if min_size is None or size[0] % 2 or size[1] % 2:
        return 1
    return 2 if size[0] >= 2 * min_size[0] and size[1] >= 2 * min_size[1] else 1


def halve(image: Tensor, min_size: tuple[int, int]) -> Tensor:
    """Halve (3, H, W) uint8 if `draft_scale` allows it."""
    return from_pillow(to_pillow(image).reduce(draft_scale(image.shape[1:], min_size)))


def resize_size(input_size: tuple[int, int], mask_size: tuple[int, int], padding: str) -> tuple[int, int]:
    """Return the size that images are resized to before they are padded to the net's `input_size`.

    "reflect": the size of the mask, so that each pixel is aligned with its label, as in the U-Net paper.
    "stretch": the size of the input, as in the tutorial. A smaller mask then has another scale than its image.
    """
    return mask_size if padding == "reflect" else input_size


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (C, H, W) uint8 to (C, *size) with antialiasing: an edge pixel of a mask is the fraction that is car."""
    return F.interpolate(image[None], tuple(size), mode="bilinear", antialias=True)[0]


def reflect_pad(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Pad (..., H, W) by reflection, equally on opposite sides, to (..., *size), as the U-Net paper's overlap tiles.

    The edge pixel is not repeated. Unlike with F.pad, the padding may be wider than the image.
    """
    for dim, side in zip((-2, -1), size, strict=True):
        if missing := side - images.shape[dim]:
            kept = np.pad(np.arange(images.shape[dim]), (missing // 2, missing - missing // 2), mode="reflect")
            images = images.index_select(dim, to_device(torch.from_numpy(kept), images.device))
    return images


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor from the CPU to `device`; to a GPU, without waiting until it is there."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def to_mask(probs: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """Upsample probabilities (N, h, w), then threshold them -> masks (N, *size) of bool, True where it is car."""
    return upsample(probs, size) > threshold


def upsample(probs: Tensor, size: tuple[int, int]) -> Tensor:
    """Interpolate probabilities (N, h, w) bilinearly -> (N, *size)."""
    return F.interpolate(probs[:, None], size, mode="bilinear", align_corners=False)[:, 0]
