"""The score of the validation photos is the one that Kaggle would give a submission of them."""

import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import stats
from sklearn.metrics import f1_score

from callbacks.model_saver import ModelSaverCallback
from callbacks.predictions_saver import PredictionsSaverCallback
from callbacks.scorer import SWEEP, ScorerCallback
from callbacks.tensorboard import TensorboardLoggerCallback
from img.transformer import decode_mask, resize
from runtime.errors import UserError
from test_callbacks import events, rows_of, train


@pytest.fixture(scope="module")
def masks(drawn):
    """The name of each photo to train on, and its mask: 80x120 pixels, 16 photos of four cars."""
    return {path.name.replace("_mask.gif", ".jpg"): path for path in sorted((drawn / "train_masks").iterdir())}


def blurred(masks, size):
    """Probabilities of a net that is nearly right, (N, *size)."""
    small = torch.cat([resize(decode_mask(path.read_bytes()), size) for path in masks.values()]).float() / 255
    generator = torch.Generator().manual_seed(0)
    return (small + 0.4 * torch.rand(small.shape, generator=generator) - 0.2).clamp(0, 1)


def scored(masks, probs, threshold=0.5):
    scorer = ScorerCallback(masks, threshold)
    for first in range(0, len(masks), 8):
        scorer.on_batch_gathered(scorer.on_predict_batch(list(masks)[first : first + 8], probs[first : first + 8]))
    return scorer


@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_the_score_is_that_of_the_submission(masks, tmp_path, threshold):
    """Runs and masks are read here by other means than the package's."""
    probs = blurred(masks, (20, 30))
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
    assert scorer.dice == pytest.approx(expected, abs=1e-7)
    assert scorer.score == pytest.approx(np.mean(list(expected.values())), abs=1e-7)
    assert scorer.score != pytest.approx(np.mean(small), abs=1e-3)  # control: Dice at the size of the net's masks


def test_the_interval_is_over_cars():
    scorer = ScorerCallback({}, 0.5)
    means = {"a": 0.9, "b": 0.95, "c": 0.99}
    views = {f"_{view:02d}.jpg": 0.001 * (view % 2) for view in range(16)}
    scorer.swept = {car + view: {0.5: mean + more} for car, mean in means.items() for view, more in views.items()}
    expected = stats.ttest_1samp([mean + 0.0005 for mean in means.values()], 0).confidence_interval(0.95)
    low, high = scorer.interval()
    assert low == pytest.approx(expected.low) and high == 1 < expected.high  # no Dice is above 1
    over_photos = stats.ttest_1samp(list(scorer.dice.values()), 0).confidence_interval(0.95)
    assert high - low > 2 * (over_photos.high - over_photos.low)  # control
    scorer.swept = {name: swept for name, swept in scorer.swept.items() if name.startswith("a")}
    assert scorer.interval() is None and "of 1 car\n" in scorer.report()


def test_the_score_of_own_photos_is_by_group_and_has_no_views():
    """Whatever their names look like; the interval is that of the same photos of as many cars."""
    cars = ScorerCallback({}, 0.5)
    both = [(car, view) for car in range(3) for view in (1, 2)]
    cars.swept = {f"{car}_{view:02d}.jpg": {0.5: 0.9 + 0.01 * car + 0.001 * view} for car, view in both}
    own = ScorerCallback({}, 0.5, {name: f"cat {name[0]}" for name in cars.swept})
    own.swept = cars.swept
    assert list(own.table()) == ["image", "car", "dice"]
    assert own.table()["car"].tolist()[:3] == ["cat 0", "cat 0", "cat 1"]
    assert own.table()["image"].tolist() == cars.table()["image"].tolist() and own.interval() == cars.interval()
    assert "6 validation photos of 3 groups; 95 %" in own.report() and "the worst   0_01.jpg 0.9010" in own.report()
    assert "view" not in own.report() and "by view     01 0.9110, 02 0.9120\n" in cars.report()  # control
    alone = ScorerCallback({}, 0.5, {name: name for name in cars.swept})
    alone.swept = cars.swept
    assert alone.interval() != own.interval() and "6 validation photos; 95 %" in alone.report()


