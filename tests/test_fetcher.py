import re
import shutil

import pandas as pd
import pytest
from PIL import ExifTags, Image

from data.download import COUNTS, SLUG
from data.fetcher import DatasetFetcher
from img.transformer import decode_image
from runtime.errors import UserError


@pytest.fixture
def folder(drawn, tmp_path):
    """A copy of the drawn cars, to be spoiled."""
    return shutil.copytree(drawn, tmp_path / "input")


def cars_of(paths):
    return {path.name.rsplit("_", 1)[0] for path in paths}


def first_photo(folder):
    return min((folder / "train").iterdir())


def test_photos_and_masks_are_paired_by_name(drawn):
    X_train, y_train, X_valid, y_valid = DatasetFetcher(drawn).get_train_files()
    assert len(X_train) == len(y_train) == 48 and len(X_valid) == len(y_valid) == 16
    for photo, mask in zip(X_train + X_valid, y_train + y_valid, strict=True):
        assert mask.name == f"{photo.stem}_mask.gif"


def test_no_car_stands_on_both_sides_and_none_is_lost(drawn):
    X_train, _, X_valid, _ = DatasetFetcher(drawn).get_train_files(validation_size=0.5)
    assert len(cars_of(X_train)) == len(cars_of(X_valid)) == 2
    assert not cars_of(X_train) & cars_of(X_valid)
    assert len({*X_train, *X_valid}) == len(X_train) + len(X_valid) == 64


def test_the_split_is_a_function_of_the_seed_alone(drawn, folder):
    a, b = DatasetFetcher(drawn), DatasetFetcher(folder)
    for fetcher in (a, b):
        fetcher.get_train_files(seed=3)
    pd.testing.assert_frame_equal(a.split, b.split)
    assert list(a.split.columns) == ["car", "image", "part"] and a.split["part"].value_counts()["train"] == 48
    assert len({DatasetFetcher(drawn).get_train_files(seed=seed)[2][0] for seed in range(8)}) > 1  # control


def test_a_sample_is_of_cars_without_replacement(drawn):
    X_train, _, X_valid, _ = DatasetFetcher(drawn).get_train_files(sample_size=0.5, validation_size=0.5)
    assert len(cars_of(X_train)) == len(cars_of(X_valid)) == 1
    assert len(set(X_train)) == len(set(X_valid)) == 16
    assert not cars_of(X_train) & cars_of(X_valid)


def test_photos_to_predict_are_sorted_by_name_and_a_car_may_have_any_number(folder):
    min((folder / "test").iterdir()).unlink()
    X_test = DatasetFetcher(folder).get_test_files()
    assert len(X_test) == 15 and [path.name for path in X_test] == sorted(path.name for path in X_test)


def test_folders_of_high_quality_are_taken_first_or_as_asked(folder):
    shutil.copytree(folder / "train", folder / "train_hq")
    shutil.move(folder / "test", folder / "test_hq")
    assert DatasetFetcher(folder).get_train_files()[0][0].parent.name == "train_hq"
    assert DatasetFetcher(folder, hq_files=False).get_train_files()[0][0].parent.name == "train"
    assert DatasetFetcher(folder).get_test_files()[0].parent.name == "test_hq"
    with pytest.raises(UserError, match="no test/ in"):
        DatasetFetcher(folder, hq_files=False).get_test_files()
    shutil.rmtree(folder / "train_hq")
    (folder / "train_hq").mkdir()
    (folder / "train_hq" / ".DS_Store").touch()
    assert DatasetFetcher(folder).get_train_files()[0][0].parent.name == "train"
    assert "no train_hq/ in" in refusal(folder, hq_files=True)


def test_hidden_files_are_no_cars_and_other_strays_are_told_of(folder, capsys):
    for name in (".DS_Store", "Thumbs.db", "notes.txt"):
        (folder / "train" / name).write_text("x")
    assert len(DatasetFetcher(folder).get_train_files()[0]) == 48
    assert re.search(r"left aside in .*train, being no photos: Thumbs\.db, notes\.txt\n", capsys.readouterr().out)


