"""predict.Segmenter: images in any form become probabilities, masks and cut-outs, in Python."""

import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import predict
from data.reader import Reader
from nn.classifier import CarvanaClassifier
from predict import Segmenter
from runtime.errors import UserError
from test_ensemble import checkpoint
from tiny import SMALL_NETS

WRONG = r"^An image must be a path, bytes, a Pillow image of 8 bits, or uint8 in RGB: an array \(height, "


@pytest.fixture
def save(tmp_path, small_net):
    """Saves a checkpoint with random weights -> its path."""

    def save(seed=0, name="UNet1024", size=(32, 48), padding="reflect", tta=False, threshold=0.5):
        saved = checkpoint(seed, name, size, padding) | {"reader": Reader().state()}
        saved["hyperparameters"] |= {"tta": tta, "threshold": threshold}
        torch.save(saved, tmp_path / f"{seed}.pt")
        return tmp_path / f"{seed}.pt"

    return save


@pytest.fixture
def segmenter(save):
    return Segmenter(save(), device="cpu")


def pixels(height=40, width=60, seed=0):
    """Blots of random colors: (H, W, 3) uint8."""
    coarse = np.random.default_rng(seed).integers(256, size=(height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width]


def encoded(array, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind, **options)
    return file.getvalue()


def test_an_image_has_the_same_probabilities_in_every_form(segmenter, tmp_path):
    array = pixels()
    (tmp_path / "a.png").write_bytes(encoded(array))
    image = Image.open(tmp_path / "a.png")
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), encoded(array), image, image.convert("RGBA"), array,
             np.asarray(image), torch.from_numpy(array).permute(2, 0, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PyTorch warns of an array that cannot be written, as np.asarray(image)
        found = [segmenter.probs(form) for form in forms]
    assert found[0].shape == (40, 60) and found[0].dtype == torch.float32 and found[0].std() > 0.01
    assert all(torch.equal(each, found[0]) for each in found)
    assert not torch.equal(segmenter.probs(pixels(seed=1)), found[0])  # control
    assert all(torch.equal(segmenter.mask(form), found[0] > 0.5) for form in forms)


def test_probabilities_are_those_of_the_net(save):
    """At the net's size nothing is resized."""
    path, array = save(), pixels(32, 48)
    saved = torch.load(path, weights_only=True)
    net = SMALL_NETS["UNet1024"]((3, 32, 48))
    net.load_state_dict(saved["net"])
    with torch.no_grad():
        expected = net.eval()(torch.from_numpy(array).permute(2, 0, 1)[None] / 255).sigmoid()[0]
    segmenter = Segmenter(path, device="cpu")
    (classifier,) = segmenter.ensemble.nets
    classifier.precision = torch.float32
    torch.testing.assert_close(segmenter.probs(array), expected)


def test_a_list_has_the_results_of_its_images_in_batches(segmenter, monkeypatch):
    """Images of different sizes and forms, in more than one batch."""
    batches, predict_probs = [], CarvanaClassifier.predict_probs

    def count(self, images):
        batches.append(len(images))
        return predict_probs(self, images)

    images = [pixels(30 + 7 * seed, 50, seed) for seed in range(11)]
    images[3] = encoded(images[3])
    for method in (segmenter.probs, segmenter.mask, segmenter.cut_out):
        alone = [method(image) for image in images]
        with monkeypatch.context() as patch:
            patch.setattr(CarvanaClassifier, "predict_probs", count)
            together = method(images)
        assert isinstance(together, list) and len(together) == 11 and method([]) == []
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(np.asarray(one, float), np.asarray(other, float), atol=1e-2)
    assert batches[:4] == [8, 3, 8, 3]


def test_exif_data_rotate_a_file_bytes_and_a_pillow_image(segmenter, tmp_path):
    array, exif = pixels(), Image.Exif()
    exif[0x0112] = 6  # rotate it clockwise
    (tmp_path / "a.png").write_bytes(encoded(array, exif=exif))
    expected = segmenter.probs(np.rot90(array, -1))
    assert expected.shape == (60, 40)
    for form in (tmp_path / "a.png", (tmp_path / "a.png").read_bytes(), Image.open(tmp_path / "a.png")):
        assert torch.equal(segmenter.probs(form), expected)
        assert segmenter.cut_out(form).size == (40, 60)
    assert segmenter.probs(encoded(array)).shape == (40, 60)  # control


def test_an_array_in_bgr_is_reversed_without_a_copy(segmenter):
    """As OpenCV's, whose view has negative strides."""
    array = pixels()
    bgr = array[..., ::-1].copy()
    assert bgr[..., ::-1].strides[-1] == -1
    assert torch.equal(segmenter.probs(bgr[..., ::-1]), segmenter.probs(array))
    assert torch.equal(segmenter.probs(array[:, ::-1]), segmenter.probs(array[:, ::-1].copy()))
    assert not torch.equal(segmenter.probs(bgr), segmenter.probs(array))  # control


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (torch.zeros(3, 9, 9), WRONG),
        (torch.zeros(9, 9, 3, dtype=torch.uint8), WRONG),
        (np.zeros((3, 9, 9), np.uint8), WRONG),
        (np.zeros((9, 9, 3), np.float32), WRONG),
        (np.zeros((9, 9), np.uint8), WRONG),
        (np.zeros((9, 9, 4), np.uint8), WRONG),
        (np.zeros((0, 9, 3), np.uint8), WRONG),
        (Image.new("I;16", (9, 9)), WRONG),
        (Image.new("F", (9, 9)), WRONG),
        (Image.new("RGB", (0, 9)), WRONG),
        (Image.open(io.BytesIO(encoded(pixels(), "JPEG")[:-200])), r"^The image cannot be read as an image \(OSError"),
        (encoded(pixels(), "JPEG")[:-200], r"^The image cannot be read as an image \("),
        (b"no image", r"^The image cannot be read as an image \("),
        ((pixels(), pixels()), WRONG),
        (None, WRONG),
        ("nosuch.jpg", r"^nosuch\.jpg cannot be read \(No such file or directory\)\.$"),
    ],
    ids="float_tensor rows_first_tensor rows_first_array float_array gray_array rgba_array empty_array pillow_16_bits "
        "pillow_float empty_pillow truncated_pillow truncated_bytes text tuple none missing".split(),
)
def test_what_is_no_image_is_refused_in_one_sentence(segmenter, wrong, sentence):
    for method in (segmenter.probs, segmenter.mask, segmenter.cut_out):
        for images in (wrong, [pixels(), wrong]):
            with pytest.raises(UserError, match=sentence) as raised:
                method(images)
            assert "\n" not in str(raised.value)


