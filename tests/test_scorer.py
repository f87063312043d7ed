"""The score of the validation images is the one that Kaggle would give a submission of them."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from callbacks.predictions_saver import PredictionsSaverCallback
from callbacks.scorer import THRESHOLDS, ScorerCallback
from img import rle
from img.mask import decode_mask
from img.transformer import resize, to_mask, upsample
from nn.callback import Callback
from nn.metrics import boundary_distance, dice_per_image
from runtime.errors import UserError
from test_predictions_saver import rows_of

METRICS = ["dice", "iou", "precision", "recall", "boundary_distance"]


@pytest.fixture(scope="module")
def masks(drawn):
    """Image name -> its mask, of the training images: 80x120 pixels, 16 images of four cars."""
    return {path.name.replace("_mask.gif", ".jpg"): path for path in sorted((drawn / "train_masks").iterdir())}


def without_masks(dice, groups=None):
    """A scorer that has computed these, image name -> Dice."""
    scorer = ScorerCallback([], [], 0.5, groups)
    scorer.thresholds = [0.5]
    for name, value in dice.items():
        scorer.metrics[name] = {0.5: dict(zip(METRICS, [value, 0.75, 0.875, 0.625, 2.0], strict=True))}
    return scorer


def noisy(masks, size):
    """Probabilities of a net that is nearly right, (N, *size)."""
    small = torch.cat([resize(decode_mask(path.read_bytes()), size) for path in masks.values()]).float() / 255
    generator = torch.Generator().manual_seed(0)
    return (small + 0.4 * torch.rand(small.shape, generator=generator) - 0.2).clamp(0, 1)


def scored(masks, probs, threshold=0.5):
    scorer = ScorerCallback([Path("train", name) for name in masks], list(masks.values()), threshold)
    for first in range(0, len(masks), 8):
        scorer.on_batch_gathered(scorer.on_predict_batch(list(masks)[first : first + 8], probs[first : first + 8]))
    return scorer


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_the_score_is_that_of_the_submission(masks, tmp_path, threshold):
    """Runs and masks are read here by other means than the package's."""
    probs = noisy(masks, (20, 30))
    scorer = scored(masks, probs, threshold)
    saver = PredictionsSaverCallback(tmp_path / "submit.csv.gz", (80, 120), threshold)
    saver.on_batch_gathered(saver.on_predict_batch(list(masks), probs))
    saver.close_saver()
    expected, small = {}, []
    for (name, runs), prob in zip(rows_of(saver.to_file)[1:], probs, strict=True):
        numbers, flat = list(map(int, runs.split())), np.zeros(80 * 120, bool)
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            flat[start - 1 : start - 1 + length] = True
        truth = np.asarray(Image.open(masks[name])) > 0
        expected[name] = f1_score(truth.ravel(), flat)
        small.append(f1_score(truth[2::4, 2::4].ravel(), prob.numpy().ravel() > threshold))
    assert scorer.table().set_index("image")["dice"].to_dict() == pytest.approx(expected, abs=1e-7)
    assert scorer.score == pytest.approx(np.mean(list(expected.values())), abs=1e-7)
    assert scorer.score != pytest.approx(np.mean(small), abs=1e-3)  # control: Dice at the size of the net's masks


def dice_at_thresholds(prob, mask, thresholds):
    scorer = ScorerCallback([Path("a.jpg")], [mask], thresholds[0])
    scorer.thresholds = thresholds
    scorer.on_batch_gathered(scorer.on_predict_batch(["a.jpg"], prob[None]))
    return {threshold: metrics["dice"] for threshold, metrics in scorer.metrics["a.jpg"].items()}


