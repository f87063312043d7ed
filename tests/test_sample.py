import hashlib

import numpy as np
import pytest
from PIL import Image, ImageFilter

from data.sample import draw_sample


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.*")
    }


def test_files_have_the_names_and_formats_of_kaggles(drawn):
    assert sorted(path.name for path in drawn.iterdir()) == ["test", "test_masks", "train", "train_masks"]
    for part, count in (("train", 64), ("test", 16)):
        images, masks = sorted((drawn / part).iterdir()), sorted((drawn / f"{part}_masks").iterdir())
        assert len(images) == count
        assert [mask.name for mask in masks] == [f"{image.stem}_mask.gif" for image in images]
        for image_path, mask_path in zip(images, masks, strict=True):
            with Image.open(image_path) as image:
                assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (120, 80))
            with Image.open(mask_path) as mask:
                assert (mask.format, mask.mode, mask.size) == ("GIF", "P", (120, 80))
                assert set(np.unique(mask)) == {0, 1}
                assert np.array_equal(np.asarray(mask.convert("L")), np.asarray(mask) * 255)
    cars = {image.name.rsplit("_", 1)[0] for image in (drawn / "train").iterdir()}
    assert len(cars) == 4 and all(len(car) == 12 and int(car, 16) for car in cars)


def test_a_car_is_completely_inside_its_image_and_fills_a_good_part_of_it(drawn):
    for path in (drawn / "train_masks").iterdir():
        mask = np.asarray(Image.open(path))
        assert not (mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any()), path.name
        assert 0.05 < mask.mean() < 0.5, path.name


def test_red_is_only_where_the_mask_of_a_red_car_is(drawn):
    for path in (drawn / "test").iterdir():
        red, green, _ = np.moveaxis(np.asarray(Image.open(path), np.int16), -1, 0)
        mask = Image.open(drawn / "test_masks" / f"{path.stem}_mask.gif").convert("L")
        near = np.asarray(mask.filter(ImageFilter.MaxFilter(3))) > 0  # JPEG's colors spread by a pixel
        seen = red - green > 40
        assert seen.sum() > 500 and not (seen & ~near).any(), path.name
        assert (seen & ~np.roll(near, 3, axis=1)).any(), path.name  # control


def test_no_two_masks_are_the_same(drawn):
    masks = list(drawn.rglob("*_mask.gif"))
    assert len({np.asarray(Image.open(path)).tobytes() for path in masks}) == len(masks) == 80


@pytest.mark.seconds
def test_an_image_is_a_function_of_seed_car_and_angle(drawn, tmp_path):
    draw_sample(tmp_path / "fewer", cars=3, test_cars=1, size=(80, 120), processes=2)
    draw_sample(tmp_path / "other", cars=3, test_cars=1, size=(80, 120), processes=1, seed=1)
    fewer, first = digests(tmp_path / "fewer"), digests(drawn)
    assert len(fewer) == 2 * 48
    shared = {name for name in fewer if name.startswith("train")}
    assert len(shared) == 64 and all(fewer[name] == first[name] for name in shared)
    assert not set(digests(tmp_path / "other").values()) & set(fewer.values())  # control


def test_an_existing_sample_is_not_drawn_again(tmp_path):
    (tmp_path / "sample").mkdir()
    draw_sample(tmp_path / "sample", cars=1000)
    assert list((tmp_path / "sample").iterdir()) == []


@pytest.mark.seconds
def test_an_interrupted_drawing_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", stop)
        with pytest.raises(KeyboardInterrupt):
            draw_sample(tmp_path / "sample", cars=2, test_cars=1, size=(40, 60), processes=1)
    assert not (tmp_path / "sample").exists()
    draw_sample(tmp_path / "sample", cars=2, test_cars=1, size=(40, 60), processes=1)
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]
