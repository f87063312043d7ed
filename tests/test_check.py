"""python main.py --check-data on a folder in which everything is wrong that can be."""

import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from data.check import check_data
from data.fetcher import DatasetFetcher
from runtime.errors import UserError


@pytest.fixture
def folder(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "input")


def pairs(folder):
    """The photos to train on, each with its mask, in the order of their names."""
    photos = sorted((folder / "train").iterdir())
    return [(photo, folder / "train_masks" / f"{photo.stem}_mask.gif") for photo in photos]


def save(image, path):
    """Under another format than the name says, which no decoder minds."""
    image.save(path, "PNG")


@pytest.mark.parametrize("workers", [0, 2])
def test_all_faults_are_listed_in_one_go(folder, main_here, workers):
    (half, _), (text, _), (empty, _), (_, half_mask), (_, wide), (bomb, _), (gone, _), (_, lost), *_ = pairs(folder)
    os.truncate(half, half.stat().st_size // 2)
    text.write_text("no photo")
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
    first, *faults = str(code).split("\n  ")
    assert first == f"main.py: 11 faults in {folder} (63 photos, 62 masks and 16 photos to predict, all read):"
    expected = [
        *(rf"{path} can't be read as an image \(" for path in (half, text, empty, half_mask, bomb)),
        rf"{wide} is 121x80 pixels, but its photo .* is 120x80; they must be of one size",
        rf"1 photo without a mask in .*{lost.name.replace('_mask.gif', '.jpg')}",
        rf"1 mask without a photo in .*{gone.stem}_mask.gif",
        rf"must have the 16 views 01 to 16, but .* has no {gone.stem[-2:]}",
        r"1 file in .*train not named like photos.*: holiday.jpg",
        rf"{test} is 60x40 pixels, but the masks of a submission are written at 120x80",
    ]
    for pattern in expected:
        assert len([fault for fault in faults if re.search(pattern, fault)]) == 1, (pattern, faults)
    assert not list(folder.parent.glob("output/models/*"))  # nothing was trained


def test_a_sound_data_set_is_sound_and_all_of_it_was_read(folder, main_here, monkeypatch):
    seen = []
    monkeypatch.setattr("data.check.read", lambda path, decode: (seen.append(path), decode(path.read_bytes()))[1])
    code, printed = main_here("--input-dir", str(folder), "--check-data", "--workers", "0")
    assert code == 0
    assert printed.splitlines()[-1] == "64 photos, 64 masks and 16 photos to predict, all read: no fault."
    files = [path for name in ("train", "train_masks", "test") for path in (folder / name).iterdir()]
    assert sorted(seen) == sorted(files)


def test_what_is_strange_is_told_and_no_fault(folder, capsys):
    (_, empty), (_, full), (_, gray), (_, soft), *_ = pairs(folder)
    save(Image.new("L", (120, 80), 0), empty)
    save(Image.new("L", (120, 80), 255), full)
    levels = np.full((80, 120), 255, np.uint8)
    levels[:40] = 100
    save(Image.fromarray(levels), gray)
    levels[:40] = 0
    levels[40:42] = 128  # an edge of two rows is soft, as edges are
    save(Image.fromarray(levels), soft)
    check_data(DatasetFetcher(folder), workers=0)
    told = capsys.readouterr().out.splitlines()
    assert sorted(told[:-1]) == sorted(
        [
            f"Strange, but no fault: {empty} holds no car.",
            f"Strange, but no fault: {full} is all car.",
            f"Strange, but no fault: {gray} is gray, neither car nor background, in 50 % of its pixels.",
        ]
    )


def test_a_folder_without_photos_to_predict_can_be_checked(folder, capsys):
    shutil.rmtree(folder / "test")
    check_data(DatasetFetcher(folder), workers=0)
    strange, sum_of_all = capsys.readouterr().out.splitlines()
    assert strange == "Strange, but no fault: there are no photos to predict, so say --no-predict to train only."
    assert sum_of_all == "64 photos, 64 masks and 0 photos to predict, all read: no fault."
    (folder / "test").mkdir()
    shutil.copy(pairs(folder)[0][0], folder / "test")
    check_data(DatasetFetcher(folder), workers=0)
    assert capsys.readouterr().out == "64 photos, 64 masks and 1 photo to predict, all read: no fault.\n"


def test_one_car_is_a_fault(folder):
    car = pairs(folder)[0][0].stem[:-3]
    for photo, mask in pairs(folder):
        if not photo.stem.startswith(car):
            photo.unlink()
            mask.unlink()
    with pytest.raises(UserError, match=r"1 fault in .*\n  1 car is too few: one must train and another validate"):
        check_data(DatasetFetcher(folder), workers=0)


def test_every_name_is_listed_not_the_first_three(folder):
    for _, mask in pairs(folder)[:5]:
        mask.unlink()
    with pytest.raises(UserError) as error:
        check_data(DatasetFetcher(folder), workers=0)
    assert all(photo.name in str(error.value) for photo, _ in pairs(folder)[:5])


def test_own_photos_are_checked_too_and_none_to_predict_are_missed(own, main_here):
    arguments = ("--input-dir", str(own), "--dataset", "own", "--group-regex", "cat [01]", "--check-data", "--workers", "0")
    for path in [*own.glob("*/cat 2*"), *own.glob("*/cat 3*")]:
        path.unlink()
    code, printed = main_here(*arguments)
    assert code == 0
    assert printed.splitlines() == [f"Photos in {own}/images, masks in {own}/masks.", "4 photos, 4 masks, all read: no "
                                    "fault."]  # fmt: skip
    half, wide, lost = own / "images/cat 0-jpg.jpg", own / "masks/cat 1-jpg.png", own / "masks/cat 0-png_mask.png"
    os.truncate(half, half.stat().st_size // 2)
    save(Image.new("L", (121, 80), 255), wide)
    lost.unlink()
    shutil.copy(wide, own / "masks/other.png")
    shutil.copy(own / "images/cat 1-jpg.jpg", own / "images/dog.jpg")
    code, _ = main_here(*arguments)
    first, *faults = str(code).split("\n  ")
    assert first == f"main.py: 5 faults in {own} (5 photos, 3 masks, all read):"
    expected = [
        rf"{half} can't be read as an image \(",
        rf"{wide} is 121x80 pixels, but its photo .* is 120x80; they must be of one size",
        r"2 photos without a mask in .*masks: cat 0-png\.PNG, dog\.jpg\.",
        r"1 mask without a photo in .*images: other\.png",
        r"--group-regex 'cat \[01\]' fits 4 of the 5 photos in .*images, but not dog\.jpg",
    ]
    for pattern in expected:
        assert len([fault for fault in faults if re.search(pattern, fault)]) == 1, (pattern, faults)


def test_a_mask_that_is_hardly_a_mask_is_strange(own, capsys):
    masks = own / "masks"
    for number, value in enumerate((1, 255, 5)):
        name, image = f"cat {number}-jpg.png", Image.new("L", (120, 80), value)
        image.paste(255, (0, 0, 30, 80))
        image.paste(0, (0, 0, 9, 9))
        save(image, masks / name)
    check_data(DatasetFetcher(own, "own"), workers=0)
    first, second, end = capsys.readouterr().out.splitlines()
    told = "holds 0, 1 and 255, of which 255 is car. If 1 is, make the others 0."
    assert first == f"Strange, but no fault: {masks}/cat 0-jpg.png {told}"
    assert second == f"Strange, but no fault: {masks}/cat 1-jpg.png is car in 99 % of its pixels."
    assert end == "8 photos, 8 masks, all read: no fault."


def test_a_mask_that_lies_on_its_side_is_told_why(own):
    lying = Image.Exif()
    lying[0x0112] = 6
    Image.open(own / "images/cat 0-jpg.jpg").save(own / "images/cat 0-jpg.jpg", exif=lying)
    told = "cat 0-jpg.png is 120x80 pixels, but its photo .* is 80x120; they must be of one size, both upright: EXIF"
    with pytest.raises(UserError, match=told):
        check_data(DatasetFetcher(own, "own"), workers=0)
