"""One process and two with one thread each: images per second, and the bytes that a step sends.

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
from measure import Row, compare, random_dataset, show
from torch.utils.data import DataLoader

from data.sampler import ShardedRandomSampler
from nn.classifier import CarvanaClassifier
from nn.unet import UNet1024
from runtime.distributed import WORLD_SIZE, init_distributed, is_main_process
from runtime.machine import choose_machine


@dataclass
class Benchmark:
    """Times steps of UNet1024 in one process, and in two that torchrun starts, each with one thread and the same batch.

    Without communication, two processes would reach twice the images per second, so half of the ratio is the
    efficiency. The second row is the megabytes that each of the two processes sends per step, as the operating system
    counts them, next to the theory: in a ring of n processes, 2 (n - 1) / n times the gradient of 4 bytes per weight
    (docs/scaling.md).
    """

    side: int = 256  # of the images
    batch_size: int = 4  # images per batch, in each process
    steps: int = 4  # per round, after as many to warm up
    rounds: int = 3
    json: bool = False  # print a JSON object per row


def train(side: int, batch_size: int, steps: int) -> None:
    """What each process does. The main process prints the seconds and the bytes of all steps."""
    with init_distributed():
        machine = choose_machine("cpu", workers=0)
        torch.set_num_threads(1)
        classifier = CarvanaClassifier(UNet1024((3, side, side)), epochs=1, machine=machine)
        classifier.optimizer = torch.optim.RMSprop(classifier.net.parameters(), lr=0.0002)
        dataset = random_dataset(classifier.net, batch_size * WORLD_SIZE, steps)
        loader = DataLoader(dataset, batch_size, sampler=ShardedRandomSampler(dataset))
        classifier.train_epoch(loader)
        start, before = time.perf_counter(), bytes_sent()
        classifier.train_epoch(loader)
        if is_main_process():
            print(json.dumps([time.perf_counter() - start, bytes_sent() - before]))


def bytes_sent() -> int:
    """So far, by all processes of this machine to each other."""
    (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split()[9])


def launch(processes: int, benchmark: Benchmark) -> list[float]:
    """[seconds, bytes] of a training with that number of processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    numbers = map(str, (benchmark.side, benchmark.batch_size, benchmark.steps))
    command = [sys.executable, *(torchrun if processes > 1 else ()), __file__, "train", *numbers]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(1)  # it has printed why
    return json.loads(done.stdout.splitlines()[-1])


def rows(benchmark: Benchmark) -> Iterator[Row]:
    rounds = [(launch(1, benchmark), launch(2, benchmark)) for _ in range(benchmark.rounds)]
    images = benchmark.batch_size * benchmark.steps
    one, two = ([count * images / both[count - 1][0] for both in rounds] for count in (1, 2))
    title = f"UNet1024 {benchmark.side}x{benchmark.side}, batch size {benchmark.batch_size}"
    yield compare(f"two processes / one, {title}", "images/s", two, one)
    sent = [bytes_of_two / 2 / benchmark.steps / 1e6 for _, (_, bytes_of_two) in rounds]
    gradient = 4 * sum(weights.numel() for weights in UNet1024().parameters()) / 1e6
    yield compare("sent per step by each / theory", "MB", sent, [gradient] * len(rounds))


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        train(*map(int, sys.argv[2:]))
    else:
        benchmark = tyro.cli(Benchmark)
        show(rows(benchmark), benchmark.json)
