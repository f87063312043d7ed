"""What TensorBoard shows of a training, read back with TensorBoard's own reader."""

import os
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.data import DataLoader, default_collate

from callbacks.tensorboard import (
    CAPTION_HEIGHT,
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    TRUE_POSITIVE,
    TensorboardLoggerCallback,
    TensorboardVisualizerCallback,
    panel,
    side_by_side,
    spread,
)
from data.dataset import TrainImageDataset
from img.transformer import resize, to_pillow
from nn.classifier import CarvanaClassifier
from runtime.errors import UserError
from test_model_saver import load, make_saver, resume
from tiny import AfterEpoch1, Bright, Jitter, Settings, events, find_files, pixels, train


def test_each_curve_has_one_tag_over_all_epochs(drawn, tmp_path):
    classifier = train(drawn, 3, [TensorboardLoggerCallback(tmp_path, Settings())])
    for part in ("train", "valid"):
        log = events(tmp_path / part)
        tags = {"masks/loss", "masks/dice", "masks/pixel_accuracy", "step/images_per_second"}
        tags |= {"step/learning_rate"} if part == "train" else set()
        assert set(log.Tags()["scalars"]) == tags
        for tag in tags:
            points = [(event.step, event.value) for event in log.Scalars(tag)]
            name = tag.partition("/")[2]
            name = name if name == "learning_rate" else f"{part}_{name}"
            assert points == [(m["epoch"], pytest.approx(m[name], rel=1e-6)) for m in classifier.metrics]
    assert len(list(tmp_path.glob("[tv]*/events.*"))) == 2


def test_a_histogram_shows_the_dice_of_the_images(drawn, tmp_path):
    classifier = train(drawn, 2, [TensorboardLoggerCallback(tmp_path, Settings())])
    histograms = events(tmp_path / "valid").Histograms("masks/dice_per_image")
    assert [each.step for each in histograms] == [1, 2]
    values = histograms[-1].histogram_value
    assert (values.num, values.max) == (16, pytest.approx(classifier.valid_dice.max().item()))
    assert values.sum / 16 == pytest.approx(classifier.metrics[-1]["valid_dice"], abs=1e-6)


def rows(folder):
    """The rows of a run in HParams: name of the folder -> name -> value."""
    return {
        path.parent.name: {
            name: getattr(value, value.WhichOneof("kind"))
            for name, value in HParamsPluginData.FromString(content).session_start_info.hparams.items()
        }
        for path in folder.rglob("events.*")
        for event in LegacyEventFileLoader(str(path)).Load()
        for value in event.summary.value
        if (content := value.metadata.plugin_data.content) and value.metadata.plugin_data.plugin_name == "hparams"
    }


def test_a_run_has_one_row_of_results_and_changed_hyperparameters(drawn, tmp_path):
    hyperparameters = Settings(learning_rate=2.0, threshold=0.0, sizes=(8, 8), augment_img=Jitter(flip=False))
    changed = {"learning_rate": 2.0, "threshold": 0.0, "sizes": "(8, 8)", "flip": False}
    callback, seen = TensorboardLoggerCallback(tmp_path, hyperparameters), []
    classifier = train(drawn, 2, [callback, AfterEpoch1(lambda: seen.append(rows(tmp_path)))])
    best = {"Validation Dice": classifier.best["valid_dice"]}
    assert list(seen[0].values()) == [{"Validation Dice": classifier.metrics[0]["valid_dice"]} | changed]  # unfinished
    assert list(rows(tmp_path).values()) == [best | changed]
    callback.on_score(classifier, 0.25, table_of(0.25))
    earlier = rows(tmp_path)
    callback.on_score(classifier, 0.5, table_of(0.5))
    assert list(rows(tmp_path).values()) == [{"Score": 0.5} | best | changed]
    assert earlier.keys().isdisjoint(rows(tmp_path))  # TensorBoard keeps the first row of a folder
    TensorboardLoggerCallback(tmp_path, hyperparameters).on_train_begin(classifier, None)  # resumed
    assert list(rows(tmp_path).values()) == [best | changed]


