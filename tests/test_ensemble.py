"""main.py --predict-with: trained nets score and predict together."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from data.dataset import EnsembleDataset
from data.dataset import TestImageDataset as Images  # which is no test
from img import rle
from nn.ensemble import Ensemble
from processes import SMALL_MAIN, Program, in_folder, models
from runtime.errors import UserError
from test_predictions_saver import rows_of
from test_weights import cars, load
from tiny import SMALL, SMALL_NETS


def checkpoint(seed, name="UNet1024", size=(32, 48), padding="reflect"):
    """The net is drawn at random, and sure of what it says -> what Ensemble needs to know of a run."""
    torch.manual_seed(seed)
    net = SMALL_NETS[name]((3, *size))
    net.head.weight.data *= 20
    return {"net_name": name, "in_shape": [3, *size], "net": net.state_dict(), "hyperparameters": {"padding": padding}}


@torch.no_grad()
def probs_of(saved, images):
    """What the net of a checkpoint says about uint8 images (N, 3, H, W), without this program's prediction."""
    net = SMALL_NETS[saved["net_name"]](tuple(saved["in_shape"]))
    net.load_state_dict(saved["net"])
    return net.eval()(images / 255).sigmoid()


def test_nets_of_one_size_take_the_same_images_and_their_probabilities_are_averaged(small_net):
    saved = {f"{seed}.pt": checkpoint(seed) for seed in range(3)}
    ensemble, images = Ensemble(saved), torch.randint(256, (2, 3, 32, 48), dtype=torch.uint8)
    assert ensemble.sizes == [((32, 48), (32, 48), "reflect")]
    single = [probs_of(each, images) for each in saved.values()]
    assert (single[0] - single[1]).abs().max() > 0.1  # control
    torch.testing.assert_close(ensemble.predict_probs([images]), sum(single) / 3)


def test_other_nets_and_sizes_are_averaged_at_the_size_of_the_largest_mask(small_net):
    """Each net gets images of its own size and padding."""
    saved = {
        "small": checkpoint(0),
        "large": checkpoint(1, size=(64, 80)),
        "original": checkpoint(2, "UNetOriginal", (64, 80)),
        "stretched": checkpoint(3, "UNetOriginal", (64, 80), "stretch"),
        "small too": checkpoint(4),
    }
    ensemble = Ensemble(saved)
    sizes = {"small": ((32, 48), (32, 48), "reflect"), "large": ((64, 80), (64, 80), "reflect"),
             "original": ((64, 80), (48, 64), "reflect"), "stretched": ((64, 80), (48, 64), "stretch")}
    sizes["small too"] = sizes["small"]
    assert Counter(ensemble.sizes) == Counter(set(sizes.values()))
    images = {size: torch.randint(256, (2, 3, *size[0]), dtype=torch.uint8) for size in ensemble.sizes}
    single = [probs_of(each, images[sizes[name]]) for name, each in saved.items()]
    assert {each.shape[1:] for each in single} == {(32, 48), (64, 80), (48, 64)}
    full = [F.interpolate(each[None], (64, 80), mode="bilinear", align_corners=False)[0] for each in single]
    torch.testing.assert_close(ensemble.predict_probs(list(images.values())), sum(full) / 5)


