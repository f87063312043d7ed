"""How time and peak memory grow with the pixels of an image, the images of a step and the count of photos.

    python benchmarks/growth.py
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro
from measure import Measured, Row, compare, show, take_turns
from prediction import our_prediction, plain_prediction
from step import our_step, plain_step

from data.sample import draw_sample
from runtime import machine


@dataclass
class Benchmark:
    """Times UNet1024, ours and the base line in alternation: steps of training, and predictions from photo to row.

    Memory is the peak of the whole process, with Python and torch, which take 0.3 to 0.5 GiB of it.
    """

    sides: tuple[int, ...] = (128, 256, 512)  # of the images of a step, which has 2
    batch_sizes: tuple[int, ...] = (1, 2, 4)  # images of a step, of 256x256
    photos: tuple[int, ...] = (16, 64, 256)  # to predict, at 128x128, 8 at a time
    rounds: int = 3  # each side takes a step so often, after one to warm up; photos are predicted once
    json: bool = False  # an object for each row


def rows(benchmark: Benchmark) -> Iterator[Row]:
    precision = machine.choose_machine("cpu").precision
    steps = [(side, 2) for side in benchmark.sides] + [(256, batch) for batch in benchmark.batch_sizes]
    for side, batch in dict.fromkeys(steps):
        both = take_turns(
            benchmark.rounds,
            (our_step, "UNet1024", side, batch, precision, False),
            (plain_step, "UNet1024", side, batch),
        )
        yield from time_and_memory(f"step UNet1024 {side}x{side}, {batch} a step", "s/step", *both)
    for count in benchmark.photos:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "sample"
            draw_sample(root, cars=1, test_cars=0)
            drawn = sorted((root / "train").iterdir())
            for index in range(len(drawn), count):
                (root / "train" / f"again_{index:06}.jpg").hardlink_to(drawn[index % len(drawn)])
            sides = ((predict, root, "UNet1024", 128, 8) for predict in (our_prediction, plain_prediction))
            both = take_turns(1, *sides, warm_up=False)
            yield from time_and_memory(f"prediction UNet1024 128x128, {count} photos", "s", *both)


def time_and_memory(title: str, unit: str, ours: Measured, plain: Measured) -> Iterator[Row]:
    yield compare(title, unit, ours.seconds, plain.seconds, lower_is_better=True)
    yield compare(f"{title}, memory", "MiB", [ours.peak], [plain.peak], lower_is_better=True)


if __name__ == "__main__":
    benchmark = tyro.cli(Benchmark)
    show(rows(benchmark), benchmark.json)
