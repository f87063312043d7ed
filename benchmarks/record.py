"""The speed record: seconds from the first line of main.py to a score on cars that the net never saw.

    python benchmarks/record.py --input-dir FOLDER
"""

import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
import tyro
from measure import ROOT, temporary_folder
from recipes import TABLES, held_out_dice

from runtime.errors import check_ranges, friendly_errors
from runtime.machine import choose_device, count_cores

MAIN = [sys.executable, str(ROOT / "main.py")]
RECIPE = TABLES["changes"]["512x512"]


@dataclass
class Benchmark:
    """Trains the README's recipe at 512x512 from nothing, predicts test/ with TTA and scores it against test_masks/.

    The time includes the start of Python, the decoding of all files (each seed has a new output folder, and so an empty
    cache), validation after each epoch, the submission and its score. The files may be in the memory of the system.
    """

    input_dir: Path  # has train/, train_masks/, test/ and test_masks/
    seeds: tuple[int, ...] = (0, 1, 2)  # of the split, the weights, the order and the augmentation
    device: str | None = None  # of main.py
    side: int = 512  # of images and masks
    epochs: int = 18  # four of nine at half size

    def __post_init__(self):
        check_ranges(self, epochs="[1, inf)")


def options(benchmark: Benchmark, seed: int, output_dir: Path) -> list[str]:
    """Of main.py."""
    side, device = benchmark.side, ["--device", benchmark.device] if benchmark.device else []
    changed = f"--input-img-resize {side} {side} --output-img-resize {side} {side} --epochs {benchmark.epochs}"
    half = f"--half-size-epochs {benchmark.epochs * 4 // 9} --seed {seed}"
    folders = ["--input-dir", benchmark.input_dir, "--output-dir", output_dir, "--logs-dir", output_dir / "logs"]
    return [*shlex.split(f"{RECIPE} {changed} {half}"), *map(str, folders), *device]


def run(benchmark: Benchmark, seed: int) -> tuple[float, float]:
    """Seconds, and the mean Dice of the cars in test/."""
    with temporary_folder() as folder:
        command = [*MAIN, *options(benchmark, seed, Path(folder))]
        print(shlex.join(command), file=sys.stderr)
        start = time.perf_counter()
        done = subprocess.run(command, stdout=sys.stderr)
        if done.returncode:
            sys.exit(done.returncode)  # it has printed why
        dice = held_out_dice(Path(folder) / "submit.csv.gz", benchmark.input_dir).mean()
        return time.perf_counter() - start, dice


def describe_machine(name: str | None) -> str:
    device, _ = choose_device(name)
    if device.type == "cuda":
        where = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        where = f"{device} ({platform.machine()})"
    return f"{where}, {count_cores()} cores, PyTorch {torch.__version__}, Python {platform.python_version()}"


def main(benchmark: Benchmark) -> None:
    machine, results = describe_machine(benchmark.device), []
    print("| seed | seconds | Dice | machine |\n| --- | --- | --- | --- |", flush=True)
    for seed in benchmark.seeds:
        results.append(run(benchmark, seed))
        print("| {} | {:.1f} | {:.4f} | {} |".format(seed, *results[-1], machine), flush=True)
    seconds, dice = zip(*results, strict=True)
    print(f"| mean | {mean(seconds):.1f} | {mean(dice):.4f} | |")
    if len(results) > 1:
        print(f"| standard deviation | {stdev(seconds):.1f} | {stdev(dice):.4f} | |")


if __name__ == "__main__":
    with friendly_errors():
        main(tyro.cli(Benchmark))
