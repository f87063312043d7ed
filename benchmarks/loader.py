"""The data sets: images per second on one core, next to the decoding of the JPEG alone.

    python benchmarks/loader.py
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import simplejpeg
import torch
import tyro
from baseline import PlainTestDataset, PlainTrainDataset
from measure import RECIPE, TUTORIAL, Row, compare, draw_car, fill_cache, find_pairs, show, take_turns, temporary_folder
from torch.utils.data import DataLoader

from data.dataset import TestImageDataset, TrainImageDataset
from data.reader import Reader
from data.sampler import ShardedRandomSampler
from img.augmentation import Augmentation
from img.transformer import resize_size
from runtime.machine import CPU, keep_freed_memory

CASES = {  # input_img_resize and output_img_resize
    "572x572": ((572, 572), (572, 572)),
    "388x388-in-572x572": ((572, 572), (388, 388)),
    "256x256": ((256, 256), (256, 256)),
    "1024x1024": ((1024, 1024), (1024, 1024)),
}


@dataclass
class Benchmark:
    """Times our data sets and the baseline's in alternation, each on one core with one thread.

    "decode" reads an image with its mask and resizes both: ours does it once, to fill the cache. "train" is what each
    epoch does: ours reads batches of two from the cache and augments them, as the tutorial or as the README's recipe;
    the baseline decodes the files and augments as the tutorial. "test" is an image alone. The last row of each size
    compares that with the decoding of the whole JPEG by libjpeg-turbo alone, without reading a file or resizing.
    """

    cases: tuple[Literal[*CASES], ...] = tuple(CASES)  # sizes to read at
    input_dir: Path | None = None  # has train/ and train_masks/; None: draw a car at 1280x1918
    rounds: int = 5  # of 16 images per side, after a warm-up round
    json: bool = False  # print a JSON object per row


def use_one_core() -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def read_all(kind: type, *arguments: object, **options: object) -> Callable[[], None]:
    """Read each item of the data set kind(*arguments, **options)."""
    use_one_core()
    if kind is TestImageDataset:
        keep_freed_memory()
    np.random.seed(0)
    dataset = kind(*arguments, **options)

    def work() -> None:
        for index in range(len(dataset)):
            dataset[index]

    return work


def our_decoding(X: Sequence[Path], y: Sequence[Path], *sizes: tuple[int, int]) -> Callable[[], None]:
    use_one_core()
    keep_freed_memory()
    reader, size = Reader(), resize_size(*sizes, "reflect")

    def work() -> None:
        for image_path, mask_path in zip(X, y, strict=True):
            reader.pair(image_path, mask_path, size)

    return work


def our_train(
    X: Sequence[Path], y: Sequence[Path], *sizes: tuple[int, int], cache_dir: Path, augmentation: Augmentation
) -> Callable[[], None]:
    use_one_core()
    keep_freed_memory()
    cache = fill_cache(X, y, resize_size(*sizes, "reflect"), cache_dir)
    dataset = TrainImageDataset(X, y, *sizes, reader=cache, X_transform=augmentation)
    loader = DataLoader(dataset, batch_size=2, sampler=ShardedRandomSampler(dataset))

    def work() -> None:
        for batch in loader:
            dataset.prepare(batch, CPU)

    return work


def decode_only(X: Sequence[Path]) -> Callable[[], None]:
    use_one_core()
    images = [path.read_bytes() for path in X]

    def work() -> None:
        for encoded in images:
            simplejpeg.decode_jpeg(encoded, strict=True)

    return work


def rows(benchmark: Benchmark) -> Iterator[Row]:
    with temporary_folder() as folder:
        root = benchmark.input_dir or draw_car(folder)
        for name in benchmark.cases:
            yield from case_rows(name, *find_pairs(root, 16), Path(folder) / "cache", benchmark.rounds)


def case_rows(name: str, X: Sequence[Path], y: Sequence[Path], cache_dir: Path, rounds: int) -> Iterator[Row]:
    sizes = CASES[name]
    pairs = X, y, *sizes
    decode = take_turns(rounds, (our_decoding, *pairs), (read_all, PlainTrainDataset, *pairs, False))
    train = take_turns(
        rounds,
        (partial(our_train, cache_dir=cache_dir, augmentation=TUTORIAL), *pairs),
        (partial(our_train, cache_dir=cache_dir, augmentation=RECIPE), *pairs),
        (read_all, PlainTrainDataset, *pairs, True),
    )
    test = take_turns(
        rounds,
        (read_all, TestImageDataset, X, *sizes),
        (read_all, PlainTestDataset, X, sizes[0]),
        (decode_only, X),
    )
    for what, ours, other in (
        (f"decode {name}", *decode),
        (f"train {name}, the tutorial's augmentation", train[0], train[2]),
        (f"train {name}, the recipe's augmentation", train[1], train[2]),
        (f"test {name}", *test[:2]),
        (f"test / decoding alone {name}", test[0], test[2]),
    ):
        speeds = ([len(X) / seconds for seconds in side.seconds] for side in (ours, other))
        yield compare(what, "images/s", *speeds)


if __name__ == "__main__":
    benchmark = tyro.cli(Benchmark)
    show(rows(benchmark), benchmark.json)
