"""main.py and the commands of the README and of docs/, run as a user runs them."""

import ast
import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from callbacks.model_saver import ModelSaverCallback
from conftest import ROOT
from data import dataset
from data.cache import PairCache
from data.fetcher import DatasetFetcher
from data.layout import make_layout
from data.reader import Reader
from data.unpack import format_bytes
from img import rle
from img.augmentation import Augmentation
from img.mask import decode_mask
from nn.classifier import CarvanaClassifier
from nn.metrics import dice_per_image
from nn.unet import UNet1024
from nn.unet_origin import UNetOriginal
from processes import SMALL_MAIN, Program
from runtime.errors import UserError
from runtime.files import version
from runtime.machine import MODES
from runtime.run import Run, load_run
from test_predictions_saver import rows_of
from test_scorer import METRICS
from tiny import SMALL, SMALL_NETS

UNET1024 = "--net UNet1024 --input-img-resize 128 128 --output-img-resize 128 128 --batch-size 8 --device cpu".split()


def fetcher(folder):
    """Of Carvana's images in that folder."""
    return DatasetFetcher(make_layout("carvana", folder, None, None))


def score(submission, masks):
    """Mean Dice per image of a submission, at full size."""
    scores = []
    header, *rows = rows_of(submission)
    assert header == ["img", "rle_mask"]
    assert [name for name, _ in rows] == [path.name.replace("_mask.gif", ".jpg") for path in sorted(masks.iterdir())]
    for name, runs in rows:
        truth = decode_mask((masks / name.replace(".jpg", "_mask.gif")).read_bytes()) > 0
        scores.append(dice_per_image(rle.decode(runs, truth.shape[1:])[None], truth).item())
    return np.mean(scores)


@pytest.mark.seconds
def test_the_whole_way_in_small(drawn, run_main, tmp_path, monkeypatch):
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.setenv(name, "a-secret-of-the-user")
    code, printed = run_main("--input-dir", drawn, *SMALL, "--epochs", "2", "--workers", "1")
    assert code == 0, printed
    assert "\ndata        48 images of 3 cars to train on, 16 of 1 to validate on; 16 to predict\n" in printed
    assert len(re.findall(r"^epoch [12]/2 ( +\d\.\d{4}){4} ", printed, re.MULTILINE)) == 2
    assert all(len(line) <= 80 for line in printed.splitlines() if line.startswith("epoch"))
    run = next((tmp_path / "output/models").iterdir())
    for path in (run / "best.pt", tmp_path / "output/submit.csv.gz"):
        assert path.exists() and str(path) in printed
    for folder in ("tb_viz", "tb_logs"):
        assert list((tmp_path / "logs" / folder / run.name.removeprefix("model_")).rglob("events.*"))
    assert {path.name for path in (tmp_path / "output").iterdir()} == {"models", "submit.csv.gz", ".lock", "cache"}
    cached = f"cache       {tmp_path}/output/cache: {format_bytes(64 * (4 * 32 * 48 + 8))}, safe to delete; it contains"
    assert printed.count(cached) == 1
    assert len(rows_of(tmp_path / "output/submit.csv.gz")) == 17
    scores = re.findall(r"^score +(0\.\d{6}), as Kaggle computes it", printed, re.MULTILINE)
    table = pd.read_csv(run / "score.csv")
    assert len(scores) == 1 and len(table) == 16 and table["dice"].mean() == pytest.approx(float(scores[0]), abs=1e-6)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 8 and not any(b"a-secret-of" in path.read_bytes() for path in files)
    assert "a-secret-of" not in printed

    files = [*run.glob("*.csv"), run / "last.pt", tmp_path / "output/submit.csv.gz"]
    kept = {path: path.read_bytes() for path in files}
    shutil.rmtree(tmp_path / "output/cache")
    code, again = run_main("--resume", run, "--score-only")
    assert not (tmp_path / "output/cache").exists()
    assert code == 0, again
    assert f"score       {scores[0]}, as Kaggle computes it" in again and "epoch 2/2" not in again
    assert {path: path.read_bytes() for path in kept} == kept


@pytest.mark.seconds
@pytest.mark.parametrize("padding", ["reflect", "stretch"])
def test_the_papers_net_goes_the_whole_way_too(drawn, run_main, tmp_path, padding):
    sizes = "--input-img-resize 48 64 --output-img-resize 32 48".split()
    code, printed = run_main("--input-dir", drawn, *sizes, "--padding", padding, "--epochs", "1")
    assert code == 0 and "from 48x64 pixels to 32x48" in printed, printed
    assert len(rows_of(tmp_path / "output/submit.csv.gz")) == 17


