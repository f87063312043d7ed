"""Whole epochs of training on files: images per second in the first one, which fills the cache, and in later ones.

    python benchmarks/epoch.py        (on a GPU: --device cuda --images 2048 --cases recipe-512 UNet1024-1024)
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import tyro
from baseline import PlainTrainDataset, make_net, train_epoch
from measure import RECIPE, TUTORIAL, Row, compare, draw_car, fill_cache, find_pairs, show, take_turns, temporary_folder
from torch.optim import RMSprop
from torch.utils.data import DataLoader

from data.dataset import TrainImageDataset
from data.sampler import ShardedRandomSampler
from img.transformer import resize_size
from nn.classifier import CarvanaClassifier
from nn.unet import NETS
from runtime.errors import friendly_errors
from runtime.run import Run, RunOptions

CASES = {  # net, side of its images, batch size, augmentation of ours
    "recipe-256": ("UNet1024", 256, 2, RECIPE),
    "recipe-512": ("UNet1024", 512, 2, RECIPE),
    "UNet1024-1024": ("UNet1024", 1024, 2, TUTORIAL),
    "UNetOriginal-572": ("UNetOriginal", 572, 3, TUTORIAL),
}


@dataclass
class Benchmark:
    """Times epochs of ours and of the baseline in alternation, from the files to the last optimizer step.

    Ours has the precision, mode and workers that main.py chooses. In the first epoch, it also creates the net and fills
    the cache. The baseline, with as many workers, decodes all files in each epoch, and augments as the tutorial.
    """

    cases: tuple[Literal[*CASES], ...] = ("recipe-256",)  # the other cases take minutes on a CPU
    input_dir: Path | None = None  # has train/ and train_masks/; None: draw a car at 1280x1918
    images: int = 16  # per epoch; if there are fewer, they are repeated. A GPU needs a thousand or more
    rounds: int = 1  # per side, after a warm-up round
    device: str = "cpu"  # or cuda, mps, ...
    json: bool = False  # print a JSON object per row


def make_run(side: int, batch: int, device: str) -> Run:
    """The machine and the loaders that main.py has for images of that side."""
    hp = SimpleNamespace(input_img_resize=(side, side), batch_size=batch, accumulate_steps=1)
    return Run(hp, RunOptions(device=device), Path())


def our_epoch(root: Path, images: int, case: str, device: str, cache_dir: Path, first: bool) -> Callable[[], object]:
    """first: a new net with an empty cache in each round."""
    name, side, batch, augmentation = CASES[case]
    run, (X, y) = make_run(side, batch, device), find_pairs(root, images)

    def start() -> Callable[[], object]:
        classifier = CarvanaClassifier(NETS[name]((3, side, side)), epochs=1, machine=run.machine)
        classifier.optimizer = RMSprop(classifier.net.parameters(), lr=0.0002)
        sizes = (side, side), classifier.net.output_size
        shutil.rmtree(cache_dir, ignore_errors=True)
        cache = fill_cache(X, y, resize_size(*sizes, "reflect"), cache_dir)
        dataset = TrainImageDataset(X, y, *sizes, reader=cache, X_transform=augmentation)
        loader = DataLoader(dataset, sampler=ShardedRandomSampler(dataset), **run.loading)
        return partial(classifier.train_epoch, loader)

    return (lambda: start()()) if first else start()


def plain_epoch(root: Path, images: int, case: str, device: str) -> Callable[[], object]:
    name, side, batch, _ = CASES[case]
    run = make_run(side, batch, device)
    net = make_net(name).to(run.machine.device)
    dataset = PlainTrainDataset(*find_pairs(root, images), (side, side), NETS[name].check((side, side)), True)
    loader = DataLoader(dataset, shuffle=True, **run.loading)
    return partial(train_epoch, net, loader, RMSprop(net.parameters(), lr=0.0002))


def rows(benchmark: Benchmark) -> Iterator[Row]:
    with temporary_folder() as folder:
        root = benchmark.input_dir or draw_car(folder)
        for case in benchmark.cases:
            what = root, benchmark.images, case, benchmark.device
            first, later = ((our_epoch, *what, Path(folder) / name, name == "first") for name in ("first", "later"))
            sides = take_turns(benchmark.rounds, first, later, (plain_epoch, *what))
            first, later, plain = ([benchmark.images / seconds for seconds in side.seconds] for side in sides)
            yield compare(f"first epoch, {case}", "images/s", first, plain)
            yield compare(f"later epochs, {case}", "images/s", later, plain)


if __name__ == "__main__":
    with friendly_errors():
        benchmark = tyro.cli(Benchmark)
        show(rows(benchmark), benchmark.json)
