import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from data.dataset import TestImageDataset as ToPredict  # pytest takes a name in Test for a class of tests
from data.dataset import TrainImageDataset
from img.augmentation import NUMBERS, Augmentation
from img.mask import decode_mask
from img.transformer import decode_image, resize
from nn.metrics import dice_per_image
from runtime.errors import UserError
from tiny import find_files


@pytest.fixture
def pair(tmp_path):
    """A white ellipse on gray, 90x60, and its mask."""
    rows, columns = np.mgrid[:60, :90]
    car = ((rows - 30) / 15) ** 2 + ((columns - 40) / 25) ** 2 < 1
    Image.fromarray(np.where(car, 255, 90).astype(np.uint8)).convert("RGB").save(tmp_path / "a_01.png")
    Image.fromarray(car.astype(np.uint8) * 255).save(tmp_path / "a_01_mask.png")
    return [tmp_path / "a_01.png"], [tmp_path / "a_01_mask.png"]


def load(dataset, *indices):
    """The images and masks that prepare() makes of a batch: of the first image, or of those with these indices."""
    return dataset.prepare(default_collate([dataset[index] for index in indices or (0,)]), torch.device("cpu"))


def test_with_padding_reflect_image_and_mask_are_aligned(pair):
    images, masks = load(TrainImageDataset(*pair, (220, 236), (36, 52)))
    assert images.shape == (1, 3, 220, 236) and masks.shape == (1, 36, 52)
    assert images.dtype == masks.dtype == torch.float32
    window = images[:, 0, 92:-92, 92:-92]
    assert dice_per_image(window > 0.67, masks > 0.5).item() > 0.99


def test_with_padding_stretch_the_mask_has_another_scale(pair):
    images, masks = load(TrainImageDataset(*pair, (220, 236), (36, 52), padding="stretch"))
    assert images.shape == (1, 3, 220, 236) and masks.shape == (1, 36, 52)
    window = images[:, 0, 92:-92, 92:-92]
    assert dice_per_image(window > 0.67, masks > 0.5).item() < 0.9
    assert dice_per_image(resize(images[0], (36, 52))[:1] > 0.67, masks > 0.5).item() > 0.97


def test_with_equal_sizes_both_paddings_are_the_same(pair):
    reflect, stretch = (ToPredict(pair[0], (32, 32), (32, 32), padding)[0][0] for padding in ("reflect", "stretch"))
    assert torch.equal(reflect, stretch)


@pytest.mark.parametrize("window", [(40, 40), (60, 60)])  # of an image of 101x151: half of it is enough, or not
def test_an_image_that_is_downsampled_while_decoding_is_the_same_image(tmp_path, window):
    rows, columns = np.mgrid[:101, :151]
    car = ((rows - 50) / 25) ** 2 + ((columns - 60) / 45) ** 2 < 1
    Image.fromarray(np.where(car, 240, columns).astype(np.uint8)).convert("RGB").save(tmp_path / "a_01.jpg", quality=99)
    Image.fromarray(car.astype(np.uint8) * 255).save(tmp_path / "a_01_mask.gif")
    loaded, aspect, _ = TrainImageDataset([tmp_path / "a_01.jpg"], [tmp_path / "a_01_mask.gif"], window, window)[0]
    image, mask = loaded[:3], loaded[3]
    assert aspect == 151 / 101
    full_image = decode_image((tmp_path / "a_01.jpg").read_bytes())
    full_mask = decode_mask((tmp_path / "a_01_mask.gif").read_bytes())
    assert full_image.shape == (3, 101, 151)
    assert (image.float() - resize(full_image, window).float()).abs().mean() < 2
    assert (mask.float() - resize(full_mask, window)[0].float()).abs().mean() < 2
    assert (mask.float() - resize(full_mask, window)[0].roll(1, 1).float()).abs().mean() > 4  # control: a pixel off


def test_soft_labels_are_fractions_and_hard_labels_are_thresholded(pair):
    soft = load(TrainImageDataset(*pair, (32, 32), (32, 32)))[1]
    hard = load(TrainImageDataset(*pair, (32, 32), (32, 32), soft_labels=False))[1]
    assert len(soft.unique()) > 2
    assert torch.equal(hard, (soft > 0.5).float())


