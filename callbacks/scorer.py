"""Score the predictions of validation images as Kaggle scores a submission."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from data.dataset import read
from helpers import pluralize
from img.transformer import decode_mask, upsample
from nn.callback import Callback
from nn.classifier import CarvanaClassifier
from runtime.distributed import is_main_process

THRESHOLDS = [round(0.3 + 0.05 * step, 2) for step in range(9)]  # compared in the report
WIDTH = 80  # columns of the report


class ScorerCallback(Callback):
    """Computes the Dice of each predicted mask and the image's true mask, at the size of the true mask.

    X, y: paths of the images and of their masks, in the same order.
    threshold: a pixel is car where its probability is above this. The report has the score at other thresholds too.
    groups: image name -> group, in place of its car. None if the names are Kaggle's, <car>_<angle>.jpg.

    The confidence interval is computed from the means of the cars, because the images of a car are not independent.
    """

    def __init__(self, X: Sequence[Path], y: Sequence[Path], threshold: float, groups: Mapping[str, str] | None = None):
        self.masks = {path.name: mask for path, mask in zip(X, y, strict=True)}
        self.threshold, self.groups = threshold, groups
        self.thresholds = sorted({*THRESHOLDS, threshold})
        self.dice_by_threshold: dict[str, dict[float, float]] = {}  # image name -> threshold -> Dice

    def on_predict_batch(self, names: Sequence[str], probs: Tensor) -> dict[str, dict[float, float]]:
        """Return what `dice_by_threshold` holds of these images."""
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
        """Return one row per image, the worst first: image, car, angle (unless there are groups), dice."""
        table = pd.DataFrame(self.dice.items(), columns=["image", "dice"]).sort_values(["dice", "image"])
        if self.groups is not None:
            table.insert(1, "car", table["image"].map(self.groups))
        else:
            car_and_angle = [Path(name).stem.rsplit("_", 1) for name in table["image"]]
            table.insert(1, "car", [car for car, _ in car_and_angle])
            table.insert(2, "angle", [angle for _, angle in car_and_angle])
        return table

    def confidence_interval(self) -> tuple[float, float] | None:
        """Return the 95% interval of the mean over cars, within [0, 1]; None if there is only one car."""
        cars = self.table().groupby("car")["dice"].mean()
        if len(cars) < 2:
            return None
        low, high = confidence_interval(cars)
        return max(0.0, low), min(1.0, high)

    def report(self, classifier: CarvanaClassifier, to: Sequence[Callback] = ()) -> None:
        """Print the score and what it is made of, and pass it to the on_score of each callback in `to`."""
        if not is_main_process():
            return
        print(f"\n{self.summary()}")
        for callback in to:
            callback.on_score(classifier, self.score, self.table())

    def summary(self) -> str:
        """Return the score, the worst images, and the mean at each angle of the cars and at each threshold."""
        table, interval = self.table(), self.confidence_interval()
        cars, noun = table["car"].nunique(), "car" if self.groups is None else "group"
        grouped = self.groups is None or cars < len(table)  # without groups each image is one by itself
        lines = [
            f"score       {self.score:.6f}, as Kaggle computes it: mean Dice at full resolution",
            f"            {pluralize(len(table), 'validation image')}{f' of {pluralize(cars, noun)}' * grouped}",
        ]
        if interval is not None:
            lines.append("            95% confidence interval {:.4f} to {:.4f}".format(*interval))
        worst = [f"{row.image} {row.dice:.4f}" for row in table.head(5).itertuples()]
        lines.append(f"worst       {_wrap(worst)}")
        if "angle" in table:
            angles = table.groupby("angle")["dice"].mean()
            lines.append(f"by angle    {_wrap([f'{angle} {dice:.4f}' for angle, dice in angles.items()])}")
        means = pd.DataFrame(self.dice_by_threshold).mean(axis=1)
        by_threshold = [
            f"{threshold:g} {dice:.4f}{' (used)' * (threshold == self.threshold)}" for threshold, dice in means.items()
        ]
        return "\n".join([*lines, f"threshold   {_wrap(by_threshold)}"])


def confidence_interval(values: pd.Series) -> tuple[float, float]:
    """Return the 95% confidence interval of the mean of a sample, by Student's t distribution."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std() / len(values) ** 0.5
    return values.mean() - half, values.mean() + half


def dice_at_thresholds(prob: Tensor, truth: Tensor, thresholds: Sequence[float]) -> dict[float, float]:
    """Return the Dice of to_mask(prob, size, threshold) and `truth` at each threshold.

    prob: (h, w) float. truth: (H, W) bool, on the same device. thresholds: in ascending order.
    """
    probs = upsample(prob[None], truth.shape)[0]
    # How many thresholds is each pixel above? Count the pixels with each answer, outside and inside of the truth
    exceeded, bins = torch.bucketize(probs, torch.tensor(thresholds, device=probs.device)), len(thresholds) + 1
    counts = torch.bincount((exceeded + bins * truth).flatten(), minlength=2 * bins).view(2, bins)
    above = counts.flip(1).cumsum(1).flip(1)[:, 1:]  # (2, thresholds): pixels above each threshold
    sizes = above.sum(0) + truth.sum()
    dice = (2 * above[1] / sizes.clamp(min=1)).masked_fill(sizes == 0, 1.0)
    return dict(zip(thresholds, dice.tolist(), strict=True))


def _wrap(items: list[str]) -> str:
    """Join items with commas, at most four per line; continued lines are indented by 12 columns."""
    per_line = min(4, max(1, (WIDTH - 12) // (max(map(len, items)) + 2)))
    lines = [", ".join(items[first : first + per_line]) for first in range(0, len(items), per_line)]
    return f",\n{12 * ' '}".join(lines)
