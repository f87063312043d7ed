"""Test-time augmentation: predict two views of an image and merge the predictions.

The second view is flipped left to right and shifted by half a pixel of the mask. Each prediction locates the car's edge
on its own pixel grid; merged, they locate it on a grid twice as fine, if the image has more pixels than the mask.
"""

from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from img.transformer import draft_scale, from_pillow, to_pillow


def tta_view(image: Tensor, mask_size: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Return the second view of an image (3, H, W) uint8 -> (3, *window) uint8.

    image: at its full size. It is cropped by whole pixels before it is halved, so that both views are equally sharp;
        the rest of the shift is part of the resizing.
    mask_size: (height, width) of the net's masks; the view is shifted right and down by half of one of their pixels.
    window: (height, width) to resize to. The last row and column are repeated at the end.
    """
    height, width = image.shape[1:]
    down, right = height / mask_size[0] / 2, width / mask_size[1] / 2
    scale, top, left = draft_scale((height, width), window), int(down), int(right)
    cropped = np.asarray(to_pillow(image[:, top:, left:]).reduce(scale))  # (h, w, 3)
    box = [side / scale for side in (right - left, down - top, right - left + width, down - top + height)]
    pad = (0, ceil(box[3]) - cropped.shape[0]), (0, ceil(box[2]) - cropped.shape[1]), (0, 0)
    padded = Image.fromarray(np.pad(cropped, pad, mode="edge"))
    return from_pillow(padded.resize(window[::-1], Image.Resampling.BILINEAR, box)).flip(-1)


def merge_tta(probs: Tensor) -> Tensor:
    """Merge the probabilities of both views of each image, (N, 2, h, w) -> (N, 2h, 2w)."""
    first, second = F.interpolate(probs, scale_factor=2, mode="bilinear", align_corners=False).unbind(1)
    second = second.flip(-1)
    # Shift it back by half a pixel of the mask, which is one pixel here
    second = torch.cat([second[:, :1], second[:, :-1]], dim=1)
    second = torch.cat([second[:, :, :1], second[:, :, :-1]], dim=2)
    return (first + second) / 2
