"""docs/deploy.md is true: its snippets run, and the exported model predicts what predict.py does."""

import re

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from conftest import ROOT
from data.reader import Reader
from nn.unet import NETS
from runtime.machine import Machine

CASES = [(net, padding) for net in ("UNet1024", "UNetOriginal") for padding in ("reflect", "stretch")]
HALVED = [((150, 222), 1), ((150, 222), 1), ((222, 150), 6)]  # size and EXIF orientation; the last one is rotated
ODD, SMALL, HIGH = ((75, 101), 1), ((20, 30), 1), ((400, 40), 1)
RUN = "output/models/model_2026-11-23_16h05m09s"


def snippets(page):
    return re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.M)


EXPORT, PREDICT = snippets("docs/deploy.md")
(README,) = (code for code in snippets("README.md") if "from predict import" in code)


def save_checkpoint(folder, name, padding):
    """Save a small net with random weights, whose probabilities are between 0.1 and 0.9."""
    torch.manual_seed(0)
    net = NETS[name]((3, 32, 48))
    torch.nn.init.normal_(net.head.weight)
    hyperparameters = dict(padding=padding, tta=False, threshold=0.4)
    state = {"net_name": name, "in_shape": [3, 32, 48], "net": net.state_dict(), "hyperparameters": hyperparameters}
    folder.mkdir(parents=True)
    torch.save(state | {"reader": Reader().state()}, folder / "best.pt")


def draw_photo(seed, size, orientation=1):
    """Save a JPEG of (height, width) as photo.jpg."""
    blocks = np.random.default_rng(seed).integers(0, 256, (size[0] // 5 + 1, size[1] // 5 + 1, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(blocks.repeat(5, 0).repeat(5, 1)[: size[0], : size[1]]).save("photo.jpg", quality=95, exif=exif)


def execute(code):
    names = {}
    exec(code, names)
    return names


@pytest.fixture
def exported(request, tmp_path, monkeypatch, small_net):
    """The net and padding of the test as unet.onnx in the current folder, and as the checkpoint of the README."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("runtime.machine.choose_machine", lambda *_, **__: Machine())  # float32
    save_checkpoint(tmp_path / RUN, *request.param)
    execute(EXPORT)


@pytest.mark.seconds
@pytest.mark.parametrize("exported", CASES, indirect=True)
def test_the_exported_model_predicts_what_predict_py_does(exported):
    photos, expected = [], []
    for seed, (size, orientation) in enumerate([*HALVED, ODD, SMALL, HIGH]):
        draw_photo(seed, size, orientation)
        found, probs = execute(PREDICT), execute(README)["probs"].numpy()
        assert np.ptp(probs) > 0.1  # control
        np.testing.assert_allclose(found["probs"][0], probs, rtol=0, atol=1e-4)
        mask = np.asarray(Image.open("photo_mask.png"))
        assert np.array_equal(mask, (found["probs"][0] > 0.4) * np.uint8(255)) and 0 < mask.mean() < 255
        photos, expected = [*photos, found["photo"]], [*expected, probs]
    batch = np.stack(photos[:3]).transpose(0, 3, 1, 2)
    (probs,) = found["session"].run(None, {"photos": batch})
    np.testing.assert_allclose(probs, np.stack(expected[:3]), rtol=0, atol=1e-4)
    onnx.checker.check_model("unet.onnx", full_check=True)
