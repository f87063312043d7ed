"""The folder of a run: what a training saves, and what resuming makes of it, also after a kill or a full disk."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from callbacks import model_saver
from callbacks.model_saver import ModelSaverCallback
from conftest import ROOT
from nn.classifier import CarvanaClassifier
from runtime import distributed
from runtime.errors import UserError
from tiny import AfterEpoch1, Settings, Tiny, train


def make_saver(folder, hyperparameters=None, options=None, split=None):
    split = pd.DataFrame() if split is None else split
    return ModelSaverCallback(folder, hyperparameters or Settings(), options or Settings(), split)


def resume(drawn, saver, epochs, others=(), **options):
    """Train on from what the saver's folder holds, as a new process would."""
    return train(drawn, epochs, [make_saver(saver.folder), *others], resume=True, **options)


def load(path):
    return torch.load(path, weights_only=True)


def contents(folder):
    return {path: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


@dataclass
class Options:
    input_dir: Path
    seed: int = 3


@pytest.mark.seconds
def test_a_runs_folder_has_everything_to_resume(drawn, tmp_path):
    split = pd.DataFrame({"car": ["a"], "image": ["a_01.jpg"], "part": ["train"]})
    saver = make_saver(tmp_path / "run", Settings(), Options(tmp_path), split)
    classifier = train(drawn, 3, [saver])

    settings = {
        "hyperparameters": {
            "net": "Tiny",
            "learning_rate": 3.0,
            "sizes": [16, 24],
            "sample_size": None,
            "schedule": "constant",
            "threshold": 0.5,
            "augment_img": {"flip": True, "blur": 0.0},
        },
        "options": {"input_dir": str(tmp_path), "seed": 3},
    }
    last = load(saver.last)
    assert last["epoch"] == 3 and last["metrics"] == classifier.metrics
    assert torch.equal(last["net"]["conv.weight"], classifier.net.conv.weight)
    momentum = classifier.optimizer.state_dict()["state"][0]["momentum_buffer"]
    assert torch.equal(last["optimizer"]["state"][0]["momentum_buffer"], momentum)
    assert last["split"] == split.to_dict(orient="list") and last["world_size"] == 1 and "scaler" in last
    best = load(saver.best)
    assert best["epoch"] == classifier.best["epoch"] and "optimizer" not in best
    for saved in (last, best, json.loads((saver.folder / "hyperparameters.json").read_text())):
        assert {key: saved[key] for key in settings} == settings

    pd.testing.assert_frame_equal(pd.read_csv(saver.folder / "split.csv"), split)
    metrics = pd.read_csv(saver.folder / "metrics.csv")
    assert metrics["epoch"].tolist() == [1, 2, 3]
    assert np.allclose(metrics["valid_dice"], [m["valid_dice"] for m in classifier.metrics])
    assert not {*metrics} & {*classifier.TIMING_METRICS}
    names = {"last.pt", "best.pt", "hyperparameters.json", "split.csv", "metrics.csv", ".lock"}
    assert {path.name for path in saver.folder.iterdir()} == names


def test_scores_are_saved_and_their_path_is_printed(tmp_path, capsys):
    saver, table = make_saver(tmp_path), pd.DataFrame({"image": ["a.jpg"], "dice": [0.5]})
    saver.on_score(None, 0.5, table)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "score.csv"), table)
    assert str(tmp_path / "score.csv") in capsys.readouterr().out


@pytest.mark.seconds
def test_best_stays_the_best_when_the_last_epoch_is_worse(drawn, tmp_path):
    saver = make_saver(tmp_path / "run")
    classifier = train(drawn, 1, [saver])
    before = saver.best.read_bytes()
    classifier.epoch = 2
    classifier.metrics.append(classifier.metrics[0] | {"epoch": 2, "valid_dice": classifier.best["valid_dice"] - 0.1})
    saver.on_epoch_end(classifier, 2, classifier.metrics[-1])
    assert saver.best.read_bytes() == before and load(saver.last)["epoch"] == 2


