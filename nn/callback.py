"""The events of a training and of a prediction. Subclass Callback to act on them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import Tensor
from torch.utils.data import DataLoader

if TYPE_CHECKING:  # which imports this file
    from nn.classifier import CarvanaClassifier


class Callback:
    """Does nothing at any event. With several processes, events happen in the main process only, unless noted."""

    def on_train_begin(self, classifier: "CarvanaClassifier", valid_loader: DataLoader) -> None:
        """Before the first epoch. A resumed run may have no epoch left."""

    def on_epoch_end(self, classifier: "CarvanaClassifier", epoch: int, metrics: dict[str, float]) -> None:
        """After an epoch, counted from 1, was trained and validated. metrics: means over its images."""

    def on_exception(self) -> None:
        """When an error or a signal ends a prediction, in every process: close what is open."""

    def on_predict_batch(self, names: Sequence[str], probs: Tensor) -> Any:
        """For each batch of a prediction, in the process that predicted it, in a thread next to the net.

        names: of the N image files. probs: (N, h, w) float32 in [0, 1] on the net's device. What it returns goes to
        on_batch_gathered, perhaps over a network: lists, text and numbers.
        """

    def on_batch_gathered(self, result: Any) -> None:
        """With the result of each on_predict_batch of all processes, in the order of the batches."""

    def on_score(self, classifier: "CarvanaClassifier", score: float, table: pd.DataFrame) -> None:
        """After the best epoch's weights were scored. table: see ScorerCallback.table()."""
