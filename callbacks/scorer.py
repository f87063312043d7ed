"""Score the predictions of validation images as Kaggle scores a submission."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from data.dataset import read
from helpers import format_size, pluralize
from img.transformer import decode_mask, upsample
from nn.callback import Callback
from nn.classifier import CarvanaClassifier
from runtime.distributed import is_main_process

THRESHOLDS = [round(0.3 + 0.05 * step, 2) for step in range(9)]  # compared in the report


class ScorerCallback(Callback):
    """Computes the Dice of each predicted mask and the image's true mask, at the size of the true mask.

    X, y: paths of the images and of their masks. threshold: a pixel is car where its probability is above this.
    groups: image name -> group, in place of its car. None if the names are Kaggle's, <car>_<angle>.jpg.

    The confidence interval is computed from the means of the cars, because the images of a car are not independent.
    """

    def __init__(self, X: Sequence[Path], y: Sequence[Path], threshold: float, groups: Mapping[str, str] | None = None):
        self.masks = {path.name: mask for path, mask in zip(X, y, strict=True)}
        self.threshold, self.groups = threshold, groups
        self.thresholds = sorted({*THRESHOLDS, threshold})
        self.dice_by_threshold: dict[str, dict[float, float]] = {}  # image name -> threshold -> Dice

    def on_predict_batch(self, names: Sequence[str], probs: Tensor) -> dict[str, dict[float, float]]:
        result = {}
        for name, prob in zip(names, probs, strict=True):
            truth = read(self.masks[name], decode_mask)[0] > 127  # (H, W)
            result[name] = dice_at_thresholds(prob, truth.to(prob.device), self.thresholds)
        return result

    def on_batch_gathered(self, result: dict[str, dict[float, float]]) -> None:
        self.dice_by_threshold |= result

    @property
    def dice(self) -> dict[str, float]:
        """Image name -> Dice at the threshold."""
        return {name: dice[self.threshold] for name, dice in self.dice_by_threshold.items()}

    @property
    def score(self) -> float:
        """The mean Dice of all images, which is Kaggle's score."""
        return float(np.mean(list(self.dice.values())))

    def table(self) -> pd.DataFrame:
        """One row per image, the worst first: image, car, angle (unless there are groups), dice."""
        table = pd.DataFrame(self.dice.items(), columns=["image", "dice"]).sort_values(["dice", "image"])
        if self.groups is not None:
            table.insert(1, "car", table["image"].map(self.groups))
        else:
            stems = table["image"].str.rpartition(".")[0].str.rpartition("_")
            table.insert(1, "car", stems[0])
            table.insert(2, "angle", stems[2])
        return table

    def report(self, classifier: CarvanaClassifier, to: Sequence[Callback] = ()) -> None:
        """Print the summary and call on_score of the callbacks in `to`."""
        if not is_main_process():
            return
        best, size = classifier.best, format_size(classifier.net.output_size)
        print(f"\nValidation Dice {best['valid_dice']:.4f} in epoch {best['epoch']}, at {size} pixels")
        print(f"\n{self.summary()}")
        for callback in to:
            callback.on_score(classifier, self.score, self.table())

    def summary(self) -> str:
        """The score, the worst images, and the mean at each angle and threshold."""
        table = self.table()
        cars, noun = table.groupby("car")["dice"].mean(), "car" if self.groups is None else "group"
        grouped = self.groups is None or len(cars) < len(table)  # without groups each image is one by itself
        lines = [
            f"score       {self.score:.6f}, as Kaggle computes it: mean Dice at full resolution",
            f"            {pluralize(len(table), 'validation image')}{f' of {pluralize(len(cars), noun)}' * grouped}",
        ]
        if len(cars) > 1:
            low, high = np.clip(confidence_interval(cars), 0, 1)
            lines.append(f"            95% confidence interval {low:.4f} to {high:.4f}")
        worst = table.head(5).set_index("image")["dice"]
        lines.append(f"worst       {_join(worst, per_line=2)}")
        if "angle" in table:
            lines.append(f"by angle    {_join(table.groupby('angle')['dice'].mean(), per_line=4)}")
        means = pd.DataFrame(self.dice_by_threshold).mean(axis=1)
        used = means.rename({self.threshold: f"{self.threshold} (used)"})
        return "\n".join([*lines, f"threshold   {_join(used, per_line=3)}"])


def confidence_interval(values: pd.Series) -> tuple[float, float]:
    """The 95% confidence interval of the mean of a sample, by Student's t distribution."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std() / len(values) ** 0.5
    return values.mean() - half, values.mean() + half


def dice_at_thresholds(prob: Tensor, truth: Tensor, thresholds: Sequence[float]) -> dict[float, float]:
    """Threshold -> Dice of the mask that `to_mask` makes of prob (h, w) and of truth (H, W) bool, on one device."""
    probs = upsample(prob[None], truth.shape)[0]  # (H, W)
    # How many thresholds is each pixel above? Count the pixels with each answer, outside and inside of the truth
    exceeded, bins = torch.bucketize(probs, torch.tensor(thresholds, device=probs.device)), len(thresholds) + 1
    counts = torch.bincount((exceeded + bins * truth).flatten(), minlength=2 * bins).view(2, bins)
    above = counts.flip(1).cumsum(1).flip(1)[:, 1:]  # (2, thresholds): pixels above each threshold
    sizes = above.sum(0) + truth.sum()
    dice = (2 * above[1] / sizes.clamp(min=1)).masked_fill(sizes == 0, 1.0)
    return dict(zip(thresholds, dice.tolist(), strict=True))


def _join(dice: pd.Series, per_line: int) -> str:
    """"0.45 0.9901, 0.5 0.9905, ..."; further lines are indented by 12 columns."""
    items = [f"{name} {value:.4f}" for name, value in dice.items()]
    lines = [", ".join(items[first : first + per_line]) for first in range(0, len(items), per_line)]
    return f",\n{12 * ' '}".join(lines)
