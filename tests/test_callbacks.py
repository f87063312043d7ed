import csv
import gzip
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.data import DataLoader

from callbacks.model_saver import ModelSaverCallback
from callbacks.predictions_saver import PredictionsSaverCallback, check_submission
from callbacks.tensorboard import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    LINE,
    TRUE_POSITIVE,
    TensorboardLoggerCallback,
    TensorboardVisualizerCallback,
    side_by_side,
    spread,
)
from conftest import ROOT
from data.dataset import TrainImageDataset
from data.fetcher import DatasetFetcher
from data.layout import CarvanaLayout
from img import rle
from img.transformer import resize
from nn.callback import Callback
from nn.classifier import CarvanaClassifier
from nn.optimizer import make_scheduler
from runtime.errors import UserError


class Tiny(torch.nn.Module):
    def __init__(self, in_shape=(3, 16, 24)):
        super().__init__()
        self.in_shape, self.output_size = in_shape, in_shape[1:]
        self.conv = torch.nn.Conv2d(3, 1, 1)

    def forward(self, x):
        return self.conv(x).squeeze(1)


def train(drawn, epochs, callbacks, resume=False, of=None):
    """Train a net of one 1x1 convolution on two drawn cars up to that epoch; resume: from what callbacks[0] saved.

    of: with all that a step can have, in a schedule of so many epochs.
    """
    torch.manual_seed(0)
    X_train, y_train, X_valid, y_valid = DatasetFetcher(CarvanaLayout(drawn)).get_train_files(0.5)
    loaders = [
        DataLoader(TrainImageDataset(X, y, (16, 24), (16, 24)), 8) for X, y in ((X_train, y_train), (X_valid, y_valid))
    ]
    classifier = CarvanaClassifier(Tiny(), epochs, **(dict(grad_clip=0.5, ema_decay=0.9) if of else {}))
    optimizer = torch.optim.SGD(classifier.net.parameters(), lr=3, momentum=0.9)
    if resume:
        callbacks[0].resume(classifier, optimizer)
    steps = len(loaders[0])
    schedule = make_scheduler(optimizer, "one_cycle", of * steps, done=classifier.epoch * steps) if of else None
    classifier.train(*loaders, optimizer, epochs - classifier.epoch, callbacks, schedule)
    return classifier


def events(folder):
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