@pytest.mark.seconds
def test_own_images_go_the_whole_way_to_a_cut_out(own, run_main, tmp_path):
    """Images of different sizes: trained, scored, resumed, and cut out with the printed command."""
    images = ["--dataset", "own", "--input-dir", own, "--group-regex", "(.+)-"]
    code, printed = run_main(*images, *SMALL, "--epochs", "1", "--workers", "1")
    assert code == 0, printed
    assert printed.startswith("masks       gray levels: the object is 255; values between 0 and it are soft labels\n")
    assert "\ndata        6 images of 3 groups to train on, 2 of 1 to validate on\n" in printed
    assert f"            in {own}/images, masks in {own}/masks\n" in printed
    assert "2 validation images of 1 group" in printed and "by angle" not in printed
    run = next((tmp_path / "output/models").iterdir())
    score, split = pd.read_csv(run / "score.csv"), pd.read_csv(run / "split.csv")
    assert list(score) == ["image", "car", *METRICS] and score["car"].nunique() == 1 and len(score) == 2
    assert set(split[split["part"] == "valid"]["image"]) == set(score["image"]) and len(split) == 8
    assert len(set(split["car"])) == 4 and not (tmp_path / "output/submit.csv.gz").exists()

    code, again = run_main("--resume", "last", "--epochs", "2")
    assert code == 0 and f"Resuming {run} after epoch 1 of 2." in again, again
    assert pd.read_csv(run / "split.csv").equals(split) and len(pd.read_csv(run / "metrics.csv")) == 2
    _, other = run_main("--resume", "last", "--group-regex", "cat")
    assert f"--group-regex must stay (.+)- in {run}, not cat" in other  # control: it was kept

    (command,) = re.findall(r"(python predict\.py .*)$", again, re.MULTILINE)
    _, script, photo, *options = shlex.split(command)
    worst = pd.read_csv(run / "score.csv")["image"][0]
    as_scored = ["--threshold", "0.5", "--tta", "False"]  # which a resume may change, and the model would not know
    assert photo == str(own / "images" / worst) and options == ["--model", str(run / "best.pt"), *as_scored]
    shutil.rmtree(tmp_path / "output/cache")
    cut = Program(SMALL_MAIN[0], script, photo, *options, "--output-dir", tmp_path / "cutouts")
    assert cut.ended() and cut.code == 0, cut.printed
    assert not list(tmp_path.rglob("*.cache"))
    assert f"{photo}: " in cut.printed and "1 image cut out, in" in cut.printed
    with Image.open(photo) as image, Image.open(tmp_path / f"cutouts/{worst.split('.')[0]}_mask.png") as made:
        assert made.size == image.size


FAULTS = [
    ("--net UNet1024", "576x576. Pass --input-img-resize 512 512 --output-img-resize 512 512."),
    ("--net UNet1024 --input-img-resize 1000 1024", "Pass --input-img-resize 960 1024 --output-img-resize 960 1024"),
    ("--input-img-resize 600 572", "Pass --input-img-resize 588 572 --output-img-resize 404 388."),
    ("--input-img-resize -572 572", "Pass --input-img-resize 188 572"),
    ("--output-img-resize 572 572", "--output-img-resize must be 388 388: UNetOriginal makes masks of that size from"),
    ("--sample-size 0", "--sample-size must be in the range (0, 1], not 0.0."),
    ("--sample-size nan", "--sample-size must be in the range (0, 1], not nan."),
    ("--validation-size 1.5", "--validation-size must be in the range (0, 1), not 1.5."),
    ("--mask-values 1", "--mask-values ('1',) is for images of your own: pass --dataset own too, or omit it."),
    ("--batch-size 0", "--batch-size must be in the range [1, 1e6], not 0."),
    ("--epochs 10000000000000000000000", "--epochs must be in the range [1, 1e6], not 10000000000000000000000."),
    ("--input-img-resize 100000000000000000 572", "Pass --input-img-resize 65532 572"),
    ("--workers -1", "--workers must be in the range [0, 1024], not -1."),
    ("--rotation 181", "--rotation must be in the range [0, 180], not 181.0."),
    ("--ema-decay 1", "--ema-decay must be in the range [0, 1), not 1.0."),
    ("--half-size-epochs 3", "--half-size-epochs must be 0: half of 572x572 is not a valid size for UNetOriginal."),
    ("--net UNet1024 --input-img-resize 256 320 --output-img-resize 256 320 --half-size-epochs 1", "half of 256x320"),
    ("--net UNet1024 --input-img-resize 256 256 --output-img-resize 256 256 --half-size-epochs 50",
     "--half-size-epochs must be less than --epochs 50, not 50."),
    ("--warmup-epochs 3 --epochs 3", "--warmup-epochs must be less than --epochs 3, not 3.0."),
    ("--schedule one_cycle --warmup-epochs 1", "--warmup-epochs cannot be combined with --schedule one_cycle"),
    ("--edge-weight 0.5", "--edge-weight must be in the range [1, 1000], not 0.5."),
    ("--score-only", "--score-only needs a run: pass --resume last too."),
    ("--device cuda:99", "--device cuda:99 is not on this machine"),
    ("--input-dir EMPTY", "There is no"),
    ("--output-dir FILE/output", "Cannot write to FILE/output (Not a directory). Pass another folder."),
    ("--logs-dir FILE", "Cannot write to FILE (File exists). Pass another folder."),
    ("--dataset sample --input-dir FILE", "Cannot write to FILE (File exists). Pass another folder."),
    ("--dataset own --input-dir FILE", "There are no images in FILE itself"),
    ("--dataset own --input-dir EMPTY", "There are no images in EMPTY itself"),
    ("--dataset own --group-regex (a", "--group-regex '(a'"),
    ("--dataset own --group-regex a{99999999999}", "is not a regular expression (the repetition number is too large)"),
    ("--dataset sample --hq-files True", "--hq-files is for Kaggle's images: omit it."),
    ("--dataset own --hq-files True", "--hq-files is for Kaggle's images: omit it."),
    ("--group-regex a", "--group-regex 'a' is for images of your own: pass --dataset own too, or omit it."),
]


