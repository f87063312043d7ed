"""The data sets: images per second on one core, next to the decoding of the JPEG alone.

    python benchmarks/loader.py
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import simplejpeg
import torch
import tyro
from baseline import PlainTestDataset, PlainTrainDataset
from measure import Row, compare, show, take_turns

from data.dataset import TestImageDataset, TrainImageDataset
from data.sample import draw_sample
from img.augmentation import Augmentation
from runtime.machine import keep_freed_memory

CASES = {  # input_img_resize and output_img_resize
    "572x572": ((572, 572), (572, 572)),
    "388x388-in-572x572": ((572, 572), (388, 388)),
    "256x256": ((256, 256), (256, 256)),
    "1024x1024": ((1024, 1024), (1024, 1024)),
}


@dataclass
class Benchmark:
    """Times our data sets and the baseline's in alternation, each on one core with one thread.

    "train" is an image with its mask, augmented; "test" is an image alone. The third row of each size compares that
    with the decoding of the whole JPEG by libjpeg-turbo alone, without reading a file or resizing.
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
    if kind in (TrainImageDataset, TestImageDataset):
        keep_freed_memory()
    np.random.seed(0)
    dataset = kind(*arguments, **options)

    def work() -> None:
        for index in range(len(dataset)):
            dataset[index]

    return work


def our_train(X: Sequence[Path], y: Sequence[Path], *sizes: Sequence[int]) -> Callable[[], None]:
    return read_all(TrainImageDataset, X, y, *sizes, X_transform=Augmentation())


def decode_only(X: Sequence[Path]) -> Callable[[], None]:
    use_one_core()
    images = [path.read_bytes() for path in X]

    def work() -> None:
        for encoded in images:
            simplejpeg.decode_jpeg(encoded, strict=True)

    return work


def rows(benchmark: Benchmark) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        root = benchmark.input_dir or Path(folder) / "sample"
        if benchmark.input_dir is None:
            draw_sample(root, cars=1, test_cars=0)
        X = sorted((root / "train").iterdir())[:16]
        masks = {path.name.partition("_mask")[0]: path for path in (root / "train_masks").iterdir()}
        y = [masks[path.stem] for path in X]
        for name in benchmark.cases:
            sizes = CASES[name]
            plain_train = (read_all, PlainTrainDataset, X, y, *sizes, True)
            train = take_turns(benchmark.rounds, (our_train, X, y, *sizes), plain_train)
            test = take_turns(
                benchmark.rounds,
                (read_all, TestImageDataset, X, *sizes),
                (read_all, PlainTestDataset, X, sizes[0]),
                (decode_only, X),
            )
            for what, ours, other in (
                ("train", *train),
                ("test", *test[:2]),
                ("test / decoding alone", test[0], test[2]),
            ):
                speeds = ([len(X) / seconds for seconds in side.seconds] for side in (ours, other))
                yield compare(f"{what} {name}", "images/s", *speeds)


if __name__ == "__main__":
    benchmark = tyro.cli(Benchmark)
    show(rows(benchmark), benchmark.json)
