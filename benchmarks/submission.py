"""Streams the 100,064 masks of a submission through PredictionsSaverCallback: rows a second, and flat memory.

    python benchmarks/submission.py
"""

import csv
import tempfile
import time
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import torch
import tyro
from measure import peak_memory
from torch import Tensor

from callbacks.predictions_saver import PredictionsSaverCallback
from data.sample import draw_sample
from img.transformer import decode_mask, resize


@dataclass
class Benchmark:
    """Streams predictions of drawn cars into a submission, and prints rows per second and peak memory on the way."""

    names: Path = Path("input/sample_submission.csv")  # Kaggle's list; names are made up where it isn't there
    rows: tuple[int, ...] = (1000, 10_000, 100_064)  # print after so many; the last is where it ends
    size: tuple[int, int] = (388, 388)  # height and width of the net's masks
    origin_img_size: tuple[int, int] = (1280, 1918)  # height and width of the photos
    batch_size: int = 8  # predictions handed over at once


def drawn_probs(size: tuple[int, int]) -> Tensor:
    """Sixteen views of a drawn car as a net might predict them, (16, *size) float32."""
    with tempfile.TemporaryDirectory() as folder:
        draw_sample(Path(folder) / "sample", cars=1, test_cars=0, size=(640, 960), processes=1)
        masks = [decode_mask(path.read_bytes()) for path in sorted((Path(folder) / "sample/train_masks").iterdir())]
    return torch.cat([resize(mask, size) for mask in masks]).float() / 255


def names_of(path: Path, count: int) -> list[str]:
    if not path.exists():
        return [f"{number // 16:012x}_{number % 16 + 1:02d}.jpg" for number in range(count)]
    with open(path, newline="") as file:
        return sorted(row["img"] for row in islice(csv.DictReader(file), count))


def main(benchmark: Benchmark) -> None:
    names = names_of(benchmark.names, max(benchmark.rows))
    print(f"{len(names)} names {'of ' + str(benchmark.names) if benchmark.names.exists() else 'that were made up'}")
    batches = cycle(drawn_probs(benchmark.size).split(benchmark.batch_size))
    with tempfile.TemporaryDirectory() as folder:
        saver = PredictionsSaverCallback(Path(folder) / "submit.csv.gz", benchmark.origin_img_size, threshold=0.5)
        start, done = time.perf_counter(), 0
        print(f"{'rows':>8} {'rows/s':>8} {'peak memory':>12}")
        while done < len(names):
            probs = next(batches)
            batch = names[done : min(done + len(probs), next(row for row in benchmark.rows if row > done))]
            saver.on_batch_gathered(saver.on_predict_batch(batch, probs[: len(batch)]))
            done += len(batch)
            if done in benchmark.rows or done == len(names):
                rate = done / (time.perf_counter() - start)
                print(f"{done:8} {rate:8.1f} {peak_memory():8.0f} MiB", flush=True)
        saver.close_saver()
        print(f"{saver.to_file.name} is {saver.to_file.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
