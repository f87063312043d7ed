"""Time to a Dice: seconds of training until the validation photos of the drawn sample reach it.

    python benchmarks/learning.py
"""

import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
import tyro
from baseline import PlainTrainDataset, make_net, train_epoch, validate
from measure import Row, compare, show, take_turns
from torch.utils.data import DataLoader, RandomSampler

import helpers
from data.dataset import TrainImageDataset
from data.fetcher import DatasetFetcher
from data.sample import draw_sample
from img.augmentation import augment_img
from nn.classifier import CarvanaClassifier
from nn.unet import UNet1024
from runtime import machine

SIZE = (128, 128)  # of photos and masks
EPOCHS = 60  # after which it gives up


@dataclass
class Benchmark:
    """Times the training of UNet1024 at 128x128 with RMSprop at 0.0002, ours and the base line in alternation.

    It begins with new weights and ends after the first epoch whose validation Dice is `dice` or more. Reading the
    photos and validating count as training; drawing the cars and starting Python do not.
    """

    dice: float = 0.97  # to reach
    batch_size: int = 2  # images a step
    rounds: int = 3  # each side trains so often, with seeds from 0 on
    json: bool = False  # an object for each row


def our_training(root: Path, batch: int, dice: float) -> Callable[[], None]:
    chosen = machine.choose_machine("cpu")
    precision, workers = chosen.precision, chosen.workers
    X_train, y_train, X_valid, y_valid = DatasetFetcher(root).get_train_files()
    loading = dict(batch_size=batch, num_workers=workers, persistent_workers=workers > 0)
    valid_loader = DataLoader(TrainImageDataset(X_valid, y_valid, SIZE, SIZE), **loading)
    seeds = count()

    def work() -> None:
        seed = next(seeds)
        helpers.seed_everything(seed)
        classifier = CarvanaClassifier(UNet1024((3, *SIZE)), EPOCHS, precision=precision, seed=seed)
        classifier.optimizer = torch.optim.RMSprop(classifier.net.parameters(), lr=0.0002)
        photos = TrainImageDataset(X_train, y_train, SIZE, SIZE, X_transform=augment_img, seed=seed)
        train_loader = DataLoader(photos, sampler=RandomSampler(photos), **loading)

        def epoch(number: int) -> float:
            photos.set_epoch(number)
            classifier.run_epoch(train_loader, "train")
            return classifier.run_epoch(valid_loader, "valid")["valid_dice"]

        train_until(dice, epoch)

    return work


def plain_training(root: Path, batch: int, dice: float) -> Callable[[], None]:
    X_train, y_train, X_valid, y_valid = DatasetFetcher(root).get_train_files()
    train_loader = DataLoader(PlainTrainDataset(X_train, y_train, SIZE, SIZE, True), batch, shuffle=True)
    valid_loader = DataLoader(PlainTrainDataset(X_valid, y_valid, SIZE, SIZE, False), batch)
    seeds = count()

    def work() -> None:
        torch.manual_seed(next(seeds))
        net = make_net("UNet1024")
        optimizer = torch.optim.RMSprop(net.parameters(), lr=0.0002)

        def epoch(_: int) -> float:
            train_epoch(net, train_loader, optimizer)
            return validate(net, valid_loader)

        train_until(dice, epoch)

    return work


def train_until(dice: float, epoch: Callable[[int], float]) -> None:
    """epoch(number) trains for an epoch, from 1, and returns the validation Dice."""
    reached = [epoch(1)]
    while reached[-1] < dice:
        if len(reached) == EPOCHS:
            sys.exit(f"A Dice of {dice} was not reached in {EPOCHS} epochs, the best was {max(reached):.4f}.")
        reached.append(epoch(len(reached) + 1))


def rows(benchmark: Benchmark) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "sample"
        draw_sample(root)
        arguments = root, benchmark.batch_size, benchmark.dice
        sides = (our_training, *arguments), (plain_training, *arguments)
        ours, plain = take_turns(benchmark.rounds, *sides, warm_up=False)
        yield compare(f"training to a Dice of {benchmark.dice}", "s", ours.seconds, plain.seconds, lower_is_better=True)


if __name__ == "__main__":
    benchmark = tyro.cli(Benchmark)
    show(rows(benchmark), benchmark.json)
