"""What each part of a recipe gains: trainings of main.py with it and without, on the same images, steps and seeds.

    python benchmarks/recipes.py parts --input-dir FOLDER
    python benchmarks/recipes.py "an hour" --input-dir FOLDER --held-out

A training of "parts" takes between three minutes on two cores and twenty on one; one of "an hour" takes about an hour
on one core. On a GPU they take half a minute and a few minutes. The results are in docs/score.md.
"""

import shlex
import subprocess
import sys
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import measure  # noqa: F401, adds the package to sys.path
import pandas as pd
import tyro

from callbacks.scorer import confidence_interval
from img import rle
from img.mask import decode_mask
from nn.metrics import dice_per_image
from runtime.files import save_atomically

ROOT = Path(__file__).parent.parent
TUTORIALS = "--optimizer RMSprop --learning-rate 0.0002 --batch-size 8 --no-soft-labels"
SECOND = "--optimizer RMSprop --learning-rate 0.0002 --batch-size 2 --no-soft-labels"  # the tutorial's second setup
STEP = "--optimizer AdamW --learning-rate 0.001 --weight-decay 0.01 --batch-size 8 --schedule one_cycle"
FLIPS = "--shift 0 --scale 0 --rotation 0"
FOURS = f"{STEP} --batch-size 4 {FLIPS}"
TWOS = f"{STEP} --batch-size 2 {FLIPS}"
RECIPE = f"{TWOS} --color-jitter 0.2 --grayscale 0.15"
LONG = "--epochs 18 --half-size-epochs 8"
SHORT = "--epochs 6 --half-size-epochs 4"
SMALL = "--net UNet1024 --input-img-resize 128 128 --output-img-resize 128 128"
LARGE = "--net UNet1024 --input-img-resize 256 256 --output-img-resize 256 256"
LARGER = "--net UNet1024 --input-img-resize 512 512 --output-img-resize 512 512"
BRIEF = f"{SMALL} {RECIPE} --epochs 2"
BRIEF_LARGE = f"{LARGE} {RECIPE} --epochs 3 --half-size-epochs 2"
PAPERS = "--net UNetOriginal --input-img-resize 284 284 --output-img-resize 100 100"