@pytest.mark.parametrize(("arguments", "expected"), FAULTS)
def test_a_mistake_of_the_user_ends_in_one_sentence(main_here, tmp_path, arguments, expected):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    places = {"EMPTY": str(tmp_path / "empty"), "FILE": str(tmp_path / "file")}
    for name, place in places.items():
        arguments, expected = arguments.replace(name, place), expected.replace(name, place)
    code, _ = main_here(*shlex.split(arguments))
    assert str(code).startswith("main.py: ") and expected in code
    assert not list(tmp_path.glob("output/models/*"))


def test_a_run_on_a_full_disk_ends_in_one_sentence(drawn, main_here, small_disk):
    """Its first checkpoint is larger than the disk, which shows before the first step."""
    folder, _ = small_disk
    code, _ = main_here("--input-dir", str(drawn), *UNET1024, "--workers", "0", "--output-dir", str(folder))
    (run,) = (folder / "models").iterdir()
    assert code.startswith(f"main.py: Cannot write {run}/last.pt (No space left on device). Make room")
    assert not list(run.glob("*.p*"))


@pytest.fixture
def saved_run(drawn, main_here, small_net, monkeypatch, tmp_path):
    """The folder of a run that has been trained for no epoch yet."""

    def stop(*_):
        raise UserError("stopped")

    monkeypatch.setattr("nn.classifier.CarvanaClassifier.train_epoch", stop)
    code, _ = main_here("--input-dir", str(drawn), *SMALL, "--workers", "0", "--seed", "5", "--epochs", "7")
    assert re.match(r"main.py: stopped The initial weights are saved; continue with: \S*python main.py --r", code), code
    return next((tmp_path / "output/models").iterdir())


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--batch-size 4", "--batch-size must stay 8 in RUN, not 4: omit it, or start a new run."),
        ("--net UNetOriginal", "--net must stay UNet1024 in RUN, not UNetOriginal"),
        ("--seed 1", "--seed must stay 5 in RUN, not 1"),
        ("--sample-size 0.5", "--sample-size must stay None in RUN, not 0.5"),
        ("--rotation 9", "--rotation must stay 5.0 in RUN, not 9.0"),
        ("--dataset sample", "--dataset must stay carvana in RUN, not sample"),
        ("--input-img-resize 64 64 --output-img-resize 64 64", "--input-img-resize must stay (32, 48) in RUN"),
        ("--score-only", "RUN has no complete epoch to score. Resume it without --score-only."),
    ],
)
def test_a_resumed_run_refuses_what_would_make_it_another(saved_run, main_here, option, expected):
    code, _ = main_here("--resume", "last", *option.split())
    assert code.startswith("main.py: " + expected.replace("RUN", str(saved_run)))


@pytest.fixture
def seen(monkeypatch):
    """What train() is called with; the training itself stands still."""
    seen = {}

    def train(self, train_loader, valid_loader, optimizer, scheduler=None, callbacks=()):
        seen.update(locals())
        raise UserError("seen")

    monkeypatch.setattr("nn.classifier.CarvanaClassifier.train", train)
    return seen


def test_a_resumed_run_keeps_every_other_value(saved_run, main_here, request, drawn):
    seen = request.getfixturevalue("seen")  # after the run has been saved
    others = "--epochs 9 --workers 1 --precision float32 --batch-size 8".split()
    code, _ = main_here("--resume", str(saved_run), *others)
    assert code.startswith("main.py: seen"), code
    classifier, loader = seen["self"], seen["train_loader"]
    assert (classifier.seed, classifier.epochs, classifier.precision) == (5, 9, torch.float32)
    assert isinstance(classifier.net, SMALL_NETS["UNet1024"]) and isinstance(seen["optimizer"], torch.optim.RMSprop)
    assert (loader.batch_size, loader.num_workers, loader.dataset.X[0].parent.parent) == (8, 1, drawn)
    saver = seen["callbacks"][0]
    assert saver.folder == saved_run and saver.settings["hyperparameters"]["epochs"] == 9
    assert saver.settings["options"]["resume"] is None
    assert {board.path.name for board in seen["callbacks"][1:3]} == {saved_run.name[len("model_"):]}


