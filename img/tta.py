"""Test-time augmentation: the net sees a photo twice, and one mask is made of both answers.

The second view is a mirror image, taken half a pixel of the mask aside. Of the edge, each answer tells where it runs
between the pixels of its own grid; together they tell it at twice as many places, for the cost of two predictions. A
photo must have more pixels than the mask for that: of one as large, the second view is blurred.
"""

from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from img.transformer import draft_scale, from_pillow, reduced


def tta_view(photo: Tensor, mask_size: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """photo (3, H, W) uint8 -> its mirror image at `window`, (3, *window), half a pixel further to the right and down.

    photo: at its full size. It is made smaller as the first view is, from decode_image to resize (downsample where that is
    enough for the window), but is moved before that by as many of its pixels as fit in: both views are about as sharp.
    mask_size: (height, width) of the masks, whose pixels are meant. Behind the last row and column they are repeated.
    """
    height, width = photo.shape[1:]
    down, right = height / mask_size[0] / 2, width / mask_size[1] / 2
    step, top, left = draft_scale((height, width), window), int(down), int(right)
    moved = reduced(photo[:, top:, left:], step)
    box = [length / step for length in (right - left, down - top, right - left + width, down - top + height)]
    behind = (0, ceil(box[3]) - moved.shape[1]), (0, ceil(box[2]) - moved.shape[2]), (0, 0)
    image = Image.fromarray(np.pad(moved.permute(1, 2, 0).numpy(), behind, mode="edge"))
    return from_pillow(image.resize(window[::-1], Image.Resampling.BILINEAR, box)).flip(-1)


def merge_tta(probs: Tensor) -> Tensor:
    """The probabilities of a photo and of its second view, (N, 2, h, w) -> those of the photo, (N, 2h, 2w)."""
    straight, second = F.interpolate(probs, scale_factor=2, mode="bilinear", align_corners=False).unbind(1)
    second = second.flip(-1)
    second = torch.cat([second[:, :1], second[:, :-1]], dim=1)
    second = torch.cat([second[:, :, :1], second[:, :, :-1]], dim=2)
    return (straight + second) / 2
