"""Score the predictions of validation images as Kaggle scores a submission."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from data.reader import Reader
from helpers import format_size, pluralize
from img.transformer import upsample
from nn.callback import Callback
from nn.classifier import CarvanaClassifier
from runtime.distributed import is_main_process

THRESHOLDS = [0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7]  # compared in the report


class ScorerCallback(Callback):
    """Computes the Dice of each predicted mask, at the size of the true mask.

    X, y: paths of the images and of their masks. threshold: that of CarvanaClassifier.
    groups: image name -> group, in place of its car. None if the names are Kaggle's, <car>_<angle>.jpg.

    The confidence interval is over the means of the cars, because the images of a car are not independent.
    """

    def __init__(self, X: Sequence[Path], y: Sequence[Path], threshold: float, groups: Mapping[str, str] | None = None,
                 reader: Reader = Reader()):
        self.reader = reader
        self.masks = {path.name: mask for path, mask in zip(X, y, strict=True)}
        self.threshold, self.groups = threshold, groups
        self.thresholds = sorted({*THRESHOLDS, threshold})
        self.dice_by_threshold: dict[str, dict[float, float]] = {}  # image name -> threshold -> Dice

    def on_predict_batch(self, names: Sequence[str], probs: Tensor) -> dict[str, dict[float, float]]:
        result = {}
        for name, prob in zip(names, probs, strict=True):
            truth = self.reader.mask(self.masks[name])[0] > 127  # (H, W)
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
        table = pd.DataFrame({"image": list(self.dice)})
        if self.groups is None:
            table[["car", "angle"]] = table["image"].str.extract(r"(.*)_(.*)\.")
        else:
            table["car"] = table["image"].map(self.groups)
        table["dice"] = table["image"].map(self.dice)
        return table.sort_values(["dice", "image"])

    def report(self, classifier: CarvanaClassifier, to: Sequence[Callback] = ()) -> None:
        """Print the summary and call on_score of the callbacks in `to`."""
        if not is_main_process():
            return
        best, size = classifier.best, format_size(classifier.net.output_size)
        print(f"\nValidation Dice {best['valid_dice']:.4f} in epoch {best['epoch']}, at {size} pixels\n")
        print(self.summary())
        for callback in to:
            callback.on_score(classifier, self.score, self.table())

    def summary(self) -> str:
        table = self.table()
        cars = table.groupby("car")["dice"].mean()
        images = pluralize(len(table), "validation image")
        if self.groups is None or len(cars) < len(table):  # not if each image is a group
            images += f" of {pluralize(len(cars), 'car' if self.groups is None else 'group')}"
        lines = [f"score       {self.score:.6f}, as Kaggle computes it: mean Dice at full resolution",
                 f"            {images}"]
        if len(cars) > 1:
            low, high = np.clip(confidence_interval(cars), 0, 1)
            lines.append(f"            95% confidence interval {low:.4f} to {high:.4f}")
        lines.append(f"worst       {_join(table.head(5).set_index('image')['dice'], per_line=2)}")
        if "angle" in table:
            lines.append(f"by angle    {_join(table.groupby('angle')['dice'].mean(), per_line=4)}")
        means = pd.DataFrame(self.dice_by_threshold).mean(axis=1).rename({self.threshold: f"{self.threshold} (used)"})
        return "\n".join([*lines, f"threshold   {_join(means, per_line=3)}"])


def confidence_interval(values: pd.Series) -> tuple[float, float]:
    """The 95% confidence interval of the mean of a sample, by Student's t distribution."""
    from scipy import stats  # importing it takes a second

    return stats.t.interval(0.95, len(values) - 1, values.mean(), values.sem())


def dice_at_thresholds(prob: Tensor, truth: Tensor, thresholds: Sequence[float]) -> dict[float, float]:
    """Threshold -> Dice of the mask that `to_mask` makes of prob (h, w) and of truth (H, W) bool, on one device."""
    probs = upsample(prob[None], truth.shape)[0]  # (H, W)
    result = {}
    for threshold in thresholds:
        mask = probs > threshold
        dice = 2 * (mask & truth).count_nonzero() / (mask.count_nonzero() + truth.count_nonzero())
        result[threshold] = dice.nan_to_num(1.0).item()  # two empty masks agree
    return result


def _join(dice: pd.Series, per_line: int) -> str:
    """"0.45 0.9901, 0.5 0.9905, ..."; further lines are indented by 12 columns."""
    items = [f"{name} {value:.4f}" for name, value in dice.items()]
    lines = [", ".join(items[first : first + per_line]) for first in range(0, len(items), per_line)]
    return f",\n{12 * ' '}".join(lines)
