import os
import re
import shutil
import subprocess
import unicodedata
import zipfile
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from PIL import ExifTags, Image

from data.fetcher import DatasetFetcher
from data.layout import CarvanaLayout, OwnLayout, make_layout
from data.reader import get_header
from img.transformer import decode_image
from runtime.errors import UserError


@pytest.fixture
def folder(drawn, tmp_path):
    """A copy of the drawn cars that a test may change."""
    return shutil.copytree(drawn, tmp_path / "input")


def cars_of(paths):
    return {path.name.rsplit("_", 1)[0] for path in paths}


def first_image(folder):
    return min((folder / "train").iterdir())


def test_images_and_masks_are_paired_by_name(drawn):
    X_train, y_train, X_valid, y_valid = DatasetFetcher(CarvanaLayout(drawn)).get_train_files()
    assert len(X_train) == len(y_train) == 48 and len(X_valid) == len(y_valid) == 16
    for image, mask in zip(X_train + X_valid, y_train + y_valid, strict=True):
        assert mask.name == f"{image.stem}_mask.gif"


def test_no_car_is_on_both_sides_of_the_split_and_none_is_lost(drawn):
    X_train, _, X_valid, _ = DatasetFetcher(CarvanaLayout(drawn)).get_train_files(validation_size=0.5)
    assert len(cars_of(X_train)) == len(cars_of(X_valid)) == 2
    assert not cars_of(X_train) & cars_of(X_valid)
    assert len({*X_train, *X_valid}) == len(X_train) + len(X_valid) == 64


def test_the_split_is_a_function_of_the_seed_alone(drawn, folder):
    a, b = DatasetFetcher(CarvanaLayout(drawn)), DatasetFetcher(CarvanaLayout(folder))
    for fetcher in (a, b):
        fetcher.get_train_files(seed=3)
    pd.testing.assert_frame_equal(a.split, b.split)
    assert list(a.split.columns) == ["car", "image", "part"] and a.split["part"].value_counts()["train"] == 48
    splits = [DatasetFetcher(CarvanaLayout(drawn)).get_train_files(seed=seed) for seed in range(8)]
    assert len({X_valid[0] for _, _, X_valid, _ in splits}) > 1  # control


def test_a_sample_is_of_cars_without_replacement(drawn):
    X_train, _, X_valid, _ = DatasetFetcher(CarvanaLayout(drawn)).get_train_files(sample_size=0.5, validation_size=0.5)
    assert len(cars_of(X_train)) == len(cars_of(X_valid)) == 1
    assert len(set(X_train)) == len(set(X_valid)) == 16
    assert not cars_of(X_train) & cars_of(X_valid)


def test_test_images_are_sorted_by_name_and_a_car_may_have_any_number(folder):
    min((folder / "test").iterdir()).unlink()
    X_test = DatasetFetcher(CarvanaLayout(folder)).get_test_files()
    assert len(X_test) == 15 and [path.name for path in X_test] == sorted(path.name for path in X_test)


def test_folders_of_high_quality_are_taken_first_or_as_asked(folder):
    shutil.copytree(folder / "train", folder / "train_hq")
    shutil.move(folder / "test", folder / "test_hq")
    assert DatasetFetcher(CarvanaLayout(folder)).get_train_files()[0][0].parent.name == "train_hq"
    assert DatasetFetcher(CarvanaLayout(folder, hq_files=False)).get_train_files()[0][0].parent.name == "train"
    assert DatasetFetcher(CarvanaLayout(folder)).get_test_files()[0].parent.name == "test_hq"
    with pytest.raises(UserError, match=r"There are no images in .*/test itself\. Images must be named"):
        DatasetFetcher(CarvanaLayout(folder, hq_files=False)).get_test_files()
    shutil.rmtree(folder / "train_hq")
    (folder / "train_hq").mkdir()
    (folder / "train_hq" / ".DS_Store").touch()
    assert DatasetFetcher(CarvanaLayout(folder)).get_train_files()[0][0].parent.name == "train"
    assert "no train_hq/ in" in refusal(folder, hq_files=True)


def test_hidden_files_are_left_out_and_other_strays_are_listed(folder, capsys):
    for name in (".DS_Store", "Thumbs.db", "notes.txt"):
        (folder / "train" / name).write_text("x")
    assert len(DatasetFetcher(CarvanaLayout(folder)).get_train_files()[0]) == 48
    expected = r"ignored     2 files in .*train: Thumbs\.db, notes\.txt\n"
    assert re.search(expected, capsys.readouterr().out)