def pixels(image):
    """(H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))


def test_tensorboard_gets_one_tag_a_curve_over_all_epochs(drawn, tmp_path):
    classifier = train(drawn, 3, [TensorboardLoggerCallback(tmp_path, {})])
    for phase in ("train", "valid"):
        log = events(tmp_path / phase)
        tags = {"masks/loss", "masks/dice", "masks/pixel_accuracy", "step/images_per_second"} | (
            {"step/learning_rate"} if phase == "train" else set()
        )
        assert set(log.Tags()["scalars"]) == tags
        for tag in tags:
            points = [(event.step, event.value) for event in log.Scalars(tag)]
            name = tag.partition("/")[2]
            name = name if name == "learning_rate" else f"{phase}_{name}"
            assert points == [(m["epoch"], pytest.approx(m[name], rel=1e-6)) for m in classifier.metrics]
    assert len(list(tmp_path.rglob("events.*"))) == 2


def test_tensorboard_shows_how_the_photos_dice_are_spread(drawn, tmp_path):
    classifier = train(drawn, 2, [TensorboardLoggerCallback(tmp_path, {})])
    histograms = events(tmp_path / "valid").Histograms(TensorboardLoggerCallback.DICES)
    assert [each.step for each in histograms] == [1, 2]
    spread_of = histograms[-1].histogram_value
    assert (spread_of.num, spread_of.max) == (16, pytest.approx(classifier.valid_dice.max().item()))
    assert spread_of.sum / 16 == pytest.approx(classifier.metrics[-1]["valid_dice"], abs=1e-6)


def test_tensorboard_compares_hyperparameters_by_what_came_of_them(drawn, tmp_path):
    given = {"net": "Tiny", "learning_rate": 3.0, "flip": True, "sizes": (16, 24), "precision": None, "blur": 0.0,
             "input_dir": drawn}
    callback = TensorboardLoggerCallback(tmp_path / "run", given)
    callback.log_score(train(drawn, 2, [callback]), 0.5)
    train(drawn, 2, [TensorboardLoggerCallback(tmp_path / "run", given)])  # the run is shown again: no second row
    content = [
        HParamsPluginData.FromString(value.metadata.plugin_data.content)
        for path in (tmp_path / "run/valid").glob("events.*")
        for event in LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.metadata.plugin_data.plugin_name == "hparams"
    ]
    experiment, start = content  # control: a second row would be two more
    known = {name: value.WhichOneof("kind") for name, value in start.session_start_info.hparams.items()}
    assert known == {"net": "string_value", "learning_rate": "number_value", "flip": "bool_value",
                     "sizes": "string_value"}
    metrics = {info.name.tag for info in experiment.experiment.metric_infos}
    assert metrics <= set(events(tmp_path / "run/valid").Tags()["scalars"]) and "masks/score" in metrics


def test_tensorboard_shows_the_same_photos_every_epoch(drawn, tmp_path):
    train(drawn, 3, [TensorboardVisualizerCallback(tmp_path, count=3)])
    log = events(tmp_path)
    tags = [tag for tag in log.Tags()["images"] if tag.startswith("validation/")]
    assert len(tags) == 3
    for tag in tags:
        images = log.Images(tag)
        assert [image.step for image in images] == [1, 2, 3]
        assert (images[0].height, images[0].width) == (213 + LINE, 3 * 320)  # the photos are 80 x 120
        assert len({image.encoded_image_string for image in images}) > 1  # the net has moved


def test_tensorboard_shows_the_worst_photos_of_each_epoch(drawn, tmp_path):
    """A classifier whose Dice are known, in an order of their own each epoch."""
    X, y, *_ = DatasetFetcher(CarvanaLayout(drawn)).get_train_files()
    dataset = TrainImageDataset(X[:8], y[:8], (20, 28), (16, 24))
    classifier = CarvanaClassifier(Bright(), 2)
    classifier.run_epoch(DataLoader(dataset, 3), "valid")
    alone = [
        classifier.run_epoch(DataLoader(torch.utils.data.Subset(dataset, [index])), "valid")["valid_dice"]
        for index in range(8)
    ]
    classifier.run_epoch(DataLoader(dataset, 3), "valid")
    assert classifier.valid_dice.tolist() == pytest.approx(alone) and len(set(alone)) > 4
    callback = TensorboardVisualizerCallback(tmp_path, count=2, width=24)
    callback.on_train_begin(classifier, DataLoader(dataset))
    callback.on_epoch_end(classifier, 1, {})
    order = torch.tensor([5.0, 4, 3, 1, 0, 2, 6, 7])
    classifier.valid_dice = order
    callback.on_epoch_end(classifier, 2, {})
    callback.on_train_end(classifier)
    for place in (1, 2):
        shown = [pixels(image) for image in events(tmp_path).Images(f"worst_of_the_epoch/{place}")]
        for panel, index in zip(shown, (np.argsort(alone)[place - 1], (4, 3)[place - 1]), strict=True):
            assert (panel[:16, :24] == dataset[index][0][:, 2:-2, 2:-2].permute(1, 2, 0).numpy()).all()


class Bright(torch.nn.Module):
    """Finds car where the red of the window is bright, 2 pixels in from each side: a net with a padding to crop."""

    in_shape, output_size = (3, 20, 28), (16, 24)

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(100.0))

    def forward(self, x):
        return (x[:, 0, 2:-2, 2:-2] - 0.5) * self.scale


@pytest.mark.parametrize("padding", ["reflect", "stretch"])
def test_tensorboard_shows_photo_verdict_and_cut_out_of_one_window(drawn, tmp_path, padding):
    X, y, *_ = DatasetFetcher(CarvanaLayout(drawn)).get_train_files()
    dataset = TrainImageDataset(X[:16], y[:16], (20, 28), (16, 24), padding=padding)
    classifier, callback = CarvanaClassifier(Bright(), 1), TensorboardVisualizerCallback(tmp_path, 1, width=24)
    classifier.run_epoch(DataLoader(dataset), "valid")
    callback.on_train_begin(classifier, DataLoader(dataset))
    callback.on_epoch_end(classifier, 1, {})
    callback.on_train_end(classifier)
    tag = next(tag for tag in events(tmp_path).Tags()["images"] if tag.startswith("validation/"))
    strip = pixels(events(tmp_path).Images(tag)[0])[:-LINE]  # (16, 72, 3)
    index = [path.name for path in dataset.X].index(tag.removeprefix("validation/"))
    image, mask = dataset[index]
    photo = image[:, 2:-2, 2:-2] if padding == "reflect" else resize(image, (16, 24))
    assert (strip[:, :24] == photo.permute(1, 2, 0).numpy()).all()
    prediction, truth = image[0, 2:-2, 2:-2].numpy() > 127.5, mask.numpy() > 127
    error_map = {TRUE_POSITIVE: prediction & truth, FALSE_NEGATIVE: ~prediction & truth, FALSE_POSITIVE: prediction & ~truth}
    for color, where in error_map.items():
        assert ((strip[:, 24:48] == color).all(-1) == where).all() and where.any()
    assert ((strip[:, 48:] > 0).any(-1) <= prediction).all()


@pytest.mark.parametrize("cars", [1, 2, 4, 8, 64])
def test_the_photos_shown_are_of_several_views_and_cars(cars):
    names = [f"{car:02d}_{view:02d}.jpg" for car in range(cars) for view in range(1, 17)]
    names = [names[index] for index in spread(4, len(names))]
    assert len({name[-6:] for name in names}) >= 3 and len({name[:2] for name in names}) == min(cars, 4)


def test_a_prediction_is_coloured_by_hit_miss_and_false_alarm():
    photo = torch.full((3, 1, 4), 99, dtype=torch.uint8)
    prediction, mask = torch.tensor([[True, False, True, False]]), torch.tensor([[True, True, False, False]])
    strip = side_by_side(photo, prediction, mask)[:, 0].T.tolist()
    assert strip[:4] == [[99, 99, 99]] * 4
    assert [tuple(pixel) for pixel in strip[4:8]] == [TRUE_POSITIVE, FALSE_NEGATIVE, FALSE_POSITIVE, (0, 0, 0)]
    assert strip[8:] == [[99, 99, 99], [0, 0, 0], [99, 99, 99], [0, 0, 0]]


def test_a_runs_folder_holds_all_that_it_takes_to_go_on(drawn, tmp_path):
    split = pd.DataFrame({"car": ["a"], "image": ["a_01.jpg"], "part": ["train"]})
    saver = ModelSaverCallback(tmp_path / "run", {"seed": 3, "input_dir": tmp_path, "size": (16, 24)}, split)
    classifier = train(drawn, 3, [saver])

    last = torch.load(saver.last, weights_only=True)
    assert last["epoch"] == 3 and last["metrics"] == classifier.metrics
    assert torch.equal(last["net"]["conv.weight"], classifier.net.conv.weight)
    assert torch.equal(
        last["optimizer"]["state"][0]["momentum_buffer"],
        classifier.optimizer.state_dict()["state"][0]["momentum_buffer"],
    )
    assert {"scaler", "hyperparameters", "split"} <= set(last)
    best = torch.load(saver.best, weights_only=True)
    assert best["epoch"] == classifier.best["epoch"] and "optimizer" not in best

    assert json.loads((tmp_path / "run/hyperparameters.json").read_text()) == {
        "seed": 3,
        "input_dir": str(tmp_path),
        "size": [16, 24],
    }
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "run/split.csv"), split)
    metrics = pd.read_csv(tmp_path / "run/metrics.csv")
    assert metrics["epoch"].tolist() == [1, 2, 3] and np.allclose(
        metrics["valid_dice"], [m["valid_dice"] for m in classifier.metrics]
    )
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "last.pt",
        "best.pt",
        "hyperparameters.json",
        "split.csv",
        "metrics.csv",
        ".lock",
    }


def test_best_stays_the_best_when_the_last_epoch_is_worse(drawn, tmp_path):
    saver = ModelSaverCallback(tmp_path / "run", {}, pd.DataFrame())
    classifier = train(drawn, 1, [saver])
    before = saver.best.read_bytes()
    classifier.epoch = 2
    classifier.metrics.append(classifier.metrics[0] | {"epoch": 2, "valid_dice": classifier.best["valid_dice"] - 0.1})
    saver.on_epoch_end(classifier, 2, classifier.metrics[-1])
    assert saver.best.read_bytes() == before and torch.load(saver.last, weights_only=True)["epoch"] == 2


class AtEpoch(Callback):
    """Does something after the first epoch has been saved."""

    def __init__(self, act):
        self.act = act

    def on_epoch_end(self, classifier, epoch, metrics):
        if epoch == 1:
            self.act()


def go_on(drawn, saver, epochs, others=(), of=None):
    """Train on from what the saver's folder holds."""
    return train(drawn, epochs, [ModelSaverCallback(saver.path, {}, saver.split), *others], resume=True, of=of)


