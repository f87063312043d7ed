"""Shared utilities; imports nothing from this project."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from tqdm import tqdm


class Progress(tqdm):
    """tqdm's progress bar in a terminal; elsewhere, as in a log file, a plain line every INTERVAL seconds."""

    INTERVAL = 60

    def __init__(self, iterable: Iterable | None = None, desc: str = "", total: float | None = None,
                 leave: bool = False, **options: Any):
        bar = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{remaining}, {rate_fmt}{postfix}]"  # fits into 80 columns
        super().__init__(iterable, desc, total, leave, disable=None, dynamic_ncols=True, bar_format=bar, **options)
        self.start = self.last_line = time.monotonic()
        self.title, self.options = desc, options
        self.postfix = None  # tqdm leaves it unset without a terminal

    def __iter__(self) -> Iterator:
        with self:
            for item in self.iterable:
                yield item
                self.update()

    def update(self, n: float = 1) -> bool | None:
        if not self.disable:
            return super().update(n)
        self.n += n
        now = time.monotonic()
        if now - self.last_line >= self.INTERVAL:
            self.last_line = now
            line = "{desc}: {n_fmt} of {total_fmt} in {elapsed}, {remaining} left, {rate_fmt}{postfix}"
            print(self.format_meter(self.n, self.total, now - self.start, prefix=self.title, postfix=self.postfix,
                                    bar_format=line, **self.options))
        return None


def pluralize(number: int, noun: str) -> str:
    """Return "1 image", "0 images", "1,024 images"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def first_few(names: Iterable[str], count: int | None = 3) -> str:
    """Return names as "a, b, c and 2 more". count: of names to show; None: all."""
    names = list(names)
    shown = names[:count]
    rest = len(names) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def format_size(size: tuple[int, int]) -> str:
    """Return (height, width) as "388x572"."""
    return f"{size[0]}x{size[1]}"


def seed_everything(*numbers: int) -> None:
    """Seed PyTorch with a function of `numbers`, such as (seed, epoch)."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def get_model_timestamp() -> str:
    """Return the current time, such as "2026-11-23_16h05m09s"."""
    return time.strftime("%Y-%m-%d_%Hh%Mm%Ss")