def test_the_size_is_that_of_the_upright_image(drawn, tmp_path):
    assert get_header(first_image(drawn)).size == (80, 120)
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[ExifTags.Base.Orientation] = orientation
        Image.open(first_image(drawn)).save(tmp_path / "turned.jpg", exif=exif)
        size = tuple(decode_image((tmp_path / "turned.jpg").read_bytes()).shape[1:])
        assert get_header(tmp_path / "turned.jpg").size == size
    assert size == (120, 80)  # control


def test_a_test_image_of_another_size_is_named_before_it_is_predicted(folder):
    fetcher = DatasetFetcher(CarvanaLayout(folder))
    fetcher.get_train_files()
    assert fetcher.image_size == (80, 120)
    image = sorted((folder / "test").iterdir())[7]
    Image.new("RGB", (120, 81)).save(image)
    with pytest.raises(UserError, match=f"{image.name} is 81x120 pixels, but the masks .* 80x120"):
        fetcher.get_test_files()
    image.write_text("not an image")
    with pytest.raises(UserError, match=f"{image.name} cannot be read as an image"):
        fetcher.get_test_files()


def test_all_processes_wait_for_the_data_and_compare_their_images(drawn, monkeypatch):
    events = []

    @contextmanager
    def local_main_process_first():
        events.append("first")
        yield
        events.append("others")

    monkeypatch.setattr("runtime.distributed.local_main_process_first", local_main_process_first)
    monkeypatch.setattr("runtime.distributed.broadcast", lambda make: events.append("one reads masks") or make())
    monkeypatch.setattr("runtime.distributed.require_same", lambda paths: events.append([*paths]))
    monkeypatch.setattr("data.layout.CarvanaLayout.missing_files", lambda self, test_images: events.append(test_images))
    fetcher = DatasetFetcher(CarvanaLayout(drawn))
    fetcher.download_dataset(test_images=False)
    assert events == ["first", False, "others"]
    X_train, _, X_valid, _ = fetcher.get_train_files()
    X_test = fetcher.get_test_files()
    assert fetcher.get_test_files(predict=False) == []
    assert events[3:] == ["one reads masks", X_train + X_valid, X_test]


def next_step(fetcher, submission="a.gz"):
    return fetcher.next_step(Path(submission), Path("best.pt"), "worst.jpg")


def refusal(folder, **options):
    with pytest.raises(UserError) as error:
        options = {"dataset": "carvana", "hq_files": None, "group_regex": None} | options
        fetcher = DatasetFetcher(make_layout(input_dir=folder, **options))
        fetcher.download_dataset()
        fetcher.get_train_files()
        fetcher.get_test_files()
    return str(error.value)


def test_an_empty_folder_gets_three_options(tmp_path):
    sentence = refusal(tmp_path)
    assert "no train/ or train_hq/ and no train_masks/" in sentence
    assert all(way in sentence for way in ("kaggle.com", "--input-dir", "--dataset sample"))
    (tmp_path / "train").mkdir()
    assert "no train/ or train_hq/ and no train_masks/" in refusal(tmp_path)  # an empty folder has no images


def test_an_image_without_mask_is_named(folder):
    image = first_image(folder)
    (folder / "train_masks" / f"{image.stem}_mask.gif").unlink()
    assert image.name in refusal(folder) and "without a mask" in refusal(folder)


def test_a_mask_without_image_is_named(folder):
    masks = folder / "train_masks"
    shutil.copy(min(masks.iterdir()), masks / "other_01_mask.gif")
    assert "other_01_mask.gif" in refusal(folder)


def test_two_masks_of_an_image_are_named(folder):
    mask = min((folder / "train_masks").iterdir())
    shutil.copy(mask, mask.with_suffix(".png"))
    assert mask.name in refusal(folder) and mask.with_suffix(".png").name in refusal(folder)


def test_two_images_with_one_name_are_named(folder):
    image = first_image(folder)
    shutil.copy(image, image.with_suffix(".png"))
    assert image.with_suffix(".png").name in refusal(folder)


def test_a_car_with_15_angles_is_named_with_the_missing_one(folder):
    image = sorted((folder / "train").iterdir())[4]
    image.unlink()
    (folder / "train_masks" / f"{image.stem}_mask.gif").unlink()
    car = image.stem.rsplit("_", 1)[0]
    assert f"{car} lacks 05" in refusal(folder)