@pytest.mark.parametrize("of", [None, 4])
def test_a_run_that_goes_on_is_the_run_that_never_stopped(drawn, tmp_path, of):
    straight, saver = (ModelSaverCallback(tmp_path / name, {}, pd.DataFrame()) for name in ("straight", "run"))
    expected = train(drawn, 4, [straight], of=of)
    train(drawn, 2, [saver], of=of)
    assert torch.load(saver.last, weights_only=True)["epoch"] == 2
    classifier = go_on(drawn, saver, 4, of=of)
    assert torch.equal(classifier.net.conv.weight, expected.net.conv.weight)
    assert torch.equal(classifier.eval_net.conv.weight, expected.eval_net.conv.weight)
    assert torch.equal(classifier.eval_net.conv.weight, classifier.net.conv.weight) == (of is None)
    assert (saver.path / "metrics.csv").read_bytes() == (straight.path / "metrics.csv").read_bytes()
    fresh = train(drawn, 2, [])  # control: two more epochs from the start are not the same
    assert not torch.equal(fresh.net.conv.weight, expected.net.conv.weight)


def test_a_kill_between_two_files_of_an_epoch_is_mended(drawn, tmp_path):
    """last.pt is of epoch 2, the best so far; best.pt and metrics.csv are still of epoch 1."""
    saver = ModelSaverCallback(tmp_path / "run", {}, pd.DataFrame())
    kept = {}
    train(drawn, 2, [saver, AtEpoch(lambda: kept.update({path: path.read_bytes() for path in saver.path.iterdir()}))])
    after = {path: path.read_bytes() for path in saver.path.iterdir()}
    assert torch.load(saver.best, weights_only=True)["epoch"] == 2
    for name in ("best.pt", "metrics.csv"):
        (saver.path / name).write_bytes(kept[saver.path / name])
    go_on(drawn, saver, 2)
    assert torch.load(saver.best, weights_only=True)["epoch"] == 2
    assert (saver.path / "metrics.csv").read_bytes() == after[saver.path / "metrics.csv"]
    saver.best.write_bytes(after[saver.best][:500])
    go_on(drawn, saver, 2)
    assert torch.load(saver.best, weights_only=True)["epoch"] == 2