def test_the_size_is_that_of_the_upright_photo(drawn, tmp_path):
    assert DatasetFetcher(drawn).get_image_size(first_photo(drawn)) == (80, 120)
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[ExifTags.Base.Orientation] = orientation
        Image.open(first_photo(drawn)).save(tmp_path / "turned.jpg", exif=exif)
        size = tuple(decode_image((tmp_path / "turned.jpg").read_bytes()).shape[1:])
        assert DatasetFetcher(drawn).get_image_size(tmp_path / "turned.jpg") == size
    assert size == (120, 80)  # control


def test_a_test_photo_of_another_size_is_named_before_it_is_predicted(folder):
    photo = sorted((folder / "test").iterdir())[7]
    Image.new("RGB", (120, 81)).save(photo)
    with pytest.raises(UserError, match=f"{photo.name} is 120x81 pixels, but the masks .* 120x80"):
        DatasetFetcher(folder).get_test_files(origin_img_size=(80, 120))
    photo.write_text("no photo")
    with pytest.raises(UserError, match=f"{photo.name} can't be read as an image"):
        DatasetFetcher(folder).get_test_files(origin_img_size=(80, 120))


def refusal(folder, **options):
    with pytest.raises(UserError) as error:
        fetcher = DatasetFetcher(folder, **options)
        fetcher.download_dataset()
        fetcher.get_train_files()
        fetcher.get_test_files()
    return str(error.value)


def test_an_empty_folder_gets_the_three_ways_on(tmp_path):
    sentence = refusal(tmp_path)
    assert "no train/ or train_hq/ and no train_masks/" in sentence
    assert all(way in sentence for way in ("kaggle.com", "--input-dir", "--dataset sample"))
    (tmp_path / "train").mkdir()
    assert "no train/ or train_hq/ and no train_masks/" in refusal(tmp_path)  # an empty folder holds no photos


def test_a_photo_without_mask_is_named(folder):
    photo = first_photo(folder)
    (folder / "train_masks" / f"{photo.stem}_mask.gif").unlink()
    assert photo.name in refusal(folder) and "without a mask" in refusal(folder)


def test_a_mask_without_photo_is_named(folder):
    masks = folder / "train_masks"
    shutil.copy(min(masks.iterdir()), masks / "other_01_mask.gif")
    assert "other_01_mask.gif" in refusal(folder)


def test_two_masks_for_a_photo_are_named(folder):
    mask = min((folder / "train_masks").iterdir())
    shutil.copy(mask, mask.with_suffix(".png"))
    assert mask.name in refusal(folder) and mask.with_suffix(".png").name in refusal(folder)


def test_two_photos_of_one_name_are_named(folder):
    photo = first_photo(folder)
    shutil.copy(photo, photo.with_suffix(".png"))
    assert photo.with_suffix(".png").name in refusal(folder)


def test_a_car_of_15_views_is_named_with_the_view(folder):
    photo = sorted((folder / "train").iterdir())[4]
    photo.unlink()
    (folder / "train_masks" / f"{photo.stem}_mask.gif").unlink()
    car = photo.stem.rsplit("_", 1)[0]
    assert f"{car} has no 05" in refusal(folder)


def test_a_view_too_many_is_named(folder):
    photo = first_photo(folder)
    car = photo.stem.rsplit("_", 1)[0]
    shutil.copy(photo, photo.with_name(f"{car}_17.jpg"))
    shutil.copy(folder / "train_masks" / f"{car}_01_mask.gif", folder / "train_masks" / f"{car}_17_mask.gif")
    assert f"{car} has also 17" in refusal(folder)


def test_a_photo_with_another_name_is_named(folder):
    shutil.copy(first_photo(folder), folder / "train" / "holiday.jpg")
    assert "holiday.jpg" in refusal(folder)


def test_a_mask_of_another_size_is_named(folder):
    mask = min((folder / "train_masks").iterdir())
    Image.new("P", (120, 81)).save(mask)
    assert mask.name in refusal(folder) and "120x81" in refusal(folder)


def test_one_car_is_too_few(folder):
    car = first_photo(folder).stem.rsplit("_", 1)[0]
    for path in [*(folder / "train").iterdir(), *(folder / "train_masks").iterdir()]:
        if not path.name.startswith(car):
            path.unlink()
    assert "too few" in refusal(folder)


def test_without_test_photos_it_says_how_to_do_without(folder):
    shutil.rmtree(folder / "test")
    assert "--no-predict" in refusal(folder)