def test_an_angle_too_many_is_an_unexpected_name(folder):
    image = first_image(folder)
    car = image.stem.rsplit("_", 1)[0]
    shutil.copy(image, image.with_name(f"{car}_17.jpg"))
    shutil.copy(folder / "train_masks" / f"{car}_01_mask.gif", folder / "train_masks" / f"{car}_17_mask.gif")
    assert f"1 image in {folder}/train with an unexpected name: {car}_17.jpg." in refusal(folder)


def test_an_image_with_an_unexpected_name_is_named(folder):
    shutil.copy(first_image(folder), folder / "train" / "holiday.jpg")
    assert "holiday.jpg" in refusal(folder)


def test_a_mask_of_another_size_is_named(folder):
    mask = min((folder / "train_masks").iterdir())
    Image.new("P", (120, 81)).save(mask)
    assert mask.name in refusal(folder) and "81x120" in refusal(folder)


def test_one_car_is_too_few(folder):
    car = first_image(folder).stem.rsplit("_", 1)[0]
    for path in [*(folder / "train").iterdir(), *(folder / "train_masks").iterdir()]:
        if not path.name.startswith(car):
            path.unlink()
    assert f"1 car in {folder}/train (at least 2 are needed): {car}. Add" in refusal(folder)


def test_without_test_images_it_says_how_to_do_without(folder):
    shutil.rmtree(folder / "test")
    assert "--no-predict" in refusal(folder)


def test_images_one_folder_too_deep_get_a_hint(folder):
    shutil.move(folder / "train", folder / "inner")
    (folder / "train").mkdir()
    shutil.move(folder / "inner", folder / "train" / "train")
    assert f"There are no images in {folder}/train itself. " in refusal(folder)


def test_a_sample_that_cannot_be_drawn_names_the_folder(tmp_path):
    (tmp_path / "file").touch()
    assert f"Cannot write to {tmp_path}/file" in refusal(tmp_path / "file", dataset="sample")


def test_a_resumed_run_keeps_its_split_and_names_missing_images(folder):
    fetcher = DatasetFetcher(CarvanaLayout(folder))
    before = fetcher.get_train_files(seed=3)
    split = fetcher.split.to_dict(orient="list")
    assert DatasetFetcher(CarvanaLayout(folder)).get_train_files(seed=4, split=split) == before
    assert DatasetFetcher(CarvanaLayout(folder)).get_train_files(seed=4) != before  # control
    car = split["car"][0]
    for path in [*(folder / "train").glob(f"{car}_*"), *(folder / "train_masks").glob(f"{car}_*")]:
        path.unlink()
    expected = rf"16 images of the run to resume not found in .*: {car}_01, {car}_02, {car}_03 and 13 more\. Put them"
    with pytest.raises(UserError, match=expected):
        DatasetFetcher(CarvanaLayout(folder)).get_train_files(split=split)


def test_a_name_that_is_not_text_is_named(folder):
    (folder / "test" / "a\udcff_01.jpg").write_bytes(first_image(folder).read_bytes())
    expected = r"1 file in .*test with a name that is not text: 'a\\udcff_01\.jpg'\. Rename them"
    with pytest.raises(UserError, match=expected):
        DatasetFetcher(CarvanaLayout(folder)).get_test_files()


def test_a_submission_that_kaggle_will_refuse_is_reported_before_the_training(folder, monkeypatch, capsys):
    few = DatasetFetcher(CarvanaLayout(folder))
    few.get_test_files()
    sentence = "Kaggle will refuse this submission: it has 16 masks, not 100,064."
    assert capsys.readouterr().out == f"Warning: {sentence}\n"
    assert next_step(few) == f"no upload   {sentence}"
    monkeypatch.setattr("data.fetcher.TEST_COUNT", 16)  # control
    all_of_them = DatasetFetcher(CarvanaLayout(folder))
    all_of_them.get_test_files()
    assert capsys.readouterr().out == ""
    command = "kaggle competitions submit -c carvana-image-masking-challenge -f a.gz -m U-Net"
    assert next_step(all_of_them) == f"upload it   {command}"
    assert " -f 'my images/a.gz' -m " in next_step(all_of_them, "my images/a.gz")


