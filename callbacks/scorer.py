"""Scores predictions of photos whose masks are known, as Kaggle scores a submission."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

from data.dataset import read
from helpers import pluralize
from img import rle
from img.transformer import decode_mask
from nn.callback import Callback
from nn.metrics import dice_per_image

SWEEP = [round(0.3 + 0.05 * step, 2) for step in range(9)]  # thresholds to compare with the one that is set


class ScorerCallback(Callback):
    """Dice of each photo at its own size, in [0, 1]: what is compared is read back from a submission's run lengths.

    masks: the name of each photo, and the path of its mask.
    threshold: a pixel is car where its probability, enlarged to the mask's size, is above this. The mean Dice of the
        others in SWEEP is reported beside it; it is for who set this one to set another.
    groups: the group of each photo by its name, which stands for its car and has no views; None where the names are
        Kaggle's, <car>_<view>.jpg.

    The cars, not the photos, are the sample: 16 views of one car are alike, so the interval comes from the cars' means.
    """

    def __init__(self, masks: Mapping[str, Path], threshold: float, groups: Mapping[str, str] | None = None):
        self.masks, self.threshold, self.groups = masks, threshold, groups
        self.thresholds = sorted({*SWEEP, threshold})
        self.swept: dict[str, dict[float, float]] = {}  # Dice by the name of the photo, and by the threshold

    def on_predict_batch(self, names: Sequence[str], probs: Tensor) -> dict[str, dict[float, float]]:
        """As `swept`, of the batch."""
        made = {}
        for name, prob in zip(names, probs.cpu().numpy(), strict=True):
            truth = read(self.masks[name], decode_mask) > 127  # (1, H, W)
            swept = dice_at_thresholds(torch.from_numpy(prob), truth[0], self.thresholds)
            runs = rle.encode_probs(prob, truth.shape[1:], self.threshold)
            prediction = torch.from_numpy(rle.decode(runs, truth.shape[1:]))[None]
            made[name] = swept | {self.threshold: dice_per_image(prediction, truth).item()}
        return made

    def on_batch_gathered(self, made: dict[str, dict[float, float]]) -> None:
        self.swept |= made

    @property
    def dice(self) -> dict[str, float]:
        """By the name of the photo."""
        return {name: swept[self.threshold] for name, swept in self.swept.items()}

    @property
    def score(self) -> float:
        """The mean over the photos, which is Kaggle's."""
        return float(np.mean(list(self.dice.values())))

    def table(self) -> pd.DataFrame:
        """A row a photo, the worst first: image, car, view (unless there are groups), dice."""
        if self.groups is None:
            rows = [(name, *Path(name).stem.rsplit("_", 1), dice) for name, dice in self.dice.items()]
            table = pd.DataFrame(rows, columns=["image", "car", "view", "dice"])
        else:
            rows = [(name, self.groups[name], dice) for name, dice in self.dice.items()]
            table = pd.DataFrame(rows, columns=["image", "car", "dice"])
        return table.sort_values(["dice", "image"])

    def interval(self) -> tuple[float, float] | None:
        """In which the mean of other such cars lies, at 95 %, by Student's t; None where there is one car."""
        cars = self.table().groupby("car")["dice"].mean()
        if len(cars) < 2:
            return None
        low, high = confidence_interval(cars)
        return max(0.0, low), min(1.0, high)

    def report(self) -> str:
        """The score; the five worst photos; the mean of each view (all cars from one angle), and of each threshold."""
        table, interval = self.table(), self.interval()
        cars = table["car"].nunique()
        of_groups = f" of {pluralize(cars, 'car' if self.groups is None else 'group')}"
        if self.groups is not None and cars == len(table):  # each photo is alone
            of_groups = ""
        between = "" if interval is None else "; 95 % interval {:.4f} to {:.4f}".format(*interval)
        worst = [f"{row.image} {row.dice:.4f}" for row in table.head(5).itertuples()]
        by_view = ""
        if "view" in table:
            views = [f"{view} {dice:.4f}" for view, dice in table.groupby("view")["dice"].mean().items()]
            by_view = f"by view     {_in_lines(views, 4)}\n"
        means = pd.DataFrame(self.swept).mean(axis=1)  # by threshold
        cuts = [f"{cut:g} {mean:.4f}{' (yours)' * (cut == self.threshold)}" for cut, mean in means.items()]
        return (
            f"score       {self.score:.6f}, as Kaggle counts: the mean Dice, at their own size, of\n"
            f"            {pluralize(len(table), 'validation photo')}{of_groups}{between}\n"
            f"the worst   {_in_lines(worst, 2)}\n"
            f"{by_view}threshold   {_in_lines(cuts, 4)}"
        )


def confidence_interval(values: pd.Series) -> tuple[float, float]:
    """Where the mean of more such values would lie, at 95 %, by Student's t."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std() / len(values) ** 0.5
    return values.mean() - half, values.mean() + half


def dice_at_thresholds(prob: Tensor, truth: Tensor, thresholds: Sequence[float]) -> dict[float, float]:
    """Dice of prob (h, w), enlarged and cut at each of the ascending thresholds, and of truth (H, W) of bool."""
    large = F.interpolate(prob[None, None], truth.shape, mode="bilinear", align_corners=False)[0, 0]
    passed = torch.bucketize(large, torch.tensor(thresholds))  # (H, W): how many of them a pixel is above
    kinds = len(thresholds) + 1
    pixels = torch.bincount((passed + kinds * truth).flatten(), minlength=2 * kinds).view(2, kinds)  # outside, inside
    above = pixels.flip(1).cumsum(1).flip(1)[:, 1:]  # (2, thresholds)
    sizes = above.sum(0) + truth.sum()
    dice = (2 * above[1] / sizes.clamp(min=1)).masked_fill(sizes == 0, 1.0)
    return dict(zip(thresholds, dice.tolist(), strict=True))


def _in_lines(items: list[str], count: int) -> str:
    """`count` items a line, which begin under each other."""
    return f"\n{12 * ' '}".join(", ".join(items[first : first + count]) for first in range(0, len(items), count))
