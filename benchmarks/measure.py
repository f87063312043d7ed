"""What the benchmarks share: sides that run in separate processes and take turns, rows of one table, and images."""

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from data.cache import PairCache, open_cache
from data.dataset import TrainImageDataset
from data.reader import Reader
from data.sample import draw_sample
from img.augmentation import Augmentation
from runtime.machine import choose_device

ROOT = Path(__file__).parent.parent
TUTORIAL = Augmentation()  # its defaults are the tutorial's
RECIPE = Augmentation(shift=0, scale=0, rotation=0, color_jitter=0.2, grayscale=0.15)  # README's
PRODUCT = 2 * 4096**3  # floating-point operations of a product in matrix_product
HEADER = f"{'':60} {'unit':>10} {'ours':>9} {'baseline':>9} {'ratio':>6} {'from':>6} {'to':>6}  matrix share"


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
            f"{self.name:60} {self.unit:>10} {self.ours:9.4g} {self.baseline:9.4g} {self.ratio:6.2f} "
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


def temporary_folder() -> tempfile.TemporaryDirectory:
    """A folder in output/, where main.py has its cache: the one of the system may be in memory."""
    return tempfile.TemporaryDirectory(prefix="benchmark-", dir=ROOT / "output")


def draw_car(folder: str) -> Path:
    """Draw a car at 1280x1918 from 16 angles -> the folder that has train/ and train_masks/."""
    draw_sample(Path(folder) / "sample", cars=1, test_cars=0)
    return Path(folder) / "sample"


def find_pairs(root: Path, count: int) -> tuple[list[Path], list[Path]]:
    """The first `count` images of root/train and their masks. If there are fewer, they are repeated."""
    X = sorted((root / "train").glob("[!.]*"))
    masks = {path.name.partition("_mask")[0]: path for path in (root / "train_masks").glob("[!.]*")}
    X = list(islice(cycle(X), count))
    return X, [masks[path.stem] for path in X]


def fill_cache(X: Sequence[Path], y: Sequence[Path], size: tuple[int, int], folder: Path) -> PairCache:
    """The cache of main.py in `folder`. Exits if there can be none, for a reason that open_cache prints."""
    cache = open_cache(Reader(), X, y, size, folder)
    if not isinstance(cache, PairCache):
        sys.exit(f"Without a cache in {folder}, there is nothing to time.")
    return cache


def random_dataset(net: torch.nn.Module, batch: int, steps: int = 1) -> TrainImageDataset:
    """`batch` images for a net, of random pixels in memory, with masks; all of them `steps` times."""
    pairs = torch.randint(256, (batch, 4, *net.output_size), dtype=torch.uint8)
    reader = SimpleNamespace(pair=lambda image, mask, size: (pairs[int(image.name)], 1.0))
    names = [Path(str(index)) for index in range(batch)] * steps
    return TrainImageDataset(names, names, net.in_shape[1:], net.output_size, reader=reader)
