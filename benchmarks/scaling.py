"""One process and two of one thread each: images a second, and what a step sends through the network.

    python benchmarks/scaling.py
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from epoch_time import gradient_bytes
from measure import Row, compare, show
from torch.utils.data import DataLoader

from data.sampler import ShardedRandomSampler
from nn.classifier import CarvanaClassifier
from nn.unet import UNet1024
from runtime import distributed, machine


@dataclass
class Benchmark:
    """Times steps of UNet1024 in one process, and in two that torchrun starts, each of one thread and as many images.

    Two cores that had nothing to tell each other would make twice the images a second: half of the ratio is the
    efficiency. Below it, the megabytes that each of the two sends in a step, as the system counts them, beside the
    arithmetic: with n processes, a ring sends 2 (n - 1) / n times the gradient, 4 bytes a weight (docs/scaling.md).
    """

    side: int = 256  # of the images
    batch_size: int = 4  # images a step, in each process
    steps: int = 4  # in each round, after as many to warm up
    rounds: int = 3
    json: bool = False  # an object for each row


def share(side: int, batch_size: int, steps: int) -> None:
    """What each process does. The first one prints seconds and bytes of all the steps."""
    with distributed.init_distributed():
        precision = machine.choose_machine("cpu").precision
        torch.set_num_threads(1)
        classifier = CarvanaClassifier(UNet1024((3, side, side)), epochs=1, precision=precision)
        classifier.optimizer = torch.optim.RMSprop(classifier.net.parameters(), lr=0.0002)
        images = torch.randint(256, (batch_size * distributed.WORLD_SIZE, 3, side, side), dtype=torch.uint8)
        pairs = [(image, image[0] // 128 * 255) for image in images] * steps
        loader = DataLoader(pairs, batch_size, sampler=ShardedRandomSampler(len(pairs)))
        classifier.run_epoch(loader, "train")
        start, before = time.perf_counter(), bytes_sent()
        classifier.run_epoch(loader, "train")
        print(json.dumps([time.perf_counter() - start, bytes_sent() - before]))


def bytes_sent() -> int:
    """By all processes of this machine to each other, so far."""
    (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[9])


def launched(count: int, benchmark: Benchmark) -> list[float]:
    """[seconds, bytes] of `count` processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    numbers = map(str, (benchmark.side, benchmark.batch_size, benchmark.steps))
    command = [sys.executable, *(torchrun if count > 1 else ()), __file__, "share", *numbers]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(1)  # it has told why
    return json.loads(done.stdout.splitlines()[-1])


def rows(benchmark: Benchmark) -> Iterator[Row]:
    rounds = [(launched(1, benchmark), launched(2, benchmark)) for _ in range(benchmark.rounds)]
    images = benchmark.batch_size * benchmark.steps
    two, one = ([count * images / measured[count - 1][0] for measured in rounds] for count in (2, 1))
    title = f"UNet1024 {benchmark.side}x{benchmark.side}, {benchmark.batch_size} each"
    yield compare(f"two processes / one, {title}", "images/s", two, one)
    sent = [measured[1][1] / 2 / benchmark.steps / 1e6 for measured in rounds]
    yield compare("sent a step by each / arithmetic", "MB", sent, [gradient_bytes("UNet1024") / 1e6] * len(rounds))


if __name__ == "__main__":
    if sys.argv[1:2] == ["share"]:
        share(*map(int, sys.argv[2:]))
    else:
        benchmark = tyro.cli(Benchmark)
        show(rows(benchmark), benchmark.json)
