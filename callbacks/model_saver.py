"""Saves the model after every epoch, and what it was trained with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch.utils.data import DataLoader

from callbacks.callback import Callback
from helpers import UserError, save_atomically

if TYPE_CHECKING:
    from nn.classifier import CarvanaClassifier


class ModelSaverCallback(Callback):
    """Fills the folder of a run.

    last.pt: the whole state after the latest epoch. best.pt: the weights of the epoch with the best validation Dice.
    hyperparameters.json, split.csv (which photo trains, which validates), metrics.csv (a row an epoch).

    path: the folder, made when training begins. hyperparameters: by name.
    split: a row a photo, with columns car, image and part.
    """

    def __init__(self, path: str | Path, hyperparameters: dict, split: pd.DataFrame):
        self.path, self.split = Path(path), split
        self.hyperparameters = json.loads(json.dumps(hyperparameters, default=str))  # paths as text, tuples as lists

    @property
    def best(self) -> Path:
        return self.path / "best.pt"

    @property
    def last(self) -> Path:
        return self.path / "last.pt"

    def on_train_begin(self, classifier: CarvanaClassifier, valid_loader: DataLoader) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=classifier.epoch > 0)
        except FileExistsError:
            raise UserError(f"{self.path} is there already: another run began in this second; start again.") from None
        with save_atomically(self.path / "hyperparameters.json") as file:
            file.write((json.dumps(self.hyperparameters, indent=2) + "\n").encode())
        with save_atomically(self.path / "split.csv") as file:
            self.split.to_csv(file, index=False)

    def on_epoch_end(self, classifier: CarvanaClassifier, epoch: int, metrics: dict[str, float]) -> None:
        state = classifier.state_dict() | {
            "hyperparameters": self.hyperparameters,
            "split": self.split.to_dict(orient="list"),
        }
        with save_atomically(self.last) as file:
            torch.save(state, file)
        if metrics is classifier.best:
            for only_to_go_on in ("optimizer", "scaler"):
                del state[only_to_go_on]
            with save_atomically(self.best) as file:
                torch.save(state, file)
        with save_atomically(self.path / "metrics.csv") as file:
            pd.DataFrame(classifier.metrics).to_csv(file, index=False)