@pytest.mark.parametrize("best", [1, 2])
def test_what_best_was_trained_with_stays_whatever_is_predicted_with_it(drawn, tmp_path, best):
    saver = ModelSaverCallback(tmp_path / "run", {"threshold": 0.5}, pd.DataFrame())
    train(drawn, best, [saver])
    kept = saver.best.read_bytes()
    if best == 1:
        second = torch.load(saver.last, weights_only=True)
        second["epoch"], second["metrics"] = 2, [*second["metrics"], second["metrics"][0] | {"epoch": 2}]
        torch.save(second, saver.last)
    go_on(drawn, ModelSaverCallback(saver.path, {"threshold": 0.8}, pd.DataFrame()), 2)
    assert saver.best.read_bytes() == kept


def test_a_best_that_is_gone_or_another_is_told_before_the_training(drawn, tmp_path):
    saver = ModelSaverCallback(tmp_path / "run", {}, pd.DataFrame())
    classifier = train(drawn, 2, [saver])
    assert classifier.best["epoch"] == 2
    first = torch.load(saver.last, weights_only=True)
    first["metrics"][0]["valid_dice"] = 2.0  # as if the first epoch had been the best
    torch.save(first, saver.last)
    with pytest.raises(UserError, match=r"best\.pt is not of epoch 1, the best: put it back, or start another run\.$"):
        go_on(drawn, saver, 3)
    saver.best.unlink()
    with pytest.raises(UserError, match=r"best\.pt can't be read \(No such file or directory\)\.$"):
        go_on(drawn, saver, 3)


