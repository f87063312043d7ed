"""Do weights that were trained on cars help to find other objects, of which there are only ten images?

    python benchmarks/finetuning.py --weights output/models/model_<time>
"""

import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import tyro
from measure import ROOT, temporary_folder
from PIL import Image, ImageDraw

from runtime.errors import friendly_errors
from runtime.files import load_checkpoint

CLASSES = "ellipse", "star", "triangle"
ROWS = {  # options of main.py
    "from scratch, learning rate 0.001": "--learning-rate 0.001",
    "from scratch, learning rate 0.0003": "--learning-rate 0.0003",
    "from weights, learning rate 0.001": "--learning-rate 0.001 --weights {weights}",
    "from weights, learning rate 0.0003": "--learning-rate 0.0003 --weights {weights}",
}
OPTIONS = "--dataset own --net UNet1024 --optimizer AdamW --weight-decay 0.01 --schedule one_cycle --batch-size 4"


@dataclass
class Benchmark:
    """Draws shapes with a texture on another texture, trains on ten of them in several ways, scores on 60 others.

    All trainings take the same number of steps, so about the same time.
    """

    weights: Path  # of UNet1024: the folder of a run, or a file such as best.pt
    side: int = 128  # of images and masks
    epochs: int = 150  # of eight images; two validate
    seeds: tuple[int, ...] = (0, 1)  # of the images to train on, the split, the weights and the order


def texture(rng: np.random.Generator, side: int) -> Image.Image:
    """Two random colors, mixed by noise of random coarseness."""
    noise = sum(
        np.asarray(Image.fromarray(rng.random((cells, cells), np.float32)).resize((side, side)))
        for cells in rng.integers(2, side // 3, size=3)
    )
    noise = ((noise - noise.min()) / np.ptp(noise))[..., None]
    first, second = rng.integers(20, 236, (2, 3))
    return Image.fromarray((noise * first + (1 - noise) * second).astype(np.uint8))


def outline(rng: np.random.Generator, kind: str, side: int) -> list[tuple[float, float]]:
    """The corners of a shape of random size, place, proportions and rotation."""
    count = {"ellipse": 60, "star": 10, "triangle": 3}[kind]
    angles = np.arange(count) * 2 * np.pi / count
    radius = np.where((kind == "star") & (np.arange(count) % 2 == 1), 0.45, 1) * rng.uniform(0.15, 0.35) * side
    points = radius * np.stack([np.cos(angles) * rng.uniform(0.6, 1), np.sin(angles)])
    turn = rng.uniform(0, 2 * np.pi)
    cos, sin = np.cos(turn), np.sin(turn)
    x, y = np.array([[cos, -sin], [sin, cos]]) @ points + rng.uniform(0.35, 0.65, (2, 1)) * side
    return list(zip(x.tolist(), y.tolist(), strict=True))


def draw(folder: Path, count: int, seed: int, side: int = 256) -> None:
    """Write images/ and masks/, a class after the other."""
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        kind = CLASSES[index % len(CLASSES)]
        mask = Image.new("L", (4 * side, 4 * side))
        ImageDraw.Draw(mask).polygon(outline(rng, kind, 4 * side), 255)
        mask = mask.reduce(4)
        image = Image.composite(texture(rng, side), texture(rng, side), mask)
        name = f"{folder.name}-{index:02d}-{kind}.png"  # a name of the training images would not be scored
        image.save(folder / "images" / name)
        mask.save(folder / "masks" / name)


def train(folder: Path, options: str, benchmark: Benchmark, seed: int) -> tuple[float, float]:
    """Seconds of the training, and the mean Dice on the test images."""
    side, output = benchmark.side, folder / f"output-{time.time_ns()}"
    command = [*shlex.split(f"{OPTIONS} {options}"), "--input-img-resize", side, side]
    command += ["--output-img-resize", side, side, "--epochs", benchmark.epochs, "--seed", seed]
    command += ["--input-dir", folder / f"train-{seed}"]
    start = time.perf_counter()
    run([*command, "--output-dir", output, "--logs-dir", folder / "logs"])
    seconds = time.perf_counter() - start
    (model,) = output.glob("models/*")
    run(["--predict-with", model, "--dataset", "own", "--input-dir", folder / "test", "--output-dir", folder])
    return seconds, pd.read_csv(folder / "score.csv")["dice"].mean()


def run(options: list) -> None:
    command = [sys.executable, str(ROOT / "main.py"), *map(str, options)]
    print(shlex.join(command), file=sys.stderr)
    done = subprocess.run(command, stdout=sys.stderr)
    if done.returncode:
        sys.exit(done.returncode)  # it has printed why


def main(benchmark: Benchmark) -> None:
    load_checkpoint(benchmark.weights)  # raises UserError before the first training
    weights = shlex.quote(str(benchmark.weights.resolve()))
    print("| | seed | seconds | Dice |\n| --- | --- | --- | --- |", flush=True)
    with temporary_folder() as name:
        folder = Path(name)
        draw(folder / "test", 60, seed=1000)
        for seed in benchmark.seeds:
            draw(folder / f"train-{seed}", 10, seed)
        for row, options in ROWS.items():
            for seed in benchmark.seeds:
                seconds, dice = train(folder, options.format(weights=weights), benchmark, seed)
                print(f"| {row} | {seed} | {seconds:.0f} | {dice:.4f} |", flush=True)


if __name__ == "__main__":
    with friendly_errors():
        main(tyro.cli(Benchmark))
