"""What each part of a recipe brings: main.py trains with it and without, on the same photos, steps and seeds.

    python benchmarks/recipes.py parts --input-dir FOLDER
"""

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import measure  # noqa: F401  which lets the package be found
import pandas as pd
import torch
import tyro
from scipy import stats

from img import rle
from img.transformer import decode_mask
from nn.losses import dice_per_image

ROOT = Path(__file__).parent.parent
TUTORIALS = "--optimizer RMSprop --learning-rate 0.0002 --batch-size 8 --labels cut"
STEP = "--optimizer AdamW --learning-rate 0.001 --weight-decay 0.01 --batch-size 8 --schedule one_cycle"
SMALL = "--net UNet1024 --input-img-resize 128 128 --output-img-resize 128 128"
LARGE = "--net UNet1024 --input-img-resize 256 256 --output-img-resize 256 256"
PAPERS = "--net UNetOriginal --input-img-resize 284 284 --output-img-resize 100 100"

# The rows of each table, by name: the options of main.py. All but the first are compared with the first
TABLES = {
    "parts": {
        "AdamW, one cycle": f"{SMALL} {STEP} --epochs 3",
        "the tutorial's": f"{SMALL} {TUTORIALS} --epochs 3",
    },
}


@dataclass
class Benchmark:
    """Trains main.py with each row's options and each seed, and prints a table: the score, and what the change brought.

    Cars are the sample: the interval (95 %) is that of the mean, over the cars of all seeds, of the difference between
    a car's Dice and the same car's in the first row. A run that was stopped goes on, and one that was finished stays.
    """

    table: Annotated[Literal[tuple(TABLES)], tyro.conf.Positional]  # which rows
    input_dir: Path = Path("input")  # as main.py's
    output_dir: Path = Path("output/recipes")  # gets a folder for each run
    seeds: tuple[int, ...] = (0, 1)  # of the split, the weights, the order and the augmentation
    rows: tuple[str, ...] = ()  # only these
    held_out: bool = False  # score the photos of test/, whose masks are in test_masks/, in place of the validation's


def run(options: str, folder: Path, benchmark: Benchmark, seed: int) -> Path:
    """Train with these options in `folder`, or go on there, or do nothing where all is done -> the run's own folder."""
    started = sorted(folder.glob("models/model_*/last.pt"))
    command = ["--resume", started[-1].parent] if started else [*shlex.split(options), "--seed", seed]
    places = ["--input-dir", benchmark.input_dir, "--output-dir", folder, "--logs-dir", folder / "logs"]
    command = [*map(str, command + places), "--predict" if benchmark.held_out else "--no-predict"]
    if not list(folder.glob("submit.csv.gz" if benchmark.held_out else "models/model_*/score.csv")):
        print(f"python main.py {shlex.join(command)}", file=sys.stderr)
        done = subprocess.run([sys.executable, str(ROOT / "main.py"), *command], stdout=sys.stderr)
        if done.returncode:
            sys.exit(done.returncode)  # it has told why
    return next(folder.glob("models/model_*"))


def dice_of_cars(folder: Path, run: Path, benchmark: Benchmark) -> pd.Series:
    """The mean Dice of each car's photos at their own size, by car: of the validation's, or of those held out."""
    if not benchmark.held_out:
        return pd.read_csv(run / "score.csv").groupby("car")["dice"].mean()
    scores = []
    for name, runs in pd.read_csv(folder / "submit.csv.gz", keep_default_na=False).itertuples(index=False):
        truth = decode_mask((benchmark.input_dir / "test_masks" / f"{Path(name).stem}_mask.gif").read_bytes()) > 127
        mask = torch.from_numpy(rle.decode(runs, truth.shape[1:]))[None]
        scores.append((name.rsplit("_", 1)[0], dice_per_image(mask, truth).item()))
    return pd.DataFrame(scores, columns=["car", "dice"]).groupby("car")["dice"].mean()


def main(benchmark: Benchmark) -> None:
    table = {name: row for name, row in TABLES[benchmark.table].items() if not benchmark.rows or name in benchmark.rows}
    print("| | " + " | ".join(f"seed {seed}" for seed in benchmark.seeds) + " | mean | brought | from | to |")
    print("| --- " * (len(benchmark.seeds) + 5) + "|", flush=True)
    first = None
    for name, options in table.items():
        cars = {}
        for seed in benchmark.seeds:
            folder = benchmark.output_dir / re.sub(r"\W+", "-", f"{benchmark.table} {name} {seed}")
            cars[seed] = dice_of_cars(folder, run(options, folder, benchmark, seed), benchmark)
        cars = pd.concat(cars)  # by seed and car
        means = cars.groupby(level=0).mean()
        figures = [f"{mean:.4f}" for mean in (*means, means.mean())]
        first = cars if first is None else first
        change = (cars - first).dropna()
        if cars is not first:
            half = stats.t.ppf(0.975, len(change) - 1) * change.std() / len(change) ** 0.5
            figures += [f"{value:+.4f}" for value in (change.mean(), change.mean() - half, change.mean() + half)]
        print(f"| {' | '.join([name, *figures, *[''] * (len(benchmark.seeds) + 4 - len(figures))])} |", flush=True)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
