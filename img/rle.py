"""Run-length encoding of masks in the format of Kaggle's Carvana competition.

A mask is "start length start length ...", one pair per run of car pixels. Pixels are numbered from 1, row by row. An
empty mask is "".
"""

import re

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
    """Decode run lengths to a mask (height, width) of bool.

    Raises ValueError if `encode` never returns `runs` for a mask of that size.
    """
    if not re.fullmatch(r"(\d+ \d+( \d+ \d+)*)?", runs, re.ASCII):
        raise ValueError(f"{runs[:40]!r} must be, or begin, an even number of integers")
    mask, end = torch.zeros(size[0] * size[1], dtype=torch.bool), -1
    numbers = [int(number) for number in runs.split()]
    for first, length in zip(numbers[::2], numbers[1::2], strict=True):
        start, previous_end = first - 1, end
        end = start + length
        # A run that touched the previous one would be part of it
        if not previous_end < start < end <= len(mask):
            raise ValueError(f"run {first} {length} is invalid here in a mask of {size[0]}x{size[1]} pixels")
        mask[start:end] = True
    return mask.view(*size)