@pytest.mark.seconds
def test_the_table_begins_with_score_and_dice(drawn, tmp_path):
    """In the order in which TensorBoard's server returns the columns."""
    for index, rate in enumerate((2.0, 4.0, 3.0)):
        callback = TensorboardLoggerCallback(tmp_path / f"run{index}", Settings(learning_rate=rate, net="Other"))
        classifier = train(drawn, 1, [callback])
        classifier.metrics[0]["valid_dice"] = 0.5 + 0.1 * index
        if index:  # the first has not been scored
            callback.on_score(classifier, 0.7 + 0.1 * index, table_of(0.5))
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    provider = MultiplexerDataProvider(multiplexer, str(tmp_path))
    context, request = Context(TBContext(data_provider=provider)), RequestContext()
    metadata = context.hparams_metadata(request, "")
    experiment = context.experiment_from_metadata(request, "", True, metadata, [])
    assert [info.name for info in experiment.hparam_infos] == ["Score", "Validation Dice", "learning_rate", "net"]
    assert len(metadata) == 3 and not experiment.metric_infos


def table_of(dice):
    """A scorer's table of one image."""
    columns = ["image", "car", "dice", "iou", "precision", "recall", "boundary_distance"]
    return pd.DataFrame([["a.jpg", "a", dice, 0.125, 0.25, 0.375, 1.5]], columns=columns)


def test_a_score_is_added_at_the_best_epoch(drawn, tmp_path):
    classifier = train(drawn, 3, [TensorboardLoggerCallback(tmp_path, Settings())])
    for score in (0.25, 0.5):  # each in a process that only scores: on_train_begin was never called
        TensorboardLoggerCallback(tmp_path, Settings()).on_score(classifier, score, table_of(score))
    best = classifier.best["epoch"]
    log = events(tmp_path / "valid")
    assert [(event.step, event.value) for event in log.Scalars("masks/score")] == [(best, 0.25), (best, 0.5)]
    assert [event.step for event in log.Scalars("masks/dice")] == [1, 2, 3]
    TensorboardLoggerCallback(tmp_path / "empty", Settings()).on_score(
        classifier, 0.5, table_of(0.5).assign(boundary_distance=float("nan")))
    assert set(events(tmp_path / "empty/valid").Tags()["scalars"]) == {
        f"masks/{name}" for name in ("score", "iou", "precision", "recall")}
    for name, mean in {"iou": 0.125, "precision": 0.25, "recall": 0.375, "boundary_distance": 1.5}.items():
        assert [(event.step, event.value) for event in log.Scalars(f"masks/{name}")] == [(best, mean)] * 2


def test_the_same_images_are_shown_every_epoch(drawn, tmp_path):
    train(drawn, 3, [TensorboardVisualizerCallback(tmp_path, count=3)])
    log = events(tmp_path)
    tags = [tag for tag in log.Tags()["images"] if tag.startswith("validation/")]
    assert len(tags) == 3
    for tag in tags:
        images = log.Images(tag)
        assert [image.step for image in images] == [1, 2, 3]
        assert (images[0].height, images[0].width) == (213 + CAPTION_HEIGHT, 3 * 320)  # the images are 80x120
        assert len({image.encoded_image_string for image in images}) > 1  # the net has changed


def prepared(dataset, index):
    """The image (3, H, W) and the mask (h, w) that a net and its loss get, as uint8."""
    images, masks = dataset.prepare(default_collate([dataset[index]]), torch.device("cpu"))
    return images[0].mul(255).round().byte(), masks[0].mul(255).round().byte()


