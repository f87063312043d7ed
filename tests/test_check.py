"""--check-data on a folder that has every problem."""

import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from data.check import check_data
from data.fetcher import DatasetFetcher
from data.layout import CarvanaLayout, OwnLayout
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
@pytest.mark.parametrize("workers", [0, 2])
def test_all_problems_are_listed_at_once(folder, main_here, workers):
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
    code, _ = main_here("--input-dir", str(folder), "--check-data", "--workers", str(workers))
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
    monkeypatch.setattr("data.check.read", lambda path, decode: (seen.append(path), decode(path.read_bytes()))[1])
    code, printed = main_here("--input-dir", str(folder), "--check-data", "--workers", "0")
    assert code == 0
    assert printed.splitlines()[-1] == "64 images, 64 masks, 16 test images read: no problems."
    files = [path for name in ("train", "train_masks", "test") for path in (folder / name).iterdir()]
    assert sorted(seen) == sorted(files)


def test_an_unusual_mask_is_a_warning(folder, capsys):
    (_, empty), (_, full), (_, gray), (_, soft), *_ = pairs(folder)
    save(Image.new("L", (120, 80), 0), empty)
    save(Image.new("L", (120, 80), 255), full)
    levels = np.full((80, 120), 255, np.uint8)
    levels[:40] = 100
    save(Image.fromarray(levels), gray)
    levels[:40] = 0
    levels[40:42] = 128  # an edge of two rows is soft, as edges are
    save(Image.fromarray(levels), soft)
    check_data(DatasetFetcher(CarvanaLayout(folder)), workers=0)
    warnings = capsys.readouterr().out.splitlines()[:-1]
    assert sorted(warnings) == sorted(
        [
            f"Warning: {empty} is all background.",
            f"Warning: {full} is all car.",
            f"Warning: {gray} is gray (neither car nor background) in 50% of its pixels.",
        ]
    )


def test_a_folder_without_test_images_can_be_checked(folder, capsys):
    shutil.rmtree(folder / "test")
    check_data(DatasetFetcher(CarvanaLayout(folder)), workers=0)
    assert capsys.readouterr().out == "64 images, 64 masks, 0 test images read: no problems.\n"
    (folder / "test").mkdir()
    shutil.copy(pairs(folder)[0][0], folder / "test")
    check_data(DatasetFetcher(CarvanaLayout(folder)), workers=0)
    assert capsys.readouterr().out == "64 images, 64 masks, 1 test image read: no problems.\n"


def test_one_car_is_a_problem(folder):
    car = pairs(folder)[0][0].stem[:-3]
    for image, mask in pairs(folder):
        if not image.stem.startswith(car):
            image.unlink()
            mask.unlink()
    with pytest.raises(UserError, match=r"1 problem in .*\n  1 car in .*train \(at least 2 are needed"):
        check_data(DatasetFetcher(CarvanaLayout(folder)), workers=0)


def test_every_name_is_listed_not_the_first_three(folder):
    for _, mask in pairs(folder)[:5]:
        mask.unlink()
    with pytest.raises(UserError) as error:
        check_data(DatasetFetcher(CarvanaLayout(folder)), workers=0)
    assert all(image.name in str(error.value) for image, _ in pairs(folder)[:5])


def test_own_images_are_checked_too_and_need_no_test_images(own, main_here):
    arguments = ["--input-dir", str(own), "--dataset", "own", "--group-regex", "cat [01]", "--check-data"]
    arguments += ["--workers", "0"]
    for path in [*own.glob("*/cat 2*"), *own.glob("*/cat 3*")]:
        path.unlink()
    code, printed = main_here(*arguments)
    assert code == 0
    assert printed == "4 images, 4 masks read: no problems.\n"
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


def test_a_mask_with_too_much_car_or_odd_values_is_a_warning(own, capsys):
    masks = own / "masks"
    for number, value in enumerate((1, 255, 5)):
        name, image = f"cat {number}-jpg.png", Image.new("L", (120, 80), value)
        image.paste(255, (0, 0, 30, 80))
        image.paste(0, (0, 0, 9, 9))
        save(image, masks / name)
    check_data(DatasetFetcher(OwnLayout(own)), workers=0)
    first, second, end = capsys.readouterr().out.splitlines()
    values = "has the values 0, 1 and 255, and only 255 is car. If 1 is car, set the others to 0."
    assert first == f"Warning: {masks}/cat 0-jpg.png {values}"
    assert second == f"Warning: {masks}/cat 1-jpg.png is car in 99% of its pixels."
    assert end == "8 images, 8 masks read: no problems."


def test_a_mask_that_is_rotated_relative_to_its_image_is_explained(own):
    rotated = Image.Exif()
    rotated[0x0112] = 6
    Image.open(own / "images/cat 0-jpg.jpg").save(own / "images/cat 0-jpg.jpg", exif=rotated)
    with pytest.raises(UserError, match=r"cat 0-jpg\.png is 80x120 pixels.* 120x80.* EXIF"):
        check_data(DatasetFetcher(OwnLayout(own)), workers=0)


def test_a_pattern_that_matches_no_name_is_listed_with_what_follows_from_it(own):
    with pytest.raises(UserError) as error:
        check_data(DatasetFetcher(OwnLayout(own, "dog")), workers=0)
    title, *problems = str(error.value).split("\n  ")
    assert title.startswith("2 problems in ")
    assert problems[0].startswith(f"8 images in {own}/images not matched by --group-regex 'dog': cat 0-jpg.jpg, ")
    assert problems[1].startswith(f"There are no groups in {own}/images (at least 2 are needed")
