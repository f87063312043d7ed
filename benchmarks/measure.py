"""What the benchmarks share: sides that live in processes of their own and take turns, and rows of one table."""

import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

PRODUCT = 2 * 4096**3  # operations of matrix_product


@dataclass
class Row:
    """A comparison. Above 1 the ratio is in our favour: it is that of the rates, or the inverse one of times and sizes.

    ratio is the median over the rounds, ratio_min and ratio_max are the least and the greatest of them.
    """

    name: str
    unit: str
    ours: float
    baseline: float
    ratio: float
    ratio_min: float
    ratio_max: float
    matrix_share: float | None = None  # of the rate of a large matrix product, in the type that ours computes in

    HEADER = f"{'':46} {'unit':>10} {'ours':>9} {'base line':>9} {'ratio':>6} {'from':>6} {'to':>6}  matrix share"

    def __str__(self):
        share = "" if self.matrix_share is None else f"{100 * self.matrix_share:.0f} %"
        return (
            f"{self.name:46} {self.unit:>10} {self.ours:9.4g} {self.baseline:9.4g} {self.ratio:6.2f} "
            f"{self.ratio_min:6.2f} {self.ratio_max:6.2f} {share:>13}"
        )


def compare(name: str, unit: str, ours: list[float], baseline: list[float], lower_is_better: bool = False) -> Row:
    """The row of two sides' figures, a pair for each round."""
    ratios = [b / o if lower_is_better else o / b for o, b in zip(ours, baseline, strict=True)]
    return Row(name, unit, median(ours), median(baseline), median(ratios), min(ratios), max(ratios))


def show(row: Row, as_json: bool) -> None:
    print(json.dumps(asdict(row)) if as_json else row, flush=True)


def take_turns(rounds: int, *sides: tuple) -> list[list[float]]:
    """Each side is (build, *arguments): build(*arguments) -> a function. -> for each side, its seconds in each round.

    A side is built in a process of its own and works once before it is timed; then the sides take turns, and all but
    one sleep.
    """
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for side in sides:
        pipe, other = context.Pipe()
        process = context.Process(target=_serve, args=(other, *side), daemon=True)
        process.start()
        pipe.recv()  # one warms up while the others wait
        pipes.append(pipe)
        processes.append(process)
    seconds = [[] for _ in sides]
    for _ in range(rounds):
        for pipe, mine in zip(pipes, seconds, strict=True):
            pipe.send(True)
            mine.append(pipe.recv())
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(False)
        process.join()
    return seconds


def _serve(pipe: "multiprocessing.connection.Connection", build: Callable, *arguments: object) -> None:
    work = build(*arguments)
    work()
    pipe.send(True)
    while pipe.recv():
        start = time.perf_counter()
        work()
        pipe.send(time.perf_counter() - start)


def matrix_product(precision: torch.dtype) -> Callable[[], torch.Tensor]:
    """A product as large as it takes to reach the machine's rate: PRODUCT operations."""
    a, b = (torch.randn(4096, 4096).to(precision) for _ in range(2))
    return lambda: a @ b