def test_photos_one_folder_too_deep_get_a_hint(folder):
    shutil.move(folder / "train", folder / "inner")
    (folder / "train").mkdir()
    shutil.move(folder / "inner", folder / "train" / "train")
    assert "if they lie in a folder inside it, move them up" in refusal(folder)


def test_a_sample_that_lost_its_photos_says_how_to_have_it_drawn_again(tmp_path):
    (tmp_path / "sample").mkdir()
    assert "remove that folder to have it drawn" in refusal(tmp_path, dataset="sample")
    assert "hq" in refusal(tmp_path, dataset="sample", hq_files=True)
    (tmp_path / "file").touch()
    assert "file can't be written to" in refusal(tmp_path / "file", dataset="sample")


def test_a_run_that_goes_on_keeps_its_split_and_misses_what_is_gone(folder):
    fetcher = DatasetFetcher(folder)
    before = fetcher.get_train_files(seed=3)
    split = fetcher.split.to_dict(orient="list")
    assert DatasetFetcher(folder).get_train_files(seed=4, split=split) == before
    assert DatasetFetcher(folder).get_train_files(seed=4) != before  # control
    car = split["car"][0]
    for path in [*(folder / "train").glob(f"{car}_*"), *(folder / "train_masks").glob(f"{car}_*")]:
        path.unlink()
    told = "1 car that the run was trained or validated on can't be found in"
    with pytest.raises(UserError, match=rf"{told} .*: {car}\."):
        DatasetFetcher(folder).get_train_files(split=split)


def test_a_name_that_is_no_text_is_named(folder):
    (folder / "test" / "a\udcff_01.jpg").write_bytes(first_photo(folder).read_bytes())
    expected = r"1 file in .*test with a name that can't be written: 'a\\udcff_01\.jpg'\. Rename them"
    with pytest.raises(UserError, match=expected):
        DatasetFetcher(folder).get_test_files()


def test_photos_that_are_not_those_kaggle_wants_are_told_before_the_training(folder, capsys):
    names = [path.name for path in DatasetFetcher(folder).get_test_files()]
    table = folder / "sample_submission.csv"
    command = "kaggle competitions submit -c carvana-image-masking-challenge -f a.gz -m U-Net"
    for wanted, told in (
        (names, ""),
        ([*names, "z_01.jpg"], f"of the 17 photos in {table}, 1 are not predicted, and 0 others are "
         "(the first of both: z_01.jpg)."),
        (names[1:], f"of the 15 photos in {table}, 0 are not predicted, and 1 others are "
         f"(the first of both: {names[0]})."),
    ):
        table.write_text("img,rle_mask\n" + "".join(f"{name},1 1\n" for name in wanted))
        fetcher = DatasetFetcher(folder)
        fetcher.get_test_files()
        sentence = f"Kaggle will refuse this submission: {told}"
        assert capsys.readouterr().out == (f"{sentence}\n" if told else "")
        assert fetcher.next_step("a.gz") == (f"no upload   {sentence}" if told else f"upload it   {command}")
    table.write_text("")
    with pytest.raises(UserError, match=r"sample_submission\.csv has no column img: get it once more, or remove it"):
        DatasetFetcher(folder).get_test_files()
    table.write_text("img,rle_mask\n,1 1\nNA,1 1\n")  # no texts to pandas, if it is let
    fetcher = DatasetFetcher(folder)
    fetcher.get_test_files()
    assert "of the 2 photos in" in fetcher.next_step("a.gz")


def test_another_count_of_photos_than_kaggles_is_not_for_upload(folder, monkeypatch):
    few = DatasetFetcher(folder)
    few.get_test_files()
    assert few.next_step("a.gz") == (
        "no upload   Kaggle will refuse this submission: it has the masks of 16 photos, and 100,064 are wanted."
    )
    monkeypatch.setitem(COUNTS, "test", 16)  # control
    all_of_them = DatasetFetcher(folder)
    all_of_them.get_test_files()
    assert all_of_them.next_step("a.gz").startswith("upload it   kaggle competitions submit ")
    assert " -f 'my photos/a.gz' -m " in all_of_them.next_step("my photos/a.gz")