def test_the_worst_photos_come_first_and_are_named(masks):
    scorer = scored(masks, blurred(masks, (20, 30)))
    worst = sorted(scorer.dice, key=scorer.dice.get)[:5]
    table = scorer.table()
    assert table["image"].tolist()[:5] == worst and table["dice"].is_monotonic_increasing
    assert table["car"].nunique() == 4 and set(table["view"]) == {f"{view:02d}" for view in range(1, 17)}
    report = scorer.report()
    assert [name for name in masks if name in report] == sorted(worst)
    assert f"score       {scorer.score:.6f}, as Kaggle counts" in report and "4 cars; 95 % interval 0." in report
    seventh = table[table["view"] == "07"]["dice"].mean()
    assert f"07 {seventh:.4f}" in report and max(map(len, report.splitlines())) <= 120


def test_other_thresholds_are_reported_and_change_nothing(masks):
    """A net that sees too little car gains from a lower one. Each mean is that of a run with that threshold."""
    probs = 0.8 * blurred(masks, (20, 30))
    scorer = scored(masks, probs, 0.55)
    means = {cut: scored(masks, probs, cut).score for cut in SWEEP}
    assert scorer.score == means[0.55] < means[0.4]
    assert pd.DataFrame(scorer.swept).mean(axis=1).to_dict() == pytest.approx(means, abs=1e-4)  # enlarged as a whole
    told = dict(re.findall(r"(0\.\d+) (0\.\d{4})(?= \(yours\)|,|\n|$)", scorer.report().partition("threshold ")[2]))
    assert told == {f"{cut:g}": f"{mean:.4f}" for cut, mean in means.items()}
    assert scorer.report().count("(yours)") == 1 and f"0.55 {means[0.55]:.4f} (yours)" in scorer.report()
    assert 0.62 in scored(masks, probs, 0.62).thresholds  # one that is set and not in the sweep


def test_a_mask_that_can_not_be_read_is_named(masks, tmp_path):
    (tmp_path / "broken.gif").write_bytes(b"GIF89a")
    with pytest.raises(UserError, match=r"broken\.gif can't be read as an image"):
        ScorerCallback({"a_01.jpg": tmp_path / "broken.gif"}, 0.5).on_predict_batch(["a_01.jpg"], torch.zeros(1, 4, 4))


def test_the_score_stands_at_the_best_epoch_in_metrics_and_tensorboard_once(drawn, tmp_path):
    saver = ModelSaverCallback(tmp_path / "run", {}, pd.DataFrame())
    logger = TensorboardLoggerCallback(tmp_path / "tb", {})
    classifier = train(drawn, 3, [saver, logger])
    classifier.metrics[1]["valid_dice"] = 0.9999
    before, weights = saver.last.read_bytes(), saver.best.read_bytes()
    table = pd.DataFrame({"image": ["a_01.jpg"], "car": ["a"], "view": ["01"], "dice": [0.25]})
    for score in (0.1, 0.25, 0.25):  # as in a run that is scored again, the second time as before
        saver.save_score(classifier, table, score)
        logger.log_score(classifier, score)
    metrics = pd.read_csv(saver.path / "metrics.csv")
    assert metrics["score"].isna().tolist() == [True, False, True] and metrics["score"][1] == 0.25
    assert not set(classifier.TIMING_METRICS) & set(metrics)
    pd.testing.assert_frame_equal(pd.read_csv(saver.path / "score.csv", dtype={"view": str}), table)
    assert [(each.step, each.value) for each in events(tmp_path / "tb/valid").Scalars("masks/score")] == [
        (2, pytest.approx(0.1)), (2, 0.25),
    ]  # fmt: skip
    assert [each.step for each in events(tmp_path / "tb/valid").Scalars("masks/dice")] == [1, 2, 3]
    assert (saver.last.read_bytes(), saver.best.read_bytes()) == (before, weights)  # nothing to go on from has changed
    saver.on_epoch_end(classifier, 3, {})  # a training that goes on keeps the score of before
    pd.testing.assert_frame_equal(pd.read_csv(saver.path / "metrics.csv"), metrics)
