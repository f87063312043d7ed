"""Cut the car out of an image: with a soft edge, without the background's color, and in the image's color space."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps
from scipy import ndimage
from torch import Tensor

from img.headers import FORMATS


def cut_out(image: Tensor, probs: Tensor, threshold: float, background: Image.Image | None = None,
            crop: bool = False) -> Image.Image:
    """Cut out the car of an image (3, H, W) uint8, probs (H, W) -> RGBA, or RGB on a background of any size.

    crop: to the bounding box of the car, if there is one, with a margin of 5% of its larger side.
    """
    pixels, alpha = image.permute(1, 2, 0).numpy(), opacity(probs, threshold)
    mask = (probs > threshold).numpy()
    inside = (alpha == 255) | ndimage.binary_erosion(mask, iterations=2)
    if mask.any():  # give the soft edge the colors of the nearest pixels inside
        edge = ~inside if inside.any() else ~mask
        nearest = ndimage.distance_transform_edt(edge, return_distances=False, return_indices=True)
        pixels = pixels[tuple(nearest)]
    car, alpha = Image.fromarray(pixels * (alpha > 0)[..., None]), Image.fromarray(alpha)
    if background is None:
        car.putalpha(alpha)
    else:
        car = Image.composite(car, ImageOps.fit(background.convert("RGB"), car.size), alpha)
    boxes = ndimage.find_objects(mask.astype(int))  # one, or none
    if crop and boxes:
        margin = round(0.05 * max(side.stop - side.start for side in boxes[0]))
        rows, columns = (slice(max(0, side.start - margin), side.stop + margin) for side in boxes[0])
        car = Image.fromarray(np.asarray(car)[rows, columns])
    return car


def opacity(probs: Tensor, threshold: float) -> np.ndarray:
    """Probabilities (H, W) -> (H, W) uint8, from 0 to 255. The threshold is half opaque."""
    width = min(0.5, 2 * threshold, 2 * (1 - threshold))  # of the range where it fades out, which is within [0, 1]
    return (((probs - threshold) / width + 0.5).clamp(0, 1) * 255).round().byte().numpy()


def keep_largest(probs: Tensor, threshold: float) -> Tensor:
    """Set probabilities (H, W) to 0 outside of the largest connected object, which has its soft edge."""
    objects, _ = ndimage.label(opacity(probs, threshold) > 0, np.ones((3, 3)))  # 8-connected
    sizes = np.bincount(objects[(probs > threshold).numpy()], minlength=1)
    return probs * torch.from_numpy(objects == sizes.argmax())


def color_profile(path: Any) -> bytes | None:
    """The ICC profile of an image file, unless it is broken, not for RGB, or too large for Pillow; else None."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            profile = image.info["icc_profile"]
        ImageCms.buildTransform(io.BytesIO(profile), ImageCms.createProfile("sRGB"), "RGB", "RGB")
    except Exception:  # Pillow raises many types
        return None
    return profile if len(profile) <= 2**20 else None