@pytest.mark.parametrize("size", [(20, 30), (97, 131)])
def test_dice_at_each_threshold_is_that_of_the_decoded_mask(masks, size, tmp_path):
    """Including a threshold that equals probabilities, and a mask without a car."""
    probs, thresholds = noisy(masks, size), [*THRESHOLDS, 0.9999, 1.0]
    probs[0] = 0.45
    for prob, path in zip(probs, masks.values(), strict=True):
        truth = decode_mask(path.read_bytes())[0] > 127
        result = dice_at_thresholds(prob, path, thresholds)
        for threshold in thresholds:
            runs = rle.encode(to_mask(prob[None], truth.shape, threshold)[0])
            assert result[threshold] == dice_per_image(rle.decode(runs, truth.shape)[None], truth[None]).item()
    empty = tmp_path / "empty.png"
    Image.new("L", (120, 80)).save(empty)
    assert dice_at_thresholds(torch.full((4, 4), 0.5), empty, [0.4, 0.5, 0.6]) == {0.4: 0.0, 0.5: 1.0, 0.6: 1.0}


def test_all_metrics_are_at_the_size_of_the_mask_and_at_the_threshold(masks):
    probs = noisy(masks, (20, 30))
    probs[3] = 0  # no object: its distance is left out of the mean
    scorer = scored(masks, probs, 0.6)
    table = scorer.table().set_index("image")
    for prob, (name, path) in zip(probs, masks.items(), strict=True):
        truth = np.asarray(Image.open(path)) > 0
        mask = upsample(prob[None], truth.shape)[0] > 0.6
        overlap = [f1_score, jaccard_score, precision_score, recall_score]
        expected = [metric(truth.ravel(), mask.flatten(), zero_division=0) for metric in overlap]
        expected.append(boundary_distance(mask, torch.from_numpy(truth)))
        assert table.loc[name, METRICS].tolist() == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert table["boundary_distance"].isna().sum() == 1
    assert table["iou"].mean() != pytest.approx(scored(masks, probs, 0.5).table()["iou"].mean(), abs=1e-3)  # control
    summary = scorer.summary()
    for name in ("iou", "precision", "recall"):
        assert f"{name} {table[name].mean():.4f}" in summary
    others = np.nanmean(table["boundary_distance"])
    assert f"boundary    {others:.2f} pixels from the true one; left out: 1 image with an empty mask\n" in summary
    assert "left out" not in scored(masks, noisy(masks, (20, 30))).summary()
    nothing = f"boundary    none; left out: {len(masks)} images with an empty mask\n"
    assert nothing in scored(masks, torch.zeros(len(masks), 20, 30)).summary()


def test_the_confidence_interval_is_over_cars():
    means = {"a": 0.9, "b": 0.95, "c": 0.99}
    angles = {f"_{angle:02d}.jpg": 0.001 * (angle % 2) for angle in range(16)}
    dice = {car + angle: mean + more for car, mean in means.items() for angle, more in angles.items()}
    summary = without_masks(dice).summary()
    over_cars = stats.ttest_1samp([mean + 0.0005 for mean in means.values()], 0).confidence_interval(0.95)
    over_images = stats.ttest_1samp(list(dice.values()), 0).confidence_interval(0.95)
    assert over_cars.high > 1  # no Dice is above 1
    assert f"95% confidence interval {over_cars.low:.4f} to 1.0000\n" in summary
    assert f"{over_images.low:.4f}" != f"{over_cars.low:.4f}"  # control
    summary = without_masks({name: value for name, value in dice.items() if name.startswith("a")}).summary()
    assert "of 1 car\n" in summary and "confidence" not in summary


def interval(scorer):
    return re.search("95% confidence interval (.*)", scorer.summary())[1]