def test_a_run_of_another_version_is_refused_in_one_sentence(saved_run, main_here):
    state = torch.load(saved_run / "last.pt", weights_only=True)
    assert state["version"] == version()
    del state["hyperparameters"]["augment_img"]["grayscale"]
    torch.save(state | {"version": "0.9.1 (0a1b2c3)"}, saved_run / "last.pt")
    code, _ = main_here("--resume", "last")
    expected = f"is not a checkpoint of this version of the program, {version()}, but of 0.9.1 (0a1b2c3) (KeyError: "
    assert code == f"main.py: {saved_run}/last.pt {expected}'grayscale'). Use that version, or start a new run."


@pytest.mark.parametrize("done", [0, 3])
def test_a_schedule_that_decays_keeps_its_epochs(saved_run, main_here, done):
    """One that is constant has no end: the test above changes them."""
    state = torch.load(saved_run / "last.pt", weights_only=True)
    state["hyperparameters"]["schedule"], state["metrics"] = "cosine", [{"epoch": 3, "valid_dice": 0.5}] * done
    torch.save(state, saved_run / "last.pt")
    code, _ = main_here("--resume", "last", "--epochs", "9")
    expected = f"--epochs must stay 7 in {saved_run}, whose learning rate falls over that many: omit it, or start"
    assert code.startswith(f"main.py: {expected} a new run")
    for epochs in ("7", *["3"] * bool(done)):
        assert "--epochs must stay" not in main_here("--resume", "last", "--epochs", epochs)[0]  # but other faults


def test_a_trained_run_may_be_scored_at_another_threshold(saved_run, main_here):
    """While it trains, the threshold judges which epoch is the best."""
    state = torch.load(saved_run / "last.pt", weights_only=True)
    torch.save(state | {"metrics": [{"epoch": 3, "valid_dice": 0.5}] * 7}, saved_run / "last.pt")
    kept = (saved_run / "last.pt").read_bytes()
    for options, refused in (("--tta", False), ("", False), ("--epochs 9", True), ("--epochs 9 --score-only", False)):
        options = ["--threshold", "0.4", *options.split()]
        assert (saved_run / "last.pt").read_bytes() == kept
        code, _ = main_here("--resume", "last", *options)
        assert ("--threshold must stay 0.5" in code) == refused and "--tta must" not in code


def test_what_is_not_a_run_to_resume_is_named(saved_run, main_here, tmp_path):
    code, _ = main_here("--resume", str(tmp_path))
    assert code.startswith(f"main.py: {tmp_path} is not a run to resume: it has no last.pt.")
    code, _ = main_here("--resume", "a" * 300)
    assert code == f"main.py: {'a' * 300}/last.pt cannot be used (File name too long)."
    code, _ = main_here("--resume", "last", "--output-dir", str(tmp_path / "none"))
    assert code == f"main.py: There is no run to resume in {tmp_path}/none/models."
    (saved_run.parent / "model_2999").mkdir()  # stopped before it saved anything: the one before is the last
    assert load_run("last", saved_run.parent.parent)[0] == saved_run
    (saved_run / "last.pt").write_bytes((saved_run / "last.pt").read_bytes()[:1000])
    code, _ = main_here("--resume", str(saved_run))
    assert re.match(rf"main.py: {saved_run}/last.pt is (no|not a) checkpoint", code)
    torch.save({"net": torch.zeros(1)}, saved_run / "last.pt")
    code, _ = main_here("--resume", str(saved_run))
    other = f"last.pt is not a checkpoint of this version of the program, {version()}, but of an earlier one or another"
    assert f"{other} program (KeyError: 'hyperparameters'). Use that version, or start a new run." in code
    split = {"car": ["a"], "image": ["a_01.jpg"], "part": ["train"]}
    others = {"options": {}, "metrics": [], "world_size": 1}
    torch.save({"hyperparameters": {"net": "UNet1024"}, "split": split} | others, saved_run / "last.pt")
    code, _ = main_here("--resume", str(saved_run / "last.pt"))
    assert other in code


def test_a_misspelled_option_is_named_with_the_one_that_was_meant(main_here):
    code, printed = main_here("--epoch", "3")
    assert code == 2 and "--epoch, 3" in printed and "--epochs INT" in printed


