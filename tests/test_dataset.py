import os

import numpy as np
import pytest
import torch
from PIL import Image

from data.dataset import TestImageDataset as ToPredict  # pytest takes a name in Test for a class of tests
from data.dataset import TrainImageDataset
from data.fetcher import DatasetFetcher
from data.layout import CarvanaLayout
from img.augmentation import augment_img
from img.transformer import decode_image, decode_mask, resize
from nn.metrics import dice_per_image
from runtime.errors import UserError


@pytest.fixture
def pair(tmp_path):
    """A white ellipse on gray, 90x60, and its mask."""
    rows, columns = np.mgrid[:60, :90]
    car = ((rows - 30) / 15) ** 2 + ((columns - 40) / 25) ** 2 < 1
    Image.fromarray(np.where(car, 255, 90).astype(np.uint8)).convert("RGB").save(tmp_path / "a_01.png")
    Image.fromarray(car.astype(np.uint8) * 255).save(tmp_path / "a_01_mask.png")
    return [tmp_path / "a_01.png"], [tmp_path / "a_01_mask.png"]


def test_mirror_puts_every_label_where_its_photo_stands(pair):
    photo, mask = TrainImageDataset(*pair, (220, 236), (36, 52))[0]
    assert photo.shape == (3, 220, 236) and mask.shape == (36, 52) and photo.dtype == mask.dtype == torch.uint8
    window = photo[0, 92:-92, 92:-92]
    assert dice_per_image(window[None] > 172, mask[None] > 127).item() > 0.99


def test_stretch_puts_the_label_on_another_scale(pair):
    photo, mask = TrainImageDataset(*pair, (220, 236), (36, 52), padding="stretch")[0]
    assert photo.shape == (3, 220, 236) and mask.shape == (36, 52)
    window = photo[0, 92:-92, 92:-92]
    assert dice_per_image(window[None] > 172, mask[None] > 127).item() < 0.9
    assert dice_per_image(resize(photo, (36, 52))[:1] > 172, mask[None] > 127).item() > 0.97


def test_with_equal_sizes_both_borders_are_one(pair):
    mirror, stretch = (ToPredict(pair[0], (32, 32), (32, 32), padding)[0][0] for padding in ("reflect", "stretch"))
    assert torch.equal(mirror, stretch)


@pytest.mark.parametrize("window", [(40, 40), (60, 60)])  # of a photo of 101x151: its half is enough, or isn't
def test_a_photo_larger_than_needed_is_the_same_photo(tmp_path, window):
    """Whatever the decoder left out: photo and mask as of the whole picture made smaller at once."""
    rows, columns = np.mgrid[:101, :151]
    car = ((rows - 50) / 25) ** 2 + ((columns - 60) / 45) ** 2 < 1
    Image.fromarray(np.where(car, 240, columns).astype(np.uint8)).convert("RGB").save(tmp_path / "a_01.jpg", quality=99)
    Image.fromarray(car.astype(np.uint8) * 255).save(tmp_path / "a_01_mask.gif")
    photo, mask = TrainImageDataset([tmp_path / "a_01.jpg"], [tmp_path / "a_01_mask.gif"], window, window)[0]
    whole_photo = decode_image((tmp_path / "a_01.jpg").read_bytes())
    whole_mask = decode_mask((tmp_path / "a_01_mask.gif").read_bytes())
    assert whole_photo.shape == (3, 101, 151)
    assert (photo.float() - resize(whole_photo, window).float()).abs().mean() < 2
    assert (mask.float() - resize(whole_mask, window)[0].float()).abs().mean() < 2
    assert (mask.float() - resize(whole_mask, window)[0].roll(1, 1).float()).abs().mean() > 4  # control: a pixel off


def test_threshold_cuts_the_mask_and_none_keeps_the_share(pair):
    shares = TrainImageDataset(*pair, (32, 32), (32, 32))[0][1]
    cut = TrainImageDataset(*pair, (32, 32), (32, 32), soft_labels=False)[0][1]
    assert len(shares.unique()) > 2
    assert torch.equal(cut, (shares > 127).to(torch.uint8) * 255)


