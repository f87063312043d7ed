"""All measurements in one table.

    python benchmarks
"""

from collections.abc import Iterator
from dataclasses import dataclass

import epoch
import learning
import loader
import prediction
import scaling
import step
import tyro
from measure import Row, show


@dataclass
class Benchmark:
    """Runs step.py, loader.py, epoch.py, prediction.py, learning.py and scaling.py with few rounds, in ten minutes.

    The batch size of large images is 1 here. Each script has more options: benchmarks/step.py --help
    """

    json: bool = False  # print a JSON object per row


def rows() -> Iterator[Row]:
    large, small = step.Benchmark(("UNetOriginal-572", "UNet1024-1024"), 1, rounds=2), step.Benchmark(("UNet1024-256",))
    yield from step.rows(large)
    yield from step.step_rows(small)
    yield from loader.rows(loader.Benchmark(("1024x1024", "256x256"), rounds=2))
    yield from epoch.rows(epoch.Benchmark())
    yield from prediction.rows(prediction.Benchmark(rounds=2))
    yield from learning.rows(learning.Benchmark(rounds=1))
    yield from scaling.rows(scaling.Benchmark(rounds=2))


if __name__ == "__main__":
    show(rows(), tyro.cli(Benchmark).json)