def test_photos_to_predict_are_of_the_quality_of_those_to_train_on(tmp_path, folder):
    """Be those a zip, or a folder by the time it asks again."""
    (tmp_path / "train_hq.zip").touch()
    assert {"train_hq", "test_hq"} < set(DatasetFetcher(tmp_path)._missing_files(True))
    (tmp_path / "train_hq.zip").unlink()
    shutil.copytree(folder / "train", tmp_path / "train_hq")
    assert DatasetFetcher(tmp_path)._missing_files(True)[-1] == "test_hq"
    shutil.rmtree(tmp_path / "train_hq")
    assert DatasetFetcher(tmp_path)._missing_files(True)[-1] == "test"  # control


def test_a_table_that_nothing_reads_is_not_unpacked_for_its_own_sake(folder):
    for name in ("metadata.csv.zip", "sample_submission.csv.zip"):
        (folder / name).write_bytes(b"no zip")
    assert DatasetFetcher(folder)._missing_files(True) == ["sample_submission.csv"]


def test_a_zip_that_lies_there_is_not_called_missing(tmp_path):
    for name in ("train_hq.zip", "train_masks.zip"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"^There is no test/ or test_hq/ in .*/; say --no-predict to train only\. "):
        DatasetFetcher(tmp_path).download_dataset()
    (tmp_path / "train_masks.zip").unlink()  # control
    with pytest.raises(UserError, match=r"^There is no train_masks/ and no test/ or test_hq/ in .*/\. Three"):
        DatasetFetcher(tmp_path).download_dataset()


def lay_out(own, photos, masks):
    """Moves the own photos and masks to folders of these names; "." is the folder of both itself."""
    for name, to in (("masks", masks), ("images", photos)):
        (own / to).mkdir(exist_ok=True)
        for path in list((own / name).iterdir()):
            called = f"{path.stem.removesuffix('_mask')}_mask.png" if name == "masks" and photos == masks else path.name
            path.rename(own / to / called)
        if to != name:
            (own / name).rmdir()


@pytest.mark.parametrize(
    ("photos", "masks"),
    [("images", "masks"), ("imgs", "train_masks"), ("train", "masks"), ("train_hq", "train_masks"), (".", "masks"),
     (".", "."), ("train", "train")],
)  # fmt: skip
def test_own_photos_of_any_names_and_sizes_are_paired_by_name(own, photos, masks, capsys):
    lay_out(own, photos, masks)
    before = sorted(own.rglob("*"))
    fetcher = DatasetFetcher(own, "own")
    fetcher.download_dataset(test_images=True)  # which there are none of
    X_train, y_train, X_valid, y_valid = fetcher.get_train_files()
    assert (len(X_train), len(X_valid)) == (6, 2)
    names = set()
    for photo, mask in zip(X_train + X_valid, y_train + y_valid, strict=True):
        assert (photo.parent, mask.parent) == (own / photos, own / masks)
        assert mask.stem.removesuffix("_mask") == photo.stem
        names.add(photo.name)
    assert names == {f"cat {cat}-{ending.lower()}.{ending}" for cat in range(4) for ending in ("jpg", "PNG")}
    assert capsys.readouterr().out == f"Photos in {own / photos}, masks in {own / masks}.\n"
    assert sorted(own.rglob("*")) == before  # nothing was fetched or locked
    min(mask for mask in (own / masks).iterdir() if mask.suffix == ".png").rename(own / masks / "other_mask.png")
    with pytest.raises(UserError, match=r"1 photo without a mask in .*: cat 0-(jpg\.jpg|png\.PNG)"):  # control
        DatasetFetcher(own, "own").get_train_files()


