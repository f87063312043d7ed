"""Saves a training after each epoch, to resume it, and its best weights, to predict with them."""

import json
import shlex
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from data.reader import Reader
from helpers import pluralize
from nn.callback import Callback
from nn.classifier import CarvanaClassifier
from runtime import distributed
from runtime.errors import require, set_exit_hint
from runtime.files import load_checkpoint, lock, save_atomically, save_table, version, write_errors


class ModelSaverCallback(Callback):
    """Writes the folder of a run.

    last.pt: the complete state after the latest epoch. best.pt: the weights with the highest validation Dice.
    hyperparameters.json. split.csv: the training and the validation images. metrics.csv: a row per epoch.
    score.csv: the metrics of each validation image at its original size, with best.pt.

    folder: locked while it trains. hyperparameters, options: dataclass instances. split: columns car, image, part.
    reader: how the images and masks are read. seen: the cars and images that the first weights were trained on.
    """

    def __init__(self, folder: str | Path, hyperparameters: Any, options: Any, split: pd.DataFrame,
                 reader: Reader = Reader(), seen: Iterable[str] = ()):
        self.folder, self.split, self.reader, self.seen = Path(folder), split, reader, sorted(seen)
        self.best, self.last = self.folder / "best.pt", self.folder / "last.pt"
        settings = {"version": version(), "hyperparameters": asdict(hyperparameters), "options": asdict(options)}
        self.settings = json.loads(json.dumps(settings, default=str))  # paths become strings, tuples lists
        self.resumed = False

    def resume(self, classifier: CarvanaClassifier, optimizer: Optimizer, resumed: bool = True) -> None:
        """Load last.pt in all processes, unless the run is new. Raises UserError if the best weights are lost."""
        self.resumed = resumed
        if not resumed:
            return
        if distributed.is_main_process():
            self.folder_lock = lock(self.folder)
        state = classifier.restore_model(self.last, optimizer)
        if not distributed.is_main_process():
            return
        if classifier.metrics:
            best = classifier.best["epoch"]
            until = classifier.metrics[:best]
            require(best == classifier.epoch or load_checkpoint(self.best).get("metrics") == until, f"{self.best} is "
                    f"not of epoch {best} of this run, the best one. Restore that file, or start a new run.")
            self._save_results(classifier, state)  # a kill after last.pt may have prevented it
        self._set_exit_hint(classifier)

    def on_train_begin(self, classifier: CarvanaClassifier, valid_loader: DataLoader) -> None:
        if self.resumed and classifier.epoch >= classifier.epochs:
            print(f"{self.folder} is finished ({pluralize(classifier.epoch, 'epoch')}).")
            return  # the files keep the settings of the training
        if self.resumed:
            print(f"Resuming {self.folder} after epoch {classifier.epoch} of {classifier.epochs}.")
        else:
            with write_errors(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)  # it may exist after a restart
            self.folder_lock = lock(self.folder)
            require(not self.last.exists(), f"{self.folder} already exists: another run started in the same second. "
                    "Start this one again.")
        with save_atomically(self.folder / "hyperparameters.json") as file:
            file.write((json.dumps(self.settings, indent=2) + "\n").encode())
        save_table(self.split, self.folder / "split.csv")
        self._save_last(classifier)

    def on_epoch_end(self, classifier: CarvanaClassifier, epoch: int, metrics: dict[str, float]) -> None:
        self._save_results(classifier, self._save_last(classifier))

    def on_score(self, classifier: CarvanaClassifier, score: float, table: pd.DataFrame) -> None:
        save_table(table, self.folder / "score.csv")
        print(f"scores      {self.folder / 'score.csv'}\nmodel       {self.best}\n")

    def _save_last(self, classifier: CarvanaClassifier) -> dict:
        state = classifier.state_dict()
        self._save(self.last, state)
        self._set_exit_hint(classifier)
        return state

    def _save_results(self, classifier: CarvanaClassifier, state: dict) -> None:
        if classifier.best["epoch"] == classifier.epoch:
            self._save(self.best, {key: state[key] for key in state if key not in classifier.RESUME_KEYS})
        metrics = pd.DataFrame(classifier.metrics).drop(columns=[*classifier.TIMING_METRICS])
        save_table(metrics, self.folder / "metrics.csv")

    def _save(self, path: Path, state: dict) -> None:
        run = {"split": self.split.to_dict(orient="list"), "reader": self.reader.state(),
               "world_size": distributed.WORLD_SIZE, "seen": self.seen}
        with save_atomically(path) as file:
            try:
                torch.save(self.settings | run | state, file)
            except RuntimeError as error:  # that the file is unfinished, which hides the reason
                raise error.__context__ or error from None

    def _set_exit_hint(self, classifier: CarvanaClassifier) -> None:
        """Set the last line that the program prints, however it ends: how to resume."""
        saved = f"Epoch {classifier.epoch} of {classifier.epochs} is" if classifier.epoch else "The initial weights are"
        python = "python" if shutil.which("python") == sys.executable else sys.executable
        launcher = ["torchrun", "..."] if distributed.WORLD_SIZE > 1 else [python]  # with its options, on each node
        command = shlex.join([*launcher, sys.argv[0], "--resume", str(self.folder)])
        set_exit_hint(f"{saved} saved; continue with: {command}", self.last)
