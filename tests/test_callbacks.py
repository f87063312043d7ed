import csv
import gzip
import os
import re
import signal

import pytest
import torch
from torch.utils.data import DataLoader

from callbacks.predictions_saver import PredictionsSaverCallback, check_submission
from img import rle
from nn.callback import Callback
from nn.classifier import CarvanaClassifier
from runtime.errors import UserError
from tiny import Bright


def sentence_of_full_disk(path):
    return rf"{re.escape(str(path))} can't be written \(No space left on device\); what stood there before is as it was"


def test_a_full_disk_at_the_submission_leaves_the_earlier_one(small_disk):
    folder, _ = small_disk
    submission = folder / "submit.csv.gz"
    submission.write_bytes(b"an earlier one")
    saver = PredictionsSaverCallback(submission, (600, 900), 0.5)
    torch.manual_seed(0)
    noise = [(torch.randint(0, 255, (3, 16, 24), dtype=torch.uint8), f"{number}.jpg") for number in range(400)]
    with pytest.raises(UserError, match=sentence_of_full_disk(submission)):
        CarvanaClassifier(Bright(), 1).predict(DataLoader(noise, 8), [saver])
    assert {path.name for path in folder.iterdir()} == {"submit.csv.gz", ".lock"}
    assert submission.read_bytes() == b"an earlier one"


def test_a_prediction_that_is_stopped_leaves_the_earlier_submission(tmp_path):
    submission = tmp_path / "submit.csv.gz"
    submission.write_bytes(b"an earlier one")

    class Stop(Callback):
        def on_batch_gathered(self, made):
            assert (tmp_path / "submit.csv.gz.part").exists()
            os.kill(os.getpid(), signal.SIGINT)

    photos = [(torch.zeros(3, 16, 24, dtype=torch.uint8), f"{number}.jpg") for number in range(16)]
    callbacks = [PredictionsSaverCallback(submission, (60, 90), 0.5), Stop()]
    with pytest.raises(KeyboardInterrupt):
        CarvanaClassifier(Bright(), 1).predict(DataLoader(photos, 8), callbacks)
    assert submission.read_bytes() == b"an earlier one"
    assert {path.name for path in tmp_path.iterdir()} == {"submit.csv.gz", ".lock"}


def rows_of(path):
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.reader(file))


def test_a_submission_has_each_mask_at_the_photos_own_size(tmp_path):
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
    assert car[20:40, 30:60].mean() > 0.9 and car.sum() == pytest.approx(20 * 30, rel=0.1)
    assert not empty.any() and full.all()
    assert {path.name for path in tmp_path.iterdir()} == {"submit.csv.gz", ".lock"}


def test_probabilities_are_enlarged_before_they_are_cut(tmp_path):
    probs = torch.tensor([[[0.9, 0.0]]])  # 1x2: cut first and enlarged, the padding would fall in the middle
    saver = PredictionsSaverCallback(tmp_path / "a.gz", (1, 200), threshold=0.5)
    saver.on_batch_gathered(saver.on_predict_batch(["a"], probs))
    saver.close_saver()
    # between the two centers, at 50 and 150, the probability falls from 0.9 to 0; it passes 0.5 at 50 + 100 * 4/9
    assert rows_of(tmp_path / "a.gz")[1][1] == "1 94"


def test_a_pixel_is_car_above_the_threshold_and_not_at_it(tmp_path):
    for threshold, runs in ((0.25, ""), (0.2, "1 16"), (0.5, "")):
        saver = PredictionsSaverCallback(tmp_path / "a.gz", (4, 4), threshold)
        saver.on_batch_gathered(saver.on_predict_batch(["a"], torch.full((1, 2, 2), 0.25)))
        saver.close_saver()
        assert rows_of(tmp_path / "a.gz")[1][1] == runs


def test_names_with_commas_stay_names(tmp_path):
    saver = PredictionsSaverCallback(tmp_path / "a.gz", (4, 4), 0.5)
    saver.on_batch_gathered(saver.on_predict_batch(["my,car_01.jpg"], torch.ones(1, 4, 4)))
    saver.close_saver()
    assert rows_of(tmp_path / "a.gz")[1] == ["my,car_01.jpg", "1 16"]


def test_an_earlier_submission_stays_until_the_new_one_is_whole(tmp_path):
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


def test_masks_that_are_all_or_nothing_are_told_of(tmp_path, capsys):
    saver = PredictionsSaverCallback(tmp_path / "a.gz", (40, 40), 0.5)
    probs = torch.zeros(6, 4, 4)
    probs[1, 1:3, 1:3] = 1  # a car
    probs[2] = 1
    saver.on_batch_gathered(saver.on_predict_batch([f"{number}.jpg" for number in range(6)], probs))
    saver.close_saver()
    assert capsys.readouterr().out.splitlines() == [
        "Look at these: 4 of the masks are without a car (0.jpg, 3.jpg, 4.jpg, ...).",
        "Look at these: 1 of the masks is all car (2.jpg).",
    ]


def test_a_submission_is_read_back(tmp_path):
    path, names = tmp_path / "a.gz", ["a.jpg", "b,c.jpg", "d.jpg"]
    saver = PredictionsSaverCallback(path, (60, 90), 0.5)
    probs = torch.zeros(3, 6, 9)
    probs[0, 2:4, 3:6] = 1  # b holds no car
    probs[2] = 1
    saver.on_batch_gathered(saver.on_predict_batch(names, probs))
    saver.close_saver()
    check_submission(path, names, (60, 90))
    whole, rows = path.read_bytes(), rows_of(path)
    for faulty, expected in (
        (["a.jpg", "d.jpg", "b,c.jpg"], r"row 2: b,c\.jpg in place of d\.jpg"),
        ([*names, "e.jpg"], r"row 4: the end in place of e\.jpg"),
        (names[:2], "row 3: more rows than photos"),
    ):
        with pytest.raises(UserError, match=rf"a\.gz is no whole submission \({expected}\): predict once more"):
            check_submission(path, faulty, (60, 90))
    with pytest.raises(UserError, match=r"row 1: the run .* can't be at this place in a mask of 6x9 pixels"):
        check_submission(path, names, (6, 9))
    for damaged in (whole[:-20], whole[:50] + b"?" + whole[51:], b""):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="is no whole submission"):
            check_submission(path, names, (60, 90))
    for changed, expected in (
        ([["img", "mask"], *rows[1:]], "row 0: it should be img,rle_mask"),
        ([*rows[:2], rows[1], *rows[3:]], r"row 2: a\.jpg in place of b,c\.jpg"),
        ([*rows[:3], ["d.jpg", "3 1 1 1"]], "row 3: the run 1 1 can't be"),
        ([*rows[:3], ["d.jpg"]], "row 3: "),
    ):
        with gzip.open(path, "wt", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(changed)
        with pytest.raises(UserError, match=expected):
            check_submission(path, names, (60, 90))
