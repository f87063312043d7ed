"""Time to a Dice: seconds of training until the validation Dice on the drawn sample reaches it.

    python benchmarks/learning.py
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
import tyro
from baseline import PlainTrainDataset, make_net, train_epoch, validate
from epoch import make_run
from measure import TUTORIAL, Row, compare, fill_cache, show, take_turns, temporary_folder
from torch.utils.data import DataLoader

import helpers
from data.dataset import TrainImageDataset
from data.fetcher import DatasetFetcher
from data.layout import make_layout
from data.sample import draw_sample
from data.sampler import ShardedRandomSampler
from nn.classifier import CarvanaClassifier
from nn.unet import UNet1024

SIZE = (128, 128)  # of images and masks
EPOCHS = 60  # at most


@dataclass
class Benchmark:
    """Times the training of UNet1024 at 128x128 with RMSprop at 0.0002, ours and the baseline in alternation.

    A training starts with new weights and ends after the first epoch with a validation Dice of `dice` or more. Reading
    the images (ours: filling a new cache and reading it) and validation are included; drawing the cars and starting
    Python are not.
    """

    dice: float = 0.97  # to reach
    batch_size: int = 2  # images per batch
    rounds: int = 3  # trainings per side, with seeds from 0 on
    json: bool = False  # print a JSON object per row


def split(input_dir: Path) -> tuple[list[Path], ...]:
    """The paths of training images and masks, and of validation images and masks."""
    layout = make_layout("sample", input_dir, hq_files=None, group_regex=None)
    return DatasetFetcher(layout).get_train_files()


def our_training(input_dir: Path, batch: int, dice: float) -> Callable[[], None]:
    run = make_run(SIZE[0], batch, "cpu")
    X_train, y_train, X_valid, y_valid = split(input_dir)
    seeds = count()

    def work() -> None:
        seed = next(seeds)
        helpers.seed_everything(seed)
        classifier = CarvanaClassifier(UNet1024((3, *SIZE)), EPOCHS, run.machine, seed=seed)
        classifier.optimizer = torch.optim.RMSprop(classifier.net.parameters(), lr=0.0002)
        cache = fill_cache(X_train + X_valid, y_train + y_valid, SIZE, input_dir / f"cache-{seed}")
        train_ds = TrainImageDataset(X_train, y_train, SIZE, SIZE, reader=cache, X_transform=TUTORIAL, seed=seed)
        train_loader = DataLoader(train_ds, sampler=ShardedRandomSampler(train_ds, seed), **run.loading)
        valid_loader = run.eval_loader(TrainImageDataset(X_valid, y_valid, SIZE, SIZE, reader=cache))

        def train_and_validate(epoch: int) -> float:
            classifier.epoch = epoch
            classifier.train_epoch(train_loader)
            return classifier.validate(valid_loader)["valid_dice"]

        train_until(dice, train_and_validate)

    return work


def plain_training(input_dir: Path, batch: int, dice: float) -> Callable[[], None]:
    X_train, y_train, X_valid, y_valid = split(input_dir)
    train_loader = DataLoader(PlainTrainDataset(X_train, y_train, SIZE, SIZE, True), batch, shuffle=True)
    valid_loader = DataLoader(PlainTrainDataset(X_valid, y_valid, SIZE, SIZE, False), batch)
    seeds = count()

    def work() -> None:
        torch.manual_seed(next(seeds))
        net = make_net("UNet1024")
        optimizer = torch.optim.RMSprop(net.parameters(), lr=0.0002)

        def train_and_validate(_epoch: int) -> float:
            train_epoch(net, train_loader, optimizer)
            return validate(net, valid_loader)

        train_until(dice, train_and_validate)

    return work


def train_until(dice: float, train_and_validate: Callable[[int], float]) -> None:
    """train_and_validate(epoch) trains for one epoch, counted from 1, and returns the validation Dice."""
    reached = [train_and_validate(1)]
    while reached[-1] < dice:
        if len(reached) == EPOCHS:
            sys.exit(f"The Dice did not reach {dice} in {EPOCHS} epochs; the best was {max(reached):.4f}.")
        reached.append(train_and_validate(len(reached) + 1))


def rows(benchmark: Benchmark) -> Iterator[Row]:
    with temporary_folder() as folder:
        draw_sample(Path(folder) / "sample")
        arguments = Path(folder), benchmark.batch_size, benchmark.dice
        sides = (our_training, *arguments), (plain_training, *arguments)
        ours, plain = take_turns(benchmark.rounds, *sides, warm_up=False)
        yield compare(f"training to a Dice of {benchmark.dice}", "s", ours.seconds, plain.seconds, lower_is_better=True)


if __name__ == "__main__":
    benchmark = tyro.cli(Benchmark)
    show(rows(benchmark), benchmark.json)