@pytest.mark.parametrize("padding", ["reflect", "stretch"])
def test_the_transform_sees_photo_and_mask_in_the_photos_proportions(pair, padding):
    seen = []

    def flip(photo, mask):
        seen.append((photo.shape, mask.shape))
        return photo.flip(-1), mask.flip(-1)

    sizes = ((220, 220), (36, 36))
    photo, mask = TrainImageDataset(*pair, *sizes, X_transform=flip, padding=padding)[0]
    height = 36 if padding == "reflect" else 60  # the photo, 60 high, is never enlarged for it
    assert seen == [((3, height, height * 3 // 2), (1, height, height * 3 // 2))]
    plain_photo, plain_mask = TrainImageDataset(*pair, *sizes, padding=padding)[0]
    assert (photo.flip(-1).int() - plain_photo.int()).abs().float().mean() < 4
    assert dice_per_image(mask.flip(-1)[None] > 127, plain_mask[None] > 127).item() > 0.97


def test_a_photo_of_another_size_than_its_mask_is_named(pair):
    Image.new("L", (90, 61)).save(pair[1][0])
    with pytest.raises(UserError, match=r"a_01_mask\.png is 90x61 pixels, but its photo .*a_01\.png is 90x60"):
        TrainImageDataset(*pair, (32, 32), (32, 32))[0]


@pytest.mark.parametrize("index", [0, 1])
def test_a_half_file_is_named(pair, index):
    path = pair[index][0]
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=f"{path.name} can't be read as an image"):
        TrainImageDataset(*pair, (32, 32), (32, 32))[0]


def test_a_file_that_the_system_does_not_give_is_named(pair):
    pair[0][0].unlink()
    pair[0][0].mkdir()
    with pytest.raises(UserError, match=r"a_01\.png can't be read \(Is a directory\)\.$"):
        TrainImageDataset(*pair, (32, 32), (32, 32))[0]


def test_the_name_comes_through_a_worker_process(pair):
    os.truncate(pair[0][0], 40)
    loader = torch.utils.data.DataLoader(TrainImageDataset(*pair, (32, 32), (32, 32)), num_workers=1)
    with pytest.raises(UserError) as error:
        next(iter(loader))
    assert str(error.value).startswith(str(pair[0][0])) and "\n" not in str(error.value)


def test_photos_to_predict_come_with_their_names(pair):
    photo, name = ToPredict(pair[0], (220, 236), (36, 52))[0]
    assert name == "a_01.png" and torch.equal(photo, TrainImageDataset(*pair, (220, 236), (36, 52))[0][0])


@pytest.mark.parametrize("format", ["png", "jpg"])
@pytest.mark.parametrize(("mask_size", "padding"), [((128, 128), "reflect"), ((100, 100), "stretch")])
def test_the_second_view_has_the_detail_of_the_photo(tmp_path, format, mask_size, padding):
    """Of twice the window's size: the first comes as without a second, and the second has no less detail."""
    noise = np.random.default_rng(0).integers(256, size=(256, 256), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a_01.{format}", quality=99)
    one, both = (
        ToPredict([tmp_path / f"a_01.{format}"], (128, 128), mask_size, padding, tta)[0][0] for tta in (False, True)
    )
    assert both.shape == (2, 3, 128, 128)
    assert torch.equal(both[0], one)
    assert both[1].float().std() > 0.7 * one.float().std()  # of a photo no larger than the mask: half


def augmented(drawn, epoch, workers, seed=0):
    """The photos of an epoch, after a loader's workers have lived through another epoch."""
    X, y, *_ = DatasetFetcher(CarvanaLayout(drawn)).get_train_files()
    dataset = TrainImageDataset(X[:6], y[:6], (32, 32), (32, 32), X_transform=augment_img, seed=seed)
    loader = torch.utils.data.DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0)
    for each in (epoch + 1, epoch):
        dataset.set_epoch(each)
        photos = torch.cat([photo for photo, _ in loader])
    return photos


def test_augmentation_is_a_function_of_seed_epoch_and_index_with_any_count_of_workers(drawn):
    here = augmented(drawn, epoch=1, workers=0)
    for workers in (1, 2):
        assert torch.equal(augmented(drawn, epoch=1, workers=workers), here)
    assert not torch.equal(augmented(drawn, epoch=2, workers=1), here)  # controls
    assert not torch.equal(augmented(drawn, epoch=1, workers=1, seed=1), here)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_first_epochs_are_of_half_the_size(drawn, workers):
    """And hold what the full size holds, made smaller."""
    X, y, *_ = DatasetFetcher(CarvanaLayout(drawn)).get_train_files()
    dataset = TrainImageDataset(X[:4], y[:4], (64, 96), (64, 96), half_size_epochs=2)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=workers, persistent_workers=workers > 0)
    pairs = {}
    for epoch in (1, 2, 3):
        dataset.set_epoch(epoch)
        (pairs[epoch],) = loader
    assert [tuple(photos.shape) for photos, _ in pairs.values()] == [(4, 3, 32, 48), (4, 3, 32, 48), (4, 3, 64, 96)]
    assert [tuple(masks.shape) for _, masks in pairs.values()] == [(4, 32, 48), (4, 32, 48), (4, 64, 96)]
    for small, large in zip(pairs[2], pairs[3], strict=True):
        torch.testing.assert_close(small.float(), resize(large, small.shape[-2:]).float(), atol=40, rtol=0)
    assert TrainImageDataset(X, y, (64, 96), (64, 96))[0][0].shape == (3, 64, 96)  # control: no such epochs


def test_augmentation_leaves_the_generator_of_the_training_alone(drawn):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    X, y, *_ = DatasetFetcher(CarvanaLayout(drawn)).get_train_files()
    _ = TrainImageDataset(X, y, (32, 32), (32, 32), X_transform=augment_img)[0]
    assert torch.rand(1) == expected


def test_drawn_masks_fit_their_photos_at_every_size(drawn):
    X, y, *_ = DatasetFetcher(CarvanaLayout(drawn)).get_train_files()
    for size in ((188, 4), (220, 36), (64, 64)):
        photo, mask = TrainImageDataset(X, y, (size[0],) * 2, (size[1],) * 2)[0]
        assert photo.shape == (3, size[0], size[0]) and mask.shape == (size[1], size[1]) and mask.max() > 0
