"""--check-data on a folder that has every problem."""

import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from data import masks
from data.check import check_data
from data.fetcher import DatasetFetcher
from data.layout import CarvanaLayout, OwnLayout
from data.reader import read
from runtime.errors import UserError


@pytest.fixture
def folder(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "input")


def pairs(folder):
    """The training images, each with its mask, sorted by name."""
    images = sorted((folder / "train").iterdir())
    return [(image, folder / "train_masks" / f"{image.stem}_mask.gif") for image in images]


def save(image, path):
    """As PNG, whatever the extension. Decoders look at the contents."""
    image.save(path, "PNG")


@pytest.mark.seconds
def test_all_problems_are_listed_at_once(folder, main_here):
    (half, _), (text, _), (empty, _), (_, half_mask), (_, wide), (bomb, _), (gone, _), (_, lost), *_ = pairs(folder)
    os.truncate(half, half.stat().st_size // 2)
    text.write_text("not an image")
    os.truncate(empty, 0)
    os.truncate(half_mask, half_mask.stat().st_size // 2)
    save(Image.new("L", (121, 80)), wide)
    save(Image.new("1", (20_000, 20_000)), bomb)
    gone.unlink()
    lost.unlink()
    test = sorted((folder / "test").iterdir())[0]
    save(Image.new("RGB", (60, 40)), test)
    shutil.copy(half, folder / "train" / "holiday.jpg")
    code, _ = main_here("--input-dir", str(folder), "--check-data")
    first, *problems = str(code).split("\n  ")
    assert first == f"main.py: 11 problems in {folder} (63 images, 62 masks, 16 test images read):"
    expected = [
        *(rf"{path} cannot be read as an image \(" for path in (half, text, empty, half_mask, bomb)),
        rf"{wide} is 80x121 pixels",
        rf"1 image without a mask in .*{lost.name.replace('_mask.gif', '.jpg')}",
        rf"1 mask without an image in .*{gone.stem}_mask.gif",
        rf"1 car in .*train without all of the angles 01 to 16: .* lacks {gone.stem[-2:]}\.",
        r"1 image in .*train with an unexpected name: holiday\.jpg\.",
        rf"{test} is 40x60 pixels, but the masks of a submission are 80x120",
    ]
    for pattern in expected:
        assert len([problem for problem in problems if re.search(pattern, problem)]) == 1, (pattern, problems)
    assert not list(folder.parent.glob("output/models/*"))  # nothing was trained


def test_a_valid_data_set_has_no_problems_and_all_of_it_is_read(folder, main_here, monkeypatch):
    seen = []
    monkeypatch.setattr("data.reader.read", lambda path, *arguments: (seen.append(path), read(path, *arguments))[1])
    examine = masks.examine
    monkeypatch.setattr("data.masks.examine", lambda path, values: (seen.append(path), examine(path, values))[1])
    code, printed = main_here("--input-dir", str(folder), "--check-data")
    assert code == 0
    assert printed.splitlines()[-1] == "64 images, 64 masks, 16 test images read: no problems."
    files = [path for name in ("train", "train_masks", "test") for path in (folder / name).iterdir()]
    assert sorted(set(seen)) == sorted(files) and seen.count(files[0]) == 1


def test_unusual_masks_are_named_and_drawn_first(folder, capsys, tmp_path):
    (_, empty), (_, full), (image, inverted), *_ = pairs(folder)
    save(Image.new("L", (120, 80), 0), empty)
    save(Image.new("L", (120, 80), 255), full)
    levels = np.full((80, 120), 255, np.uint8)
    levels[20:60, 30:90] = 0
    save(Image.fromarray(levels), inverted)
    Image.new("RGB", (120, 80), (0, 0, 99)).save(image, "JPEG")
    check_data(DatasetFetcher(CarvanaLayout(folder)), tmp_path / "check.png")
    assert capsys.readouterr().out.splitlines() == [
        "masks       gray levels: the object is 255; values between 0 and it are soft labels",
        f"Warning: 1 mask with the object on most of the border: {inverted.name}. If that is the background, invert "
        "these masks or, if it is so in all of them, pass --mask-values 0.",
        f"note        1 mask without an object: {empty.name}",
        f"note        1 mask without background: {full.name}",
        f"look at     {tmp_path / 'check.png'}: masks on their images, the unusual ones first",
        "64 images, 64 masks, 16 test images read: no problems.",
    ]
    drawn = np.asarray(Image.open(tmp_path / "check.png"))
    assert drawn.shape == (1280, 1280, 3)
    first = drawn[: 320 * 80 // 120, :320].astype(int)
    outline = (first == (255, 0, 255)).all(axis=-1)
    rows, columns = np.nonzero(outline)
    assert abs(rows.min() - 52) <= 3 and abs(rows.max() - 160) <= 3  # of an image that is 213 pixels high
    assert abs(columns.min() - 79) <= 3 and abs(columns.max() - 240) <= 3
    assert 2 * (160 - 52 + 240 - 79) * 0.8 < outline.sum() < 2 * (160 - 52 + 240 - 79) * 2.5
    assert abs(first[100, 160] - (0, 0, 49)).max() < 20  # of the image, outside of the object: half as bright
    assert abs(first[200, 300] - (0, 0, 99)).max() < 20


@pytest.mark.seconds
def test_a_folder_without_test_images_can_be_checked(folder, capsys, tmp_path):
    shutil.rmtree(folder / "test")
    check_data(DatasetFetcher(CarvanaLayout(folder)), tmp_path / "check.png")
    assert capsys.readouterr().out.endswith("\n64 images, 64 masks, 0 test images read: no problems.\n")
    (folder / "test").mkdir()
    shutil.copy(pairs(folder)[0][0], folder / "test")
    check_data(DatasetFetcher(CarvanaLayout(folder)), tmp_path / "check.png")
    assert capsys.readouterr().out.endswith("\n64 images, 64 masks, 1 test image read: no problems.\n")


def test_one_car_is_a_problem(folder, tmp_path):
    car = pairs(folder)[0][0].stem[:-3]
    for image, mask in pairs(folder):
        if not image.stem.startswith(car):
            image.unlink()
            mask.unlink()
    with pytest.raises(UserError, match=r"1 problem in .*\n  1 car in .*train \(at least 2 are needed"):
        check_data(DatasetFetcher(CarvanaLayout(folder)), tmp_path / "check.png")


def test_every_name_is_listed_not_the_first_three(folder, tmp_path):
    for _, mask in pairs(folder)[:5]:
        mask.unlink()
    with pytest.raises(UserError) as error:
        check_data(DatasetFetcher(CarvanaLayout(folder)), tmp_path / "check.png")
    assert all(image.name in str(error.value) for image, _ in pairs(folder)[:5])


def test_own_images_are_checked_too_and_need_no_test_images(own, main_here):
    arguments = ["--input-dir", str(own), "--dataset", "own", "--group-regex", "cat [01]", "--check-data"]
    for path in [*own.glob("*/cat 2*"), *own.glob("*/cat 3*")]:
        path.unlink()
    code, printed = main_here(*arguments)
    assert code == 0
    assert printed.endswith("\n4 images, 4 masks read: no problems.\n")
    half, wide, lost = own / "images/cat 0-jpg.jpg", own / "masks/cat 1-jpg.png", own / "masks/cat 0-png_mask.png"
    os.truncate(half, half.stat().st_size // 2)
    save(Image.new("L", (121, 80), 255), wide)
    lost.unlink()
    shutil.copy(wide, own / "masks/other.png")
    shutil.copy(own / "images/cat 1-jpg.jpg", own / "images/dog.jpg")
    code, _ = main_here(*arguments)
    first, *problems = str(code).split("\n  ")
    assert first == f"main.py: 5 problems in {own} (5 images, 3 masks read):"
    expected = [
        rf"{half} cannot be read as an image \(",
        rf"{wide} is 80x121 pixels",
        r"2 images without a mask in .*masks: cat 0-png\.PNG, dog\.jpg\.",
        r"1 mask without an image in .*images: other\.png",
        r"1 image in .*images not matched by --group-regex 'cat \[01\]': dog\.jpg\.",
    ]
    for pattern in expected:
        assert len([problem for problem in problems if re.search(pattern, problem)]) == 1, (pattern, problems)


def test_a_pattern_that_matches_no_name_is_listed_with_what_follows_from_it(own, tmp_path):
    with pytest.raises(UserError) as error:
        check_data(DatasetFetcher(OwnLayout(own, "dog")), tmp_path / "check.png")
    title, *problems = str(error.value).split("\n  ")
    assert title.startswith("2 problems in ")
    assert problems[0].startswith(f"8 images in {own}/images not matched by --group-regex 'dog': cat 0-jpg.jpg, ")
    assert problems[1].startswith(f"There are no groups in {own}/images (at least 2 are needed")
