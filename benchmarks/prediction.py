"""Prediction from an image file to a row of the submission, and the writing of masks alone.

    python benchmarks/prediction.py
    python benchmarks/prediction.py --device cuda --images 1024 --cases UNet1024-1024
"""

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import baseline
import numpy as np
import torch
import torch.nn as nn
import tyro
from epoch import make_run
from measure import Row, compare, draw_car, find_pairs, show, take_turns, temporary_folder
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks.predictions_saver import PredictionsSaverCallback
from data.dataset import TestImageDataset
from img.mask import decode_mask
from img.transformer import resize
from nn.classifier import CarvanaClassifier
from nn.unet import NETS
from runtime.errors import friendly_errors
from runtime.machine import keep_freed_memory

CASES = {  # net, side of the images, batch size of the baseline
    "UNet1024-256": ("UNet1024", 256, 8),
    "UNet1024-1024": ("UNet1024", 1024, 2),
    "UNetOriginal-572": ("UNetOriginal", 572, 3),
}
ORIGIN = (1280, 1918)


@dataclass
class Benchmark:
    """Times ours and the baseline in alternation: images of a drawn car, 1280x1918, to a submission.

    Ours has the machine and the batch size that main.py chooses, the baseline as many workers. The nets compute all
    their layers, but the head outputs a drawn mask: the masks of an untrained net would have a million runs. The saver
    alone is compared with the baseline's and with pycocotools' encoder, which gets masks that are already upsampled and
    thresholded, and writes no file.
    """

    cases: tuple[Literal[*CASES], ...] = ("UNet1024-256",)  # the other cases take minutes
    images: int = 16  # per round; more than a car has are repeated. A GPU needs a thousand or more
    rounds: int = 3  # per side, after a warm-up round
    device: str = "cpu"  # or cuda, mps, ...; the saver is timed on the CPU
    json: bool = False  # print a JSON object per row


class DrawnMask(nn.Module):
    """Replaces the head of a net: features (N, C, H, W) -> logits (N, 1, H, W) of a drawn mask."""

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("logits", torch.where(mask > 127, 4.0, -4.0)[None])

    def forward(self, features: Tensor) -> Tensor:
        return self.logits.expand(len(features), 1, -1, -1)


def our_prediction(root: Path, images: int, device: str, name: str, side: int, _batch: int) -> Callable[[], None]:
    """Predict images of root/train; each mask is one of root/train_masks."""
    run, net = make_run(side, batch=1, device=device), NETS[name]((3, side, side))
    net.head = DrawnMask(resize(first_mask(root), net.output_size))
    classifier = CarvanaClassifier(net, epochs=1, machine=run.machine)
    loader = run.eval_loader(TestImageDataset(find_pairs(root, images)[0], (side, side), net.output_size))

    def work() -> None:
        saver = PredictionsSaverCallback(root / "ours.csv.gz", ORIGIN, threshold=0.5)
        classifier.predict(loader, callbacks=[saver])
        saver.close_saver()

    return work


def plain_prediction(root: Path, images: int, device: str, name: str, side: int, batch: int) -> Callable[[], None]:
    run, net = make_run(side, batch, device), baseline.make_net(name)
    net.head = DrawnMask(resize(first_mask(root), NETS[name].check((side, side))))
    net.to(run.machine.device)
    dataset = baseline.PlainTestDataset(find_pairs(root, images)[0], (side, side))
    loader = DataLoader(dataset, **run.loading)
    return lambda: baseline.predict(net, loader, root / "plain.csv.gz", ORIGIN)


def first_mask(root: Path) -> Tensor:
    return decode_mask(min((root / "train_masks").iterdir()).read_bytes())


def drawn_probs(root: Path, size: Sequence[int]) -> Tensor:
    """The 16 masks of the drawn car as probabilities, (16, *size)."""
    masks = [decode_mask(path.read_bytes()) for path in sorted((root / "train_masks").iterdir())]
    return torch.cat([resize(mask, size) for mask in masks]).float() / 255


def our_saver(root: Path, size: Sequence[int]) -> Callable[[], None]:
    keep_freed_memory()
    probs, saver = drawn_probs(root, size), PredictionsSaverCallback(root / "saver.csv.gz", ORIGIN, threshold=0.5)
    names = [f"{index}.jpg" for index in range(len(probs))]
    return lambda: saver.on_batch_gathered(saver.on_predict_batch(names, probs))


def plain_saver(root: Path, size: Sequence[int]) -> Callable[[], None]:
    probs, rows = drawn_probs(root, size).numpy(), csv.writer(io.StringIO())
    return lambda: baseline.save(rows, map(str, range(len(probs))), probs, ORIGIN)


def coco_encoder(root: Path) -> Callable[[], None]:
    from pycocotools import mask as coco

    masks = [np.asfortranarray(mask > 0.5, dtype=np.uint8) for mask in drawn_probs(root, ORIGIN).numpy()]
    return lambda: [coco.encode(mask) for mask in masks]


def rows(benchmark: Benchmark) -> Iterator[Row]:
    with temporary_folder() as folder:
        root, images = draw_car(folder), benchmark.images
        for case in benchmark.cases:
            name, side, _ = CASES[case]
            what = root, images, benchmark.device, *CASES[case]
            ours, plain = take_turns(benchmark.rounds, (our_prediction, *what), (plain_prediction, *what))
            title = f"prediction {name} {side}x{side}"
            speeds = ([images / seconds for seconds in each.seconds] for each in (ours, plain))
            yield compare(title, "images/s", *speeds)
            yield compare(f"{title}, memory", "MiB", [ours.peak], [plain.peak], lower_is_better=True)
        for size in ((388, 388), (1024, 1024)):
            sides = (our_saver, root, size), (plain_saver, root, size), (coco_encoder, root)
            measured = take_turns(5 * benchmark.rounds, *sides)
            ours, plain, coco = ([1000 * seconds / 16 for seconds in each.seconds] for each in measured)
            title = f"saver, masks of {size[0]}x{size[1]}"
            yield compare(title, "ms/mask", ours, plain, lower_is_better=True)
            yield compare(f"{title}, against coco", "ms/mask", ours, coco, lower_is_better=True)


if __name__ == "__main__":
    with friendly_errors():
        benchmark = tyro.cli(Benchmark)
        show(rows(benchmark), benchmark.json)