def test_tensorboards_curves_go_on_without_a_gap_or_a_double_point(drawn, tmp_path):
    """Each way in which a kill can leave the log: as it should be, an epoch behind, an epoch ahead, cut in a record."""
    for case in ("even", "behind", "ahead", "cut"):
        folder = tmp_path / case
        saver = ModelSaverCallback(folder / "run", {}, pd.DataFrame())

        def boards(folder=folder):
            return [TensorboardLoggerCallback(folder / "logs", {}), TensorboardVisualizerCallback(folder / "viz", 2)]

        kept = {}

        def keep(saver=saver, folder=folder, kept=kept):
            kept.update({path: path.read_bytes() for path in [saver.last, *folder.rglob("events.*")]})

        train(drawn, 2, [saver, *boards(), AtEpoch(keep)])
        for path, content in kept.items():
            if (path == saver.last) == (case == "ahead") and case != "even":
                path.write_bytes(content)
                if case == "cut":
                    os.truncate(path, len(content) - 5)
        go_on(drawn, saver, 2, boards())  # to its end already: what is missing comes all the same
        for tag in events(folder / "logs/train").Tags()["scalars"]:
            assert case == "ahead" or events(folder / "logs/train").Scalars(tag)[-1].step == 2, (case, tag)
        go_on(drawn, saver, 4, boards())
        for log in (folder / "logs/train", folder / "logs/valid", folder / "viz"):
            found = events(log)
            for tag in found.Tags()["scalars"]:
                assert [event.step for event in found.Scalars(tag)] == [1, 2, 3, 4], (case, tag)
            for tag in found.Tags()["images"]:
                steps = [event.step for event in found.Images(tag)]
                # the picture that was cut can't be made again: the weights of epoch 1 are gone
                assert steps == [1, 2, 3, 4] or (case == "cut" and steps == [2, 3, 4]), (case, tag)
            assert found.Tags()["scalars"] or found.Tags()["images"]


def test_a_run_of_a_version_that_kept_no_dice_of_each_photo_goes_on(drawn, tmp_path):
    saver = ModelSaverCallback(tmp_path / "run", {}, pd.DataFrame())
    train(drawn, 1, [saver])
    last = torch.load(saver.last, weights_only=True)
    assert len(last.pop("valid_dice")) == 16
    torch.save(last, saver.last)
    logger = TensorboardLoggerCallback(tmp_path / "logs", {})
    assert go_on(drawn, saver, 2, [logger, TensorboardVisualizerCallback(tmp_path / "viz")]).epoch == 2
    assert [each.step for each in events(tmp_path / "logs/valid").Histograms(logger.DICES)] == [2]