@pytest.mark.parametrize(("size", "most"), [((572, 572), 3), ((1024, 1024), 1), ((256, 256), 8), ((2048, 2048), 1)])
def test_validation_takes_no_more_memory_than_training_on_an_image(size, most):
    """Of UNetOriginal at 572x572, a step with 1 image took 1.7 GiB, predicting 3 images 1.5 GiB, and 12 images 4 GiB.

    With more, "out of memory" in a validation could not be cured by a smaller --batch-size, as its message advises.
    """
    images = dataset.TestImageDataset([Path("a.jpg")] * 100, size, size)
    assert Run.eval_loader(SimpleNamespace(loading={"batch_size": 1}), images).batch_size == most


@pytest.mark.seconds
def test_the_workers_of_the_training_have_ended_when_the_run_predicts(drawn, main_here, small_net, monkeypatch):
    alive, others = [], multiprocessing.active_children()  # of other tests
    predict = CarvanaClassifier.predict
    monkeypatch.setattr(
        "nn.classifier.CarvanaClassifier.predict",
        lambda *args, **kwargs: (
            alive.append([each for each in multiprocessing.active_children() if each not in others]),
            predict(*args, **kwargs),
        ),
    )
    code, printed = main_here("--input-dir", str(drawn), *SMALL, "--epochs", "1", "--workers", "2")
    assert code == 0, printed
    assert alive == [[], []]  # the score and the submission


@pytest.mark.seconds
def test_a_truncated_image_ends_the_run_by_name(drawn, main_here, small_net, tmp_path):
    folder = shutil.copytree(drawn, tmp_path / "input")
    photo = fetcher(folder).get_train_files()[0][5]
    os.truncate(photo, photo.stat().st_size // 2)
    code, printed = main_here("--input-dir", str(folder), *SMALL, "--epochs", "1", "--workers", "1")
    assert code.startswith(f"main.py: {photo} cannot be read as an image") and "Traceback" not in printed


def learning_rates(optimizer, scheduler, count):
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.seconds
def test_main_wires_what_it_was_told(drawn, main_here, seen):
    """Each hyperparameter arrives where it works."""
    sizes = "--input-img-resize 188 204 --output-img-resize 4 20 --padding stretch --batch-size 2 --epochs 7"
    rates = "--learning-rate 0.03 --momentum 0.8 --threshold 0.4 --seed 5 --precision float32 --workers 0 --device cpu"
    main_here("--input-dir", str(drawn), *sizes.split(), *rates.split())
    train_ds, valid_ds, optimizer = seen["train_loader"].dataset, seen["valid_loader"].dataset, seen["optimizer"]
    X_train, y_train, X_valid, y_valid = fetcher(drawn).get_train_files(seed=5)
    assert (train_ds.X, train_ds.y, valid_ds.X, valid_ds.y) == (X_train, y_train, X_valid, y_valid)
    assert train_ds.X_transform == Augmentation() and valid_ds.X_transform is None
    assert train_ds.soft_labels and valid_ds.soft_labels
    assert (train_ds.padding, valid_ds.padding, train_ds.seed) == ("stretch", "stretch", 5)
    prepared = valid_ds.prepare(next(iter(seen["valid_loader"])), torch.device("cpu"))
    assert [part.shape for part in prepared] == [(8, 3, 188, 204), (8, 4, 20)]
    assert isinstance(train_ds.reader, PairCache) and train_ds.reader is valid_ds.reader
    assert (seen["train_loader"].batch_size, seen["valid_loader"].batch_size) == (2, 8)
    of_workers = {seen[loader].worker_init_fn for loader in ("train_loader", "valid_loader")}
    assert [each.__name__ for each in of_workers] == ["quiet_worker"]
    orders = []
    for epoch in (1, 1, 2):
        seen["train_loader"].sampler.set_epoch(epoch)
        orders.append(list(seen["train_loader"].sampler))
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == list(range(48)) != orders[0]
    assert list(seen["valid_loader"].sampler) == list(range(16))
    assert isinstance(optimizer, torch.optim.SGD)
    assert {name: optimizer.defaults[name] for name in ("lr", "momentum")} == {"lr": 0.03, "momentum": 0.8}
    classifier = seen["self"]
    assert (classifier.threshold, classifier.seed, classifier.epochs) == (0.4, 5, 7)
    learnt = [param for group in optimizer.param_groups for param in group["params"]]
    assert set(learnt) == set(classifier.net.parameters()) and len(learnt) == len(set(learnt))
    assert classifier.eval_net is classifier.net and not classifier.grad_clip and classifier.accumulate_steps == 1
    assert not any(group["weight_decay"] for group in optimizer.param_groups)
    assert learning_rates(optimizer, seen["scheduler"], 3) == [0.03] * 3
    assert isinstance(classifier.net, UNetOriginal) and classifier.precision == torch.float32
    assert classifier.model is classifier.net

    small = ["--input-dir", str(drawn), *UNET1024, "--workers", "0", "--compile"]
    small += "--optimizer RMSprop --learning-rate 0.0002".split()
    _, told = main_here(*small, "--no-predict", "--no-cache")
    assert "Warning:" not in told
    assert seen["self"].model.net is seen["self"].net is seen["self"].eval_net
    assert seen["self"].model.speed_up is MODES["compile"]
    assert isinstance(seen["train_loader"].dataset.reader, Reader)
    assert isinstance(seen["optimizer"], torch.optim.RMSprop) and seen["optimizer"].defaults["lr"] == 0.0002
    assert isinstance(seen["self"].net, UNet1024)
    optimizer = "--optimizer AdamW --learning-rate 0.01".split()
    again = [*sizes.split(), *rates.split()[:-6], "--seed", "5", "--device", "cpu", *optimizer]
    _, told = main_here("--input-dir", str(drawn), *again)
    assert "Warning: --learning-rate 0.01 is high for AdamW; try 0.001." in told
    assert all(map(torch.equal, seen["self"].net.state_dict().values(), classifier.net.state_dict().values()))


@pytest.mark.seconds
def test_main_wires_the_step_and_the_augmentation(drawn, main_here, seen):
    step = "--optimizer AdamW --learning-rate 0.0002 --weight-decay 0.02 --schedule cosine --warmup-epochs 0.5"
    step += " --grad-clip 2 --edge-weight 3 --ema-decay 0.9 --accumulate-steps 3"
    light = "--no-soft-labels --no-flip --shift 0.1 --scale 0.2 --rotation 3"
    light += " --color-jitter 0.4 --grayscale 0.5 --blur 0.6"
    sizes = "--input-img-resize 256 256 --output-img-resize 256 256 --half-size-epochs 2 --epochs 4 --workers 0"
    main_here("--input-dir", str(drawn), *UNET1024, *sizes.split(), *step.split(), *light.split())
    classifier, optimizer = seen["self"], seen["optimizer"]
    assert isinstance(optimizer, torch.optim.AdamW) and optimizer.param_groups[0]["weight_decay"] == 0.02
    assert classifier.grad_clip == 2 and classifier.accumulate_steps == 3 and classifier.eval_net is not classifier.net
    assert classifier.edge_weight == 3
    lengths = learning_rates(optimizer, seen["scheduler"], 4 * 2)  # epochs times steps, of three batches of 8
    assert lengths[:2] == pytest.approx([0.0002 / 2, 0.0002])
    assert 0 < lengths[-1] < lengths[4] < 0.0002 and optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)
    dataset = seen["train_loader"].dataset
    told = dict(flip=False, shift=0.1, scale=0.2, rotation=3, color_jitter=0.4, grayscale=0.5, blur=0.6)
    assert dataset.X_transform == Augmentation(**told)
    assert not dataset.soft_labels and seen["valid_loader"].dataset.soft_labels
    assert (dataset.half_size_epochs, seen["valid_loader"].dataset.half_size_epochs) == (2, 0)


