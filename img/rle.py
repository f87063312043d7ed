"""Run-length encoding of masks, as Kaggle's Carvana competition reads it.

A mask is written as "start length start length ...": pixels are numbered from 1, along the rows (left to right, then
top to bottom), and each pair is a run of car. An empty mask is an empty text.
"""

import numpy as np


def encode(mask: np.ndarray) -> str:
    """mask (H, W) of bool -> its runs; `decode` takes them back."""
    flat = np.concatenate([[False], np.asarray(mask, dtype=bool).ravel(), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1  # first pixel of each run, first pixel behind it, and so on
    starts, lengths = edges[::2], edges[1::2] - edges[::2]
    return " ".join(map(str, np.column_stack([starts, lengths]).ravel().tolist()))


def decode(runs: str, size: tuple[int, int]) -> np.ndarray:
    """runs -> a mask (height, width) of bool. Raises ValueError for runs that no mask of this size has."""
    numbers = [int(number) for number in runs.split()]
    if len(numbers) % 2:
        raise ValueError(f"an odd count of numbers ({len(numbers)}) in the runs {runs[:40]!r}")
    flat = np.zeros(size[0] * size[1], dtype=bool)
    end_of_last = -1
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        first, end = start - 1, start - 1 + length
        if first <= end_of_last or length < 1 or end > flat.size:
            raise ValueError(f"the run {start} {length} can't be at this place in a mask of {size[0]}x{size[1]} pixels")
        flat[first:end] = True
        end_of_last = end
    return flat.reshape(size)
