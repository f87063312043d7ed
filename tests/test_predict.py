"""predict.py: images of any kind become masks and cut-outs."""

import re
import runpy
import shutil
import sys
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms

import predict
from conftest import ROOT
from data import dataset
from data.reader import Reader
from img.transformer import decode_image
from nn.classifier import CarvanaClassifier
from nn.unet_origin import UNetOriginal
from runtime.errors import UserError
from runtime.files import version
from test_main import commands


def checkpoint(path, padding="reflect", tta=False, threshold=0.5):
    """Save a UNetOriginal with random weights -> its classifier."""
    torch.manual_seed(0)
    classifier = CarvanaClassifier(UNetOriginal((3, 188, 188)), 1)
    state = {"net_name": "UNetOriginal", "in_shape": [3, 188, 188], "net": classifier.net.state_dict()}
    run = {"reader": Reader().state(), "hyperparameters": dict(padding=padding, tta=tta, threshold=threshold)}
    torch.save(state | run, path)
    return classifier


def draw(path, size=(60, 40), mode="RGB", car=True, gray=90, **options):
    """Draw a gray image of (width, height) with a white rectangle, the car, in the upper left quarter."""
    image = Image.new("RGB", size, (gray, gray, gray))
    if car:
        image.paste((255, 255, 255), (0, 0, size[0] // 2, size[1] // 2))
    path.parent.mkdir(exist_ok=True)
    image.convert(mode).save(path, **options)
    return path


@pytest.fixture
def predict_here(tmp_path, monkeypatch, capsys):
    """Run predict.py with a model that finds white pixels, into cutouts/ -> exit code, printed text."""

    class Finder(predict.Segmenter):
        def __init__(self, *models, device, threshold, tta):
            assert models == (Path("best.pt"),)
            self.threshold, self.reader = threshold or 0.5, Reader()
            self.ensemble = SimpleNamespace(nets=[CarvanaClassifier(torch.nn.Conv2d(3, 1, 1), 1)])

        def probs(self, image):
            return (image.float().mean(0) > 200).float()

    def run(*arguments):
        code = 0
        try:
            options = predict.tyro.cli(predict.Options, args=[*map(str, arguments), "--model", "best.pt"])
            with predict.errors.friendly_errors():
                predict.main(options)
        except SystemExit as ended:
            code = ended.code
        return code, capsys.readouterr().out

    monkeypatch.setattr(predict, "Segmenter", Finder)
    monkeypatch.setattr(sys, "argv", ["predict.py"])
    monkeypatch.chdir(tmp_path)
    return run


def test_images_of_any_kind_become_masks_and_cut_outs(predict_here, tmp_path):
    rotated = Image.Exif()
    rotated[0x0112] = 6  # rotate it clockwise
    draw(tmp_path / "train/a.png", (60, 40))
    draw(tmp_path / "train/b.png", (40, 60), mode="L")
    draw(tmp_path / "train/c.jpg", (60, 40), exif=rotated, quality=95)
    draw(tmp_path / "train/d.png", car=False)
    for other in ("notes.txt", "._a.jpg", "a_mask.json"):
        (tmp_path / "train" / other).write_text("no image")
    (tmp_path / "train/folder.jpg").mkdir()
    (tmp_path / "train/link.jpg").symlink_to("/removed.jpg")
    Image.new("L", (60, 40), 255).save(tmp_path / "train/a_mask.png")
    code, printed = predict_here("train")
    assert code == 0 and "4 images cut out, in cutouts" in printed
    assert "ignored     4 files in train: a_mask.json, a_mask.png, link.jpg and 1 more\n" in printed
    assert "train/a.png: car is 25.0% of the image\n" in printed
    assert "Warning: train/d.png: no car was found\n" in printed
    corners = {"a": (slice(20), slice(30)), "b": (slice(30), slice(20)), "c": (slice(30), slice(20, 40))}
    for name, corner in corners.items():  # the rotated one has its car at the right
        height, width = (40, 60) if name == "a" else (60, 40)
        mask = np.asarray(Image.open(tmp_path / f"cutouts/{name}_mask.png"))
        expected = np.zeros((height, width), np.uint8)
        expected[corner] = 255
        assert mask.dtype == np.uint8 and np.array_equal(mask, expected), name
        cut = np.asarray(Image.open(tmp_path / f"cutouts/{name}_cutout.png"))
        assert cut.shape == (height, width, 4) and np.array_equal(cut[..., 3], expected)
    assert not np.asarray(Image.open(tmp_path / "cutouts/d_mask.png")).any()


def test_the_background_is_a_color_or_an_image(predict_here, tmp_path):
    a, wall = draw(tmp_path / "a.png"), tmp_path / "wall.png"
    Image.new("RGB", (100, 100), (1, 2, 3)).save(wall)
    for background, expected in (("#ff8800", (255, 136, 0)), ("white", (255, 255, 255)), (wall, (1, 2, 3))):
        assert predict_here(a, "--background", background)[0] == 0
        assert Image.open(tmp_path / "cutouts/a_cutout.png").getpixel((59, 39)) == expected
    for wrong in ("nocolor", "nosuch.png"):
        code, _ = predict_here(a, "--background", wrong)
        assert code.startswith(f"predict.py: --background {wrong} must be an image or a color, ")


def test_a_damaged_image_is_named_and_the_others_are_cut_out(predict_here, tmp_path):
    draw(tmp_path / "some/a.png")
    draw(tmp_path / "some/c.png")
    (tmp_path / "some/b.jpg").write_bytes(b"no image")
    code, printed = predict_here("some", "nosuch.jpg")
    assert "nosuch.jpg cannot be read (No such file or directory).\n" in printed
    assert code == "predict.py: 2 of 4 images could not be cut out (see above)."
    assert "some/b.jpg cannot be read as an image" in printed
    written = {path.name for path in (tmp_path / "cutouts").iterdir()}
    assert written == {"a_mask.png", "a_cutout.png", "c_mask.png", "c_cutout.png"}


def test_a_name_too_long_for_its_outputs_costs_only_this_image(predict_here, tmp_path):
    long = "a" * 248
    draw(tmp_path / f"some/{long}.jpg")
    draw(tmp_path / "some/b.jpg")
    code, printed = predict_here("some")
    assert code == "predict.py: 1 of 2 images could not be cut out (see above)."
    assert f"Cannot write cutouts/{long}_mask.png (File name too long). Shorten the name.\n" in printed
    assert "some/b.jpg: car is 25.0% of the image\n1 image cut out, in cutouts\n" in printed
    assert {path.name for path in (tmp_path / "cutouts").iterdir()} == {"b_mask.png", "b_cutout.png"}
    assert predict_here("some/b.jpg")[0] == 0  # control


def test_an_error_of_the_system_costs_only_this_image_too(predict_here, tmp_path, monkeypatch):
    for name in "abc":
        draw(tmp_path / f"some/{name}.png")
    read_bytes = Path.read_bytes

    def stale(path):
        if path.name == "b.png":
            raise OSError(116, "Stale file handle", str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", stale)
    code, printed = predict_here("some")
    assert code == "predict.py: 1 of 3 images could not be cut out (see above)."
    assert "some/b.png cannot be read (Stale file handle).\n" in printed and "some/c.png: car is" in printed


def test_a_disk_that_is_too_small_for_an_image_holds_others_and_a_full_one_ends_the_run(
    predict_here, tmp_path, small_disk
):
    disk, fill = small_disk
    noise = np.random.default_rng(0).integers(201, 256, size=(400, 400, 3), dtype=np.uint8)
    draw(tmp_path / "some/b.png")
    for name in "ac":
        Image.fromarray(noise).save(tmp_path / f"some/{name}.png")
    code, printed = predict_here("some", "--output-dir", disk)
    assert code == "predict.py: 2 of 3 images could not be cut out (see above)."
    assert printed.count("_cutout.png (No space left on device). Make room, or fix the folder.\n") == 2
    assert "some/b.png: car is 25.0% of the image\n" in printed and not list(disk.glob("*.part"))
    fill()
    assert predict_here("some", "--output-dir", disk)[0].startswith(f"predict.py: Cannot write to {disk} (No space")


def test_an_output_folder_that_vanishes_costs_an_image(predict_here, tmp_path, monkeypatch):
    for name in "ab":
        draw(tmp_path / f"some/{name}.png")
    cut_out, calls = predict.cut_out, []

    def vanish(*arguments):
        if not calls:
            shutil.rmtree("cutouts")
        calls.append(arguments)
        return cut_out(*arguments)

    monkeypatch.setattr(predict, "cut_out", vanish)
    code, printed = predict_here("some")
    assert code == "predict.py: 1 of 2 images could not be cut out (see above)."
    assert "Cannot write cutouts/a_mask.png (No such file or directory)." in printed
    assert (tmp_path / "cutouts/b_cutout.png").exists()


def test_masks_and_cut_outs_of_images_in_the_folder_are_skipped_and_named(predict_here, tmp_path):
    names = "a.jpg", "a_mask.png", "a_CUTOUT.png", "a_cutout_x.png", "b.jpg", "b_Mask.gif", "c_cutout.png", "d_Mask.jpg"
    for name in names:
        draw(tmp_path / "some" / name, mode="L")
    draw(tmp_path / "other/e.jpg")
    draw(tmp_path / "other/e_cutout.png")
    draw(tmp_path / "single/f.jpg")
    _, printed = predict_here("some", "some", "other", "single")
    lines = [line for line in printed.splitlines() if line.startswith("ignored")]
    assert lines == [
        "ignored     3 files in some: a_CUTOUT.png, a_mask.png, b_Mask.gif",
        "ignored     1 file in other: e_cutout.png",
    ]
    made = {path.name.removesuffix("_cutout.png") for path in (tmp_path / "cutouts").glob("*_cutout.png")}
    assert made == {"a", "a_cutout_x", "b", "c_cutout", "d_Mask", "e", "f"}
    draw(tmp_path / "some/b_cutout.png")
    expected = "4 files in some: a_CUTOUT.png, a_mask.png, b_Mask.gif and 1 more\n"
    assert expected in predict_here("some")[1]
    assert "some/a_mask.png: car is" in predict_here("some/a_mask.png")[1]  # a file that is passed is an image
    draw(tmp_path / "lines/g\nh.jpg")
    assert "1 image cut out" in predict_here("lines")[1]


@pytest.mark.parametrize(("form", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_an_accent_may_be_encoded_in_two_ways(predict_here, tmp_path, form, other):
    image, mask = (unicodedata.normalize(each, "[1] café") for each in (form, other))
    assert image != mask
    draw(tmp_path / f"some/{image}.png")
    for name in (f"{mask}_mask", f"{mask}_cutout", f"{mask}s_mask"):  # the last is of another image
        draw(tmp_path / f"some/{name}.png", mode="L", gray=0)
    assert {path.stem for path in predict.scan(tmp_path / "some")} == {f"{mask}s_mask", image}
    draw(tmp_path / f"masks/{mask}.png")
    code, _ = predict_here(f"some/{image}.png", f"some/{mask}_mask.png", f"masks/{mask}.png")
    assert "would both become" in code


def test_a_cut_out_has_the_profile_of_its_image(predict_here, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    draw(tmp_path / "some/a.jpg", icc_profile=profile)
    draw(tmp_path / "some/b.jpg", icc_profile=b"broken")
    draw(tmp_path / "some/c.tif", mode="CMYK", icc_profile=b"broken")
    draw(tmp_path / "some/d.png")
    for background in ([], ["--background", "white"]):
        code, _ = predict_here("some", *background)
        assert code == 0
        found = {name: Image.open(tmp_path / f"cutouts/{name}_cutout.png").info.get("icc_profile") for name in "abcd"}
        assert found == {"a": profile, "b": None, "c": None, "d": None}


def test_the_largest_object_is_kept_and_cropped_if_asked_for(predict_here, tmp_path):
    path = draw(tmp_path / "some/a.png", (80, 60))  # a car of 40x30 pixels
    with Image.open(path) as image:
        alone = np.asarray(image.convert("L")) > 200
        image.paste((255, 255, 255), (60, 40, 70, 50))
        both = np.asarray(image.convert("L")) > 200
        image.save(path)
    assert (alone.sum(), both.sum()) == (1200, 1300)
    cut = tmp_path / "cutouts/a_cutout.png"
    for options, size, expected in (
        ([], (80, 60), both),
        (["--crop"], (74, 54), both),  # 70x50 pixels, with a margin of 4, clipped at two sides
        (["--keep-largest"], (80, 60), alone),
        (["--keep-largest", "--crop"], (42, 32), alone),
    ):
        assert predict_here("some", *options)[0] == 0
        mask, alpha = np.asarray(Image.open(tmp_path / "cutouts/a_mask.png")), np.asarray(Image.open(cut))[..., 3]
        assert np.array_equal(mask, 255 * expected) and Image.open(cut).size == size
        assert (alpha == 255).sum() == expected.sum()
        assert np.array_equal(alpha, mask[: size[1], : size[0]])


def test_mistakes_are_named_before_the_model_is_read(predict_here, tmp_path):
    draw(tmp_path / "one/a.png")
    draw(tmp_path / "two/a.jpg")
    (tmp_path / "empty").mkdir()
    for arguments, sentence in (
        ((), "Pass images or folders of them first: python predict.py photo.jpg folder/"),
        (("empty",), "empty contains no image, such as a .jpg or .png file."),
        (
            ("one", "two/a.jpg"),
            "one/a.png and two/a.jpg would both become a_mask.png. Rename one of them.",
        ),
        (
            ("one", "--output-dir", "one"),
            "--output-dir one must not be a folder of images or of masks. Pass another one.",
        ),
        (("one", "--output-dir", "one/masks"), "--output-dir one/masks must not be a folder of images or of masks."),
        (("one", "--threshold", "1"), "--threshold must be in the range (0, 1), not 1.0."),
    ):
        assert predict_here(*arguments)[0].startswith(f"predict.py: {sentence}"), sentence
    assert predict_here("one", "one/a.png")[0] == 0  # the same image twice is predicted once


@pytest.mark.seconds
@pytest.mark.parametrize(("padding", "tta"), [("reflect", True), ("reflect", False), ("stretch", False)])
def test_the_probabilities_are_those_of_a_submission(tmp_path, padding, tta):
    """An image goes the same way as in main.py."""
    classifier = checkpoint(tmp_path / "best.pt", padding, tta, 0.3)
    path, texture = tmp_path / "a.png", np.random.default_rng(0).integers(256, size=(70, 90, 3), dtype=np.uint8)
    Image.fromarray(texture).save(path)
    segmenter = predict.Segmenter(tmp_path / "best.pt", device="cpu")
    assert segmenter.threshold == 0.3
    (loaded,) = segmenter.ensemble.nets
    loaded.precision = torch.float32
    image, _ = dataset.TestImageDataset([path], (188, 188), (4, 4), padding, tta=tta)[0]
    probs = classifier.predict_probs(image[None])
    assert probs.shape == ((1, 8, 8) if tta else (1, 4, 4))
    expected = F.interpolate(probs[None], (70, 90), mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(segmenter.probs(decode_image(path.read_bytes())), expected)


@pytest.mark.seconds
def test_it_works_in_the_environment_of_torchrun(tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.distributed.WORLD_SIZE", 2)
    checkpoint(tmp_path / "best.pt", "reflect", False, 0.5)
    (classifier,) = predict.Segmenter(tmp_path / "best.pt", device="cpu").ensemble.nets
    assert classifier.model is classifier.net


def test_a_file_that_is_not_a_model_is_refused_and_the_latest_model_is_found(tmp_path, monkeypatch):
    other = f"other.pt is not a checkpoint of this version of the program, {version()}, but of an earlier one or"
    torch.save({"net_name": "UNetOriginal"}, tmp_path / "other.pt")
    sentence = rf"{re.escape(other)} another program \(KeyError: 'in_shape'\)\. Use that version, or start a new run\.$"
    with pytest.raises(UserError, match=sentence):
        predict.Segmenter(tmp_path / "other.pt")
    torch.save({"net_name": "UNetOriginal", "in_shape": [3, 188]}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=re.escape(other)):
        predict.Segmenter(tmp_path / "other.pt")
    monkeypatch.chdir(tmp_path)
    options = predict.Options((draw(tmp_path / "a.png"),))
    with pytest.raises(UserError, match=r"^There is no model in output/models\. Train one with main\.py"):
        predict.main(options)
    for name in ("model_2026-01-02_00h00m00s", "model_2026-01-03_00h00m00s"):
        (tmp_path / "output/models" / name).mkdir(parents=True)
        (tmp_path / "output/models" / name / "best.pt").touch()
    with pytest.raises(UserError, match=r"^output/models/model_2026-01-03_00h00m00s/best.pt is not a checkpoint, or"):
        predict.main(options)


def test_the_commands_of_the_pages_are_valid():
    names = []
    for command in commands("python predict.py"):
        options = predict.tyro.cli(predict.Options, args=command.split()[2:])
        names.append([path.name for path in options.images + options.model])
    assert ["photo.jpg", "folder", "best.pt"] in names and ["photo.jpg", "folder"] in names


def test_help_explains_every_option(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["predict.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "predict.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert ended.value.code == 0
    names = "model output-dir background threshold tta keep-largest crop device".split()
    assert all(f"--{name}" in printed for name in names)


def test_names_of_masks_may_be_in_capitals(tmp_path):
    for name in ("a.JPG", "a_MASK.PNG", "ab.png"):
        Image.new("L", (4, 4)).save(tmp_path / name, "PNG")
    assert [path.name for path in predict.find_images((tmp_path,))] == ["a.JPG", "ab.png"]


def test_a_file_in_an_unsupported_format_is_named_with_a_remedy(predict_here, tmp_path):
    draw(tmp_path / "phone/a.png")
    for name in ("b.HEIC", "c.txt", "d.txt", "e.txt"):
        (tmp_path / "phone" / name).touch()
    _, printed = predict_here("phone")
    expected = "4 files in phone: b.HEIC, c.txt, d.txt and 1 more (HEIC is not supported: convert it to JPEG)\n"
    assert f"ignored     {expected}" in printed


@pytest.mark.seconds
@pytest.mark.parametrize("saved", [True, False])
def test_tta_is_that_of_the_model_by_default(tmp_path, monkeypatch, saved):
    checkpoint(tmp_path / "best.pt", tta=saved)
    draw(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    views, predict_probs = [], CarvanaClassifier.predict_probs

    def count_views(self, images):
        views.append(images.ndim - 3)
        return predict_probs(self, images)

    monkeypatch.setattr(CarvanaClassifier, "predict_probs", count_views)
    for arguments, count in (([], 1 + saved), (["--tta", "True"], 2), (["--tta", "False"], 1)):
        predict.main(predict.tyro.cli(predict.Options, args=["a.png", "--model", ".", *arguments]))
        assert views.pop() == count


@pytest.mark.seconds
def test_the_python_of_the_readme_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    run = tmp_path / re.search(r'Segmenter\("(.*?)"\)', code)[1]
    run.mkdir(parents=True)
    checkpoint(run / "best.pt")
    draw(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["probs"].shape == names["mask"].shape == (40, 60) and names["mask"].dtype == torch.bool
    assert Image.open(tmp_path / "car.png").size == (60, 40)