def test_test_images_are_of_the_quality_of_the_training_images(tmp_path, folder):
    """Whether these are a zip, or a folder when it looks again."""
    (tmp_path / "train_hq.zip").touch()
    assert {"train_hq", "test_hq"} < set(CarvanaLayout(tmp_path).missing_files(True))
    (tmp_path / "train_hq.zip").unlink()
    shutil.copytree(folder / "train", tmp_path / "train_hq")
    assert CarvanaLayout(tmp_path).missing_files(True)[-1] == "test_hq"
    shutil.rmtree(tmp_path / "train_hq")
    assert CarvanaLayout(tmp_path).missing_files(True)[-1] == "test"  # control


def test_a_table_that_nothing_reads_is_not_unpacked(folder):
    for name in ("metadata.csv.zip", "sample_submission.csv.zip"):
        (folder / name).write_bytes(b"not a zip")
    assert CarvanaLayout(folder).missing_files(True) == []


def test_a_zip_is_not_called_missing(tmp_path):
    for name in ("train_hq.zip", "train_masks.zip"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"^There is no test/ or test_hq/ in .*/; pass --no-predict to train only\. "):
        DatasetFetcher(CarvanaLayout(tmp_path)).download_dataset()
    (tmp_path / "train_masks.zip").unlink()  # control
    with pytest.raises(UserError, match=r"^There is no train_masks/ and no test/ or test_hq/ in .*/\. Three options"):
        DatasetFetcher(CarvanaLayout(tmp_path)).download_dataset()


def lay_out(own, images, masks):
    """Move images and masks to folders with these names, in which "." is the input folder itself."""
    for name, to in (("masks", masks), ("images", images)):
        (own / to).mkdir(exist_ok=True)
        for path in list((own / name).iterdir()):
            called = f"{path.stem.removesuffix('_mask')}_mask.png" if name == "masks" and images == masks else path.name
            path.rename(own / to / called)
        if to != name:
            (own / name).rmdir()


@pytest.mark.parametrize(
    ("images", "masks"),
    [("images", "masks"), ("imgs", "train_masks"), ("train", "masks"), ("train_hq", "train_masks"), (".", "masks"),
     (".", "."), ("train", "train")],
)  # fmt: skip
def test_own_images_of_any_names_and_sizes_are_paired_by_name(own, images, masks):
    lay_out(own, images, masks)
    before = sorted(own.rglob("*"))
    fetcher = DatasetFetcher(OwnLayout(own))
    fetcher.download_dataset(test_images=True)  # which there are none of
    X_train, y_train, X_valid, y_valid = fetcher.get_train_files()
    assert (len(X_train), len(X_valid)) == (6, 2)
    names = set()
    for image, mask in zip(X_train + X_valid, y_train + y_valid, strict=True):
        assert (image.parent, mask.parent) == (own / images, own / masks)
        assert mask.stem.removesuffix("_mask") == image.stem
        names.add(image.name)
    assert names == {f"cat {cat}-{ending.lower()}.{ending}" for cat in range(4) for ending in ("jpg", "PNG")}
    where = f"\n            in {own / images}, masks in {own / masks}"
    assert fetcher.describe(0) == f"6 images to train on, 2 to validate on{where}"
    assert sorted(own.rglob("*")) == before  # nothing was downloaded or locked
    min(mask for mask in (own / masks).iterdir() if mask.suffix == ".png").rename(own / masks / "other_mask.png")
    with pytest.raises(UserError, match=r"[12] images? without a mask in .*: cat 0-(jpg\.jpg|png\.PNG)"):  # control
        DatasetFetcher(OwnLayout(own)).get_train_files()


