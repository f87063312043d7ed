"""Tensors to and from Pillow, and downsampling by a whole factor. Images are (3, H, W) uint8, sizes (height, width)."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_pillow(image: Tensor) -> Image.Image:
    """Convert (3, H, W) uint8 to a Pillow image in RGB."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pillow(image: Image.Image) -> Tensor:
    """Convert a Pillow image in RGB to (3, H, W) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def draft_scale(size: Sequence[int], min_size: Sequence[int] | None) -> int:
    """Return 2 if half of `size` covers `min_size` and both sides are even, else 1.

    Half of an odd side would end in a pixel that is the mean of fewer pixels than the others.
    """
    if min_size is None or size[0] % 2 or size[1] % 2:
        return 1
    return 2 if size[0] >= 2 * min_size[0] and size[1] >= 2 * min_size[1] else 1


def reduce(image: Tensor, scale: int) -> Tensor:
    """Downsample (3, H, W) uint8 by a whole factor: each block of scale x scale pixels becomes its mean."""
    return image if scale == 1 else from_pillow(to_pillow(image).reduce(scale))
