"""How long an epoch takes on 1 to 64 GPUs: arithmetic, from figures that you name.

    python benchmarks/epoch_time.py --images-per-second 40 --between-boxes 12.5
"""

import math
from dataclasses import dataclass
from typing import Literal

import measure  # noqa: F401  which lets the package be found
import tyro

from nn.unet import NETS


@dataclass
class Model:
    """Prints the seconds of an epoch by the count of GPUs. It has measured nothing: the defaults are no promise.

    A step takes a GPU's time for its images, and then a ring takes 2 (n - 1) / n times the gradient through the slowest
    cable of n GPUs: in one box the one inside it, else the one between boxes. That none of it happens while backward()
    still goes on, as DistributedDataParallel lets most of it, makes this the slow end.
    """

    net: Literal["UNetOriginal", "UNet1024"] = "UNet1024"
    photos: int = 4064  # to train on: Kaggle's 5,088 less a fifth of the cars
    images_per_second: float = 82.0  # that one GPU trains alone, as main.py prints it
    batch_size: int = 2  # images a step, in each process
    gpus_a_box: int = 8
    inside: float = 50.0  # gigabytes a second between two GPUs of a box
    between_boxes: float = 1.25  # gigabytes a second between two boxes: 1.25 is 10 Gbit/s


def gradient_bytes(net: str) -> int:
    return 4 * sum(weights.numel() for weights in NETS[net]().parameters())


def statistics_bytes(net: str) -> int:
    """Of the BatchNorms."""
    return 4 * sum(buffer.numel() for buffer in NETS[net]().buffers() if buffer.is_floating_point())


def step_seconds(model: Model, gpus: int, sent: int) -> tuple[float, float]:
    """Of the images, and of the gradient of `sent` bytes."""
    cable = model.inside if gpus <= model.gpus_a_box else model.between_boxes
    return model.batch_size / model.images_per_second, 2 * (gpus - 1) / gpus * sent / (cable * 1e9)


def main(model: Model) -> None:
    sent = gradient_bytes(model.net)
    print("| GPUs | images a step | steps | images, ms | gradient, ms | epoch, s | times as fast | efficiency |")
    print("| --- " * 8 + "|")
    alone = None
    for gpus in (1, 2, 4, 8, 16, 32, 64):
        images, gradient = step_seconds(model, gpus, sent)
        steps = math.ceil(model.photos / (gpus * model.batch_size))
        epoch = steps * (images + gradient)
        alone = epoch if alone is None else alone
        faster = f"{alone / epoch:.1f} | {alone / epoch / gpus:.0%}"
        figures = f"{1000 * images:.1f} | {1000 * gradient:.1f} | {epoch:.1f}"
        print(f"| {gpus} | {gpus * model.batch_size} | {steps} | {figures} | {faster} |")
    print(f"{model.net}: {sent // 4:,} weights, a gradient of {sent / 1e6:.1f} MB; ", end="")
    print(f"running statistics of {statistics_bytes(model.net) / 1e3:.0f} KB")


if __name__ == "__main__":
    main(tyro.cli(Model))
