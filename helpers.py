"""Shared utilities; imports nothing from this project."""

import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from tqdm import tqdm


class Progress(tqdm):
    """tqdm's bar. Where no terminal shows it, as in a log, a line every EVERY seconds, without control characters."""

    EVERY = 60

    def __init__(self, iterable: Iterable | None = None, desc: str = "", **options: Any):
        options = dict(unit="it", unit_scale=False, unit_divisor=1000, initial=0, leave=False) | options
        form = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{remaining}, {rate_fmt}{postfix}]"  # fits into 80 columns
        super().__init__(iterable, desc, disable=None, dynamic_ncols=True, bar_format=form, **options)
        self.told = self.began = time.monotonic()
        if self.disable:  # tqdm keeps nothing then
            self.desc, self.options, self.postfix = desc, options, None

    def __iter__(self) -> Iterator:
        if not self.disable:
            yield from super().__iter__()
            return
        for each in self.iterable:
            yield each
            self.update()

    def update(self, n: float = 1) -> bool | None:
        shown = super().update(n)
        if self.disable:
            self.n += n
            now = time.monotonic()
            if now - self.told >= self.EVERY:
                self.told = now
                units = {name: self.options[name] for name in ("unit", "unit_scale", "unit_divisor", "initial")}
                form = "{desc}: {n_fmt} of {total_fmt} in {elapsed}, {remaining} left, {rate_fmt}{postfix}"
                told = dict(prefix=self.desc, bar_format=form, postfix=self.postfix)
                print(self.format_meter(self.n, self.total, now - self.began, **units, **told))
        return shown


def pluralize(number: int, noun: str) -> str:
    """1 photo, 0 photos, 1,024 photos."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def first_few(names: Iterable[str], count: int | None = 3) -> str:
    """The first `count` names, and how many more there are; None is all."""
    names = list(names)
    shown = ", ".join(names[:count])
    return f"{shown} and {len(names) - count} more" if count is not None and len(names) > count else shown


def seed_everything(*numbers: int) -> None:
    """Make all that torch's generator draws a function of these numbers, such as (seed, epoch, index)."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def get_model_timestamp() -> str:
    """The name of a run: the second it began in, as 2026-11-23_16h05m09s."""
    return time.strftime("%Y-%m-%d_%Hh%Mm%Ss")