@pytest.mark.parametrize("padding", ["reflect", "stretch"])
def test_the_transform_gets_pairs_of_the_window_with_the_proportions_of_their_files(pair, padding):
    seen = []

    def flip(pairs, aspect, numbers):
        seen.append((pairs.shape, pairs.dtype, aspect.tolist(), numbers.shape))
        return pairs[:, :3].flip(-1), pairs[:, 3:].flip(-1)

    sizes = ((220, 220), (36, 36))
    images, masks = load(TrainImageDataset(*pair, *sizes, X_transform=flip, padding=padding), 0, 0)
    side = 36 if padding == "reflect" else 220
    assert seen == [((2, 4, side, side), torch.uint8, [1.5, 1.5], (2, NUMBERS))]
    plain_images, plain_masks = load(TrainImageDataset(*pair, *sizes, padding=padding), 0, 0)
    torch.testing.assert_close(images.flip(-1), plain_images)
    torch.testing.assert_close(masks.flip(-1), plain_masks, rtol=0, atol=1e-5)
    assert not torch.equal(images, plain_images)  # control


def test_padding_reflects_as_numpy_does(pair):
    dataset = TrainImageDataset(*pair, (220, 237), (36, 52))
    images, masks = load(dataset)
    loaded = dataset[0][0].numpy() / np.float32(255)
    margins = [(92, 92), (92, 93)]  # wider than the window
    assert (images[0].numpy() == np.pad(loaded[:3], [(0, 0), *margins], mode="reflect")).all()
    assert (masks[0].numpy() == loaded[3]).all()
    assert (images[0].numpy() != np.pad(loaded[:3], [(0, 0), *margins], mode="symmetric")).any()  # control


def test_stretched_masks_are_resized_as_pillow_does(pair):
    dataset = TrainImageDataset(*pair, (100, 120), (36, 52), padding="stretch")
    loaded = dataset[0][0]
    images, masks = load(dataset)
    assert torch.equal(images[0], loaded[:3] / 255)
    expected = np.asarray(Image.fromarray(loaded[3].numpy()).resize((52, 36), Image.Resampling.BILINEAR)) / 255
    assert abs(masks[0].numpy() - expected).max() < 1 / 255
    nearest = np.asarray(Image.fromarray(loaded[3].numpy()).resize((52, 36), Image.Resampling.NEAREST)) / 255
    assert abs(masks[0].numpy() - nearest).max() > 0.2  # control


STRONG = Augmentation(rotation=30.0, color_jitter=0.5, grayscale=0.3)
FLIPS = Augmentation(shift=0, scale=0, rotation=0)


