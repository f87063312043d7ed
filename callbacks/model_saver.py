"""Saves the training after every epoch, so that it can go on from there, and the model, to predict with."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from helpers import pluralize
from nn.callback import Callback
from runtime import distributed
from runtime.errors import UserError, require, set_exit_hint
from runtime.files import load_checkpoint, lock, save_atomically, write_errors

if TYPE_CHECKING:
    from nn.classifier import CarvanaClassifier


class ModelSaverCallback(Callback):
    """Fills the folder of a run.

    last.pt: the whole state after the latest epoch, and at the start. best.pt: the weights of the epoch with the best
    validation Dice. hyperparameters.json, split.csv (which photo trains, which validates), metrics.csv (a row each
    epoch), score.csv (Dice of each validation photo at its own size, with best.pt).

    All is in last.pt but the weights of an earlier epoch that was the best, and the others follow from it: what a kill
    kept from being written, resume() writes.

    path: the folder, made when training begins. hyperparameters: by name.
    split: a row a photo, with columns car, image and part.
    """

    def __init__(self, path: str | Path, hyperparameters: dict, split: pd.DataFrame):
        self.path, self.split, self._lock, self._resumed = Path(path), split, None, False
        self.hyperparameters = json.loads(json.dumps(hyperparameters, default=str))  # paths as text, tuples as lists

    @property
    def best(self) -> Path:
        return self.path / "best.pt"

    @property
    def last(self) -> Path:
        return self.path / "last.pt"

    def resume(self, classifier: CarvanaClassifier, optimizer: Optimizer) -> None:
        """Give both the state of last.pt, in all processes; where training begins, it is said where it goes on."""
        self._resumed = True
        if distributed.is_main_process():
            self._lock = lock(self.path)
        classifier.restore_model(self.last, optimizer)
        if not distributed.is_main_process():
            return
        if classifier.metrics:
            best, mended = classifier.best["epoch"], "put it back, or start another run"
            try:
                there = load_checkpoint(self.best).get("epoch") == best
            except UserError:
                if best != classifier.epoch:
                    raise
                there = False
            require(there or best == classifier.epoch, f"{self.best} is not of epoch {best}, the best: {mended}.")
            if not there:  # a kill left it a step behind last.pt, or it is broken
                self._save_best(classifier)
            self._save_metrics(pd.DataFrame(classifier.metrics), classifier)
        self._make_known(classifier)

    def on_train_begin(self, classifier: CarvanaClassifier, valid_loader: DataLoader) -> None:
        with write_errors(self.path):
            try:
                self.path.mkdir(parents=True, exist_ok=classifier.epoch > 0 or self._resumed)
            except FileExistsError as error:
                another = "another run began in this second; start again"
                raise UserError(f"{self.path} is there already: {another}.") from error
        self._lock = self._lock or lock(self.path)
        if self._resumed and classifier.epoch < classifier.epochs:
            print(f"{self.path} goes on after epoch {classifier.epoch} of {classifier.epochs}.")
        elif self._resumed:
            epochs = pluralize(classifier.epoch, "epoch")
            falls = self.hyperparameters.get("schedule", "constant") != "constant"  # and is at its end
            more = f"for more of them {'start another run with' if falls else 'say'} --epochs {2 * classifier.epoch}"
            print(f"{self.path} has been trained for its {epochs}; {more}.")
            return  # what it was trained with stays, whatever is predicted with it
        with save_atomically(self.path / "hyperparameters.json") as file:
            file.write((json.dumps(self.hyperparameters, indent=2) + "\n").encode())
        with save_atomically(self.path / "split.csv") as file:
            self.split.to_csv(file, index=False)
        self._save(self.last, classifier.state_dict())
        self._make_known(classifier)

    def on_epoch_end(self, classifier: CarvanaClassifier, epoch: int, metrics: dict[str, float]) -> None:
        self._save(self.last, classifier.state_dict())
        self._make_known(classifier)
        if classifier.best["epoch"] == epoch:
            self._save_best(classifier)
        self._save_metrics(pd.DataFrame(classifier.metrics), classifier)

    def _save_best(self, classifier: CarvanaClassifier) -> None:
        state = classifier.state_dict()
        self._save(self.best, {name: state[name] for name in state if name not in classifier.RESUME_KEYS})

    def save_score(self, classifier: CarvanaClassifier, table: pd.DataFrame, score: float) -> None:
        """table, a row a validation photo, goes to score.csv; the score to the best epoch's row of metrics.csv."""
        with save_atomically(self.path / "score.csv") as file:
            table.to_csv(file, index=False)
        metrics = pd.DataFrame(classifier.metrics)
        metrics.loc[metrics["epoch"] == classifier.best["epoch"], "score"] = score
        self._save_metrics(metrics, classifier)

    def _save_metrics(self, table: pd.DataFrame, classifier: CarvanaClassifier) -> None:
        """The scores that stand there, of epochs that were the best, stay."""
        table = table[[name for name in table if name not in classifier.TIMING_METRICS]].set_index("epoch")
        with suppress(OSError, ValueError, KeyError):  # there is none, or without scores
            there = pd.read_csv(self.path / "metrics.csv", index_col="epoch")
            scores = table.get("score", pd.Series(dtype=float)).combine_first(there["score"])
            table = table.assign(score=scores.reindex(table.index))
        with save_atomically(self.path / "metrics.csv") as file:
            table.to_csv(file)

    def _save(self, path: Path, state: dict) -> None:
        state = state | {"hyperparameters": self.hyperparameters, "split": self.split.to_dict(orient="list")}
        state["processes"] = distributed.WORLD_SIZE
        with save_atomically(path) as file:
            try:
                torch.save(state, file)
            except RuntimeError as error:  # that the file is unfinished, in front of why it is
                raise error.__context__ or error from None

    def _make_known(self, classifier: CarvanaClassifier) -> None:
        saved = f"Epoch {classifier.epoch} of {classifier.epochs}" if classifier.epoch else "The start"
        python = Path("python" if shutil.which("python") == sys.executable else sys.executable)
        if python.is_relative_to(Path.cwd()):
            python = python.relative_to(Path.cwd())
        command = [str(python), sys.argv[0], "--resume", str(self.path)]
        where = ""
        if distributed.WORLD_SIZE > 1:
            command[1:1] = ["-m", "torch.distributed.run", f"--nproc_per_node={distributed.LOCAL_WORLD_SIZE}"]
        if distributed.WORLD_SIZE > distributed.LOCAL_WORLD_SIZE:
            command, where = command[-3:], ", on each box and behind the same torchrun"
        set_exit_hint(f"{saved} is saved; go on with{where}: {shlex.join(command)}", self.last)