def test_images_of_other_modes_are_taken_in_rgb(segmenter):
    image = Image.fromarray(pixels())
    for mode in ("1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr"):
        other = image.convert(mode)
        assert torch.equal(segmenter.probs(other), segmenter.probs(np.array(other.convert("RGB")))), mode


def test_a_cut_out_has_the_color_profile_of_a_file(segmenter, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, options in (("a", {"icc_profile": profile}), ("b", {})):
        (tmp_path / f"{name}.png").write_bytes(encoded(pixels(), **options))
    with_profile, without = segmenter.cut_out([tmp_path / "a.png", str(tmp_path / "b.png")])
    assert with_profile.info["icc_profile"] == profile and with_profile.mode == "RGBA"
    with_profile.save(tmp_path / "cut.png")
    assert Image.open(tmp_path / "cut.png").info["icc_profile"] == profile
    assert without.info["icc_profile"] is None
    without.save(tmp_path / "cut.png")
    assert "icc_profile" not in Image.open(tmp_path / "cut.png").info


def test_a_cut_out_may_have_a_background_and_be_cropped(segmenter, monkeypatch):
    """What is above the threshold is left."""
    probs, array = torch.full((40, 60), 0.1), pixels()
    probs[10:20, 20:40], probs[30:, 20:40] = 0.9, 0.6
    monkeypatch.setattr(segmenter, "probs", lambda image: probs)
    segmenter.threshold = 0.75
    cut = np.asarray(segmenter.cut_out(array))
    assert np.array_equal(cut[..., 3] > 127, probs.numpy() > 0.75)
    assert np.array_equal(cut[12:18, 22:38, :3], array[12:18, 22:38])
    green = segmenter.cut_out(array, Image.new("RGB", (1, 1), (0, 255, 0)))
    assert green.mode == "RGB" and green.getpixel((5, 5)) == (0, 255, 0)
    width, height = segmenter.cut_out(array, crop=True).size
    assert 20 <= width < 30 and 10 <= height < 20


def test_several_models_are_averaged_at_the_size_of_the_image(save):
    """Of one size or of several. Each alone has other probabilities."""
    paths = [save(0), save(1), save(2, "UNetOriginal", (64, 80)), save(3, size=(64, 80))]
    array = pixels(64, 80)
    alone = {path: Segmenter(path, device="cpu").probs(array) for path in paths}
    for some in (paths[:2], [paths[2], paths[3]], paths):
        probs = Segmenter(*some, device="cpu").probs(array)
        assert probs.shape == (64, 80)
        # bfloat16, and bilinear interpolation to another size and from there to this one
        assert (probs - sum(alone[path] for path in some) / len(some)).abs().mean() < 5e-3
    assert min((alone[one] - alone[other]).abs().mean() for one in paths for other in paths if one != other) > 2e-2
    one, two = (Segmenter(*each, device="cpu") for each in (paths[:1], paths[:1] * 2))  # the same model twice
    assert torch.equal(one.probs(array), two.probs(array))


@pytest.mark.parametrize("tta", [True, False])
def test_threshold_and_tta_are_those_of_the_first_model_unless_they_are_passed(save, tta):
    paths = [save(0, tta=tta, threshold=0.3), save(1, tta=not tta, threshold=0.6)]
    array = pixels()
    first = Segmenter(*paths, device="cpu")
    assert (first.threshold, first.tta) == (0.3, tta)
    other = Segmenter(*paths, device="cpu", threshold=0.8, tta=not tta)
    assert (other.threshold, other.tta) == (0.8, not tta)
    assert torch.equal(other.mask(array), other.probs(array) > 0.8)
    assert not torch.equal(first.probs(array), other.probs(array))  # test-time augmentation or not
    assert torch.equal(Segmenter(*paths, device="cpu", tta=not tta).probs(array), other.probs(array))
    with pytest.raises(UserError, match=r"^--threshold must be in the range \(0, 1\), not 5\.0\.$"):
        Segmenter(*paths, device="cpu", threshold=5.0)


def test_models_that_cannot_be_used_are_refused_in_one_sentence(save, tmp_path):
    (tmp_path / "no.pt").write_bytes(b"no model")
    torch.save({"net_name": "UNet1024", "in_shape": [3, 33, 48]}, tmp_path / "size.pt")
    for models, sentence in (
        ((), "Pass a model, such as output/models/model_<time>."),
        ((save(), tmp_path / "nosuch.pt"), f"Cannot read {tmp_path}/nosuch.pt (No such file or directory)."),
        ((save(), tmp_path / "no.pt"), f"{tmp_path}/no.pt is not a checkpoint, or it is incomplete or damaged."),
        ((save(), tmp_path / "size.pt"), f"{tmp_path}/size.pt is not a checkpoint of this version of the program, "),
    ):
        with pytest.raises(UserError, match="^" + re.escape(sentence)) as raised:
            Segmenter(*models, device="cpu")
        assert "\n" not in str(raised.value)


def test_a_run_is_a_model(small_runs, small_net):
    """By its folder, as a path or a text. Three runs of different nets and sizes are averaged."""
    array = pixels(80, 120)
    probs = Segmenter(small_runs["first"], device="cpu").probs(array)
    for form in (str(small_runs["first"]), small_runs["first"] / "best.pt"):
        assert torch.equal(Segmenter(form, device="cpu").probs(array), probs)
    assert not torch.equal(Segmenter(*small_runs.values(), device="cpu").probs(array), probs)


def test_predict_averages_its_models(save, tmp_path, monkeypatch, capsys):
    """One that is named twice counts once."""
    paths = save(0), save(1, "UNetOriginal", (64, 80))
    (tmp_path / "a.png").write_bytes(encoded(pixels()))
    monkeypatch.chdir(tmp_path)
    for models in (paths, (*paths, paths[0]), paths[:1]):
        predict.main(predict.Options((Path("a.png"),), model=models, device="cpu"))
        expected = Segmenter(*dict.fromkeys(models), device="cpu").mask(pixels())
        assert np.array_equal(np.asarray(Image.open("cutouts/a_mask.png")), 255 * expected.byte().numpy())
        printed = capsys.readouterr().out
        for path, name in zip(paths, ("UNet1024", "UNetOriginal"), strict=True):
            assert printed.count(f"{path}: {name}, on cpu\n") == (path in models)
    assert not torch.equal(expected, Segmenter(*paths, device="cpu").mask(pixels()))  # control
