"""Cut the car out of an image: with a soft edge, without the background's color, and in the image's color space."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from PIL.PngImagePlugin import MAX_TEXT_CHUNK
from torch import Tensor

from img.headers import FORMATS
from img.transformer import from_pillow, to_pillow

NEIGHBORS = np.ones((3, 3))  # a pixel is connected with all eight


def cut_out(image: Tensor, probs: Tensor, threshold: float, background: Image.Image | None = None,
            crop: bool = False) -> Image.Image:
    """Cut out the car of an image (3, H, W) uint8, probs (H, W) -> RGBA, or RGB on a background of any size.

    crop: to the bounding box of the car, if there is one, with a margin of 5% of its larger side.
    """
    alpha = opacity(probs, threshold)
    car, alpha = Image.fromarray(_clean_edge(image.permute(1, 2, 0).numpy().copy(), alpha)), Image.fromarray(alpha)
    if background is None:
        car.putalpha(alpha)
    else:
        car = Image.composite(car, ImageOps.fit(background, car.size), alpha)
    mask = (probs > threshold).numpy()
    return Image.fromarray(np.asarray(car)[_bounding_box(mask, 0.05)]) if crop and mask.any() else car


def opacity(probs: Tensor, threshold: float) -> np.ndarray:
    """Probabilities (H, W) -> (H, W) uint8, from 0 to 255. The threshold is half opaque."""
    # It fades out over this range of probabilities, which is centered on the threshold and within [0, 1]
    width = min(0.5, 2 * threshold, 2 * (1 - threshold))
    return (((probs - threshold) / width + 0.5).clamp(0, 1) * 255).round().byte().numpy()


def keep_largest(probs: Tensor, threshold: float) -> Tensor:
    """Set probabilities (H, W) to 0 outside of the largest connected object and its soft edge."""
    from scipy import ndimage  # importing it takes a moment

    mask = (probs > threshold).numpy()
    if not mask.any():
        return torch.zeros_like(probs)
    objects, _ = ndimage.label(mask, NEIGHBORS)
    largest = np.bincount(objects[mask]).argmax()
    # Where the soft edges of two objects touch, a pixel belongs to the nearer object
    near = objects[tuple(_nearest(mask))] == largest
    parts, _ = ndimage.label(near & (opacity(probs, threshold) > 0), NEIGHBORS)
    return probs * torch.from_numpy(parts == parts[objects == largest][0])


def read_colors(path: Path, image: Tensor) -> tuple[Tensor, bytes | None]:
    """Return the pixels to write for the image at `path`, (3, H, W) uint8, and their ICC profile (None: sRGB).

    image: the same, from `decode_image`. CMYK is converted to sRGB, and so is RGB whose profile is too large for Pillow
    to read it from a PNG file. A profile that is broken, or not for these pixels, is ignored. Raises Pillow's errors.
    """
    with path.open("rb") as file:  # by its path, Pillow maps a rotated TIFF to memory in the wrong shape
        header = Image.open(file, formats=FORMATS)
        profile = header.info.get("icc_profile")
        pixels = ImageOps.exif_transpose(header) if header.mode == "CMYK" else to_pillow(image)
    try:
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(io.BytesIO(profile or b""), srgb, pixels.mode, "RGB")
    except (ImageCms.PyCMSError, TypeError):
        return image, None
    if pixels.mode == "RGB" and len(profile) <= MAX_TEXT_CHUNK:
        return image, profile
    return from_pillow(transform.apply(pixels)), None


def _clean_edge(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Set transparent pixels (H, W, 3) to 0, and partly transparent ones to the nearest opaque color, in place."""
    pixels[alpha == 0] = 0
    if (alpha == 255).any():
        box = _bounding_box(alpha > 0)
        edge = (alpha[box] > 0) & (alpha[box] < 255)
        pixels[box][edge] = pixels[box][tuple(_nearest(alpha[box] == 255)[:, edge])]
    return pixels


def _nearest(mask: np.ndarray) -> np.ndarray:
    """For each pixel, the row and column of the nearest one in the mask (H, W) -> (2, H, W)."""
    from scipy import ndimage

    return ndimage.distance_transform_edt(~mask, return_distances=False, return_indices=True)


def _bounding_box(mask: np.ndarray, margin: float = 0) -> tuple[slice, slice]:
    """Rows and columns of a mask (H, W) that is not empty. margin: in fractions of the larger side."""
    spans = [(each[0], each[-1] + 1) for each in (np.flatnonzero(mask.any(axis)) for axis in (1, 0))]
    margin = round(margin * max(stop - start for start, stop in spans))
    return tuple(slice(max(0, start - margin), stop + margin) for start, stop in spans)
