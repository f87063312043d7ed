"""What the benchmarks share: sides that run in separate processes and take turns, and the rows of one table."""

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
from runtime.machine import choose_device

PRODUCT = 2 * 4096**3  # floating-point operations of a product in matrix_product
HEADER = f"{'':50} {'unit':>10} {'ours':>9} {'baseline':>9} {'ratio':>6} {'from':>6} {'to':>6}  matrix share"


@dataclass
class Row:
    """A comparison. A ratio above 1 means that ours is better: faster, or smaller.

    ratio is the median over the rounds; ratio_min and ratio_max are the extremes.
    """

    name: str
    unit: str
    ours: float
    baseline: float
    ratio: float
    ratio_min: float
    ratio_max: float
    matrix_share: float | None = None  # of the speed of a large matrix product in the precision of ours

    def __str__(self):
        share = "" if self.matrix_share is None else f"{self.matrix_share:.0%}"
        return (
            f"{self.name:50} {self.unit:>10} {self.ours:9.4g} {self.baseline:9.4g} {self.ratio:6.2f} "
            f"{self.ratio_min:6.2f} {self.ratio_max:6.2f} {share:>13}"
        )


def compare(name: str, unit: str, ours: list[float], baseline: list[float], lower_is_better: bool = False) -> Row:
    """The row of two sides, given their values in each round."""
    ratios = [b / o if lower_is_better else o / b for o, b in zip(ours, baseline, strict=True)]
    return Row(name, unit, median(ours), median(baseline), median(ratios), min(ratios), max(ratios))


def show(rows: Iterable[Row], as_json: bool) -> None:
    """Print each row as soon as it is measured, as a JSON object or a line of a table."""
    if not as_json:
        print(HEADER, flush=True)
    for row in rows:
        values = {name: value for name, value in asdict(row).items() if value is not None}
        print(json.dumps(values) if as_json else row, flush=True)


class Measured(NamedTuple):
    """The cost of one side."""

    seconds: list[float]  # in each round
    peak: float  # peak memory of its process, in MiB


def take_turns(rounds: int, *sides: tuple, warm_up: bool = True) -> list[Measured]:
    """Time all sides. A side is (build, *arguments): build(*arguments) -> the function to time in each round.

    Each side is built in a separate process and, with warm_up, runs once before it is timed. Then the sides take turns:
    while one runs, the others sleep.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "sklearn", "tqdm"])  # once instead of in each process
    pipes, processes, seconds = [], [], [[] for _ in sides]
    try:
        for side in sides:
            pipe, other_end = context.Pipe()
            process = context.Process(target=serve, args=(other_end, warm_up, *side))
            process.start()
            other_end.close()  # otherwise recv() would not notice that the process ended
            pipes.append(pipe)
            processes.append(process)
            pipe.recv()  # one side warms up at a time
        for _ in range(rounds):
            for pipe, times in zip(pipes, seconds, strict=True):
                pipe.send(True)
                times.append(pipe.recv())
        for pipe in pipes:
            pipe.send(False)
        measured = [Measured(times, pipe.recv()) for pipe, times in zip(pipes, seconds, strict=True)]
        for process in processes:
            process.join()  # it returns its shared memory, which terminate() would prevent
        return measured
    except EOFError:
        sys.exit(1)  # that process has printed why
    finally:
        for process in processes:
            process.terminate()
            process.join()


def serve(pipe: "multiprocessing.connection.Connection", warm_up: bool, build: Callable, *arguments: object) -> None:
    """One side: run whenever the pipe asks for it, then send the peak memory. Only rows are printed to stdout."""
    sys.stdout = sys.stderr
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
    """Peak memory of this process in MiB; with an accelerator, that of its tensors there."""
    tensors = torch.accelerator.max_memory_allocated() if torch.accelerator.is_available() else 0
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return tensors / 2**20 or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def matrix_product(precision: torch.dtype, times: int = 1, device: str = "cpu") -> Callable[[], None]:
    """Multiply matrices that are large enough for the highest speed; each product has PRODUCT operations."""
    where, _ = choose_device(device)
    a, b = (torch.randn(4096, 4096, device=where).to(precision) for _ in range(2))

    def work() -> None:
        for _ in range(times):
            a @ b
        if where.type != "cpu":
            torch.accelerator.synchronize()

    return work