def test_a_group_is_on_one_side_of_the_split_and_without_a_pattern_each_image_is_its_own(own):
    split_in_two = 0
    for seed in range(8):
        fetcher = DatasetFetcher(OwnLayout(own, group_regex="(.+)-"))
        X_train, _, X_valid, _ = fetcher.get_train_files(seed=seed)
        sides = [{path.name.split("-")[0] for path in paths} for paths in (X_train, X_valid)]
        assert (len(X_train), len(X_valid)) == (6, 2) and not sides[0] & sides[1]
        assert set(fetcher.split["car"]) == {f"cat {cat}" for cat in range(4)}
        assert fetcher.groups == {path.name: path.name.split("-")[0] for path in X_train + X_valid}
        X_train, _, X_valid, _ = DatasetFetcher(OwnLayout(own)).get_train_files(seed=seed)
        split_in_two += bool({path.name[:5] for path in X_train} & {path.name[:5] for path in X_valid})
    assert split_in_two  # control
    assert len(DatasetFetcher(OwnLayout(own, group_regex=r"cat \d")).get_train_files(sample_size=0.5)[0]) == 2
    X_train, *_ = DatasetFetcher(OwnLayout(own, group_regex="jpg|png")).get_train_files(sample_size=1)
    assert X_train[0].stem[-3:] in ("jpg", "png")


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("(.+-", r"^--group-regex '\(\.\+-' is not a regular expression \(missing \)"),
        ("cat [12]", r"^4 images in .*images not matched by --group-regex 'cat \[12\]': cat 0-jpg\.jpg, "
         r"cat 0-png\.PNG, cat 3-jpg\.jpg and 1 more\. Pass one that matches all names"),
        ("cat (x?)", "^8 images in .*images not matched"),  # an empty match is not a group
        (".at", r"^1 group in .*images \(at least 2 are needed\): cat\. Add groups"),
    ],
)  # fmt: skip
def test_a_pattern_that_makes_no_groups_is_refused(own, group, expected):
    with pytest.raises(UserError, match=expected):
        DatasetFetcher(OwnLayout(own, group)).get_train_files()


def test_images_without_a_group_are_not_said_to_be_known_to_a_model(own, capsys):
    with pytest.raises(UserError, match=r"^4 images in .*images not matched"):
        DatasetFetcher(OwnLayout(own, "cat [12]")).get_unseen_files({"elsewhere"})
    assert "left out" not in capsys.readouterr().out


def spoil(own, fault):
    images, masks = own / "images", own / "masks"
    match fault:
        case "no mask":
            (masks / "cat 0-jpg.png").unlink()
        case "no image":
            (images / "cat 0-jpg.jpg").unlink()
        case "two masks":
            shutil.copy(masks / "cat 0-jpg.png", masks / "cat 0-jpg_mask.gif")
        case "twice":
            shutil.copy(images / "cat 0-jpg.jpg", images / "cat 0-jpg.jpeg")
        case "size":
            Image.new("L", (120, 81)).save(masks / "cat 0-jpg.png")
        case "no images":
            shutil.rmtree(images)
        case "no masks":
            shutil.rmtree(masks)
        case "one":
            for path in [*images.iterdir(), *masks.iterdir()]:
                if not path.name.startswith("cat 0-jpg"):
                    path.unlink()
        case "no folder":
            shutil.rmtree(own)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("no mask", "1 image without a mask in OWN/masks: cat 0-jpg.jpg. Add the masks, or remove the images. The mask "
         "of NAME.jpg is NAME_mask.png, or NAME.png in a separate folder."),
        ("no image", "1 mask without an image in OWN/images: cat 0-jpg.png. Add the images, or remove the masks."),
        ("two masks", "1 image with two masks in OWN/masks: cat 0-jpg.png and cat 0-jpg_mask.gif. Keep one of the"),
        ("twice", "2 images in OWN/images that differ only in extension or Unicode normalization: cat 0-jpg.jpeg, cat"),
        ("size", "OWN/masks/cat 0-jpg.png is 81x120 pixels"),
        ("no images", "There are no images in OWN itself. Images must be in train/, images/ or imgs/ of --input-dir"),
        ("no masks", "There are no masks in OWN/images itself. Images must be in train/"),
        ("one", "1 image in OWN/images (at least 2 are needed): cat 0-jpg. Add images"),
        ("no folder", "There are no images in OWN itself. Images must be in train/"),
    ],
)
def test_a_problem_with_own_images_is_named(own, fault, expected):
    fetcher = DatasetFetcher(OwnLayout(own))
    fetcher.download_dataset()
    fetcher.get_train_files()  # control
    spoil(own, fault)
    with pytest.raises(UserError) as error:
        DatasetFetcher(OwnLayout(own)).download_dataset()
        DatasetFetcher(OwnLayout(own)).get_train_files()
    assert str(error.value).startswith(expected.replace("OWN", str(own)))


def test_strays_next_to_own_images_are_listed_once(own, capsys):
    lay_out(own, ".", ".")
    for name in (".DS_Store", "Thumbs.db", "notes.txt"):
        (own / name).write_text("x")
    (own / "folder.jpg").mkdir()
    assert len(DatasetFetcher(OwnLayout(own)).get_train_files()[0]) == 6
    expected = f"ignored     3 files in {own}: Thumbs.db, folder.jpg, notes.txt"
    assert capsys.readouterr().out.splitlines()[:-1] == [expected]