@pytest.mark.seconds
def test_the_submission_is_made_with_the_best_weights_and_the_threshold(drawn, main_here, monkeypatch, tmp_path):
    """And the score too. An epoch that is worse comes last: restoring the best is what keeps it out of them."""
    restored, thresholds = [], []

    def train(self, train_loader, valid_loader, optimizer, scheduler=None, callbacks=()):
        self.optimizer = optimizer
        saver = next(callback for callback in callbacks if isinstance(callback, ModelSaverCallback))
        saver.on_train_begin(self, valid_loader)
        for self.epoch, dice in ((1, 0.9), (2, 0.1)):
            self.metrics.append({"epoch": self.epoch, "valid_dice": dice} | dict.fromkeys(self.TIMING_METRICS, 1.0))
            saver.on_epoch_end(self, self.epoch, self.metrics[-1])
            restored.append(self.net.head.bias.item())
            self.net.head.bias.data.add_(100)

    def predict(self, test_loader, callbacks, title="predict"):
        dataset = test_loader.dataset
        assert dataset.tta
        restored.append(self.net.head.bias.item())
        sizes = dataset.input_img_resize, dataset.output_img_resize, dataset.padding
        thresholds.append((title, callbacks[0].threshold, sizes))
        assert title == "score" or callbacks[0].origin_img_size == (80, 120)
        names = [path.name for path in dataset.X]
        callbacks[0].on_batch_gathered(callbacks[0].on_predict_batch(names, torch.zeros(len(names), 4, 4)))

    monkeypatch.setattr("nn.classifier.CarvanaClassifier.train", train)
    monkeypatch.setattr("nn.classifier.CarvanaClassifier.predict", predict)
    sizes = "--input-img-resize 188 188 --output-img-resize 4 4 --padding stretch --threshold 0.3 --tta --device cpu"
    assert main_here("--input-dir", str(drawn), *sizes.split())[0] == 0
    assert restored[3] == restored[2] == restored[0] != restored[1]
    sizes = (188, 188), (4, 4), "stretch"
    assert thresholds == [("score", 0.3, sizes), ("predict", 0.3, sizes)]


