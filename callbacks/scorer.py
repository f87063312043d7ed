"""Score the predictions of validation images as Kaggle scores a submission."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from data.reader import Reader
from helpers import format_size, pluralize
from img.transformer import upsample
from nn.callback import Callback
from nn.classifier import CarvanaClassifier
from nn.metrics import boundary_distance, overlap_per_image
from runtime.distributed import is_main_process
from runtime.machine import count_cores

THRESHOLDS = [0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7]  # compared in the report


class ScorerCallback(Callback):
    """Computes the Dice and other metrics of each predicted mask, at the size of the true mask.

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
        self.metrics: dict[str, dict[float, dict[str, float]]] = {}  # image name -> threshold -> metric -> value

    def on_predict_batch(self, names: Sequence[str], probs: Tensor) -> dict[str, dict]:
        with ThreadPoolExecutor(count_cores()) as pool:
            return dict(zip(names, pool.map(self._score_image, names, probs), strict=True))

    def _score_image(self, name: str, prob: Tensor) -> dict[float, dict]:
        truth = self.reader.mask(self.masks[name]).to(prob.device) > 127  # (1, H, W)
        probs, result = upsample(prob[None], truth.shape[1:]), {}
        for threshold in self.thresholds:
            overlap = overlap_per_image(probs > threshold, truth)
            result[threshold] = {metric: value.item() for metric, value in overlap.items()}
        result[self.threshold]["boundary_distance"] = boundary_distance(probs[0] > self.threshold, truth[0])
        return result

    def on_batch_gathered(self, result: dict[str, dict]) -> None:
        self.metrics |= result

    @property
    def score(self) -> float:
        """The mean Dice of all images, which is Kaggle's score."""
        return float(self.table()["dice"].mean())

    def table(self) -> pd.DataFrame:
        """One row per image, the worst first: image, car, angle (unless there are groups), the metrics."""
        table = pd.DataFrame({"image": list(self.metrics)})
        if self.groups is None:
            table[["car", "angle"]] = table["image"].str.extract(r"(.*)_(.*)\.")
        else:
            table["car"] = table["image"].map(self.groups)
        metrics = pd.DataFrame([metrics[self.threshold] for metrics in self.metrics.values()])
        return table.join(metrics).sort_values(["dice", "image"])

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
        if cars.nunique() > 1:
            low, high = np.clip(confidence_interval(cars), 0, 1)
            lines.append(f"            95% confidence interval {low:.4f} to {high:.4f}")
        lines.append(f"means       {_join(table[['iou', 'precision', 'recall']].mean(), per_line=3)}")
        distance, empty = table["boundary_distance"].mean(), table["boundary_distance"].isna().sum()
        lines.append("boundary    " + ("none" if empty == len(table) else f"{distance:.2f} pixels from the true one"))
        lines[-1] += f"; left out: {pluralize(empty, 'image')} with an empty mask" * bool(empty)
        lines.append(f"worst       {_join(table.head(5).set_index('image')['dice'], per_line=2)}")
        if "angle" in table:
            lines.append(f"by angle    {_join(table.groupby('angle')['dice'].mean(), per_line=4)}")
        dice = {each: [metrics[each]["dice"] for metrics in self.metrics.values()] for each in self.thresholds}
        means = pd.DataFrame(dice).mean().rename({self.threshold: f"{self.threshold} (used)"})
        return "\n".join([*lines, f"threshold   {_join(means, per_line=3)}"])


def confidence_interval(values: pd.Series) -> tuple[float, float]:
    """The 95% confidence interval of the mean of a sample, by Student's t distribution."""
    from scipy import stats  # importing it takes a second

    return stats.t.interval(0.95, len(values) - 1, values.mean(), values.sem())


def _join(dice: pd.Series, per_line: int) -> str:
    """"0.45 0.9901, 0.5 0.9905, ..."; further lines are indented by 12 columns."""
    items = [f"{name} {value:.4f}" for name, value in dice.items()]
    lines = [", ".join(items[first : first + per_line]) for first in range(0, len(items), per_line)]
    return f",\n{12 * ' '}".join(lines)