def test_the_photos_of_a_group_are_on_one_side_and_alone_without_a_pattern(own):
    """As with cars: of the share to work on, of those to validate on, and where the names say no more than they are."""
    split_in_two = 0
    for seed in range(8):
        fetcher = DatasetFetcher(own, "own", group="(.+)-")
        X_train, _, X_valid, _ = fetcher.get_train_files(seed=seed)
        sides = [{path.name.split("-")[0] for path in paths} for paths in (X_train, X_valid)]
        assert (len(X_train), len(X_valid)) == (6, 2) and not sides[0] & sides[1]
        assert set(fetcher.split["car"]) == {f"cat {cat}" for cat in range(4)}
        assert fetcher.groups == {path.name: path.name.split("-")[0] for path in X_train + X_valid}
        X_train, _, X_valid, _ = DatasetFetcher(own, "own").get_train_files(seed=seed)
        split_in_two += bool({path.name[:5] for path in X_train} & {path.name[:5] for path in X_valid})
    assert split_in_two  # control
    assert len(DatasetFetcher(own, "own", group=r"cat \d").get_train_files(sample_size=0.5)[0]) == 2
    assert DatasetFetcher(own, "own", group="jpg|png").get_train_files(sample_size=1)[0][0].stem[-3:] in ("jpg", "png")


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("(.+-", r"^--group-regex '\(\.\+-' is no regular expression \(missing \)"),
        ("cat [12]", r"^--group-regex 'cat \[12\]' fits 4 of the 8 photos in .*images, but not cat 0-jpg\.jpg, "
         r"cat 0-png\.PNG, cat 3-jpg\.jpg and 1 more: say one"),
        ("cat (x?)", "fits 0 of the 8 photos"),  # on a text of no length, which names no group
        (".at", r"^1 of 1 group in .*images is too few: one must train and another validate\. Add groups"),
    ],
)  # fmt: skip
def test_a_pattern_that_makes_no_groups_is_told(own, group, expected):
    with pytest.raises(UserError, match=expected):
        DatasetFetcher(own, "own", group=group).get_train_files()


def spoil(own, fault):
    images, masks = own / "images", own / "masks"
    match fault:
        case "no mask":
            (masks / "cat 0-jpg.png").unlink()
        case "no photo":
            (images / "cat 0-jpg.jpg").unlink()
        case "two masks":
            shutil.copy(masks / "cat 0-jpg.png", masks / "cat 0-jpg_mask.gif")
        case "twice":
            shutil.copy(images / "cat 0-jpg.jpg", images / "cat 0-jpg.jpeg")
        case "size":
            Image.new("L", (120, 81)).save(masks / "cat 0-jpg.png")
        case "no photos":
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
        ("no mask", r"1 photo without a mask in OWN/masks: cat 0-jpg.jpg. Add the masks, or take the photos out. The "
         "mask of NAME.jpg is NAME.png or NAME_mask.png."),
        ("no photo", "1 mask without a photo in OWN/images: cat 0-jpg.png. Add the photos, or take the masks out."),
        ("two masks", "1 photo with two masks in OWN/masks: cat 0-jpg.png and cat 0-jpg_mask.gif. Keep one of the"),
        ("twice", "OWN/images holds a photo twice, with two endings: cat 0-jpg.jpeg, cat 0-jpg.jpg. Keep one of the"),
        ("size", "OWN/masks/cat 0-jpg.png is 120x81 pixels, but its photo OWN/images/cat 0-jpg.jpg is 120x80; they"),
        ("no photos", "There are no photos in OWN. Photos are looked for in train/, images/ or imgs/ of --input-dir"),
        ("no masks", "There are no masks in OWN/images. Photos are looked for in train/"),
        ("one", "1 of 1 photo in OWN/images is too few: one must train and another validate. Add photos"),
        ("no folder", "There is no folder OWN. Photos are looked for in train/"),
    ],
)
def test_a_fault_of_own_photos_is_named(own, fault, expected):
    fetcher = DatasetFetcher(own, "own")
    fetcher.download_dataset()
    fetcher.get_train_files()  # control
    spoil(own, fault)
    with pytest.raises(UserError) as error:
        DatasetFetcher(own, "own").download_dataset()
        DatasetFetcher(own, "own").get_train_files()
    assert str(error.value).startswith(expected.replace("OWN", str(own)))


def test_strays_beside_own_photos_are_told_of_once(own, capsys):
    lay_out(own, ".", ".")
    for name in (".DS_Store", "Thumbs.db", "notes.txt"):
        (own / name).write_text("x")
    (own / "folder.jpg").mkdir()
    assert len(DatasetFetcher(own, "own").get_train_files()[0]) == 6
    told = f"left aside in {own}, being no photos: Thumbs.db, folder.jpg, notes.txt\n"
    assert capsys.readouterr().out == told