def test_help_explains_every_option_in_three_groups_of_80_columns(main_here, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, printed = main_here("--help")
    assert code == 0 and max(map(len, printed.splitlines())) <= 80
    groups = re.findall(r"^\W*(\S+) options", printed, re.MULTILINE)
    assert groups == ["hyperparameters", "hyperparameters.augment-img", "run"]
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", printed).split())
    for file, count in (("main.py", 23), ("img/augmentation.py", 7), ("runtime/run.py", 18)):
        fields = re.findall(r"^    (\w+): (?!Augm).* = .*  # (.*)$", (ROOT / file).read_text(), re.MULTILINE)
        assert len(fields) == count
        for name, comment in fields:
            assert f"--{name.replace('_', '-')}" in text and comment in text


@pytest.mark.seconds
def test_help_imports_no_library_that_it_does_not_need():
    """Each takes a good part of a second, and torch._dynamo two."""
    program = """
import runpy, sys
try:
    runpy.run_path("main.py", run_name="__main__")
except SystemExit:
    print("loaded:", *sys.modules)
"""
    command = [sys.executable, "-c", program, "--help"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=True)
    loaded = set(done.stdout.partition("loaded: ")[2].split())
    assert {"torch", "tyro", "callbacks.tensorboard"} <= loaded  # control
    assert not loaded & {"torchvision", "torch._dynamo", "sklearn", "scipy", "kaggle", "kagglesdk", "tensorboard"}


PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))


def commands(prefix, pages=PAGES):
    """The lines of the pages' code blocks that begin so, with continued lines joined, each of them once."""
    blocks = [block for page in pages for block in re.findall(r"```\w*\n(.*?)```", page.read_text(), re.DOTALL)]
    lines = [" ".join(line.split("  #")[0].split()) for line in "\n".join(blocks).replace("\\\n", " ").splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith(prefix)))


@pytest.mark.parametrize("command", commands("python main.py"))
def test_the_commands_of_the_pages_get_as_far_as_the_data(command, main_here, tmp_path):
    """Net, sizes and options are accepted; then there are no photos, or no run to go on with."""
    (tmp_path / "empty").mkdir()
    arguments = shlex.split(command)[2:]
    if "sample" in arguments:  # there always are drawn photos: give it some that have lost their masks
        (tmp_path / "empty" / "sample").mkdir()
    code, printed = main_here(*arguments, "--input-dir", str(tmp_path / "empty"))
    ends = {"--resume": "run to resume", "sample": "sample", "--help": "usage: main.py"}
    ends |= {"own": "There are no images in", "--weights": "Cannot read", "--predict-with": "Cannot read"}
    expected = next((ends[word] for word in arguments if word in ends), "There is no")
    assert expected in str(code) + printed


@pytest.mark.seconds
def test_kaggle_md_goes_from_an_account_to_a_score_in_eight_lines():
    """Its last commands are ones that Kaggle's client has, and the one that main.py prints."""
    page = (ROOT / "docs" / "kaggle.md").read_text()
    section = page.partition("## From an account to a score\n")[2].partition("```\n")[2]
    lines = section.partition("```")[0].splitlines()
    assert len(lines) <= 8 and lines[3] == "python main.py" and sorted(lines[4:]) == sorted(commands("kaggle"))
    printed = fetcher("input").next_step("output/submit.csv.gz", "best.pt", "a.jpg")
    assert printed.partition("kaggle")[1:] == lines[4].partition("kaggle")[1:]
    for command, code in ((lines[4], 1), (lines[5], 1), (f"{lines[5]} --nonsense", 2)):  # the last one is the control
        done = subprocess.run([sys.executable, "-m", *shlex.split(command)], capture_output=True, text=True)
        assert done.returncode == code, done.stderr  # understood, it wants a key, which there is none of here
        assert code == 2 or "Authentication required" in done.stdout


@pytest.mark.parametrize(("arguments", "needed"), [("", True), ("--no-predict", False), ("--check-data", False)])
def test_test_images_are_downloaded_only_for_a_prediction(main_here, monkeypatch, arguments, needed):
    def download_dataset(self, test_images):
        raise UserError(f"seen {test_images}")

    monkeypatch.setattr("data.fetcher.DatasetFetcher.download_dataset", download_dataset)
    assert main_here(*arguments.split())[0] == f"main.py: seen {needed}"


