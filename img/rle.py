"""Run-length encoding of masks, as Kaggle's Carvana competition reads it.

A mask is written as "start length start length ...": pixels are numbered from 1, along the rows (left to right, then
top to bottom), and each pair is a run of car. An empty mask is an empty text.
"""

import numpy as np


def encode(mask: np.ndarray) -> str:
    """mask (H, W) of bool -> its runs; `decode` takes them back."""
    flat = np.concatenate([[False], np.asarray(mask, dtype=bool).ravel(), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])  # first pixel of each run, first pixel behind it, and so on
    return _text(edges[::2], edges[1::2])


def encode_probs(probs: np.ndarray, size: tuple[int, int], threshold: float) -> str:
    """probs (h, w) float -> the runs of encode(enlarged > threshold), enlarged being probs at `size`, bilinear.

    None of the pixels in between is computed: along a row, the interpolated probability is a straight line from one
    column of probs to the next, so a run begins or ends where that line crosses the threshold.
    """
    (height, width), (h, w) = size, probs.shape
    there = probs > threshold
    if not there.any():
        return ""
    center = np.clip((np.arange(height) + 0.5) * h / height - 0.5, 0, h - 1)  # of each row, in rows of probs
    above = center.astype(int)
    below = np.minimum(above + 1, h - 1)
    some = there.any(axis=1)
    rows = np.flatnonzero(some[above] | some[below])  # all others, and all columns but those, hold nothing
    columns = np.flatnonzero(there.any(axis=0))
    first = max(columns[0] - 1, 0)
    part = probs[:, first : columns[-1] + 2]
    upper, share = part[above[rows]], (center - above)[rows, None].astype(np.float32)
    level = upper + share * (part[below[rows]] - upper) - np.float32(threshold)  # car where it is above 0
    car = level > 0

    row, left = np.divmod(np.flatnonzero(car[:, 1:] != car[:, :-1]), max(car.shape[1] - 1, 1))
    begins, before, behind = car[row, left + 1], level[row, left], level[row, left + 1]
    # Between the column `left` and the next one, in columns of the mask
    crossing = (first + left + before / (before - behind).astype(float) + 0.5) * width / w - 0.5
    pixel = np.where(begins, np.floor(crossing) + 1, np.ceil(crossing)).clip(0, width).astype(int) + rows[row] * width
    starts = np.sort(np.concatenate([pixel[begins], rows[car[:, 0]] * width]))
    ends = np.sort(np.concatenate([pixel[~begins], (rows[car[:, -1]] + 1) * width]))

    starts, ends = starts[starts < ends], ends[starts < ends]  # narrower than a pixel
    one = np.flatnonzero(starts[1:] == ends[:-1])  # goes on, in the next row for one
    return _text(np.delete(starts, one + 1), np.delete(ends, one))


def _text(starts: np.ndarray, ends: np.ndarray) -> str:
    """The first pixel of each run, from 0, and the first behind it -> the runs."""
    return " ".join(map(str, np.column_stack([starts + 1, ends - starts]).ravel().tolist()))


def parse(runs: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """runs -> the first pixel of each, from 0, and the first behind it. Raises ValueError where no mask of that
    (height, width) has these runs, as `encode` writes them.
    """
    digits = runs.replace(" ", "0")
    numbers = np.fromstring(runs, np.int64, sep=" ") if digits.isascii() and digits.isdecimal() else np.zeros(0, int)
    if len(numbers) != runs.count(" ") + bool(runs) or len(numbers) % 2:
        raise ValueError(f"{runs[:40]!r} is not, or doesn't begin, an even count of numbers")
    starts, ends = numbers[::2] - 1, numbers[::2] - 1 + numbers[1::2]
    apart = np.concatenate([[0], ends[:-1] + 1])[: len(starts)]  # the first pixel at which each may start
    wrong = np.flatnonzero((starts < apart) | (ends <= starts) | (ends > size[0] * size[1]))
    if len(wrong):
        run = f"{numbers[2 * wrong[0]]} {numbers[2 * wrong[0] + 1]}"
        raise ValueError(f"the run {run} can't be at this place in a mask of {size[0]}x{size[1]} pixels")
    return starts, ends


def decode(runs: str, size: tuple[int, int]) -> np.ndarray:
    """runs -> a mask (height, width) of bool. Raises ValueError for runs that no mask of this size has."""
    flat = np.zeros(size[0] * size[1], dtype=bool)
    for start, end in zip(*parse(runs, size), strict=True):
        flat[start:end] = True
    return flat.reshape(size)