def test_what_only_kaggles_or_only_own_photos_have_is_refused_with_the_others(own, drawn):
    with pytest.raises(UserError, match=r"^--group-regex 'x' is for photos of your own: say --dataset own too, or leave it"):
        DatasetFetcher(drawn, group="x")
    with pytest.raises(UserError, match=r"^--hq-files is for Kaggle's photos: leave it out\."):
        DatasetFetcher(own, "own", hq_files=True)
    assert DatasetFetcher(drawn).groups is None


def test_photos_that_are_not_kaggles_lead_to_a_data_set_of_ones_own(own, folder):
    assert "for photos and masks of your own, which aren't Kaggle's: --dataset own" in refusal(own)
    (folder / "train_masks" / f"{first_photo(folder).stem}_mask.gif").unlink()
    first_photo(folder).unlink()
    assert refusal(folder).endswith("if they aren't Kaggle's, say --dataset own.")  # a car has not all its views
    shutil.copy(own / "images/cat 0-jpg.jpg", folder / "train")
    sentence = refusal(folder)
    assert sentence.endswith("jpg.jpg. Rename them, or move them out; if they aren't Kaggle's, say --dataset own.")
    (folder / "train/cat 0-jpg.jpg").unlink()
    assert len(DatasetFetcher(folder, "own", group=r"(.+)_\d\d").get_train_files()[0]) in (47, 48)


def test_a_run_on_own_photos_goes_on_with_those_that_it_began_with(own, capsys):
    """A group may have got a photo more since; one that is gone is named."""
    fetcher = DatasetFetcher(own, "own", group="(.+)-")
    before = fetcher.get_train_files(seed=3)
    split = fetcher.split.to_dict(orient="list")
    shutil.copy(own / "images/cat 0-jpg.jpg", own / "images/cat 0-new.jpg")
    shutil.copy(own / "masks/cat 0-jpg.png", own / "masks/cat 0-new.png")
    again = DatasetFetcher(own, "own", group="(.+)-")
    capsys.readouterr()
    assert again.get_train_files(seed=4, split=split) == before
    told = f"1 photo in {own}/images came after the run began, and stay out of it: cat 0-new.jpg. Start another run"
    assert capsys.readouterr().out.startswith(told)
    again.get_train_files(0.9, seed=4, split=split)
    assert capsys.readouterr().out == ""  # of a sample, it isn't known
    pd.testing.assert_frame_equal(again.split, fetcher.split)
    assert sum(map(len, DatasetFetcher(own, "own", group="(.+)-").get_train_files())) == 18  # control
    spoil(own, "no mask")
    spoil(own, "no photo")
    told = "^1 photo that the run was trained or validated on can't be found in"
    with pytest.raises(UserError, match=rf"{told} .*images: cat 0-jpg\. Put them back"):
        DatasetFetcher(own, "own", group="(.+)-").get_train_files(split=split)


def test_kaggles_zip_of_zips_is_not_overlooked(tmp_path):
    (tmp_path / f"{SLUG}.zip").touch()
    told = f"Unpack {tmp_path}/{SLUG}.zip there: what is wanted are the zips inside it.\nThree ways on:"
    assert told in refusal(tmp_path)


def test_a_name_in_any_language_is_a_name(own):
    """And one with the narrow space that macOS writes into those of screenshots."""
    for name in ("Screenshot 1.00.00\u202fPM", "\u0645\u06cc\u200c\u0634"):
        shutil.copy(own / "images/cat 0-jpg.jpg", own / f"images/{name}.jpg")
        shutil.copy(own / "masks/cat 0-jpg.png", own / f"masks/{name}.png")
    assert sum(map(len, DatasetFetcher(own, "own").get_train_files())) == 20
    for name in ("a\nb", "a\x1bb", "a\udcffb"):  # control
        (own / f"images/{name}.jpg").touch()
        with pytest.raises(UserError, match=r"1 file in .*images with a name that can't be written"):
            DatasetFetcher(own, "own").get_train_files()
        (own / f"images/{name}.jpg").unlink()


def test_the_command_that_cuts_out_has_the_options_it_is_given(own):
    fetcher = DatasetFetcher(own, "own")
    line = fetcher.next_step(own / "best.pt", "a b.jpg", "--threshold", "0.4").splitlines()[0]
    assert line == f"cut it out  python predict.py '{own}/images/a b.jpg' --model {own}/best.pt --threshold 0.4"