@pytest.mark.parametrize("padding", ["reflect", "stretch"])
@pytest.mark.parametrize("transform", [None, FLIPS, STRONG])
@pytest.mark.parametrize("epoch", [1, 2])  # the first has half the size
def test_prepared_batches_are_in_0_to_1_and_may_be_empty_and_the_loaded_one_stays(pair, padding, transform, epoch):
    X, y = pair[0] * 6, pair[1] * 6
    dataset = TrainImageDataset(X, y, (64, 80), (36, 52), padding, X_transform=transform, half_size_epochs=1)
    dataset.set_epoch(epoch)
    loaded = default_collate([dataset[index] for index in range(6)])
    before = [part.clone() for part in loaded]
    images, masks = dataset.prepare(loaded, torch.device("cpu"))
    divisor = 2 if epoch == 1 else 1
    assert images.shape == (6, 3, 64 // divisor, 80 // divisor) and masks.shape == (6, 36 // divisor, 52 // divisor)
    for values in (images, masks):
        assert values.dtype == torch.float32 and values.min() >= 0 and 0.9 < values.max() < 1 + 1e-6  # rounding
    assert all(torch.equal(*parts) for parts in zip(loaded, before, strict=True))
    again, _ = dataset.prepare(loaded, torch.device("cpu"))
    assert torch.equal(again, images) and (len(images.unique(dim=0)) > 1) == (transform is not None)
    empty = dataset.prepare([part[:0] for part in loaded], torch.device("cpu"))
    assert [part.shape for part in empty] == [(0, *images.shape[1:]), (0, *masks.shape[1:])]


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
    loader = DataLoader(TrainImageDataset(*pair, (32, 32), (32, 32)), num_workers=1)
    with pytest.raises(UserError) as error:
        next(iter(loader))
    assert str(error.value).startswith(str(pair[0][0])) and "\n" not in str(error.value)


def test_images_to_predict_have_names(pair):
    image, name = ToPredict(pair[0], (220, 236), (36, 52))[0]
    assert name == "a_01.png" and image.shape == (3, 220, 236) and image.dtype == torch.uint8


@pytest.mark.parametrize("padding", ["reflect", "stretch"])
def test_validation_and_prediction_see_the_same_image_to_the_bit(pair, drawn, padding):
    sizes = (220, 236), (36, 52), padding
    for X, y in (pair, find_files(drawn, [0])):
        images, _ = load(TrainImageDataset(X, y, *sizes))
        assert torch.equal(images[0], ToPredict(X, *sizes)[0][0] / 255)
        assert not torch.equal(images[0], ToPredict(X, *sizes, tta=True)[0][0][1] / 255)  # control: the other view


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
    dataset = TrainImageDataset(*find_files(drawn, [0]), (32, 32), (32, 32), X_transform=STRONG, seed=seed)
    loader = DataLoader(dataset, batch_size=6, num_workers=workers, persistent_workers=workers > 0)
    for each in (epoch + 1, epoch):
        dataset.set_epoch(each)
        batches = [dataset.prepare(batch, torch.device("cpu")) for batch in loader]
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


@pytest.mark.seconds
def test_augmentation_depends_on_seed_epoch_and_index_but_not_on_workers(drawn):
    images, masks = augmented(drawn, epoch=1, workers=0)
    for workers in (1, 2):
        others, other_masks = augmented(drawn, epoch=1, workers=workers)
        assert torch.equal(others, images) and torch.equal(other_masks, masks)
    assert not torch.equal(augmented(drawn, epoch=2, workers=1)[0], images)  # controls
    assert not torch.equal(augmented(drawn, epoch=1, workers=1, seed=1)[0], images)


def test_each_image_has_its_own_random_numbers(pair):
    """They depend on seed, epoch and index, not on what was read before."""
    datasets = [TrainImageDataset(pair[0] * 3, pair[1] * 3, (32, 32), (32, 32), seed=seed) for seed in (0, 1)]
    drawn = {}
    for epoch in (1, 2):
        for seed, dataset in enumerate(datasets):
            dataset.set_epoch(epoch)
            drawn |= {(seed, epoch, index): dataset[index][2] for index in (2, 0, 1)}
    numbers = torch.stack(list(drawn.values()))
    assert numbers.shape == (12, NUMBERS) and numbers.min() >= 0 and numbers.max() < 1
    assert len(numbers.unique()) == 12 * NUMBERS
    assert torch.equal(datasets[1][1][2], drawn[1, 2, 1])


@pytest.mark.parametrize("padding", ["reflect", "stretch"])
@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.seconds)])
def test_the_first_epochs_have_half_the_size(drawn, workers, padding):
    """Each of their pixels is the mean of 2x2 pixels that the other epochs have."""
    X, y = find_files(drawn, [0])
    dataset = TrainImageDataset(X[:4], y[:4], (64, 96), (64, 96), padding, half_size_epochs=2)
    loader = DataLoader(dataset, batch_size=4, num_workers=workers, persistent_workers=workers > 0)
    pairs = {}
    for epoch in (1, 2, 3):
        dataset.set_epoch(epoch)
        (batch,) = loader
        pairs[epoch] = dataset.prepare(batch, torch.device("cpu"))
    assert [tuple(images.shape) for images, _ in pairs.values()] == [(4, 3, 32, 48), (4, 3, 32, 48), (4, 3, 64, 96)]
    assert [tuple(masks.shape) for _, masks in pairs.values()] == [(4, 32, 48), (4, 32, 48), (4, 64, 96)]
    for small, large in zip(pairs[2], pairs[3], strict=True):
        blocks = large.unflatten(-1, (48, 2)).unflatten(-3, (32, 2))  # (..., 32, 2, 48, 2)
        torch.testing.assert_close(small, blocks.mean((-1, -3)), rtol=0, atol=1e-6)
        assert not torch.allclose(small, blocks[..., 0, :, 0], atol=0.1)  # control
    assert load(TrainImageDataset(X, y, (64, 96), (64, 96)))[0].shape == (1, 3, 64, 96)  # control: none of half size


def test_augmentation_leaves_the_generator_of_the_training_alone(drawn):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    load(TrainImageDataset(*find_files(drawn, [0]), (32, 32), (32, 32), X_transform=STRONG))
    assert torch.rand(1) == expected


def test_drawn_masks_fit_their_images_at_every_size(drawn):
    X, y = find_files(drawn, [0])
    for input_size, mask_size in ((188, 4), (220, 36), (64, 64)):
        images, masks = load(TrainImageDataset(X, y, (input_size,) * 2, (mask_size,) * 2))
        assert images.shape == (1, 3, input_size, input_size) and masks.shape == (1, mask_size, mask_size)
        assert masks.max() > 0


@pytest.mark.parametrize("tta", [False, True])
def test_an_image_is_decoded_once(pair, monkeypatch, tta):
    decoded = []
    count = lambda *arguments: decoded.append(arguments) or decode_image(*arguments)  # noqa: E731
    monkeypatch.setattr("data.reader.decode_image", count)
    ToPredict(pair[0], (32, 32), (16, 16), "stretch", tta=tta)[0]
    TrainImageDataset(*pair, (32, 32), (32, 32))[0]
    assert [min_size for _, min_size, _ in decoded] == [None if tta else (32, 32), (32, 32)]
