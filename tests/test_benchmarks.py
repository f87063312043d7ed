"""The baseline of the benchmarks does the same work as ours, and each side is measured alone."""

import importlib
import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import time
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import tyro
from scipy import stats

import data.reader
from callbacks.predictions_saver import PredictionsSaverCallback
from conftest import ROOT
from img import rle
from img.augmentation import NUMBERS
from img.mask import decode_mask
from main import Hyperparameters
from nn.losses import binary_cross_entropy
from nn.unet import UNet1024
from nn.unet_origin import UNetOriginal
from runtime.errors import UserError
from runtime.run import check, parse
from tiny import SmallUNet, find_files

sys.path.insert(0, str(ROOT / "benchmarks"))
import baseline
import epoch
import learning
import loader
import prediction
import record
import step
from measure import RECIPE, TUTORIAL, Measured, compare, show, take_turns


@pytest.mark.seconds
@pytest.mark.parametrize(("make", "side"), [(UNetOriginal, 220), (UNet1024, 128)])
@pytest.mark.parametrize(("training", "dtype"), [(True, torch.float64), (False, torch.float32)])
def test_our_nets_give_the_logits_of_the_plain_ones(make, side, training, dtype):
    """In training in float64: a BatchNorm over the eight values of the deepest level multiplies rounding errors."""
    torch.manual_seed(0)
    ours = make((3, side, side)).to(dtype, memory_format=torch.channels_last).train(training)
    plain = baseline.make_net(make.__name__, like=ours).to(dtype).train(training)
    images = torch.rand(2, 3, side, side, dtype=dtype)
    with torch.no_grad():
        logits = ours(images)
        torch.testing.assert_close(logits, plain(images), rtol=1e-5, atol=1e-5)
        plain.head.bias += 1  # control
        assert not torch.allclose(logits, plain(images), atol=0.5)


def test_the_plain_encoder_is_right():
    mask = np.random.default_rng(0).random((20, 30)) > 0.5
    mask[0, 0] = mask[-1, -1] = True
    assert baseline.rle_encode(mask) == rle.encode(torch.from_numpy(mask))


def test_a_ratio_above_one_is_in_our_favor():
    rates = compare("", "images/s", [3.0, 4.0, 2.0], [1.0, 1.0, 1.0])
    times = compare("", "ms", [1.0, 1.0, 1.0], [3.0, 4.0, 2.0], lower_is_better=True)
    for row in (rates, times):
        assert (row.ratio, row.ratio_min, row.ratio_max) == (3, 2, 4)


@pytest.mark.seconds
def test_the_sides_take_turns_in_separate_processes():
    """A side is (build, *arguments), and partial(sleep, 0.2) is the work that is timed."""
    quick, slow = take_turns(3, (partial, time.sleep, 0.01), (partial, time.sleep, 0.2), warm_up=False)
    assert len(quick.seconds) == len(slow.seconds) == 3
    assert min(quick.seconds) >= 0.01 and min(slow.seconds) >= 0.2
    assert compare("", "s", slow.seconds, quick.seconds, lower_is_better=True).ratio_max < 1
    large, small = take_turns(1, (partial, bytearray, 400 * 2**20), (partial, bytearray, 2**20))
    assert large.peak > small.peak + 300


@pytest.mark.seconds
def test_a_side_that_fails_ends_the_benchmark_and_the_other_sides():
    with pytest.raises(SystemExit) as ended:
        take_turns(1, (partial, time.sleep, 0), (partial, int, "no number"))
    assert ended.value.code == 1
    assert not multiprocessing.active_children()


def test_rows_are_objects_or_lines_of_one_table(capsys):
    row = compare("step", "images/s", [3.0, 5.0], [1.0, 1.0])
    row.matrix_share = 0.5
    show([row, row], as_json=True)
    values = dict(name="step", unit="images/s", ours=4, baseline=1, ratio=4, ratio_min=3, ratio_max=5, matrix_share=0.5)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [values, values]
    show([row], as_json=False)
    title, line = capsys.readouterr().out.splitlines()
    assert "baseline" in title and line.split() == "step images/s 4 1 4.00 3.00 5.00 50%".split()


