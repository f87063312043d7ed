import os

import numpy as np
import pytest
import torch
from PIL import Image

from data.dataset import TestImageDataset as ToPredict  # pytest takes a name in Test for a class of tests
from data.dataset import TrainImageDataset
from data.fetcher import DatasetFetcher
from data.layout import CarvanaLayout
from img.augmentation import Augmentation
from img.mask import decode_mask
from img.transformer import decode_image, resize
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


def test_with_padding_reflect_image_and_mask_are_aligned(pair):
    image, mask = TrainImageDataset(*pair, (220, 236), (36, 52))[0]
    assert image.shape == (3, 220, 236) and mask.shape == (36, 52) and image.dtype == mask.dtype == torch.uint8
    window = image[0, 92:-92, 92:-92]
    assert dice_per_image(window[None] > 172, mask[None] > 127).item() > 0.99


def test_with_padding_stretch_the_mask_has_another_scale(pair):
    image, mask = TrainImageDataset(*pair, (220, 236), (36, 52), padding="stretch")[0]
    assert image.shape == (3, 220, 236) and mask.shape == (36, 52)
    window = image[0, 92:-92, 92:-92]
    assert dice_per_image(window[None] > 172, mask[None] > 127).item() < 0.9
    assert dice_per_image(resize(image, (36, 52))[:1] > 172, mask[None] > 127).item() > 0.97


def test_with_equal_sizes_both_paddings_are_the_same(pair):
    reflect, stretch = (ToPredict(pair[0], (32, 32), (32, 32), padding)[0][0] for padding in ("reflect", "stretch"))
    assert torch.equal(reflect, stretch)


@pytest.mark.parametrize("window", [(40, 40), (60, 60)])  # of an image of 101x151: half of it is enough, or not
def test_an_image_that_is_downsampled_while_decoding_is_the_same_image(tmp_path, window):
    rows, columns = np.mgrid[:101, :151]
    car = ((rows - 50) / 25) ** 2 + ((columns - 60) / 45) ** 2 < 1
    Image.fromarray(np.where(car, 240, columns).astype(np.uint8)).convert("RGB").save(tmp_path / "a_01.jpg", quality=99)
    Image.fromarray(car.astype(np.uint8) * 255).save(tmp_path / "a_01_mask.gif")
    image, mask = TrainImageDataset([tmp_path / "a_01.jpg"], [tmp_path / "a_01_mask.gif"], window, window)[0]
    full_image = decode_image((tmp_path / "a_01.jpg").read_bytes())
    full_mask = decode_mask((tmp_path / "a_01_mask.gif").read_bytes())
    assert full_image.shape == (3, 101, 151)
    assert (image.float() - resize(full_image, window).float()).abs().mean() < 2
    assert (mask.float() - resize(full_mask, window)[0].float()).abs().mean() < 2
    assert (mask.float() - resize(full_mask, window)[0].roll(1, 1).float()).abs().mean() > 4  # control: a pixel off


def test_soft_labels_are_fractions_and_hard_labels_are_thresholded(pair):
    soft = TrainImageDataset(*pair, (32, 32), (32, 32))[0][1]
    hard = TrainImageDataset(*pair, (32, 32), (32, 32), soft_labels=False)[0][1]
    assert len(soft.unique()) > 2
    assert torch.equal(hard, (soft > 127).to(torch.uint8) * 255)


