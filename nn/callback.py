"""The moments of a training and of a prediction at which a callback may act. The base does nothing at any of them.

Where there are several processes, all but on_predict_batch and on_exception are called in the first one alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import DataLoader

if TYPE_CHECKING:
    from nn.classifier import CarvanaClassifier


class Callback:
    def on_train_begin(self, classifier: CarvanaClassifier, valid_loader: DataLoader) -> None:
        """Before the first epoch of a call of train()."""

    def on_epoch_end(self, classifier: CarvanaClassifier, epoch: int, metrics: dict[str, float]) -> None:
        """After an epoch, pluralize from 1, has been trained and validated; `metrics` are means over its images."""

    def on_train_end(self, classifier: CarvanaClassifier) -> None:
        """After the last epoch."""

    def on_exception(self) -> None:
        """When a training or a prediction ends before its time, whatever the reason: close what is open."""

    def on_predict_batch(self, names: Sequence[str], probs: Tensor) -> Any:
        """For each batch of a prediction: the files' names and the probabilities of car, (N, h, w) float32.

        It runs in another thread than the net, one batch after the other, and in the process that predicted the batch.
        What it returns is what on_batch_gathered gets: lists, text, numbers; small, for it may cross a network.
        """

    def on_batch_gathered(self, made: Any) -> None:
        """What on_predict_batch made of each batch of all processes, in the order of the batches, in the first one."""
