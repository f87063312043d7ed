"""main.py --weights: a run begins with the net of another one."""

import os
import re
import shutil

import pandas as pd
import pytest
import torch

from main import Hyperparameters
from processes import SMALL_MAIN, Program, in_folder, models
from runtime.errors import UserError
from runtime.files import version
from runtime.run import from_command_line
from test_classifier import Evil
from test_main import fetcher
from tiny import SMALL

ONE_CAR = [*SMALL, *"--sample-size 0.5 --workers 0 --no-predict".split()]  # to train on, and one to validate on


def load(run, name="best.pt"):
    return torch.load(run / name, weights_only=True)


def cars(run, part):
    """The cars of a run that it trained on ("train"), or validated on ("valid")."""
    split = pd.read_csv(run / "split.csv")
    return set(split[split["part"] == part]["car"])


def names_of(run):
    """The cars and images that a run trained on."""
    split = pd.read_csv(run / "split.csv")
    return {*split[split["part"] == "train"][["car", "image"]].to_numpy().ravel()}


def seed_that_validates_on(car, drawn):
    splits = fetcher(drawn)
    return next(seed for seed in range(100) if car in splits.get_train_files(seed=seed)[2][0].name)


def same(state, other):
    return state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)


@pytest.fixture
def begin(drawn, main_here, small_net, monkeypatch):
    """Starts a run with these options -> what train() was called with, and what was printed. It stops there."""
    begun = {}

    def train(self, train_loader, valid_loader, optimizer, scheduler=None, callbacks=()):
        begun.update(locals(), random=torch.get_rng_state())
        raise UserError("before the first step")

    def run(*options):
        begun.clear()
        code, printed = main_here("--input-dir", drawn, *ONE_CAR, *options)
        assert code == "main.py: before the first step", code
        return begun, printed

    monkeypatch.setattr("nn.classifier.CarvanaClassifier.train", train)
    return run


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("first", ""),
        ("first", "--seed 9 --input-img-resize 64 96 --output-img-resize 64 96"),
        ("first", "--optimizer AdamW --learning-rate 0.002 --schedule one_cycle"),
        ("first", "--ema-decay 0.9"),
        ("first", "--dataset own --input-dir OWN --sample-size 1"),
        ("original", "--net UNetOriginal --input-img-resize 48 64 --output-img-resize 32 48 --padding stretch"),
    ],
)
def test_a_run_begins_with_the_weights_of_another(small_runs, begin, own, name, options):
    """And with the statistics of its BatchNorm layers."""
    saved = load(small_runs[name])
    assert any(key.endswith("running_var") and (value != 1).any() for key, value in saved["net"].items())
    options = [str(own) if option == "OWN" else option for option in options.split()]
    for path in (small_runs[name], small_runs[name] / "best.pt"):
        begun, printed = begin("--weights", path, *options)
        size = "x".join(map(str, saved["in_shape"][1:]))
        assert f"\nweights     {path}, trained at {size} pixels up to epoch {saved['epoch']}\n" in f"\n{printed}"
        assert same(begun["self"].net.state_dict(), saved["net"])
        assert same(begun["self"].eval_net.state_dict(), saved["net"])
    alone, _ = begin(*options)
    assert not same(alone["self"].net.state_dict(), saved["net"])  # control


def test_weights_change_neither_random_numbers_nor_hyperparameters(small_runs, begin):
    """Not even those that the other run had: optimizer, learning rate, size, seed."""

    def begun(*options):
        begun, _ = begin(*options)
        classifier, saver = begun["self"], begun["callbacks"][0]
        begun["train_loader"].sampler.set_epoch(1)
        order = [begun["train_loader"].dataset.X[index].name for index in begun["train_loader"].sampler]
        settings = saver.settings["options"] | {"weights": None}
        optimizer = begun["optimizer"]
        return (saver.settings["hyperparameters"], settings, order, saver.split.to_dict(), type(optimizer),
                optimizer.defaults, len(optimizer.state), classifier.epoch, begun["random"].tolist())

    assert begun("--weights", small_runs["second"]) == begun()
    assert begun("--weights", small_runs["second"], "--seed", "1") != begun()  # control


def test_a_checkpoint_says_where_its_weights_came_from_and_what_they_have_seen(small_runs):
    """And which version of the program saved it."""
    first, second = (small_runs[name] for name in ("first", "second"))
    seen = names_of(first)
    assert len(seen) == 17 and not seen & names_of(second)
    for name in ("last.pt", "best.pt"):
        assert load(first, name)["options"]["weights"] is None and load(first, name)["seen"] == []
        assert load(second, name)["options"]["weights"] == str(first)
        assert load(second, name)["seen"] == sorted(seen)
        assert load(second, name)["version"] == version()


@pytest.mark.seconds
def test_a_resumed_run_needs_no_weights_and_is_bit_identical(small_runs, drawn, main_here, small_net, tmp_path):
    weights = tmp_path / "weights.pt"
    shutil.copy(small_runs["first"] / "best.pt", weights)
    start = ["--input-dir", drawn, *ONE_CAR, "--weights", weights, "--ema-decay", "0.9"]
    for folder, epochs in (("straight", 2), ("resumed", 1)):
        code, printed = main_here(*start, "--epochs", str(epochs), "--output-dir", tmp_path / folder / "output")
        assert code == 0, printed
    weights.unlink()
    (straight,), (resumed,) = (models(tmp_path / folder) for folder in ("straight", "resumed"))
    before = load(resumed, "last.pt")
    code, printed = main_here("--resume", resumed, "--epochs", "2")
    assert code == 0, printed
    expected, found = load(straight, "last.pt"), load(resumed, "last.pt")
    for key in ("net", "raw_net"):
        assert same(found[key], expected[key]) and not same(found[key], before[key])
    assert found["seen"] == expected["seen"] == sorted(names_of(small_runs["first"]))


