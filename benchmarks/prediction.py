"""Prediction from photo to row of the submission, and the saver of masks alone.

    python benchmarks/prediction.py
"""

import csv
import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import baseline
import numpy as np
import torch
import torch.nn as nn
import tyro
from measure import Row, compare, show, take_turns
from torch import Tensor
from torch.utils.data import DataLoader

import helpers
from callbacks.predictions_saver import PredictionsSaverCallback
from data.dataset import TestImageDataset
from data.sample import draw_sample
from img.transformer import decode_mask, resize
from nn.classifier import CarvanaClassifier
from nn.unet import UNet1024
from nn.unet_origin import UNetOriginal

CASES = {"UNet1024": (UNet1024, 256, 8), "UNetOriginal": (UNetOriginal, 572, 3)}  # side of the images, images a step
ORIGIN = (1280, 1918)


@dataclass
class Benchmark:
    """Times ours and the base line in alternation: 16 photos of a drawn car, 1918x1280, to a submission.

    The nets compute all their layers, but the last one hands out drawn masks: an untrained net would make masks of a
    million runs. For the saver alone, ours against the base line's and against pycocotools' encoder, which is given
    masks that are enlarged and cut already and writes no file.
    """

    nets: tuple[str, ...] = tuple(CASES)  # of UNet1024 (at 256x256) and UNetOriginal (572x572)
    rounds: int = 3  # each side predicts the photos so often, after once to warm up
    json: bool = False  # an object for each row


class DrawnMask(nn.Module):
    """In the place of a net's last layer: features (N, C, H, W) -> logits (N, 1, H, W) of a drawn mask."""

    def __init__(self, mask: Tensor):
        super().__init__()
        self.register_buffer("logits", torch.where(mask > 127, 4.0, -4.0)[None])

    def forward(self, features: Tensor) -> Tensor:
        return self.logits.expand(len(features), 1, -1, -1)


def our_prediction(name: str, root: Path) -> Callable[[], None]:
    make, side, batch = CASES[name]
    _, precision, workers, _ = helpers.choose_machine("cpu", None, None)
    net = make((3, side, side))
    net.classify = DrawnMask(resize(mask_of(root), net.output_size))
    classifier = CarvanaClassifier(net, epochs=1, precision=precision)
    photos = TestImageDataset(sorted((root / "train").iterdir()), (side, side), net.output_size)

    def work() -> None:
        saver = PredictionsSaverCallback(root / "ours.csv.gz", ORIGIN, threshold=0.5)
        classifier.predict(DataLoader(photos, batch, num_workers=workers), callbacks=[saver])
        saver.close_saver()

    return work


def plain_prediction(name: str, root: Path) -> Callable[[], None]:
    make, side, batch = CASES[name]
    net = baseline.make_net(name)
    net.classify = DrawnMask(resize(mask_of(root), make((3, side, side)).output_size))
    photos = baseline.PlainTestDataset(sorted((root / "train").iterdir()), (side, side))
    return lambda: baseline.predict(net, DataLoader(photos, batch), root / "plain.csv.gz", ORIGIN)


def mask_of(root: Path) -> Tensor:
    return decode_mask(min((root / "train_masks").iterdir()).read_bytes())


def drawn_probs(root: Path, size: Sequence[int]) -> Tensor:
    masks = [decode_mask(path.read_bytes()) for path in sorted((root / "train_masks").iterdir())]
    return torch.cat([resize(mask, size) for mask in masks]).float() / 255  # (16, *size)


def our_saver(root: Path, size: Sequence[int]) -> Callable[[], None]:
    helpers.keep_freed_memory()
    probs, saver = drawn_probs(root, size), PredictionsSaverCallback(root / "saver.csv.gz", ORIGIN, threshold=0.5)
    return lambda: saver.on_predict_batch([f"{index}.jpg" for index in range(len(probs))], probs)


def plain_saver(root: Path, size: Sequence[int]) -> Callable[[], None]:
    probs, rows = drawn_probs(root, size).numpy(), csv.writer(io.StringIO())
    return lambda: baseline.save(rows, map(str, range(len(probs))), probs, ORIGIN)


def coco_encoder(root: Path) -> Callable[[], None]:
    from pycocotools import mask as coco

    masks = [np.asfortranarray(mask > 0.5, dtype=np.uint8) for mask in drawn_probs(root, ORIGIN).numpy()]
    return lambda: [coco.encode(mask) for mask in masks]


def main(benchmark: Benchmark) -> None:
    if not benchmark.json:
        print(Row.HEADER)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "sample"
        draw_sample(root, cars=1, test_cars=0)
        for name in benchmark.nets:
            ours, plain = take_turns(benchmark.rounds, (our_prediction, name, root), (plain_prediction, name, root))
            side = CASES[name][1]
            rates = ([16 / s for s in seconds] for seconds in (ours, plain))
            show(compare(f"prediction {name} {side}x{side}", "photos/s", *rates), benchmark.json)
        for size in ((388, 388), (1024, 1024)):
            sides = (our_saver, root, size), (plain_saver, root, size), (coco_encoder, root)
            seconds = take_turns(5 * benchmark.rounds, *sides)
            ours, plain, coco = ([1000 * s / 16 for s in side] for side in seconds)
            name = f"saver, masks of {size[0]}x{size[1]}"
            show(compare(name, "ms/mask", ours, plain, lower_is_better=True), benchmark.json)
            show(compare(f"{name}, against coco", "ms/mask", ours, coco, lower_is_better=True), benchmark.json)


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
