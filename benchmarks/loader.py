"""The loader: photos a second on one core, beside the decoding of the JPEG alone.

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
from img.augmentation import augment_img
from runtime import machine

CASES = {  # input_img_resize and output_img_resize
    "572x572": ((572, 572), (572, 572)),
    "388x388-in-572x572": ((572, 572), (388, 388)),
    "256x256": ((256, 256), (256, 256)),
    "1024x1024": ((1024, 1024), (1024, 1024)),
}


@dataclass
class Benchmark:
    """Times the data sets of ours and of the base line in alternation, each on one core with one thread.

    "train" is a photo with its mask, moved at random; "test" a photo alone. The third row of each size sets our photo
    against the bare decoding of the whole JPEG by libjpeg-turbo, which reads no file and makes nothing smaller.
    """

    cases: tuple[Literal[*CASES], ...] = tuple(CASES)  # sizes to read at
    input_dir: Path | None = None  # holds train/ and train_masks/; a car of 1918x1280 is drawn if left out
    rounds: int = 5  # each side reads 16 photos so often, after once to warm up
    json: bool = False  # an object for each row


def one_core() -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def reading(kind: type, *arguments: object, **options: object) -> Callable[[], None]:
    one_core()
    if kind in (TrainImageDataset, TestImageDataset):
        machine.keep_freed_memory()
    np.random.seed(0)
    dataset = kind(*arguments, **options)

    def work() -> None:
        for index in range(len(dataset)):
            dataset[index]

    return work


def our_train(X: Sequence[Path], y: Sequence[Path], *sizes: Sequence[int]) -> Callable[[], None]:
    return reading(TrainImageDataset, X, y, *sizes, X_transform=augment_img)


def bare_decode(X: Sequence[Path]) -> Callable[[], None]:
    one_core()
    encoded = [path.read_bytes() for path in X]

    def work() -> None:
        for each in encoded:
            simplejpeg.decode_jpeg(each, strict=True)

    return work


def rows(benchmark: Benchmark) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        root = benchmark.input_dir or Path(folder) / "sample"
        draw_sample(root, cars=1, test_cars=0)
        X = sorted((root / "train").iterdir())[:16]
        masks = {path.name.partition("_mask")[0]: path for path in (root / "train_masks").iterdir()}
        y = [masks[path.stem] for path in X]
        for name in benchmark.cases:
            sizes = CASES[name]
            plain_train = (reading, PlainTrainDataset, X, y, *sizes, True)
            train = take_turns(benchmark.rounds, (our_train, X, y, *sizes), plain_train)
            test = take_turns(
                benchmark.rounds,
                (reading, TestImageDataset, X, *sizes),
                (reading, PlainTestDataset, X, sizes[0]),
                (bare_decode, X),
            )
            for what, ours, other in (
                ("train", *train),
                ("test", *test[:2]),
                ("test / bare decode", test[0], test[2]),
            ):
                rates = ([len(X) / s for s in side.seconds] for side in (ours, other))
                yield compare(f"{what} {name}", "photos/s", *rates)


if __name__ == "__main__":
    benchmark = tyro.cli(Benchmark)
    show(rows(benchmark), benchmark.json)
