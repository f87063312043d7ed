"""Run-length encoding of masks in the format of Kaggle's Carvana competition.

A mask is "start length start length ...", one pair per run of car pixels. Pixels are numbered from 1, row by row. An
empty mask is "".
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def encode(mask: Tensor) -> str:
    """Encode a mask (H, W) of bool, on any device."""
    pixels = F.pad(mask.flatten(), (1, 1))  # background before the first pixel and after the last one
    runs = (pixels[1:] != pixels[:-1]).nonzero().flatten()  # in turn the start of a run and the pixel after its end
    runs[1::2] -= runs[::2]  # the lengths
    runs[::2] += 1
    return " ".join(map(str, runs.tolist()))


def decode(runs: str, size: tuple[int, int]) -> Tensor:
    """Decode run lengths, as `encode` returns them, to a mask (height, width) of bool."""
    mask, numbers = torch.zeros(size[0] * size[1], dtype=torch.bool), list(map(int, runs.split()))
    for first, length in zip(numbers[::2], numbers[1::2], strict=True):
        mask[first - 1 : first - 1 + length] = True
    return mask.view(*size)
