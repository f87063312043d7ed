"""Test-time augmentation: predict two views of an image and merge the predictions.

The second view is shifted right and down by half a pixel of the mask, then flipped left to right. Each prediction
locates the car's edge on its own pixel grid; merged, they locate it on one twice as fine, if the image has more pixels.
"""

from math import ceil

import numpy as np
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from img.transformer import draft_scale, from_pillow, to_pillow


def tta_view(image: Tensor, mask_size: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """Return the second view of an image (3, H, W) uint8 -> (3, *window) uint8.

    image: at its full size. It is cropped by whole pixels before it is halved, so that both views are equally sharp;
        the rest of the shift is part of the resizing.
    mask_size: (height, width) of the net's masks.
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
    probs = F.interpolate(probs, scale_factor=2, mode="bilinear", align_corners=False)
    first, second = probs[:, :1], probs[:, 1:].flip(-1)  # (N, 1, 2h, 2w) each
    # Shift it back by half a pixel of the mask, which is one pixel here
    second = F.pad(second, (1, 0, 1, 0), mode="replicate")[..., :-1, :-1]
    return ((first + second) / 2)[:, 0]