def test_a_file_is_read_for_each_size_that_the_nets_take(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    sizes = [((32, 48), (32, 48), "reflect"), ((64, 80), (48, 64), "reflect")]
    datasets = [Images([tmp_path / "a.png"], *each) for each in sizes]
    ensemble_ds = EnsembleDataset(datasets)
    images, name = ensemble_ds[0]
    assert name == "a.png" and len(ensemble_ds) == 1 and ensemble_ds.input_img_resize == (64, 80)
    for image, dataset in zip(images, datasets, strict=True):
        assert torch.equal(image, dataset[0][0])
    assert [image.shape for image in images] == [(3, 32, 48), (3, 64, 80)]


def test_a_checkpoint_without_a_net_is_named(small_net):
    saved = {"a.pt": checkpoint(0), "b.pt": checkpoint(1)}
    assert len(Ensemble(saved).nets) == 2  # control
    del saved["b.pt"]["net"]["head.bias"]
    with pytest.raises(UserError, match=r"^b\.pt is not a checkpoint of this version .*Missing key.*head\.bias"):
        Ensemble(saved)


# Runs as a user starts them

ALONE = [*SMALL, "--workers", "0", "--precision", "float32"]


def contents(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def masks_of(submission, size=(80, 120)):
    return {name: rle.decode(runs, size).numpy() for name, runs in rows_of(submission)[1:]}


def expected_probs(path, runs):
    """The probabilities of each run for an image file, at its original size."""
    for run in runs:
        saved = load(run)
        mask_size = SMALL_NETS[saved["net_name"]].check(saved["in_shape"][1:])
        image, _ = Images([path], tuple(saved["in_shape"][1:]), mask_size)[0]
        yield probs_of(saved, image[None])


@pytest.fixture
def predict_with(main_here, small_net, drawn, tmp_path):
    """Runs main.py --predict-with -> the exit code and the output. Nothing in the folders of the runs may change."""

    def run(*arguments):
        runs = [Path(each) for each in arguments if Path(each).is_dir() and (Path(each) / "best.pt").exists()]
        before = {each: contents(each.parent.parent.parent) for each in runs}
        code, printed = main_here("--input-dir", drawn, "--predict-with", *arguments, *ALONE)
        assert runs and {each: contents(each.parent.parent.parent) for each in runs} == before
        assert not models(tmp_path) and not (tmp_path / "logs").exists()
        return code, printed

    return run


@pytest.mark.seconds
def test_several_runs_score_and_predict_as_the_mean_of_their_nets(small_runs, predict_with, drawn, tmp_path):
    """They score only the cars that no run trained on. The nets and the sizes of their masks differ."""
    runs = [small_runs["first"], small_runs["original"]]
    code, printed = predict_with(*runs, "--threshold", "0.4")
    assert code == 0, printed
    assert f"model       {runs[0]}: UNet1024 at 32x48 pixels\nmodel       {runs[1]}: UNetOriginal at 64x80" in printed
    assert "left out    32 images of cars or groups that a model was trained on, judging by their names\n" in printed
    assert "data        32 images to score, of cars or groups that none of them trained on; 16 to predict" in printed
    table = pd.read_csv(tmp_path / "output/score.csv")
    everything = {path.name for path in (drawn / "train").iterdir()}
    trained = {car for run in runs for car in cars(run, "train")}
    assert len(trained) == 2 and set(table["image"]) == {name for name in everything if name[:-7] not in trained}
    assert f"score       {table['dice'].mean():.6f}, as Kaggle computes it" in printed

    found, differ = masks_of(tmp_path / "output/submit.csv.gz"), 0
    paths = [*(drawn / "test").iterdir(), *(drawn / "train" / name for name in table["image"])]
    for path in paths:
        full = [F.interpolate(each[None], (48, 64), mode="bilinear", align_corners=False)[0]
                for each in expected_probs(path, runs)]
        masks = [F.interpolate(each[None], (80, 120), mode="bilinear", align_corners=False)[0, 0].numpy() > 0.4
                 for each in (sum(full) / 2, *full)]
        differ += (masks[0] != masks[1]).any() and (masks[0] != masks[2]).any()
        if path.name in found:
            assert (found.pop(path.name) != masks[0]).sum() <= 2  # pixels at the threshold
            continue
        with Image.open(drawn / "train_masks" / f"{path.stem}_mask.gif") as image:
            truth = np.asarray(image.convert("L")) > 0
        dice = 2 * (masks[0] & truth).sum() / (masks[0].sum() + truth.sum())
        assert table.set_index("image")["dice"][path.name] == pytest.approx(dice, abs=1e-3)
    assert not found and differ == len(paths)  # control: a single net would give other masks
    written = {path.name for path in (tmp_path / "output").iterdir()}
    assert written == {"score.csv", "submit.csv.gz", ".lock"}


@pytest.mark.seconds
def test_cars_that_an_ancestor_trained_on_are_not_scored(small_runs, predict_with, tmp_path):
    first, second = (cars(small_runs[name], "train") for name in ("first", "second"))
    assert len(first | second) == 2
    for name, trained in (("second", first | second), ("first", first)):
        code, printed = predict_with(small_runs[name], "--no-predict")
        assert code == 0, printed
        scored = set(pd.read_csv(tmp_path / "output/score.csv")["car"])
        assert len(scored) == 4 - len(trained) and not scored & trained
    assert not (tmp_path / "output/submit.csv.gz").exists()


def with_seen(run, drawn, path):
    """A copy of best.pt whose ancestors trained on all images."""
    torch.save(load(run) | {"seen": [each.name for each in (drawn / "train").iterdir()]}, path)
    return path


def test_without_unseen_cars_only_test_images_are_predicted(small_runs, drawn, main_here, small_net, tmp_path):
    path = with_seen(small_runs["first"], drawn, tmp_path / "all.pt")
    code, printed = main_here("--predict-with", path, "--input-dir", drawn, *ALONE)
    assert code == 0 and "data        0 images to score, of cars or groups that none of them trained on; 16" in printed
    assert len(masks_of(tmp_path / "output/submit.csv.gz")) == 16
    assert not (tmp_path / "output/score.csv").exists() and "score  " not in printed
    code, printed = main_here("--predict-with", path, "--input-dir", drawn, *ALONE, "--no-predict")
    assert code == "main.py: No image can be scored: 1 model trained on all. Pass fewer, or add images."
    code, printed = main_here("--predict-with", path, small_runs["first"], "--input-dir", drawn, *ALONE, "--no-predict")
    assert code.startswith("main.py: No image can be scored: 2 models trained on all.")


@pytest.mark.parametrize("option", ["--resume last", "--weights other"])
def test_what_is_for_a_training_is_refused(small_runs, main_here, small_net, tmp_path, option):
    code, _ = main_here("--predict-with", small_runs["first"], *ALONE, *option.split())
    assert code == "main.py: --predict-with trains nothing: omit --resume and --weights."
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("option", ["--threshold 2", "--workers -1"])
def test_values_out_of_range_are_refused_for_a_prediction_too(small_runs, main_here, small_net, option):
    code, _ = main_here("--predict-with", small_runs["first"], *option.split())
    assert code.startswith(f"main.py: {option.split()[0]} must be ")


@pytest.mark.seconds
def test_threshold_and_tta_may_change(small_runs, predict_with, tmp_path):
    areas, submissions = [], []
    for options in ("", "--threshold 0.9", "--tta"):
        code, printed = predict_with(small_runs["first"], *options.split())
        assert code == 0 and ("threshold" in options) == ("0.9 (used)" in " ".join(printed.split())), printed
        submissions.append((tmp_path / "output/submit.csv.gz").read_bytes())
        areas.append(sum(mask.sum() for mask in masks_of(tmp_path / "output/submit.csv.gz").values()))
    assert areas[1] < areas[0] and submissions[2] != submissions[0]


@pytest.mark.seconds
def test_own_images_are_scored_by_runs_that_never_saw_them(small_runs, predict_with, own, tmp_path):
    """Of Carvana's cars, for example. The groups are those of --group-regex."""
    options = ["--dataset", "own", "--input-dir", own, "--group-regex", "(.+)-"]
    code, printed = predict_with(small_runs["first"], small_runs["second"], *options)
    assert code == 0, printed
    table = pd.read_csv(tmp_path / "output/score.csv")
    assert list(table)[:3] == ["image", "car", "dice"] and len(table) == 8
    assert set(table["car"]) == {f"cat {number}" for number in range(4)}
    assert "data        8 images to score" in printed and "; 0 to predict" in printed and "left out" not in printed
    assert not (tmp_path / "output/submit.csv.gz").exists()

    known = tmp_path / "known.pt"  # trained on one of two images of a cat
    torch.save(load(small_runs["first"]) | {"seen": [table["image"][0]]}, known)
    code, printed = predict_with(small_runs["second"], known, *options)
    assert code == 0
    assert "left out    2 images of cars or groups that a model was trained on, judging by their names\n" in printed
    assert set(pd.read_csv(tmp_path / "output/score.csv")["car"]) == set(table["car"]) - {table["car"][0]}


@pytest.mark.seconds
def test_two_processes_write_the_bytes_of_one(small_runs, predict_with, drawn, tmp_path):
    runs = [small_runs["first"], small_runs["original"]]
    assert predict_with(*runs)[0] == 0
    options = ["--input-dir", drawn, "--predict-with", *runs, *ALONE]
    both = Program(*SMALL_MAIN, *in_folder(tmp_path / "both", *options), processes=2)
    assert both.ended() and both.code == 0, both.printed
    for name in ("score.csv", "submit.csv.gz"):
        assert (tmp_path / "both/output" / name).read_bytes() == (tmp_path / "output" / name).read_bytes()
    assert both.printed.count("\nscore       0.") == 1  # only one process prints


@pytest.mark.parametrize(("name", "sentence"), [
    ("missing", "Cannot read PATH/best.pt (No such file or directory)."),
    ("truncated", "PATH/best.pt is not a checkpoint, or it is incomplete or damaged."),
    ("foreign", "PATH is not a checkpoint of this version of the program, "),
])
def test_a_run_that_cannot_be_used_is_named_before_data_are_read(small_runs, main_here, small_net, tmp_path, name,
                                                                 sentence):
    run = tmp_path / "run"
    shutil.copytree(small_runs["first"], run)
    if name == "missing":
        (run / "best.pt").unlink()
    elif name == "foreign":
        torch.save(load(run)["net"], run / "best.pt")
    else:
        (run / "best.pt").write_bytes((run / "best.pt").read_bytes()[:2000])
    for runs in ([run, small_runs["first"]], [small_runs["first"], run]):
        code, _ = main_here("--predict-with", *runs, "--input-dir", tmp_path / "none", *SMALL)
        assert code.startswith("main.py: " + sentence.replace("PATH", str(run))) and "\n" not in code


def test_a_list_of_runs_that_is_empty_is_no_training(main_here, small_net, tmp_path):
    code, _ = main_here("--predict-with", *ALONE)
    assert code == "main.py: --predict-with needs at least one run, such as output/models/model_<time>."
    assert not (tmp_path / "output").exists()