def test_the_score_of_own_images_is_by_group_and_has_no_angles():
    """Whatever their names; the interval is that of the same images of as many cars."""
    dice = {f"{car}_{angle:02d}.jpg": 0.9 + 0.01 * car + 0.001 * angle for car in range(3) for angle in (1, 2)}
    cars, own = without_masks(dice), without_masks(dice, {name: f"cat {name[0]}" for name in dice})
    assert list(own.table()) == ["image", "car", *METRICS]
    assert own.table()["car"].tolist()[:3] == ["cat 0", "cat 0", "cat 1"]
    assert own.table()["image"].tolist() == cars.table()["image"].tolist()
    assert interval(own) == interval(cars)
    assert "6 validation images of 3 groups\n" in own.summary() and "worst       0_01.jpg 0.9010" in own.summary()
    assert "angle" not in own.summary() and "by angle    01 0.9110, 02 0.9120\n" in cars.summary()  # control
    single = without_masks(dice, {name: name for name in dice})
    assert interval(single) != interval(own)
    assert "6 validation images\n" in single.summary()


def test_the_worst_images_come_first_and_are_named(masks):
    scorer = scored(masks, noisy(masks, (20, 30)))
    dice = {name: metrics[scorer.threshold]["dice"] for name, metrics in scorer.metrics.items()}
    worst = sorted(dice, key=dice.get)[:5]
    table = scorer.table()
    assert table["image"].tolist()[:5] == worst and table["dice"].is_monotonic_increasing
    assert list(table) == ["image", "car", "angle", *METRICS]
    assert table["car"].nunique() == 4 and set(table["angle"]) == {f"{angle:02d}" for angle in range(1, 17)}
    summary = scorer.summary()
    assert [name for name in masks if name in summary] == sorted(worst)
    assert f"score       {scorer.score:.6f}, as Kaggle computes it" in summary
    assert "of 4 cars\n            95% confidence interval 0." in summary
    seventh = table[table["angle"] == "07"]["dice"].mean()
    assert f"07 {seventh:.4f}" in summary and max(map(len, summary.splitlines())) <= 80


@pytest.mark.seconds
def test_other_thresholds_are_reported_and_change_nothing(masks):
    """A net whose probabilities are too low scores higher with a lower threshold."""
    probs = 0.8 * noisy(masks, (20, 30))
    scorer = scored(masks, probs, 0.55)
    means = {threshold: scored(masks, probs, threshold).score for threshold in THRESHOLDS}
    assert scorer.score == means[0.55] < means[0.4]
    printed = scorer.summary().partition("threshold ")[2]
    pairs = dict(re.findall(r"(0\.\d+)(?: \(used\))? (0\.\d{4})(?=,|\n|$)", printed))
    assert pairs == {f"{threshold:g}": f"{mean:.4f}" for threshold, mean in means.items()}
    assert printed.count("(used)") == 1 and f"0.55 (used) {means[0.55]:.4f}" in printed
    assert 0.62 in scored(masks, probs, 0.62).thresholds  # one that is not compared by default


def test_a_report_is_printed_and_passed_on_in_the_main_process_only(capsys, monkeypatch):
    class Receiver(Callback):
        def on_score(self, classifier, score, table):
            received.append((classifier, score, table))

    received, scorer = [], without_masks({"a_01.jpg": 0.5, "b_01.jpg": 0.75})
    trained = SimpleNamespace(best={"epoch": 3, "valid_dice": 0.5}, net=SimpleNamespace(output_size=(8, 12)))
    scorer.report(trained, to=[Receiver()])
    ((classifier, score, table),) = received
    assert (classifier, score) == (trained, 0.625) and table.equals(scorer.table())
    printed = capsys.readouterr().out
    assert printed == f"\nValidation Dice 0.5000 in epoch 3, at 8x12 pixels\n\n{scorer.summary()}\n"
    monkeypatch.setattr("runtime.distributed.RANK", 1)
    scorer.report(trained, to=[Receiver()])
    assert len(received) == 1 and not capsys.readouterr().out


def test_a_mask_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    scorer = ScorerCallback([tmp_path / "a_01.jpg"], [tmp_path / "broken.gif"], 0.5)
    with pytest.raises(UserError, match=r"broken\.gif cannot be read as an image"):
        scorer.on_predict_batch(["a_01.jpg"], torch.zeros(1, 4, 4))
