"""The base line that the benchmarks compare with does the same work, and each side is measured alone."""

import importlib
import json
import multiprocessing
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch
import tyro

from conftest import ROOT
from img import rle
from nn.unet import UNet1024
from nn.unet_origin import UNetOriginal

sys.path.insert(0, str(ROOT / "benchmarks"))
import baseline
from measure import compare, show, take_turns


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
        plain.classify.bias += 1  # control
        assert not torch.allclose(logits, plain(images), atol=0.5)


def test_the_plain_encoder_is_right():
    mask = np.random.default_rng(0).random((20, 30)) > 0.5
    mask[0, 0] = mask[-1, -1] = True
    assert baseline.rle_encode(mask) == rle.encode(mask)


def test_a_ratio_above_one_is_in_our_favour():
    rates = compare("", "images/s", [3.0, 4.0, 2.0], [1.0, 1.0, 1.0])
    times = compare("", "ms", [1.0, 1.0, 1.0], [3.0, 4.0, 2.0], lower_is_better=True)
    for row in (rates, times):
        assert (row.ratio, row.ratio_min, row.ratio_max) == (3, 2, 4)


def test_the_sides_take_turns_in_processes_of_their_own():
    """A side is (build, *arguments), and partial(sleep, 0.2) is the work that is timed."""
    quick, slow = take_turns(3, (partial, time.sleep, 0.01), (partial, time.sleep, 0.2), warm_up=False)
    assert len(quick.seconds) == len(slow.seconds) == 3
    assert min(quick.seconds) >= 0.01 and min(slow.seconds) >= 0.2
    assert compare("", "s", slow.seconds, quick.seconds, lower_is_better=True).ratio_max < 1
    large, small = take_turns(1, (partial, bytearray, 400 * 2**20), (partial, bytearray, 2**20))
    assert large.peak > small.peak + 300


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
    assert "base line" in title and line.split() == "step images/s 4 1 4.00 3.00 5.00 50 %".split()


@pytest.mark.parametrize("name", "__main__ step loader prediction growth learning submission".split())
def test_each_benchmark_explains_itself(name, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--help"])
    script = importlib.import_module(name) if name != "__main__" else load_main()
    with pytest.raises(SystemExit) as ended:
        tyro.cli(script.Benchmark)
    assert ended.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert script.Benchmark.__doc__.split(".")[0].split(",")[0] in printed


def load_main():
    spec = importlib.util.spec_from_file_location("all_benchmarks", ROOT / "benchmarks/__main__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclass looks it up
    spec.loader.exec_module(module)
    return module