@pytest.mark.parametrize("padding", ["reflect", "stretch"])
def test_the_transform_gets_image_and_mask_in_the_proportions_of_the_file(pair, padding):
    seen = []

    def flip(image, mask):
        seen.append((image.shape, mask.shape))
        return image.flip(-1), mask.flip(-1)

    sizes = ((220, 220), (36, 36))
    image, mask = TrainImageDataset(*pair, *sizes, X_transform=flip, padding=padding)[0]
    height = 36 if padding == "reflect" else 60  # the image, of 60 rows, is never upsampled
    assert seen == [((3, height, height * 3 // 2), (1, height, height * 3 // 2))]
    plain_image, plain_mask = TrainImageDataset(*pair, *sizes, padding=padding)[0]
    assert (image.flip(-1).int() - plain_image.int()).abs().float().mean() < 4
    assert dice_per_image(mask.flip(-1)[None] > 127, plain_mask[None] > 127).item() > 0.97


def test_an_image_and_a_mask_of_different_sizes_are_named(pair):
    Image.new("L", (90, 61)).save(pair[1][0])
    sentence = r"a_01_mask\.png is 61x90 pixels \(height x width\), but its image .*a_01\.png is 60x90\. Both must have"
    with pytest.raises(UserError, match=sentence):
        TrainImageDataset(*pair, (32, 32), (32, 32))[0]


@pytest.mark.parametrize("index", [0, 1])
def test_a_half_file_is_named(pair, index):
    path = pair[index][0]
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(UserError, match=f"{path.name} cannot be read as an image"):
        TrainImageDataset(*pair, (32, 32), (32, 32))[0]


def test_an_unreadable_file_is_named(pair):
    pair[0][0].unlink()
    pair[0][0].mkdir()
    with pytest.raises(UserError, match=r"a_01\.png cannot be read \(Is a directory\)\.$"):
        TrainImageDataset(*pair, (32, 32), (32, 32))[0]


def test_the_name_comes_through_a_worker_process(pair):
    os.truncate(pair[0][0], 40)
    loader = torch.utils.data.DataLoader(TrainImageDataset(*pair, (32, 32), (32, 32)), num_workers=1)
    with pytest.raises(UserError) as error:
        next(iter(loader))
    assert str(error.value).startswith(str(pair[0][0])) and "\n" not in str(error.value)


def test_images_to_predict_have_names(pair):
    image, name = ToPredict(pair[0], (220, 236), (36, 52))[0]
    assert name == "a_01.png" and torch.equal(image, TrainImageDataset(*pair, (220, 236), (36, 52))[0][0])


@pytest.mark.parametrize("format", ["png", "jpg"])
@pytest.mark.parametrize(("mask_size", "padding"), [((128, 128), "reflect"), ((100, 100), "stretch")])
def test_both_views_have_the_detail_of_the_image(tmp_path, format, mask_size, padding):
    """The first one equals that without tta to a gray level: libjpeg computes the mean of four pixels itself."""
    noise = np.random.default_rng(0).integers(256, size=(256, 256), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / f"a_01.{format}", quality=99)
    one, both = (
        ToPredict([tmp_path / f"a_01.{format}"], (128, 128), mask_size, padding, tta=tta)[0][0] for tta in (False, True)
    )
    assert both.shape == (2, 3, 128, 128)
    assert (both[0].float() - one.float()).abs().mean() < (1 if format == "jpg" else 1e-9)
    assert both[1].float().std() > 0.7 * one.float().std()  # half if the image is no larger than the mask


def augmented(drawn, epoch, workers, seed=0):
    """Return the images of an epoch, after the workers of a loader have loaded another epoch."""
    X, y, *_ = DatasetFetcher(CarvanaLayout(drawn)).get_train_files()
    dataset = TrainImageDataset(X[:6], y[:6], (32, 32), (32, 32), X_transform=Augmentation(), seed=seed)
    loader = torch.utils.data.DataLoader(dataset, num_workers=workers, persistent_workers=workers > 0)
    for each in (epoch + 1, epoch):
        dataset.set_epoch(each)
        images = torch.cat([image for image, _ in loader])
    return images


@pytest.mark.seconds
def test_augmentation_depends_on_seed_epoch_and_index_but_not_on_workers(drawn):
    here = augmented(drawn, epoch=1, workers=0)
    for workers in (1, 2):
        assert torch.equal(augmented(drawn, epoch=1, workers=workers), here)
    assert not torch.equal(augmented(drawn, epoch=2, workers=1), here)  # controls
    assert not torch.equal(augmented(drawn, epoch=1, workers=1, seed=1), here)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_first_epochs_have_half_the_size(drawn, workers):
    """They show the same as at full size."""
    X, y, *_ = DatasetFetcher(CarvanaLayout(drawn)).get_train_files()
    dataset = TrainImageDataset(X[:4], y[:4], (64, 96), (64, 96), half_size_epochs=2)
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, num_workers=workers, persistent_workers=workers > 0)
    pairs = {}
    for epoch in (1, 2, 3):
        dataset.set_epoch(epoch)
        (pairs[epoch],) = loader
    assert [tuple(images.shape) for images, _ in pairs.values()] == [(4, 3, 32, 48), (4, 3, 32, 48), (4, 3, 64, 96)]
    assert [tuple(masks.shape) for _, masks in pairs.values()] == [(4, 32, 48), (4, 32, 48), (4, 64, 96)]
    for small, large in zip(pairs[2], pairs[3], strict=True):
        downsampled = resize(large.flatten(0, -3), small.shape[-2:]).view_as(small)
        torch.testing.assert_close(small.float(), downsampled.float(), atol=40, rtol=0)
    assert TrainImageDataset(X, y, (64, 96), (64, 96))[0][0].shape == (3, 64, 96)  # control: no half-size epochs


def test_augmentation_leaves_the_generator_of_the_training_alone(drawn):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    X, y, *_ = DatasetFetcher(CarvanaLayout(drawn)).get_train_files()
    _ = TrainImageDataset(X, y, (32, 32), (32, 32), X_transform=Augmentation())[0]
    assert torch.rand(1) == expected


def test_drawn_masks_fit_their_images_at_every_size(drawn):
    X, y, *_ = DatasetFetcher(CarvanaLayout(drawn)).get_train_files()
    for size in ((188, 4), (220, 36), (64, 64)):
        image, mask = TrainImageDataset(X, y, (size[0],) * 2, (size[1],) * 2)[0]
        assert image.shape == (3, size[0], size[0]) and mask.shape == (size[1], size[1]) and mask.max() > 0


@pytest.mark.parametrize("tta", [False, True])
def test_an_image_is_decoded_once(pair, monkeypatch, tta):
    decoded = []
    count = lambda *arguments, **bits: decoded.append(arguments) or decode_image(*arguments, **bits)  # noqa: E731
    monkeypatch.setattr("data.reader.decode_image", count)
    ToPredict(pair[0], (32, 32), (16, 16), "stretch", tta=tta)[0]
    TrainImageDataset(*pair, (32, 32), (32, 32))[0]
    assert [min_size for _, min_size in decoded] == [None if tta else (32, 32), (32, 32)]