def test_kaggles_cars_need_no_groups(drawn):
    fetcher = DatasetFetcher(CarvanaLayout(drawn))
    fetcher.get_train_files()
    assert fetcher.groups is None


def test_images_that_are_not_kaggles_are_referred_to_dataset_own(own, folder):
    assert "images and masks of your own: --dataset own" in refusal(own)
    (folder / "train_masks" / f"{first_image(folder).stem}_mask.gif").unlink()
    first_image(folder).unlink()
    assert refusal(folder).endswith("For images of your own, pass --dataset own.")  # an angle is missing
    shutil.copy(own / "images/cat 0-jpg.jpg", folder / "train")
    sentence = refusal(folder)
    assert "unexpected name: cat 0-jpg.jpg. " in sentence and sentence.endswith("pass --dataset own.")
    (folder / "train/cat 0-jpg.jpg").unlink()
    assert len(DatasetFetcher(OwnLayout(folder, r"(.+)_\d\d")).get_train_files()[0]) in (47, 48)


def test_a_resumed_run_on_own_images_keeps_those_that_it_began_with(own):
    """A group may have a new image since then. A missing one is named."""
    fetcher = DatasetFetcher(OwnLayout(own, group_regex="(.+)-"))
    before = fetcher.get_train_files(seed=3)
    split = fetcher.split.to_dict(orient="list")
    shutil.copy(own / "images/cat 0-jpg.jpg", own / "images/cat 0-new.jpg")
    shutil.copy(own / "masks/cat 0-jpg.png", own / "masks/cat 0-new.png")
    again = DatasetFetcher(OwnLayout(own, group_regex="(.+)-"))
    assert again.get_train_files(seed=4, split=split) == before
    pd.testing.assert_frame_equal(again.split, fetcher.split)
    assert sum(map(len, DatasetFetcher(OwnLayout(own, group_regex="(.+)-")).get_train_files())) == 18  # control
    spoil(own, "no mask")
    spoil(own, "no image")
    expected = r"^1 image of the run to resume not found in .*images: cat 0-jpg\. Put them back"
    with pytest.raises(UserError, match=expected):
        DatasetFetcher(OwnLayout(own, group_regex="(.+)-")).get_train_files(split=split)


def test_a_name_in_any_language_is_a_name(own):
    """So is one with the narrow space that macOS uses in the names of screenshots."""
    for name in ("Screenshot 1.00.00\u202fPM", "\u0645\u06cc\u200c\u0634"):
        shutil.copy(own / "images/cat 0-jpg.jpg", own / f"images/{name}.jpg")
        shutil.copy(own / "masks/cat 0-jpg.png", own / f"masks/{name}.png")
    assert sum(map(len, DatasetFetcher(OwnLayout(own)).get_train_files())) == 20
    for name in ("a\nb", "a\x1bb", "a\udcffb"):  # control
        (own / f"images/{name}.jpg").touch()
        with pytest.raises(UserError, match=r"1 file in .*images with a name that is not text"):
            DatasetFetcher(OwnLayout(own)).get_train_files()
        (own / f"images/{name}.jpg").unlink()


def test_the_command_that_cuts_out_has_the_options_it_is_given(own):
    fetcher = DatasetFetcher(OwnLayout(own))
    line = fetcher.next_step(own / "a.gz", own / "best.pt", "a b.jpg", "--threshold", "0.4").splitlines()[0]
    assert line == f"cut it out  python predict.py '{own}/images/a b.jpg' --model {own}/best.pt --threshold 0.4"


def pair(folder, image, *masks):
    """An image and its masks, with these paths."""
    for name in (image, *masks):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB" if name == image else "L", (30, 20)).save(folder / name)