def test_make_demo_is_the_command_of_the_readme():
    recipe = " ".join((ROOT / "Makefile").read_text().replace("\\\n", " ").split())
    (command,) = (each for each in commands("python main.py", PAGES[:1]) if "sample" in each)
    assert " ".join(command.split()[1:]) in recipe


def test_the_readme_has_the_tutorials_two_setups():
    readme = commands("python main.py", PAGES[:1])
    assert "python main.py" in readme
    second = [command for command in readme if "UNet1024" in command and "1024 1024" in command]
    assert second and "--optimizer RMSprop --learning-rate 0.0002" in second[0] and "--batch-size 2" in second[0]
    told = (ROOT / "main.py").read_text().replace("\\\n", " ")
    assert " ".join(second[0].split()) in " ".join(told.split())


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("arguments", "dice", "differ"),
    [("--epochs 4 --batch-size 2 --learning-rate 0.002 --shift 0 --scale 0 --rotation 0", 0.9, 0.03),
     pytest.param("", 0.96, 0.015, marks=pytest.mark.slow)],
    ids=["short", "whole"],
)
def test_make_demo_does_what_the_readme_says(tmp_path, drawn, arguments, dice, differ):
    """`make demo` in a copy of the repository, with the Python that runs this test. The short one has smaller cars."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "installed").touch()
    if arguments:
        shutil.copytree(drawn, tmp_path / "input" / "sample")
    make = ["make", "--no-print-directory", "demo", f"PYTHON={sys.executable}", f"ARGS={arguments}"]
    done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert "drawn cars" in done.stdout.splitlines()[0]
    validated = float(re.search(r"Validation Dice (\S+)", done.stdout)[1])
    scored = float(re.search(r"^score +(\S+),", done.stdout, re.MULTILINE)[1])
    submitted = score(tmp_path / "output/submit.csv.gz", tmp_path / "input/sample/test_masks")
    assert validated >= dice and submitted >= dice
    assert abs(scored - validated) < 0.01  # at full size
    assert abs(submitted - validated) < differ  # and of other cars: it agrees with validation
    paths = re.findall(r"((?:output|logs|input)/[^\s,:]+)", done.stdout)
    assert len(paths) >= 5 and all((tmp_path / path).exists() for path in paths), paths


def texts_of_the_code():
    """Lists of the constant parts of each text in our code, between which values are filled in."""
    for path in ROOT.rglob("*.py"):
        if not {".venv", "tests"} & set(path.relative_to(ROOT).parts):
            for text in ast.walk(ast.parse(path.read_text())):
                if isinstance(text, ast.JoinedStr):
                    yield [part.value if isinstance(part, ast.Constant) else None for part in text.values]
                elif isinstance(text, ast.Constant) and isinstance(text.value, str):
                    yield [part for constant in text.value.split("{}") for part in (None, constant)][1:]  # of format()


def is_quoted(sentence, texts):
    """Whether a text of the code, with values filled in, is the sentence, or parts of texts are all but its values."""
    for text in texts:
        pattern = "".join(".*" if part is None else re.escape(part) for part in text)
        if sum(len(part.strip()) for part in text if part) > 12 and re.fullmatch(pattern, sentence):
            return True
    parts = {part.strip() for text in texts for part in text if part and len(part.strip()) >= 6}
    for part in sorted(parts, key=len, reverse=True):
        sentence = sentence.replace(part, " ")
    return not re.search(r"(?<!\S)[A-Za-z]{6,}(?!\S)", sentence)  # a word, not a name or a number


@pytest.mark.seconds
def test_the_fault_table_quotes_the_code_and_names_tests_that_are_there():
    page = (ROOT / "docs" / "faults.md").read_text()
    written = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    named = re.findall(r"`(test_\w+)`", page)
    assert len(named) > 30
    for name in named:
        assert f"def {name}(" in written, name
    texts = list(texts_of_the_code())
    seen = re.findall(r"^\| [^|]+ \| ([^|]+) \|", page, re.MULTILINE)
    quoted = [sentence for cell in seen for sentence in re.findall(r"`([^`]* [^`]*)`", cell)]
    assert len(quoted) > 60
    assert not [sentence for sentence in quoted if not is_quoted(sentence, texts)]
    assert not is_quoted("Something that the code never says: 1 image without a mask in input/train_masks.", texts)


def test_a_run_can_be_ended_within_its_half_size_epochs(saved_run, main_here, request):
    """With fewer epochs than a new run may have at half size or of warmup."""
    state = torch.load(saved_run / "last.pt", weights_only=True)
    state["hyperparameters"] |= {"epochs": 3, "warmup_epochs": 5.0}
    torch.save(state, saved_run / "last.pt")
    request.getfixturevalue("seen")
    for epochs in (3, 9):
        assert main_here("--resume", "last", "--epochs", str(epochs))[0].startswith("main.py: seen")
