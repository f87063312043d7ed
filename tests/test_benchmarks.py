"""The base line that the benchmarks compare with does the same work."""

import sys

import numpy as np
import pytest
import torch

from conftest import ROOT
from img import rle
from nn.unet import UNet1024
from nn.unet_origin import UNetOriginal

sys.path.insert(0, str(ROOT / "benchmarks"))
import baseline
from measure import compare


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