@pytest.mark.parametrize("schedule_epochs", [None, 4])
def test_a_resumed_run_equals_the_run_that_never_stopped(drawn, tmp_path, schedule_epochs):
    straight, saver = make_saver(tmp_path / "straight"), make_saver(tmp_path / "run")
    expected = train(drawn, 4, [straight], schedule_epochs=schedule_epochs)
    train(drawn, 2, [saver], schedule_epochs=schedule_epochs)
    assert load(saver.last)["epoch"] == 2
    classifier = resume(drawn, saver, 4, schedule_epochs=schedule_epochs)
    assert torch.equal(classifier.net.conv.weight, expected.net.conv.weight)
    assert torch.equal(classifier.eval_net.conv.weight, expected.eval_net.conv.weight)
    assert torch.equal(classifier.eval_net.conv.weight, classifier.net.conv.weight) == (schedule_epochs is None)
    assert (saver.folder / "metrics.csv").read_bytes() == (straight.folder / "metrics.csv").read_bytes()
    fresh = train(drawn, 2, [])  # control: two epochs from the start differ
    assert not torch.equal(fresh.net.conv.weight, expected.net.conv.weight)


def test_a_new_run_never_continues_the_one_in_its_folder(drawn, tmp_path):
    """As two runs that start in the same second. Control: the same, resumed."""
    saver = make_saver(tmp_path / "run")
    train(drawn, 1, [saver])
    before = {path: path.read_bytes() for path in saver.folder.iterdir()}
    classifier = CarvanaClassifier(Tiny(), 2)
    optimizer = torch.optim.SGD(classifier.net.parameters(), lr=3, momentum=0.9)
    saver = make_saver(saver.folder)
    saver.resume(classifier, optimizer, resumed=False)
    assert classifier.epoch == 0
    with pytest.raises(UserError, match="already exists: another run started in the same second"):
        saver.on_train_begin(classifier, None)
    assert {path: path.read_bytes() for path in saver.folder.iterdir()} == before
    saver.resume(classifier, optimizer)
    assert classifier.epoch == 1


def test_the_start_of_a_resumed_run_says_where_it_is(drawn, tmp_path, capsys):
    saver = make_saver(tmp_path / "run")
    train(drawn, 1, [saver])
    assert capsys.readouterr().out == ""  # control: a new run
    resume(drawn, saver, 2)
    assert capsys.readouterr().out == f"Resuming {saver.folder} after epoch 1 of 2.\n"
    resume(drawn, saver, 2)
    assert capsys.readouterr().out == f"{saver.folder} is finished (2 epochs).\n"


@pytest.mark.parametrize(("processes", "command"), [
    (1, "continue with: {python} main.py --resume {folder}"),
    (2, "continue with: torchrun ... main.py --resume {folder}"),
])
def test_the_exit_hint_has_the_command_to_resume(drawn, tmp_path, monkeypatch, processes, command):
    hints = []
    monkeypatch.setattr(model_saver, "set_exit_hint", lambda sentence, saved: hints.append((sentence, saved)))
    monkeypatch.setattr("sys.argv", ["main.py"])
    monkeypatch.setattr("sys.executable", "/opt/bin/python")
    saver = make_saver(tmp_path / "a run")
    classifier = train(drawn, 1, [saver])
    monkeypatch.setattr(distributed, "WORLD_SIZE", processes)
    saver._set_exit_hint(classifier)
    command = command.format(python="/opt/bin/python", folder=f"'{saver.folder}'")
    assert hints[-1] == (f"Epoch 1 of 1 is saved; {command}", saver.last)
    assert hints[0][0].startswith("The initial weights are saved; continue with: ")


def test_a_kill_between_two_files_of_an_epoch_is_repaired(drawn, tmp_path):
    """last.pt is of epoch 2, the best so far; best.pt and metrics.csv are still of epoch 1."""
    saver = make_saver(tmp_path / "run")
    kept = {}
    train(drawn, 2, [saver, AfterEpoch1(lambda: kept.update(contents(saver.folder)))])
    after = contents(saver.folder)
    assert load(saver.best)["epoch"] == 2
    for path in (saver.best, saver.folder / "metrics.csv"):
        path.write_bytes(kept[path])
    resume(drawn, saver, 2)
    assert load(saver.best)["epoch"] == 2
    assert (saver.folder / "metrics.csv").read_bytes() == after[saver.folder / "metrics.csv"]
    saver.best.write_bytes(after[saver.best][:500])
    resume(drawn, saver, 2)
    assert load(saver.best)["epoch"] == 2


