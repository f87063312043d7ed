"""What the benchmarks share: sides that live in processes of their own and take turns, and rows of one table."""

import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from runtime import machine

PRODUCT = 2 * 4096**3  # operations of matrix_product
HEADER = f"{'':50} {'unit':>10} {'ours':>9} {'base line':>9} {'ratio':>6} {'from':>6} {'to':>6}  matrix share"


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

    def __str__(self):
        share = "" if self.matrix_share is None else f"{100 * self.matrix_share:.0f} %"
        return (
            f"{self.name:50} {self.unit:>10} {self.ours:9.4g} {self.baseline:9.4g} {self.ratio:6.2f} "
            f"{self.ratio_min:6.2f} {self.ratio_max:6.2f} {share:>13}"
        )


def compare(name: str, unit: str, ours: list[float], baseline: list[float], lower_is_better: bool = False) -> Row:
    """The row of two sides' figures, a pair for each round."""
    ratios = [b / o if lower_is_better else o / b for o, b in zip(ours, baseline, strict=True)]
    return Row(name, unit, median(ours), median(baseline), median(ratios), min(ratios), max(ratios))


def show(rows: Iterable[Row], as_json: bool) -> None:
    """Print each row as it comes: an object, or a line of a table."""
    if not as_json:
        print(HEADER, flush=True)
    for row in rows:
        known = {name: value for name, value in asdict(row).items() if value is not None}
        print(json.dumps(known) if as_json else row, flush=True)


class Measured(NamedTuple):
    """What a side took."""

    seconds: list[float]  # in each round
    peak: float  # the most memory that its process ever had, in MiB


def take_turns(rounds: int, *sides: tuple, warm_up: bool = True) -> list[Measured]:
    """Each side is (build, *arguments): build(*arguments) -> a function that is timed in each round.

    A side is built in a process of its own and, to warm up, works once before it is timed; then the sides take turns,
    and all but one sleep.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "sklearn", "tqdm"])  # once, not for each side
    pipes, processes, seconds = [], [], [[] for _ in sides]
    try:
        for side in sides:
            pipe, other = context.Pipe()
            process = context.Process(target=_serve, args=(other, warm_up, *side))
            process.start()
            other.close()  # or that process could end without notice here
            pipes.append(pipe)
            processes.append(process)
            pipe.recv()  # one warms up while the others wait
        for _ in range(rounds):
            for pipe, mine in zip(pipes, seconds, strict=True):
                pipe.send(True)
                mine.append(pipe.recv())
        for pipe in pipes:
            pipe.send(False)
        measured = [Measured(mine, pipe.recv()) for pipe, mine in zip(pipes, seconds, strict=True)]
        for process in processes:
            process.join()  # it gives back what it shares, which one that is ended could not
        return measured
    except EOFError:
        sys.exit(1)  # that process has told why
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _serve(pipe: "multiprocessing.connection.Connection", warm_up: bool, build: Callable, *arguments: object) -> None:
    work = build(*arguments)
    if warm_up:
        work()
    pipe.send(True)
    while pipe.recv():
        start = time.perf_counter()
        work()
        pipe.send(time.perf_counter() - start)
    pipe.send(peak_memory())


def peak_memory() -> float:
    """The most memory that this process ever had, in MiB; that of the tensors on an accelerator, where it has some."""
    tensors = torch.accelerator.max_memory_allocated() if torch.accelerator.is_available() else 0
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return tensors / 2**20 or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def matrix_product(precision: torch.dtype, times: int = 1, device: str = "cpu") -> Callable[[], None]:
    """So many products as large as it takes to reach the machine's rate: PRODUCT operations each."""
    device = machine.choose_device(device)[0]
    a, b = (torch.randn(4096, 4096, device=device).to(precision) for _ in range(2))

    def work() -> None:
        for _ in range(times):
            a @ b
        if a.device.type != "cpu":
            torch.accelerator.synchronize()

    return work
