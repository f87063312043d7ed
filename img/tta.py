"""Test-time augmentation: the net sees a photo twice, and one mask is made of both answers.

The second view is a mirror image, taken half a pixel of the mask aside. Of the edge, each answer tells where it runs
between the pixels of its own grid; together they tell it at twice as many places, for the cost of two predictions. A
photo must have more pixels than the mask for that: of one as large, the second view is blurred.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms


def second_view(photo: Tensor, mask_size: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """photo (3, H, W) uint8 -> its mirror image at `window`, (3, *window), half a pixel further to the right and down.

    mask_size: (height, width) of the masks, whose pixels are meant. Behind the last row and column they are repeated.
    """
    size = [2 * length for length in mask_size]  # half a pixel of the mask is one here
    fine = transforms.resize(photo, size, interpolation=InterpolationMode.BICUBIC, antialias=True)
    fine = torch.cat([fine[:, 1:], fine[:, -1:]], dim=1)
    fine = torch.cat([fine[:, :, 1:], fine[:, :, -1:]], dim=2)
    return F.adaptive_avg_pool2d(fine.flip(-1).float(), window).round().to(torch.uint8)


def one_answer(probs: Tensor) -> Tensor:
    """The probabilities of a photo and of its second view, (N, 2, h, w) -> those of the photo, (N, 2h, 2w)."""
    straight, second = F.interpolate(probs, scale_factor=2, mode="bilinear", align_corners=False).unbind(1)
    second = second.flip(-1)
    second = torch.cat([second[:, :1], second[:, :-1]], dim=1)
    second = torch.cat([second[:, :, :1], second[:, :, :-1]], dim=2)
    return (straight + second) / 2
