"""Changes to the training that winners of the competition made and the package does not have, to measure their gain.

    python benchmarks/experiments.py plain-end --net UNet1024    (an experiment, and the options of main.py)

Each replaces a function of the package before main.py runs. benchmarks/recipes.py compares them: table "winners".
"""

import runpy
import sys

import torch.nn.functional as F
from measure import ROOT
from torch import Tensor

import nn.classifier
from img.augmentation import Augmentation
from nn.classifier import CarvanaClassifier
from nn.losses import binary_cross_entropy


def hardest_pixels(logits: Tensor, targets: Tensor, _: float = 1.0) -> Tensor:
    """The mean cross entropy of a quarter of the pixels of each image, those where it is highest."""
    losses = F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").flatten(1)  # (N, H * W)
    return losses.topk(losses.shape[1] // 4, sorted=False).values.mean()


def heavy_cross_entropy(logits: Tensor, targets: Tensor, _: float = 1.0) -> Tensor:
    """Four times cross entropy: hardest_pixels is almost that, as the loss of most pixels is almost 0."""
    return 4 * binary_cross_entropy(logits, targets)


def train_epoch(self, loader, of_package=CarvanaClassifier.train_epoch):
    """Trains without augmentation in the last sixth of the epochs."""
    if self.epoch > self.epochs - self.epochs // 6:
        loader.dataset.X_transform = Augmentation(flip=False, shift=0, scale=0, rotation=0)
    return of_package(self, loader)


EXPERIMENTS = {  # name -> what is replaced: an object, its attribute, the replacement
    "hardest-pixels": (nn.classifier, "binary_cross_entropy", hardest_pixels),
    "heavy-cross-entropy": (nn.classifier, "binary_cross_entropy", heavy_cross_entropy),
    "plain-end": (CarvanaClassifier, "train_epoch", train_epoch),
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in EXPERIMENTS:
        sys.exit(f"Pass one of {', '.join(EXPERIMENTS)}, and then the options of main.py.")
    setattr(*EXPERIMENTS[sys.argv.pop(1)])
    runpy.run_path(str(ROOT / "main.py"), run_name="__main__")
