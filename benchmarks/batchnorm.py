"""What BatchNorm's running averages cost in validation.

    python benchmarks/batchnorm.py RUN --input-dir FOLDER

In training, BatchNorm uses the statistics of the batch; in validation, averages over the last steps. If the weights
moved far in these steps, as with a high learning rate or momentum, the averages are those of other weights.
"""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import measure  # noqa: F401, adds the package to sys.path
import torch
import tyro
from torch import nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import DataLoader, default_collate

from data.dataset import TrainImageDataset
from data.fetcher import DatasetFetcher
from data.layout import make_layout
from data.reader import Reader
from nn.metrics import dice_per_image
from nn.unet import make_net
from runtime.errors import friendly_errors
from runtime.files import load_checkpoint


@dataclass
class Benchmark:
    """Prints the Dice of a run's latest weights with its averages, with batch statistics, and with averages made anew.

    Masks have the size of the net's output. Nothing is augmented. The averages are made anew from the training images.
    """

    run: tyro.conf.Positional[Path]  # a folder with last.pt
    input_dir: Path = Path("input")  # of main.py
    images: int = 48  # of the training and of the validation cars


@torch.no_grad()
def mean_dice(net: nn.Module, loader: DataLoader) -> float:
    """Of all images, in the mode that the net is in. Does not change the net."""
    net = deepcopy(net)  # in training mode, its averages change
    return torch.cat([dice_per_image(net(images) > 0, masks > 0.5) for images, masks in loader]).mean().item()


def loaders(benchmark: Benchmark, checkpoint: dict) -> list[DataLoader]:
    """Of training and of validation images, chosen at random; batches are as large as in the training."""
    hp, options = checkpoint["hyperparameters"], checkpoint["options"]
    layout = make_layout(options["dataset"], benchmark.input_dir, options["hq_files"], options["group_regex"])
    fetcher = DatasetFetcher(layout, Reader.from_state(checkpoint["reader"]))  # masks mean what they meant to the run
    fetcher.download_dataset(test_images=False)
    X_train, y_train, X_valid, y_valid = fetcher.get_train_files(split=checkpoint["split"])
    made = []
    for X, y in ((X_train, y_train), (X_valid, y_valid)):
        chosen = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))[: benchmark.images]
        dataset = TrainImageDataset([X[i] for i in chosen], [y[i] for i in chosen], hp["input_img_resize"],
                                    hp["output_img_resize"], hp["padding"], fetcher.reader)
        made.append(DataLoader(dataset, hp["batch_size"], collate_fn=lambda items, dataset=dataset:
                               dataset.prepare(default_collate(items), torch.device("cpu"))))
    return made


def main(benchmark: Benchmark) -> None:
    checkpoint = load_checkpoint(benchmark.run / "last.pt")
    train_loader, valid_loader = loaders(benchmark, checkpoint)
    net = make_net(checkpoint["net_name"], tuple(checkpoint["in_shape"]), checkpoint["raw_net"] or checkpoint["net"])
    anew = deepcopy(net)
    update_bn(train_loader, anew)  # of (images, masks) it takes the images
    print(f"epoch {checkpoint['epoch']}\n\n| BatchNorm uses | training cars | validation cars |\n| --- | --- | --- |")
    for name, each in (("running averages", net.eval()), ("statistics of each batch", deepcopy(net).train()),
                       ("averages made anew", anew.eval())):
        print(f"| {name} | {mean_dice(each, train_loader):.4f} | {mean_dice(each, valid_loader):.4f} |", flush=True)


if __name__ == "__main__":
    with friendly_errors():
        main(tyro.cli(Benchmark))
