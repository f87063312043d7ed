"""The submission: what it contains, when it is in place, and what is wrong with a damaged one."""

import csv
import gzip
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from callbacks.predictions_saver import PredictionsSaverCallback
from conftest import ROOT
from img import rle
from nn.callback import Callback
from nn.classifier import CarvanaClassifier
from runtime.errors import UserError
from tiny import Bright


def test_a_full_disk_at_the_submission_leaves_the_earlier_one(small_disk):
    folder, _ = small_disk
    submission = folder / "submit.csv.gz"
    submission.write_bytes(b"an earlier one")
    saver = PredictionsSaverCallback(submission, (600, 900), 0.5)
    torch.manual_seed(0)
    noise = [(torch.randint(0, 255, (3, 16, 24), dtype=torch.uint8), f"{number}.jpg") for number in range(400)]
    with pytest.raises(UserError, match=rf"{re.escape(str(submission))} .*No space left on device"):
        CarvanaClassifier(Bright(), 1).predict(DataLoader(noise, 8), [saver])
    assert {path.name for path in folder.iterdir()} == {"submit.csv.gz", ".lock"}
    assert submission.read_bytes() == b"an earlier one"


def test_a_prediction_that_is_stopped_leaves_the_earlier_submission(tmp_path):
    submission = tmp_path / "submit.csv.gz"
    submission.write_bytes(b"an earlier one")

    class Stop(Callback):
        def on_batch_gathered(self, result):
            assert (tmp_path / "submit.csv.gz.part").exists()
            os.kill(os.getpid(), signal.SIGINT)

    images = [(torch.zeros(3, 16, 24, dtype=torch.uint8), f"{number}.jpg") for number in range(16)]
    callbacks = [PredictionsSaverCallback(submission, (60, 90), 0.5), Stop()]
    with pytest.raises(KeyboardInterrupt):
        CarvanaClassifier(Bright(), 1).predict(DataLoader(images, 8), callbacks)
    assert submission.read_bytes() == b"an earlier one"
    assert {path.name for path in tmp_path.iterdir()} == {"submit.csv.gz", ".lock"}


@pytest.mark.seconds
def test_the_folder_of_a_submission_is_locked_while_it_is_written(tmp_path):
    saver = PredictionsSaverCallback(tmp_path / "submit.csv.gz", (4, 4), 0.5)
    saver.on_batch_gathered(saver.on_predict_batch(["a.jpg"], torch.ones(1, 4, 4)))
    code = f"from pathlib import Path; from runtime import files; files.lock(Path({str(tmp_path)!r}))"
    refused = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert f"{tmp_path} is in use by another process" in refused.stderr
    saver.close_saver()
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def rows_of(path):
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.reader(file))


def test_a_submission_has_each_mask_at_the_size_of_the_images(tmp_path):
    saver = PredictionsSaverCallback(tmp_path / "submit.csv.gz", (60, 90), threshold=0.5)
    probs = torch.zeros(3, 6, 9)
    probs[0, 2:4, 3:6] = 1  # the middle third
    probs[2] = 1
    saver.on_batch_gathered(saver.on_predict_batch(["a.jpg", "b.jpg"], probs[:2]))
    assert not (tmp_path / "submit.csv.gz").exists()
    saver.on_batch_gathered(saver.on_predict_batch(["c.jpg"], probs[2:]))
    saver.close_saver()

    header, *rows = rows_of(tmp_path / "submit.csv.gz")
    assert header == ["img", "rle_mask"] and [name for name, _ in rows] == ["a.jpg", "b.jpg", "c.jpg"]
    car, empty, full = (rle.decode(runs, (60, 90)) for _, runs in rows)
    assert car[20:40, 30:60].float().mean() > 0.9 and car.sum() == pytest.approx(20 * 30, rel=0.1)
    assert not empty.any() and full.all()
    assert {path.name for path in tmp_path.iterdir()} == {"submit.csv.gz", ".lock"}


def test_names_with_commas_stay_names(tmp_path):
    saver = PredictionsSaverCallback(tmp_path / "a.gz", (4, 4), 0.5)
    saver.on_batch_gathered(saver.on_predict_batch(["my,car_01.jpg"], torch.ones(1, 4, 4)))
    saver.close_saver()
    assert rows_of(tmp_path / "a.gz")[1] == ["my,car_01.jpg", "1 16"]


def test_an_earlier_submission_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "submit.csv.gz"
    path.write_bytes(b"earlier")
    saver = PredictionsSaverCallback(path, (4, 4), 0.5)
    assert path.read_bytes() == b"earlier"
    saver.on_batch_gathered(saver.on_predict_batch(["a"], torch.rand(1, 4, 4)))
    assert path.read_bytes() == b"earlier"
    saver.close_saver()
    assert len(rows_of(path)) == 2


def test_the_same_masks_make_the_same_bytes(tmp_path):
    for name in ("a.gz", "b.gz"):
        torch.manual_seed(0)
        saver = PredictionsSaverCallback(tmp_path / name, (40, 40), 0.5)
        saver.on_batch_gathered(saver.on_predict_batch(["a"], torch.rand(1, 4, 4)))
        saver.close_saver()
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


def test_empty_and_full_masks_are_warned_of(tmp_path, capsys):
    saver = PredictionsSaverCallback(tmp_path / "a.gz", (40, 40), 0.5)
    probs = torch.zeros(6, 4, 4)
    probs[1, 1:3, 1:3] = 1  # a car
    probs[2] = 1
    names = [f"{number}.jpg" for number in range(6)]
    saver.on_batch_gathered(saver.on_predict_batch(names, probs))
    saver.close_saver()
    assert capsys.readouterr().out.splitlines() == [
        "Warning: 4 masks without a car: 0.jpg, 3.jpg, 4.jpg and 1 more.",
        "Warning: 1 mask without background: 2.jpg.",
        f"submission  {tmp_path / 'a.gz'}",
    ]


def test_without_masks_as_in_another_process_nothing_is_written(tmp_path, capsys):
    PredictionsSaverCallback(tmp_path / "a.gz", (4, 4), 0.5).close_saver()
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out