def test_the_worst_images_of_each_epoch_are_shown(drawn, tmp_path):
    """With a classifier whose Dice are known, and in another order in the second epoch."""
    X, y = find_files(drawn, [0])
    dataset = TrainImageDataset(X[:8], y[:8], (20, 28), (16, 24))
    classifier = CarvanaClassifier(Bright(), 2)
    ones = [TrainImageDataset(X[index : index + 1], y[index : index + 1], (20, 28), (16, 24)) for index in range(8)]
    alone = [classifier.validate(DataLoader(one))["valid_dice"] for one in ones]
    classifier.validate(DataLoader(dataset, 3))
    assert classifier.valid_dice.tolist() == pytest.approx(alone) and len(set(alone)) > 4
    callback = TensorboardVisualizerCallback(tmp_path, count=2, width=24)
    callback.on_train_begin(classifier, DataLoader(dataset))
    callback.on_epoch_end(classifier, 1, {})
    classifier.valid_dice = torch.tensor([5.0, 4, 3, 1, 0, 2, 6, 7])
    callback.on_epoch_end(classifier, 2, {})
    for rank in (1, 2):
        shown = [pixels(image) for image in events(tmp_path).Images(f"worst_of_the_epoch/{rank}")]
        for shown_panel, index in zip(shown, (np.argsort(alone)[rank - 1], (4, 3)[rank - 1]), strict=True):
            assert (shown_panel[:16, :24] == prepared(dataset, index)[0][:, 2:-2, 2:-2].permute(1, 2, 0).numpy()).all()


@pytest.mark.parametrize(("size", "height"), [((1, 600), 1), ((600, 1), 4 * 24)])
def test_a_panel_of_a_very_wide_or_high_image_can_be_drawn(tmp_path, size, height):
    for name in ("a.png", "a_mask.gif"):
        to_pillow(torch.full((3, *size), 255, dtype=torch.uint8)).save(tmp_path / name)
    dataset = TrainImageDataset([tmp_path / "a.png"], [tmp_path / "a_mask.gif"], (20, 28), (16, 24))
    callback = TensorboardVisualizerCallback(tmp_path, 1, width=24)
    callback.on_train_begin(CarvanaClassifier(Bright(), 1), DataLoader(dataset))
    assert callback._panel(CarvanaClassifier(Bright(), 1), 0).shape == (3, height + CAPTION_HEIGHT, 3 * 24)


@pytest.mark.parametrize("padding", ["reflect", "stretch"])
def test_image_error_map_and_cut_out_are_of_the_same_window(drawn, tmp_path, padding):
    dataset = TrainImageDataset(*find_files(drawn, [1]), (20, 28), (16, 24), padding=padding)
    classifier, callback = CarvanaClassifier(Bright(), 1), TensorboardVisualizerCallback(tmp_path, 1, width=24)
    classifier.validate(DataLoader(dataset))
    callback.on_train_begin(classifier, DataLoader(dataset))
    callback.on_epoch_end(classifier, 1, {})
    tag = next(tag for tag in events(tmp_path).Tags()["images"] if tag.startswith("validation/"))
    strip = pixels(events(tmp_path).Images(tag)[0])[:-CAPTION_HEIGHT]  # (16, 72, 3)
    index = [path.name for path in dataset.X].index(tag.removeprefix("validation/"))
    image, mask = prepared(dataset, index)
    expected = image[:, 2:-2, 2:-2] if padding == "reflect" else resize(image, (16, 24))
    assert (strip[:, :24] == expected.permute(1, 2, 0).numpy()).all()
    prediction, truth = image[0, 2:-2, 2:-2].numpy() > 127.5, mask.numpy() > 127
    for color, where in {
        TRUE_POSITIVE: prediction & truth,
        FALSE_NEGATIVE: ~prediction & truth,
        FALSE_POSITIVE: prediction & ~truth,
    }.items():
        assert ((strip[:, 24:48] == color).all(-1) == where).all() and where.any()
    assert ((strip[:, 48:] > 0).any(-1) <= prediction).all()


@pytest.mark.parametrize("cars", [1, 2, 4, 8, 64])
def test_the_images_shown_are_of_several_angles_and_cars(cars):
    names = [f"{car:02d}_{angle:02d}.jpg" for car in range(cars) for angle in range(1, 17)]
    names = [names[index] for index in spread(4, len(names))]
    assert len({name[-6:] for name in names}) >= 3 and len({name[:2] for name in names}) == min(cars, 4)