@pytest.mark.parametrize(("image", "masks"), [
    ("images/a.jpg", ["masks/a.png"]),
    ("images/a.jpg", ["masks/a_mask.png"]),
    ("images/a.jpg", ["masks/a_masks.png"]),
    ("images/a.jpg", ["masks/a_mask.png", "masks/a_mask_1.png", "masks/a_mask_2.png"]),
    ("images/a_1.jpg", ["masks/a_1_mask.png"]),
    ("a.jpg", ["a_mask.png"]),
    ("a.jpg", ["a_Mask.PNG", "a_MASK_1.png"]),
    ("images/a.jpg", ["images/a_mask.png"]),
])  # fmt: skip
def test_the_masks_of_an_image_have_its_name(tmp_path, image, masks):
    pair(tmp_path, image, *masks)
    layout = OwnLayout(tmp_path)
    assert layout.images() == {Path(image).stem: tmp_path / image}
    assert layout.masks() == {Path(image).stem: sorted(tmp_path / mask for mask in masks)}
    assert not any(names for names, *_ in layout._pair_problems() if names and names != [Path(image).stem])


def test_a_number_is_part_of_the_name_if_there_is_such_an_image(tmp_path):
    pair(tmp_path, "images/a.jpg", "masks/a_mask.png", "masks/a_mask_1.png")
    pair(tmp_path, "images/a_1.jpg")
    with pytest.raises(UserError, match=r"1 image without a mask in .*: a_1\.jpg"):
        DatasetFetcher(OwnLayout(tmp_path)).get_train_files()
    pair(tmp_path, "images/a_1.jpg", "masks/a_1.png")
    with pytest.raises(UserError, match=r"1 mask without an image in .*: a_mask_1\.png"):
        DatasetFetcher(OwnLayout(tmp_path)).get_train_files()


def test_the_ending_of_a_mask_is_part_of_a_name_without_such_an_image(tmp_path, capsys):
    pair(tmp_path, "person_Mask.jpg", "person_Mask_mask.png")
    pair(tmp_path, "dog.jpg", "dog_mask.png")
    for name in ("dog_cutout.png", "person_Mask_cutout.png"):
        pair(tmp_path, name)
    layout = OwnLayout(tmp_path)
    assert not list(layout.faults())
    assert set(layout.images()) == {"person_Mask", "dog"} == set(layout.masks())
    expected = f"ignored     2 files in {tmp_path}: dog_cutout.png, person_Mask_cutout.png\n"
    assert capsys.readouterr().out == expected


def test_names_in_different_unicode_forms_are_the_same_name(own):
    decomposed, composed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFD", "NFC"))
    assert decomposed != composed
    for number, form in enumerate((decomposed, composed, decomposed)):
        shutil.copy(own / "images/cat 0-jpg.jpg", own / f"images/{form}-{number}.jpg")
        shutil.copy(own / "masks/cat 0-jpg.png", own / f"masks/{[composed, decomposed][number % 2]}-{number}.png")
    fetcher = DatasetFetcher(OwnLayout(own, f"({decomposed}|cat 0)-"))
    assert set(fetcher.layout.groups()) == {composed, "cat 0"}  # the other cats are not matched
    fetcher = DatasetFetcher(OwnLayout(own, "(.+)-"))
    before = fetcher.get_train_files()
    assert all(path.exists() for paths in before for path in paths)
    split = fetcher.split.to_dict(orient="list")
    for form in (decomposed, composed):
        moved = {**split, "image": [unicodedata.normalize("NFC" if form == composed else "NFD", name)
                                    for name in split["image"]]}  # fmt: skip
        assert DatasetFetcher(OwnLayout(own, "(.+)-")).get_train_files(split=moved) == before
    shutil.copy(own / "images/cat 0-jpg.jpg", own / f"images/{composed}-0.jpg")
    with pytest.raises(UserError, match=r"2 images in .* that differ only in extension or Unicode normalization"):
        fetcher.get_train_files()


@pytest.mark.seconds
def test_a_read_only_folder_is_read_but_not_its_zips(folder, main_here, tmp_path):
    """A tmpfs that is mounted read-only, as root may write anywhere else."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], check=True)
    try:
        shutil.copytree(folder, disk / "sample")
        for name in ("train", "train_masks"):
            with zipfile.ZipFile(disk / f"{name}.zip", "w") as archive:
                archive.writestr("a_01.jpg", b"")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(OSError):  # control
            (disk / "file").touch()
        code, printed = main_here("--input-dir", str(disk / "sample"), "--check-data")
        assert code == 0 and "no problems" in printed
        code, printed = main_here("--input-dir", str(disk), "--dataset", "sample", "--check-data")
        assert code == 0 and "no problems" in printed
        code, _ = main_here("--input-dir", str(disk), "--check-data")
        assert code == f"main.py: Cannot write to {disk} (Read-only file system). Pass another folder."
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