@pytest.mark.parametrize(("place", "output"), [("moved/models", "moved"), ("kept", None)])
def test_a_run_that_was_moved_writes_to_where_it_is(small_runs, small_net, monkeypatch, tmp_path, place, output):
    """Unless it was taken out of its output folder."""
    run = small_runs["first"]
    shutil.copytree(run, tmp_path / place / run.name)
    monkeypatch.setattr("sys.argv", ["main.py", "--resume", str(tmp_path / place / run.name)])
    resumed = from_command_line(Hyperparameters)
    assert resumed.folder == tmp_path / place / run.name
    assert resumed.submission == (tmp_path / output if output else run.parent.parent) / "submit.csv.gz"


def test_a_resumed_run_refuses_other_weights(small_runs, main_here, small_net):
    first, second = (small_runs[name] for name in ("first", "second"))
    code, _ = main_here("--resume", second, "--weights", second)
    expected = f"--weights must stay {first} in {second}, not {second}: omit it, or start a new run."
    assert code == f"main.py: {expected}"
    code, _ = main_here("--resume", first, "--weights", second)
    assert code.startswith(f"main.py: --weights must stay None in {first}, not {second}")


OTHER = "PATH is not a checkpoint of this version of the program, {version}, but of "


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("missing", "Cannot read PATH (No such file or directory)."),
        ("folder", "Cannot read PATH/best.pt (No such file or directory)."),
        ("truncated", "PATH is not a checkpoint, or it is incomplete or damaged."),
        ("code", "PATH may contain code, so it was not loaded. Pass a checkpoint of this program."),
        ("foreign", f"{OTHER}an earlier one or another program (KeyError: 'net_name'). Use that version, or start a "),
        ("net", "PATH has the weights of UNetOriginal, but the net is UNet1024. Pass --net UNetOriginal."),
        ("shape", OTHER + "{version} (RuntimeError: Error(s) in loading state_dict for UNet1024: size mismatch"),
        ("no split", OTHER + "{version} (KeyError: 'split')"),
    ],
)
def test_weights_that_cannot_be_used_end_in_a_sentence(small_runs, main_here, small_net, tmp_path, fault, sentence):
    """Before any data are read: there are none."""
    path, saved = tmp_path / "weights.pt", load(small_runs["first"])
    if fault == "folder":
        path.mkdir()
    elif fault == "code":
        torch.save({"net": Evil()}, path)
    elif fault == "foreign":
        torch.save(saved["net"], path)
    elif fault == "net":
        shutil.copy(small_runs["original"] / "best.pt", path)
    elif fault == "shape":
        torch.save(saved | {"net": saved["net"] | {"head.weight": torch.zeros(2, 8, 1, 1)}}, path)
    elif fault == "no split":
        torch.save({key: value for key, value in saved.items() if key != "split"}, path)
    elif fault == "truncated":
        shutil.copy(small_runs["first"] / "best.pt", path)
        os.truncate(path, 2000)
    code, printed = main_here("--input-dir", tmp_path / "none", *ONE_CAR, "--weights", path)
    assert code.startswith("main.py: " + sentence.replace("PATH", str(path)).format(version=version())), code
    assert "\n" not in code and "code from a checkpoint ran" not in printed
    assert not models(tmp_path)


def test_an_empty_path_of_weights_is_no_training_from_random_ones(main_here, small_net, tmp_path):
    """Such as that of a shell variable that is not set."""
    code, _ = main_here("--input-dir", tmp_path / "none", *ONE_CAR, "--weights", "")
    assert code == "main.py: Cannot read best.pt (No such file or directory)."


@pytest.mark.seconds
def test_validation_images_that_the_weights_were_trained_on_are_a_warning(small_runs, drawn, begin):
    """Also by the run that these weights began with."""
    first, second = (small_runs[name] for name in ("first", "second"))
    (of_first,), (of_second,) = (cars(run, "train") for run in (first, second))
    for run, car, seen in (
        (first, of_first, True), (first, of_second, False), (second, of_first, True), (second, of_second, True),
        (second, *cars(second, "valid"), False),
    ):
        _, printed = begin("--weights", run, "--sample-size", "1", "--seed", seed_that_validates_on(car, drawn))
        expected = ("Warning: 16 of 16 validation images have the name of an image or a car that --weights was trained "
                    "on, so the score may be too high. Pass the --seed of that run.\n")
        assert (expected in printed) == ("Warning: " in printed) == seen, (run, car)


def test_weights_of_the_same_seed_are_no_warning(small_runs, begin):
    for name, seed in (("first", 0), ("second", 3)):
        _, printed = begin("--weights", small_runs[name], "--seed", str(seed))
        assert "\nweights     " in f"\n{printed}" and "Warning: " not in printed
    assert "Warning: " in begin("--weights", small_runs["second"], "--seed", "0")[1]  # control


@pytest.mark.seconds
def test_only_the_main_process_reads_the_weights(small_runs, drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("LOAD_LOG", str(tmp_path / "loaded.txt"))
    options = ["--input-dir", drawn, *ONE_CAR, "--epochs", "1", "--weights", small_runs["first"]]
    run = Program(*SMALL_MAIN, *in_folder(tmp_path, *options), processes=2)
    assert run.ended() and run.code == 0, run.printed
    lines = (tmp_path / "loaded.txt").read_text().splitlines()
    assert f"0 {small_runs['first']}/best.pt" in lines and {line[0] for line in lines} == {"0"}
    assert len(re.findall("^weights     ", run.printed, re.MULTILINE)) == 1
