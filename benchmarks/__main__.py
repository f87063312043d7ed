"""All that is measured, in one table.

    python benchmarks
"""

from collections.abc import Iterator
from dataclasses import dataclass

import growth
import learning
import loader
import prediction
import scaling
import step
import tyro
from measure import Row, show


@dataclass
class Benchmark:
    """Runs step.py, loader.py, prediction.py, growth.py, learning.py and scaling.py with few rounds: some ten minutes.

    Steps with large images have one image here. Each script explains itself and takes more: benchmarks/step.py --help
    """

    json: bool = False  # an object for each row


def rows() -> Iterator[Row]:
    large, small = step.Benchmark(("UNetOriginal-572", "UNet1024-1024"), 1, rounds=2), step.Benchmark(("UNet1024-256",))
    yield from step.rows(large)
    yield from step.step_rows(small)
    yield from loader.rows(loader.Benchmark(("572x572", "256x256"), rounds=3))
    yield from prediction.rows(prediction.Benchmark())
    yield from growth.rows(growth.Benchmark(photos=(16, 32, 64), rounds=1))
    yield from learning.rows(learning.Benchmark(rounds=1))
    yield from scaling.rows(scaling.Benchmark(rounds=2))


if __name__ == "__main__":
    show(rows(), tyro.cli(Benchmark).json)