@pytest.mark.slow
def test_two_processes_do_not_write_in_one_folder(drawn, tmp_path):
    """Neither in that of a run nor a submission."""
    saver = ModelSaverCallback(tmp_path / "run", {}, pd.DataFrame())
    train(drawn, 1, [saver])
    predictions = PredictionsSaverCallback(tmp_path / "a.gz", (4, 4), 0.5)
    predictions.on_batch_gathered(predictions.on_predict_batch(["a"], torch.ones(1, 4, 4)))
    for folder, release in ((saver.path, saver._lock.close), (tmp_path, predictions.close_saver)):
        run = [sys.executable, "-c", f"from pathlib import Path; from runtime import files; files.lock(Path({str(folder)!r}))"]
        refused = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
        assert f"{folder} is in use by another process. Wait for it, or stop it." in refused.stderr
        release()
        assert subprocess.run(run, cwd=ROOT).returncode == 0


def sentence_of_full_disk(path):
    return rf"{re.escape(str(path))} can't be written \(No space left on device\); what stood there before is as it was"


def test_a_full_disk_at_a_checkpoint_costs_the_epoch_and_no_more(drawn, small_disk):
    folder, fill = small_disk
    saver = ModelSaverCallback(folder / "run", {}, pd.DataFrame())
    with pytest.raises(UserError, match=sentence_of_full_disk(saver.last)):
        train(drawn, 3, [saver, AtEpoch(fill)])
    assert torch.load(saver.last, weights_only=True)["epoch"] == 1 and not list(saver.path.glob("*.part"))
    (folder / "filler").unlink()
    assert go_on(drawn, saver, 3).epoch == 3


def test_a_full_disk_at_tensorboards_log_is_told_and_waits_for_nothing(drawn, small_disk, tmp_path):
    folder, fill = small_disk
    logger = partial(TensorboardLoggerCallback, hyperparameters={})
    pictures = partial(TensorboardVisualizerCallback, width=24)
    for name, board in (("scalars", logger), ("images", pictures)):
        saver = ModelSaverCallback(tmp_path / name, {}, pd.DataFrame())
        where = rf"TensorBoard's log in {folder}/{name}\S* can't be written \(No space left on device\)"
        with pytest.raises(UserError, match=where):
            train(drawn, 60, [saver, board(folder / name), AtEpoch(fill)])
        with pytest.raises(UserError, match=where):
            go_on(drawn, saver, 60, [board(folder / name)])
        saved = torch.load(saver.last, weights_only=True)["epoch"]
        assert 2 <= saved < 60  # at the second, or a little later if the log's last page still has room
        (folder / "filler").unlink()
        assert go_on(drawn, saver, saved + 1, [board(folder / name)]).epoch == saved + 1


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


@pytest.mark.parametrize(("fault", "reason"), [("ro", "Read-only file system"), ("gone", "No such file or directory")])
def test_a_folder_that_can_no_longer_be_written_to_is_named(drawn, small_disk, fault, reason):
    folder, _ = small_disk
    saver = ModelSaverCallback(folder / "run", {}, pd.DataFrame())
    act = {
        "ro": lambda: subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", saver.path], check=True),
        "gone": lambda: shutil.rmtree(folder / "run"),
    }
    with pytest.raises(UserError, match=rf"last\.pt can't be written \({reason}\)\. Make room or mend the"):
        train(drawn, 3, [saver, AtEpoch(act[fault])])


def test_a_log_that_vanished_is_named(drawn, tmp_path):
    for board in (TensorboardLoggerCallback(tmp_path / "log", {}), TensorboardVisualizerCallback(tmp_path / "log")):
        with pytest.raises(UserError, match=r"TensorBoard's log in .* can't be written \(No such file"):
            train(drawn, 3, [board, AtEpoch(lambda: shutil.rmtree(tmp_path / "log"))])


def test_two_runs_of_one_second_do_not_share_a_folder(drawn, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="another run"):
        train(drawn, 1, [ModelSaverCallback(tmp_path / "run", {}, pd.DataFrame())])


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