@pytest.mark.parametrize(
    "name", "__main__ step loader epoch prediction learning scaling recipes record batchnorm resolution".split())
def test_each_benchmark_explains_itself(name, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    script = importlib.import_module(name) if name != "__main__" else load_main()
    with pytest.raises(SystemExit) as ended:
        tyro.cli(script.Benchmark)
    assert ended.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert script.Benchmark.__doc__.split(".")[0].split(",")[0] in printed


@pytest.mark.seconds
@pytest.mark.skipif(not Path("/proc/net/dev").exists(), reason="the system counts what is sent in /proc on Linux")
def test_two_processes_send_what_theory_says():
    scaling = importlib.import_module("scaling")
    speed, sent = scaling.rows(scaling.Benchmark(side=128, batch_size=1, steps=2, rounds=1))
    assert speed.ours > 0 and 0.95 < sent.ratio < 1.1


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """benchmarks/recipes.py with two rows, two cars and trainings that only leave their scores."""
    recipes = importlib.import_module("recipes")
    monkeypatch.setitem(recipes.TABLES, "parts", {"first": "--epochs 1", "second, better": "--epochs 2"})

    def run(command, stdout):
        assert command[1].endswith("main.py") and ("--epochs" in command) != ("--resume" in command)
        values = [word for word in command[2:] if word not in ("--tta", "--no-tta", "--predict", "--no-predict")]
        options = dict(zip(values[::2], values[1::2], strict=True)) | {"tta": command[-1]}
        run = Path(options["--output-dir"]) / "models" / "model_2026"
        run.mkdir(parents=True, exist_ok=True)
        (run / "last.pt").touch()
        if "--predict" in command:
            (Path(options["--output-dir"]) / "submit.csv.gz").write_text(options["tta"])
        gain = 0.001
        if "--resume" not in options:
            gain = 0.01 * (int(options["--epochs"]) - 1) * (1 + int(options["--seed"]))
        rows = [("a", 0.9 + gain), ("a", 0.92 + gain), ("b", 0.8 + 2 * gain)]
        pd.DataFrame(rows, columns=["car", "dice"]).to_csv(run / "score.csv", index=False)
        trainings.append(options)
        return subprocess.CompletedProcess(command, 0)

    trainings = []
    monkeypatch.setattr("subprocess.run", run)
    return recipes, trainings, recipes.Benchmark("parts", tmp_path / "input", tmp_path / "output")


def test_recipes_compare_the_same_cars_of_the_same_seed(trained, capsys):
    recipes, trainings, benchmark = trained
    recipes.main(benchmark)
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first == "| first | 0.8550 | 0.8550 | 0.8550 | - | - | - | - |"
    # car a gains 0.01 and 0.02 with the two seeds, b twice as much: 0.015 and 0.03 are the cars' means
    spread = stats.t.ppf(0.975, 1) * 0.015 / 2
    gain = f"| {0.0225:+.4f} | {0.0225 - spread:+.4f} | {0.0225 + spread:+.4f} | +0.0150 +0.0300 |"
    assert second == f"| second, better | 0.8700 | 0.8850 | 0.8775 {gain}"
    assert [options["--epochs"] + options["--seed"] for options in trainings] == ["10", "11", "20", "21"]
    recipes.main(benchmark)
    assert len(trainings) == 4 and capsys.readouterr().out.splitlines()[-1] == second  # nothing is trained twice
    recipes.TABLES["parts"]["second, better"] = "--epochs 2 --grad-clip 1"
    recipes.main(benchmark)
    assert len(trainings) == 6  # but a row that has changed is
    capsys.readouterr()
    recipes.TABLES["parts"]["second, better"] = "--epochs 1 --tta"
    recipes.main(benchmark)
    resumed = [Path(options["--resume"]).parents[1] for options in trainings[6:]]
    assert resumed == [Path(options["--output-dir"]) for options in trainings[:2]]  # and TTA trains nothing
    assert [options["tta"] for options in trainings] == 6 * ["--no-tta"] + 2 * ["--tta"]
    *_, first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("| first | 0.8550 |") and second.startswith("| second, better | 0.8565 |")
    with pytest.raises(SystemExit, match="--rows must be among 'first', 'second, better', not 'third'"):
        recipes.main(replace(benchmark, rows=("third",)))


def test_a_row_has_the_scores_and_the_submission_with_its_tta(trained):
    recipes, trainings, benchmark = trained
    held_out = replace(benchmark, held_out=True)
    for tta in ("", " --tta"):
        scored = [recipes.run(f"--epochs 1{tta}", wanted, 0) for wanted in (held_out, held_out, benchmark)]
        assert len(set(scored)) == 1
    assert [options["tta"] for options in trainings] == ["--no-tta", "--tta"]
    without, with_tta = (benchmark.output_dir.rglob(f"{tta}/submit.csv.gz") for tta in ("no-tta", "tta"))
    assert [next(files).read_text() for files in (without, with_tta)] == ["--no-tta", "--tta"]
    scores = [pd.read_csv(file)["dice"].tolist() for file in sorted(benchmark.output_dir.rglob("*tta/score.csv"))]
    assert len(scores) == 2 and scores[0] != scores[1]
    recipes.run("--epochs 2", benchmark, 0)
    recipes.run("--epochs 2", held_out, 0)  # which needs the submission too
    assert len(trainings) == 4 and "--resume" in trainings[3]


def study(tmp_path, *options, **environment):
    """benchmarks/gpu_study.py with small images -> the finished process, and the rows that it wrote."""
    rows = tmp_path / "study.jsonl"
    command = [sys.executable, ROOT / "benchmarks/gpu_study.py", "--tiny", "--rows", rows, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
    return done, [json.loads(line) for line in rows.read_text().splitlines()]


@pytest.mark.seconds
def test_the_gpu_study_runs_on_a_cpu(tmp_path):
    done, rows = study(tmp_path, "--device", "cpu", "--only", "micro", "graphs", "io")
    assert done.returncode == 0, done.stderr
    assert {row["section"] for row in rows} == {"micro", "graphs", "io"}
    assert len(rows) > 30 and not [row for row in rows if "error" in row]
    assert all(row["name"] in done.stdout for row in rows)


@pytest.mark.seconds
def test_the_gpu_study_continues_after_a_variant_that_fails(tmp_path):
    done, rows = study(tmp_path, "--device", "cuda", "--only", "io", CUDA_VISIBLE_DEVICES="")
    failed = [row["name"] for row in rows if "error" in row]
    assert done.returncode == 0 and "augment b2" in failed
    assert "decode_jpeg on one core" in {row["name"] for row in rows} - set(failed)


@pytest.mark.parametrize(("words", "sentence"), [
    ("--steps 0", r"--steps must be in the range \[1, inf\), not 0"),
    ("--device no", "--device no is not a PyTorch device"),
])
def test_a_step_that_can_not_be_timed_is_refused(words, sentence, monkeypatch):
    monkeypatch.setattr("sys.argv", ["step.py", *words.split()])
    with pytest.raises(UserError, match=sentence):
        tyro.cli(step.Benchmark)
    assert step.Benchmark(steps=2).steps == 2


@pytest.mark.seconds
def test_main_knows_the_options_of_every_row():
    recipes, experiments = importlib.import_module("recipes"), importlib.import_module("experiments")
    for table in recipes.TABLES.values():
        seen = set()
        for options in table.values():
            experiment, words = recipes.split_experiment(options)
            hp, run_options = parse(Hyperparameters, words)
            check(hp, run_options)
            assert set(experiment) <= set(experiments.EXPERIMENTS)
            seen.add((str(experiment), str(hp)))
            assert "--tta" not in options.removesuffix(" --tta")  # where run() looks for it
        assert len(seen) == len(table)  # no two rows are the same


def test_an_experiment_is_run_by_its_own_script(trained, monkeypatch):
    recipes, _, benchmark = trained
    commands, run = [], subprocess.run
    monkeypatch.setattr("subprocess.run", lambda command, stdout: commands.append(command) or run(
        [command[0], "main.py", *command[3:]] if "plain-end" in command else command, stdout))
    recipes.run("plain-end --epochs 1", benchmark, 0)
    recipes.run("--epochs 1", benchmark, 0)  # another training
    (_, script, name, *_), (_, other, *_) = commands
    assert (Path(script).name, name, Path(other).name) == ("experiments.py", "plain-end", "main.py")


def test_the_hardest_quarter_of_the_pixels_counts():
    experiments = importlib.import_module("experiments")
    logits, targets = torch.full((1, 2, 4), -20.0), torch.zeros(1, 2, 4)
    targets[0, 0, :2] = 1  # two of eight pixels are missed
    assert experiments.hardest_pixels(logits, targets).item() == pytest.approx(20)
    assert binary_cross_entropy(logits, targets).item() == pytest.approx(5)
    assert experiments.heavy_cross_entropy(logits, targets).item() == pytest.approx(20)


def test_the_last_sixth_of_the_epochs_is_not_augmented():
    experiments = importlib.import_module("experiments")
    loader = SimpleNamespace(dataset=SimpleNamespace(X_transform="augmentation"))
    plain = []
    for number in range(1, 13):
        experiments.train_epoch(SimpleNamespace(epoch=number, epochs=12), loader, of_package=lambda *_: None)
        plain.append(loader.dataset.X_transform != "augmentation")
    assert plain == [False] * 10 + [True] * 2
    pairs = torch.rand(2, 4, 6, 8) * 255
    images, masks = loader.dataset.X_transform(pairs, torch.ones(2), torch.rand(2, NUMBERS))
    assert torch.equal(torch.cat([images, masks], dim=1), pairs)


def test_wrong_running_averages_are_found_and_made_anew(small_runs, small_net, drawn, tmp_path, capsys):
    batchnorm = importlib.import_module("batchnorm")

    def dice(folder):
        batchnorm.main(batchnorm.Benchmark(folder, drawn))
        rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        return {name: [float(value) for value in values] for name, *values in rows[2:]}

    right = dice(small_runs["original"])
    last = pd.read_csv(small_runs["original"] / "metrics.csv").iloc[-1]
    assert right["running averages"][1] == pytest.approx(last["valid_dice"], abs=0.01)
    checkpoint = torch.load(small_runs["original"] / "last.pt", weights_only=True)
    for name, values in checkpoint["net"].items():
        if name.endswith("running_mean"):
            values += 100
    torch.save(checkpoint, tmp_path / "last.pt")
    wrong = dice(tmp_path)
    assert wrong["running averages"] != right["running averages"]
    assert {**wrong, "running averages": 0} == {**right, "running averages": 0}


def test_a_perfect_net_scores_more_with_soft_labels_and_larger_masks(drawn, capsys):
    resolution = importlib.import_module("resolution")
    resolution.main(resolution.Benchmark(drawn / "train_masks", sizes=(20, 40)))
    title, _, header, _, *rows = capsys.readouterr().out.splitlines()
    assert title == "64 masks, the last one of 120x80 pixels"
    assert header == "| output | soft labels | hard labels | soft, with TTA |"
    small, large = ([float(value) for value in row.strip("| ").split(" | ")[1:]] for row in rows)
    for soft, hard, tta in (small, large):
        assert hard < soft < tta < 1
    assert all(a < b for a, b in zip(small, large, strict=True))
    square = torch.zeros(1, 64, 64, dtype=torch.uint8)
    square[:, 16:48, 8:40] = 255
    assert set(resolution.dice_of_labels(square, 64).values()) == {1.0}  # nothing is lost at its own size


def test_cars_held_out_are_scored_by_their_masks(drawn, trained):
    recipes, _, benchmark = trained
    masks = sorted((drawn / "test_masks").iterdir())
    images = [path.name.replace("_mask.gif", ".jpg") for path in masks]
    folder = benchmark.output_dir
    folder.mkdir()
    saver = PredictionsSaverCallback(folder / "submit.csv.gz", (80, 120), 0.5)
    truths = torch.cat([decode_mask(path.read_bytes()) for path in masks]).float() / 255
    truths[1:] = 0
    saver.on_batch_gathered(saver.on_predict_batch(images, truths))
    saver.close_saver()
    cars = recipes.dice_per_car(folder, replace(benchmark, input_dir=drawn, held_out=True))
    assert len(masks) == 16 and cars.tolist() == [pytest.approx(1 / 16)]


@pytest.fixture
def small_sides(small_net, monkeypatch):
    """All sides run once in this process, with small nets. Returns the paths that our readers read, in a list."""

    def here(rounds, *sides, warm_up=True):
        measured = []
        for build, *arguments in sides:
            work = build(*arguments)
            start = time.perf_counter()
            work()
            measured.append(Measured([time.perf_counter() - start] * rounds, 1.0))
        return measured

    def logged(path, *arguments):
        paths.append(path)
        return read(path, *arguments)

    read, paths = data.reader.read, []
    monkeypatch.setattr("data.reader.read", logged)
    monkeypatch.setattr(loader, "use_one_core", lambda: None)
    for module in (loader, epoch, prediction, step):
        monkeypatch.setattr(module, "take_turns", here)
    for module in (baseline, epoch, learning, step):
        monkeypatch.setattr(module, "make_net", lambda name: SmallUNet((3, 32, 32)))
    return paths


def test_the_loader_trains_from_the_cache_alone(drawn, small_sides, tmp_path, monkeypatch):
    monkeypatch.setitem(loader.CASES, "tiny", ((32, 32), (32, 32)))
    X, y = (paths[:3] for paths in find_files(drawn, [0]))
    rows = list(loader.case_rows("tiny", X, y, tmp_path / "cache", rounds=1))
    assert [row.name.split()[0] for row in rows] == ["decode", "train", "train", "test", "test"]
    assert all(row.ours > 0 and row.baseline > 0 for row in rows)
    small_sides.clear()
    for augmentation in (TUTORIAL, RECIPE):
        loader.our_train(X, y, (32, 32), (32, 32), cache_dir=tmp_path / "cache", augmentation=augmentation)()
    assert not small_sides
    loader.our_decoding(X, y, (32, 32), (32, 32))()
    assert len(small_sides) == 6  # control


@pytest.mark.seconds
def test_the_first_epoch_fills_the_cache_and_later_ones_read_it(drawn, small_sides, tmp_path, monkeypatch):
    monkeypatch.setitem(epoch.CASES, "tiny", ("UNet1024", 32, 2, RECIPE))
    first, later = epoch.rows(epoch.Benchmark(("tiny",), drawn, images=6))
    assert first.ours > 0 and later.baseline > 0
    for is_first, read_per_epoch in ((True, 12), (False, 0)):
        train = epoch.our_epoch(drawn, 6, "tiny", "cpu", tmp_path / "cache", is_first)
        for _ in range(2):
            small_sides.clear()
            train()
            assert len(small_sides) == read_per_epoch


def test_images_are_repeated_if_there_are_fewer(drawn):
    X, y = epoch.find_pairs(drawn, 100)
    assert len(X) == len(y) == 100 and len(set(X)) == 64 and X[64:] == X[:36]
    assert all(mask.name == f"{image.stem}_mask.gif" for image, mask in zip(X, y, strict=True))


def test_both_sides_predict_the_drawn_mask(drawn, small_sides, tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    for name in ("train", "train_masks"):
        (root / name).symlink_to(drawn / name)
    what = root, 3, "cpu", "UNet1024", 32, 2
    prediction.our_prediction(*what)()
    prediction.plain_prediction(*what)()
    ours, plain = (pd.read_csv(root / f"{name}.csv.gz") for name in ("ours", "plain"))
    assert ours["img"].tolist() == plain["img"].tolist() and len(ours) == 3
    for runs in zip(ours["rle_mask"], plain["rle_mask"], strict=True):
        a, b = (rle.decode(each, prediction.ORIGIN) for each in runs)
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.999


@pytest.mark.seconds
def test_each_training_to_a_dice_fills_a_cache(drawn, small_sides, tmp_path, monkeypatch):
    (tmp_path / "sample").symlink_to(drawn)
    monkeypatch.setattr(learning, "SIZE", (32, 32))
    monkeypatch.setattr(learning, "UNet1024", SmallUNet)
    for training in (learning.our_training, learning.plain_training):
        work = training(tmp_path, 8, 0.0)  # which the first epoch reaches
        work()
        work()
    assert len(small_sides) == 2 * 2 * 64  # images and masks of four cars
    work = learning.our_training(tmp_path, 8, 2.0)
    monkeypatch.setattr(learning, "EPOCHS", 1)
    with pytest.raises(SystemExit, match="did not reach"):
        work()


def test_a_mode_that_fails_does_not_stop_the_others(small_sides, monkeypatch, capsys):
    """On a CPU, there are no CUDA graphs. (In a process of its own, a side that fails raises SystemExit.)"""

    def take_turns(rounds, *sides):
        try:
            return here(rounds, *sides)
        except RuntimeError as error:
            raise SystemExit(1) from error

    here = step.take_turns
    monkeypatch.setattr(step, "take_turns", take_turns)
    monkeypatch.setattr(step, "matrix_product", lambda *where: lambda: None)
    monkeypatch.setitem(step.CASES, "tiny", ("UNet1024", 32, 2))
    rows = step.step_rows(step.Benchmark(("tiny",), rounds=1, mode=("CUDA graph", "eager")))
    speed, memory = next(rows), next(rows)
    assert speed.name == "step UNet1024 32x32, batch size 2, eager" and speed.ours > 0 and memory.ours == 1
    with pytest.raises(SystemExit):
        next(rows)
    assert "tiny, CUDA graph: failed" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="this step was in eager mode"):
        step.our_step("UNet1024", 32, 2, mode="CUDA graph")()


def test_the_modes_are_those_that_main_can_choose(monkeypatch):
    assert step.Benchmark().modes == ("eager",)
    graph = SimpleNamespace(device=torch.device("cuda"), mode="CUDA graph")
    monkeypatch.setattr(step, "choose_machine", lambda *_: graph)
    assert step.Benchmark().modes == ("eager", "CUDA graph", "compile")
    assert step.Benchmark(mode=("compile",)).modes == ("compile",)


def test_the_record_is_of_the_recipe_in_the_readme(tmp_path):
    (command,) = (text for text in (ROOT / "README.md").read_text().split("```") if "--half-size-epochs 8" in text)
    words = command.replace("\\\n", " ").replace("256 256", "512 512").split()[2:]
    options = record.options(record.Benchmark(tmp_path), 0, tmp_path)
    assert parse(Hyperparameters, options)[0] == parse(Hyperparameters, words)[0]
    assert parse(Hyperparameters, [*options, "--seed", "1"])[0] != parse(Hyperparameters, words)[0]  # control


@pytest.mark.seconds
def test_the_record_has_a_row_per_seed_from_an_empty_output_folder(drawn, small_sides, monkeypatch, capsys):
    def run(command, stdout):
        monkeypatch.setattr("sys.argv", command[1:])
        small_sides.clear()
        with redirect_stdout(stdout):
            runpy.run_path(command[1], run_name="__main__")
        reads.append(len(small_sides))
        return subprocess.CompletedProcess(command, 0)

    reads = []
    monkeypatch.setattr(record, "subprocess", SimpleNamespace(run=run))  # main.py runs git
    record.main(record.Benchmark(drawn, seeds=(0, 1), device="cpu", side=32, epochs=3))
    *_, first, second, mean, deviation = (line.split(" | ") for line in capsys.readouterr().out.splitlines())
    assert [row[0] for row in (first, second, mean, deviation)] == ["| 0", "| 1", "| mean", "| standard deviation"]
    dice = [float(row[2]) for row in (first, second, mean)]
    assert 0 < dice[2] < 1 and dice[2] == pytest.approx((dice[0] + dice[1]) / 2, abs=1e-4)
    assert f"PyTorch {torch.__version__}" in first[3]
    assert reads[0] == reads[1] > 2 * 64  # nothing is left of the first run


def load_main():
    spec = importlib.util.spec_from_file_location("all_benchmarks", ROOT / "benchmarks/__main__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclass looks it up
    spec.loader.exec_module(module)
    return module