# table -> row -> options of main.py, in front of them the name of an experiment of experiments.py, if there is one.
# Each row is compared with the first one of its table
TABLES = {
    "parts": {
        "AdamW, one cycle": f"{SMALL} {STEP} --epochs 3",
        "the tutorial's": f"{SMALL} {TUTORIALS} --epochs 3",
        "hard labels": f"{SMALL} {STEP} --epochs 3 --no-soft-labels",
        "learning rate 0.002": f"{SMALL} {STEP} --epochs 3 --learning-rate 0.002",
        "short warmup, then a cosine": f"{SMALL} {STEP} --epochs 3 --schedule cosine --warmup-epochs 0.2",
        "batch size 4": f"{SMALL} {STEP} --epochs 3 --batch-size 4",
        "EMA of the weights": f"{SMALL} {STEP} --epochs 3 --ema-decay 0.98",
        "gradient clipping": f"{SMALL} {STEP} --epochs 3 --grad-clip 1",
        "flips only": f"{SMALL} {STEP} --epochs 3 {FLIPS}",
        "flips only, batch size 4": f"{SMALL} {FOURS} --epochs 3",
        "flips only, batch size 2": f"{SMALL} {TWOS} --epochs 3",
        "rotation up to 45 degrees": f"{SMALL} {STEP} --epochs 3 --rotation 45",
        "no rotation": f"{SMALL} {STEP} --epochs 3 --rotation 0",
        "scale up to 0.25": f"{SMALL} {STEP} --epochs 3 --scale 0.25",
        "color jitter": f"{SMALL} {STEP} --epochs 3 --color-jitter 0.2",
        "some in grayscale": f"{SMALL} {STEP} --epochs 3 --grayscale 0.15",
        "half of them blurred": f"{SMALL} {STEP} --epochs 3 --blur 1",
        "test-time augmentation": f"{SMALL} {STEP} --epochs 3 --tta",
    },
    "progressive resizing": {
        "two epochs": f"{LARGE} {STEP} --ema-decay 0.98 --epochs 2",
        "four at half size, and one": f"{LARGE} {STEP} --ema-decay 0.98 --epochs 5 --half-size-epochs 4",
    },
    "an hour": {
        "the tutorial's": f"{LARGE} {TUTORIALS} --epochs 17",
        "the recipe": f"{LARGE} {RECIPE} {LONG} --tta",
        "the recipe, without TTA": f"{LARGE} {RECIPE} {LONG}",
    },
    "changes": {
        "the recipe": f"{LARGE} {RECIPE} {LONG} --tta",
        "hard labels": f"{LARGE} {RECIPE} {LONG} --no-soft-labels --tta",
        "without color jitter": f"{LARGE} {RECIPE} {LONG} --color-jitter 0 --grayscale 0 --tta",
        "small affine transforms": f"{LARGE} {RECIPE} {LONG} --shift 0.01 --scale 0.02 --rotation 1 --tta",
        "batch size 4": f"{LARGE} {RECIPE} {LONG} --batch-size 4 --tta",
        "batch size 8": f"{LARGE} {RECIPE} {LONG} --batch-size 8 --tta",
        "512x512": f"{LARGE} {RECIPE} {LONG} --input-img-resize 512 512 --output-img-resize 512 512 --tta",
    },
    "ten minutes": {
        "the tutorial's": f"{LARGE} {TUTORIALS} --epochs 5",
        "the recipe": f"{LARGE} {RECIPE} {SHORT} --tta",
        "the recipe, without TTA": f"{LARGE} {RECIPE} {SHORT}",
        "hard labels": f"{LARGE} {RECIPE} {SHORT} --no-soft-labels --tta",
    },
    "128x128": {
        "the recipe": BRIEF,
        "the recipe, with TTA": f"{BRIEF} --tta",
        "the tutorial's": f"{SMALL} {SECOND} --epochs 2",
        "hard labels": f"{BRIEF} --no-soft-labels",
        "batch size 8": f"{BRIEF} --batch-size 8",
        "4 batches of 2 per step": f"{BRIEF} --accumulate-steps 4",
        "8, rate 0.002, clipped": f"{BRIEF} --batch-size 8 --learning-rate 0.002 --grad-clip 1",
        "higher weights of edges": f"{BRIEF} --edge-weight 3",
        "only the hardest pixels": f"hardest-pixels {BRIEF}",
        "4 times cross entropy": f"heavy-cross-entropy {BRIEF}",
        "EMA of a constant rate": f"{BRIEF} --schedule constant --warmup-epochs 0.2 --ema-decay 0.999",
        "twice as long": f"{SMALL} {RECIPE} --epochs 4",
    },
    "256x256, three epochs": {
        "the recipe": BRIEF_LARGE,
        "the recipe, with TTA": f"{BRIEF_LARGE} --tta",
        "the tutorial's": f"{LARGE} {SECOND} --epochs 3",
        "higher weights of edges": f"{BRIEF_LARGE} --edge-weight 3",
    },
    "256x256": {
        "the tutorial's": f"{LARGE} {SECOND} --epochs 18",
        "the recipe": f"{LARGE} {RECIPE} {LONG} --tta",
        "the recipe, without TTA": f"{LARGE} {RECIPE} {LONG}",
    },
    "512x512": {
        "the tutorial's": f"{LARGER} {SECOND} --epochs 18",
        "the recipe": f"{LARGER} {RECIPE} {LONG} --tta",
        "the recipe, without TTA": f"{LARGER} {RECIPE} {LONG}",
    },
    "winners": {
        "the recipe": f"{LARGE} {RECIPE} {LONG}",
        "higher weights of edges": f"{LARGE} {RECIPE} {LONG} --edge-weight 3",
        "only the hardest pixels": f"hardest-pixels {LARGE} {RECIPE} {LONG}",
        "4 times cross entropy": f"heavy-cross-entropy {LARGE} {RECIPE} {LONG}",
        "no augmentation at the end": f"plain-end {LARGE} {RECIPE} {LONG}",
        "twice as long": f"{LARGE} {RECIPE} --epochs 36 --half-size-epochs 16",
        "EMA of a constant rate": f"{LARGE} {RECIPE} {LONG} --schedule constant --warmup-epochs 1 --ema-decay 0.999",
        "batch size 8": f"{LARGE} {RECIPE} {LONG} --batch-size 8",
        "8, rate 0.002, clipped": f"{LARGE} {RECIPE} {LONG} --batch-size 8 --learning-rate 0.002 --grad-clip 1",
        "4 batches of 2 per step": f"{LARGE} {RECIPE} {LONG} --accumulate-steps 4",
    },
    "the first command": {
        "python main.py": "--epochs 50",
        "momentum 0.9": "--epochs 50 --momentum 0.9",
        "AdamW, one cycle": f"--epochs 50 {STEP} --batch-size 3",
    },
    "the paper's net": {
        "reflect": f"{PAPERS} {FOURS} --epochs 8",
        "stretch": f"{PAPERS} {FOURS} --epochs 8 --padding stretch",
        "reflect, with TTA": f"{PAPERS} {FOURS} --epochs 8 --tta",
    },
}


@dataclass
class Benchmark:
    """Trains main.py with each row's options and each seed, and prints a table of scores and gains.

    The gain is the mean over the cars of a car's Dice minus its Dice in the first row, with the same seed. Its 95%
    confidence interval is over the cars; how much trainings vary, the seeds show. A training that was stopped is
    resumed, and one that is finished is not repeated.
    """

    table: Annotated[Literal[tuple(TABLES)], tyro.conf.Positional]  # which rows
    input_dir: Path = Path("input")  # of main.py
    output_dir: Path = Path("output/recipes")  # has a folder for each training
    seeds: tuple[int, ...] = (0, 1)  # of the split, the weights, the order and the augmentation
    rows: tuple[str, ...] = ()  # only these, and the first one, with which they are compared
    parallel: bool = False  # train all seeds of a row at the same time, for a large GPU
    held_out: bool = False  # score test/ with test_masks/ (which Kaggle does not publish), not the validation images