@pytest.mark.parametrize("best", [1, 2])
def test_the_settings_in_best_stay_whatever_it_predicts_with_later(drawn, tmp_path, best):
    saver = make_saver(tmp_path / "run")
    train(drawn, best, [saver])
    kept = contents(saver.folder)
    if best == 1:
        second = load(saver.last)
        second["epoch"], second["metrics"] = 2, [*second["metrics"], second["metrics"][0] | {"epoch": 2}]
        torch.save(second, saver.last)
    train(drawn, 2, [make_saver(saver.folder, Settings(threshold=0.8))], resume=True)
    for path in (saver.best, saver.folder / "hyperparameters.json"):
        assert path.read_bytes() == kept[path]


def test_a_missing_or_wrong_best_is_an_error_before_the_training(drawn, tmp_path):
    saver = make_saver(tmp_path / "run")
    classifier = train(drawn, 2, [saver])
    assert classifier.best["epoch"] == 2
    first = load(saver.last)
    first["metrics"][0]["valid_dice"] = 2.0  # as if the first epoch had been the best
    torch.save(first, saver.last)
    sentence = r"best\.pt is not of epoch 1 of this run, the best one\. Restore that file, or start a new run\.$"
    with pytest.raises(UserError, match=sentence):
        resume(drawn, saver, 3)
    other = make_saver(tmp_path / "other")
    train(drawn, 1, [other])
    of_other = load(other.best)
    of_other["metrics"][0]["train_loss"] += 1  # it has seen other images
    torch.save(of_other, saver.best)
    with pytest.raises(UserError, match=sentence):
        resume(drawn, saver, 3)
    saver.best.unlink()
    with pytest.raises(UserError, match=r"best\.pt .*\(No such file or directory\)"):
        resume(drawn, saver, 3)


@pytest.mark.seconds
def test_a_folder_is_locked_while_it_is_trained_in(drawn, tmp_path):
    saver = make_saver(tmp_path / "run")
    train(drawn, 1, [saver])
    code = f"from pathlib import Path; from runtime import files; files.lock(Path({str(saver.folder)!r}))"
    for _ in range(2):  # a new run, then a resumed one
        refused = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert f"{saver.folder} is in use by another process" in refused.stderr
        saver.folder_lock.close()
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
        saver = make_saver(saver.folder)
        train(drawn, 2, [saver], resume=True)


def test_a_full_disk_at_a_checkpoint_costs_only_the_epoch(drawn, small_disk):
    folder, fill = small_disk
    saver = make_saver(folder / "run")
    with pytest.raises(UserError, match=rf"{re.escape(str(saver.last))} .*\(No space left on device\)"):
        train(drawn, 3, [saver, AfterEpoch1(fill)])
    assert load(saver.last)["epoch"] == 1 and not list(saver.folder.glob("*.part"))
    (folder / "filler").unlink()
    assert resume(drawn, saver, 3).epoch == 3


@pytest.mark.parametrize(("fault", "reason"), [("ro", "Read-only file system"), ("gone", "No such file or directory")])
def test_a_folder_that_can_no_longer_be_written_is_named(drawn, small_disk, fault, reason):
    folder, _ = small_disk
    saver = make_saver(folder / "run")
    act = {
        "ro": lambda: subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", saver.folder], check=True),
        "gone": lambda: shutil.rmtree(folder / "run"),
    }
    with pytest.raises(UserError, match=rf"last\.pt .*\({reason}\)"):
        train(drawn, 3, [saver, AfterEpoch1(act[fault])])


def test_two_runs_of_one_second_do_not_share_a_folder(drawn, tmp_path):
    """A folder without last.pt is that of a run that torchrun has restarted."""
    (tmp_path / "run").mkdir()
    train(drawn, 1, [make_saver(tmp_path / "run")])
    with pytest.raises(UserError, match="run already exists: another run started in the same second"):
        train(drawn, 1, [make_saver(tmp_path / "run")])