def test_an_error_map_has_a_color_per_kind_of_pixel():
    image = torch.full((3, 1, 4), 99, dtype=torch.uint8)
    prediction, mask = torch.tensor([[True, False, True, False]]), torch.tensor([[True, True, False, False]])
    strip = side_by_side(image, prediction, mask)[:, 0].T.tolist()
    assert strip[:4] == [[99, 99, 99]] * 4
    assert [tuple(pixel) for pixel in strip[4:8]] == [TRUE_POSITIVE, FALSE_NEGATIVE, FALSE_POSITIVE, (0, 0, 0)]
    assert strip[8:] == [[99, 99, 99], [0, 0, 0], [99, 99, 99], [0, 0, 0]]
    caption = panel(image, prediction, mask, (20, 320), "a.jpg")[:, 20:].flatten(1).T  # (pixels, 3)
    assert caption.shape == (CAPTION_HEIGHT * 3 * 320, 3)
    for color in (TRUE_POSITIVE, FALSE_NEGATIVE, FALSE_POSITIVE):
        assert (caption == torch.tensor(color)).all(1).any()


@pytest.mark.seconds
@pytest.mark.parametrize("case", ["even", "behind", "ahead", "cut"])
def test_resumed_curves_have_no_gap_and_no_double_point(drawn, tmp_path, case):
    """Each way in which a kill can leave the log: complete, an epoch behind, an epoch ahead, cut within a record."""
    saver, kept = make_saver(tmp_path / "run"), {}

    def boards():
        return [
            TensorboardLoggerCallback(tmp_path / "logs", Settings()),
            TensorboardVisualizerCallback(tmp_path / "viz", 2),
        ]

    def curves():
        return [path for path in tmp_path.rglob("events.*") if "hparams" not in path.parts]

    def keep():
        kept.update({path: path.read_bytes() for path in [saver.last, *curves()]})

    train(drawn, 2, [saver, *boards(), AfterEpoch1(keep)])
    for path, content in kept.items():
        if case == "cut" and path != saver.last:
            os.truncate(path, path.stat().st_size - 5)
        elif (case, path == saver.last) in (("behind", False), ("ahead", True)):
            path.write_bytes(content)
    resume(drawn, saver, 2, boards())  # finished already: what is missing is added all the same
    for tag in events(tmp_path / "logs/train").Tags()["scalars"]:
        assert case == "ahead" or events(tmp_path / "logs/train").Scalars(tag)[-1].step == 2, tag
    resume(drawn, saver, 4, boards())
    for log in (tmp_path / "logs/train", tmp_path / "logs/valid", tmp_path / "viz"):
        found = events(log)
        for tag in found.Tags()["scalars"]:
            assert [event.step for event in found.Scalars(tag)] == [1, 2, 3, 4], tag
        for tag in found.Tags()["images"]:
            assert [event.step for event in found.Images(tag)] == [1, 2, 3, 4], tag
        assert found.Tags()["scalars"] or found.Tags()["images"]


@pytest.mark.parametrize(
    "board",
    [partial(TensorboardLoggerCallback, hyperparameters=Settings()), partial(TensorboardVisualizerCallback, width=24)],
)
def test_a_full_disk_ends_the_training_at_once(drawn, small_disk, tmp_path, board):
    folder, fill = small_disk
    saver = make_saver(tmp_path / "run")
    where = rf"{folder}/log\S* .*\(No space left on device\)"
    with pytest.raises(UserError, match=where):
        train(drawn, 60, [saver, board(folder / "log"), AfterEpoch1(fill)])
    with pytest.raises(UserError, match=where):
        resume(drawn, saver, 60, [board(folder / "log")])
    saved = load(saver.last)["epoch"]
    assert 2 <= saved < 60  # at the second epoch, or a little later if the last page of the file has room left
    (folder / "filler").unlink()
    assert resume(drawn, saver, saved + 1, [board(folder / "log")]).epoch == saved + 1