def run(options: str, benchmark: Benchmark, seed: int) -> Path:
    """Train with these options, resume, or do nothing if all is done. Returns the folder of score.csv and submission.

    Rows that differ only in --tta share one training.
    """
    trained_with = options.removesuffix(" --tta")
    key = f"{benchmark.input_dir} {trained_with} {seed}"
    training = benchmark.output_dir / f"seed-{seed}-{zlib.crc32(key.encode()):08x}"
    tta = "no-tta" if options == trained_with else "tta"
    scored = training / tta
    if not (scored / ("submit.csv.gz" if benchmark.held_out else "score.csv")).exists():
        started = sorted(training.glob("models/model_*/last.pt"))
        experiment, words = split_experiment(trained_with)
        command = ["--resume", started[-1].parent] if started else [*words, "--seed", seed]
        command += ["--input-dir", benchmark.input_dir, "--output-dir", training, "--logs-dir", training / "logs"]
        command += ["--predict" if benchmark.held_out else "--no-predict", f"--{tta}"]
        train(list(map(str, command)), experiment)
        trained = max(training.glob("models/model_*/last.pt")).parent
        scored.mkdir(exist_ok=True)
        with save_atomically(scored / "score.csv") as file:
            file.write((trained / "score.csv").read_bytes())
        if benchmark.held_out:
            (training / "submit.csv.gz").replace(scored / "submit.csv.gz")
    return scored


def split_experiment(options: str) -> tuple[list[str], list[str]]:
    """The name of the experiment, if the options begin with one, and the options of main.py."""
    words = shlex.split(options)
    named = not words[0].startswith("--")
    return words[:named], words[named:]


def train(options: list[str], experiment: Sequence[str] = ()) -> None:
    command = ["benchmarks/experiments.py" if experiment else "main.py", *experiment, *options]
    print(f"python {shlex.join(command)}", file=sys.stderr)
    done = subprocess.run([sys.executable, str(ROOT / command[0]), *command[1:]], stdout=sys.stderr)
    if done.returncode:
        sys.exit(done.returncode)  # it has printed why


def dice_per_car(scored: Path, benchmark: Benchmark) -> pd.Series:
    """The mean Dice of each car's images at their original size: validation images, or those held out."""
    if not benchmark.held_out:
        return pd.read_csv(scored / "score.csv").groupby("car")["dice"].mean()
    return held_out_dice(scored / "submit.csv.gz", benchmark.input_dir)


def held_out_dice(submission: Path, input_dir: Path) -> pd.Series:
    """The mean Dice of each car's masks of a submission, compared with those in input_dir/test_masks."""
    scores = []
    for name, runs in pd.read_csv(submission, keep_default_na=False).itertuples(index=False):
        truth = decode_mask((input_dir / "test_masks" / f"{Path(name).stem}_mask.gif").read_bytes()) > 127
        mask = rle.decode(runs, truth.shape[1:])[None]
        scores.append((name.rsplit("_", 1)[0], dice_per_image(mask, truth).item()))
    return pd.DataFrame(scores, columns=["car", "dice"]).groupby("car")["dice"].mean()


def main(benchmark: Benchmark) -> None:
    table, seeds = TABLES[benchmark.table], benchmark.seeds
    unknown = set(benchmark.rows) - table.keys()
    if unknown:
        rows = ", ".join(map(repr, table))
        sys.exit(f"--rows must be among {rows}, not {' or '.join(map(repr, sorted(unknown)))}.")
    first, *others = table
    print(f"| | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | gain | from | to | by seed |")
    print("| --- " * (len(seeds) + 6) + "|", flush=True)
    base = None
    for name in [first, *(row for row in others if row in benchmark.rows or not benchmark.rows)]:
        with ThreadPoolExecutor(len(seeds) if benchmark.parallel else 1) as pool:
            scored = pool.map(lambda seed, options=table[name]: run(options, benchmark, seed), seeds)
            cars = {seed: dice_per_car(folder, benchmark) for seed, folder in zip(seeds, scored, strict=True)}
        base = cars if base is None else base
        means = [cars[seed].mean() for seed in seeds]
        print(f"| {' | '.join([name, *(f'{mean:.4f}' for mean in (*means, sum(means) / len(means)))])} | ", end="")
        print(f"{'- | - | - | -' if cars is base else gain(cars, base)} |", flush=True)


def gain(cars: dict[int, pd.Series], base: dict[int, pd.Series]) -> str:
    """The mean difference over the cars, for the same seed and car; its confidence interval; the mean per seed."""
    by_seed = {seed: (cars[seed] - base[seed]) for seed in cars}
    change = pd.concat(by_seed).groupby(level=1).mean()  # a car that several seeds validate on counts once
    values = change.mean(), *confidence_interval(change)
    return " | ".join([*(f"{each:+.4f}" for each in values), " ".join(f"{by_seed[s].mean():+.4f}" for s in by_seed)])


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
