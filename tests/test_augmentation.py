"""Augmentation of batches, against a plain float64 version that changes one image at a time."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from img.augmentation import NUMBERS, Augmentation, augment_img, color_jitter, gaussian_blur
from img.transformer import resize

LUMA = np.array([0.299, 0.587, 0.114])
ALL = dict(rotation=30.0, color_jitter=0.3, grayscale=0.3, blur=2.0)
NONE = dict(flip=False, shift=0.0, scale=0.0, rotation=0.0)
ONLY_FLIPS = NONE | dict(flip=True)
OPTIONS = [{}, ONLY_FLIPS, NONE | dict(color_jitter=0.3), NONE | dict(grayscale=0.5)]
OPTIONS += [pytest.param(each, marks=pytest.mark.seconds) for each in (ALL, ONLY_FLIPS | dict(blur=2.0))]


def car_and_mask(height=128, width=192):
    rows, columns = np.mgrid[:height, :width]
    car = ((rows - 0.5 * height) / (0.25 * height)) ** 2 + ((columns - 0.45 * width) / (0.3 * width)) ** 2 < 1
    mask = torch.from_numpy(car * 255).to(torch.uint8)[None]
    return mask.expand(3, -1, -1).clone(), mask


def random_batch(count, height=40, width=52, seed=0):
    """Smooth random pairs (count, 4, height, width) uint8 of very different brightness, aspects, and numbers."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 4, 6, 8, generator=generator) * torch.linspace(0.2, 1, count)[:, None, None, None]
    pairs = torch.nn.functional.interpolate(coarse * 255, (height, width), mode="bicubic").clamp(0, 255).byte()
    return pairs, torch.linspace(0.6, 2, count), torch.rand(count, NUMBERS, generator=generator)


def augment_one(pair, aspect, numbers, *, flip=True, shift=0.0625, scale=0.1, rotation=5.0, color_jitter=0.0,
                grayscale=0.0, blur=0.0, rounded=True):
    """The plain version: a pair (4, H, W), its aspect and its numbers -> image (3, H, W), mask (1, H, W) in float64.

    rounded: to whole gray levels after each step.
    """
    store = (lambda values: values.round().clip(0, 255)) if rounded else (lambda values: values.clip(0, 255))
    side, down, right, turn, zoom, *factors, to_gray, skip, fraction = numbers.double().numpy()
    side, down, right, turn, zoom = 2 * np.array([side, down, right, turn, zoom]) - 1
    brightness, contrast, saturation, *gains = 1 + color_jitter * (2 * np.array(factors) - 1)
    pair = pair.double().numpy()
    _, height, width = pair.shape
    # A point of the file is a complex number, in heights of the file
    x, y = (np.arange(width) + 0.5) / width - 0.5, (np.arange(height) + 0.5) / height - 0.5
    point = (x - shift * right) * aspect.item() + 1j * (y[:, None] - shift * down)
    point *= np.exp(-1j * math.radians(rotation) * turn) / (1 + scale * zoom)
    x, y = point.real / aspect.item() * (-1 if flip and side < 0 else 1), point.imag
    places = (y + 0.5) * height - 0.5, (x + 0.5) * width - 0.5
    pair = store(np.stack([map_coordinates(each, places, order=1, mode="reflect") for each in pair]))
    pixels, mask = pair[:3].transpose(1, 2, 0), pair[3:]  # (H, W, 3)
    if color_jitter or to_gray < grayscale:
        gray = (pixels @ LUMA)[..., None]
        saturation = 0 if to_gray < grayscale else saturation
        colors = saturation * pixels * gains + (1 - saturation) * gray
        pixels = store(brightness * (gray.mean() + contrast * (colors - gray.mean())))
    sigma = blur * fraction
    if skip >= 0.5 and sigma >= 0.1:
        radius = min(math.ceil(2 * sigma), min(height, width) - 1)
        pixels = store(gaussian_filter(pixels, sigma, mode="mirror", radius=radius, axes=(0, 1)))
    return pixels.transpose(2, 0, 1), mask


@pytest.mark.parametrize("options", OPTIONS)
def test_a_batch_is_augmented_as_one_image_at_a_time_in_float64(options):
    pairs, aspect, numbers = random_batch(12)
    images, masks = Augmentation(**options)(pairs, aspect, numbers)
    assert images.shape == (12, 3, 40, 52) and masks.shape == (12, 1, 40, 52)
    changes = []
    for index, each in enumerate(zip(pairs, aspect, numbers, strict=True)):
        image, mask = images[index].double().numpy(), masks[index].double().numpy()
        for rounded, mean, largest in ((False, 0.005, 0.1), (True, 1.0, 4.0)):  # True: to 8 bits after each step
            for result, expected in zip((image, mask), augment_one(*each, **options, rounded=rounded), strict=True):
                assert abs(result - expected).mean() < mean and abs(result - expected).max() < largest
        changes.append(abs(image - augment_one(*each[:2], numbers[index - 1], **options)[0]).mean())
    assert max(changes) > 2  # control: the numbers of another image


@pytest.mark.parametrize("options", OPTIONS)
def test_an_image_does_not_depend_on_the_others_of_its_batch(options):
    pairs, aspect, numbers = random_batch(7)
    together = Augmentation(**options)(pairs, aspect, numbers)
    for index in range(7):
        one = slice(index, index + 1)
        alone = Augmentation(**options)(pairs[one].clone(), aspect[one], numbers[one])
        for batch, single in zip(together, alone, strict=True):
            torch.testing.assert_close(batch[one].float(), single.float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("options", OPTIONS)
def test_an_empty_batch_stays_empty(options):
    pairs, aspect, numbers = random_batch(3)
    for batch in (pairs, pairs.float()):
        images, masks = Augmentation(**options)(batch[:0], aspect[:0], numbers[:0])
        assert images.shape == (0, 3, 40, 52) and masks.shape == (0, 1, 40, 52)


def test_numbers_in_the_middle_change_nothing():
    pairs, aspect, numbers = random_batch(3)
    middle = torch.full((3, NUMBERS), 0.5)
    middle[:, -2] = 0.4  # not blurred
    images, masks = Augmentation(**ALL)(pairs, aspect, middle)
    torch.testing.assert_close(images, pairs[:, :3].float(), rtol=0, atol=0.02)
    torch.testing.assert_close(masks, pairs[:, 3:].float(), rtol=0, atol=0.02)
    assert (Augmentation(**ALL)(pairs, aspect, numbers)[0] - pairs[:, :3]).abs().mean() > 5  # control


def test_flips_alone_move_whole_pixels():
    pairs, aspect, numbers = random_batch(8, 21, 33)
    numbers[:, 0] = torch.tensor([0.1, 0.9] * 4)
    images, masks = Augmentation(**ONLY_FLIPS)(pairs, aspect, numbers)
    assert images.dtype == masks.dtype == torch.uint8
    changed = torch.cat([images, masks], dim=1)
    assert torch.equal(changed[::2], pairs[::2].flip(-1)) and torch.equal(changed[1::2], pairs[1::2])
    assert not torch.equal(pairs[0].flip(-1), pairs[0])  # control
    images, _ = Augmentation(**ONLY_FLIPS | dict(shift=1e-9))(pairs, aspect, numbers)
    assert images.is_floating_point()  # control: interpolated


def test_image_and_mask_move_together():
    """An image that shows the car in white on black equals its mask, before the augmentation and after it."""
    image, mask = car_and_mask()
    moved = 0
    for seed in range(50):
        torch.manual_seed(seed)
        new_image, new_mask = augment_img(image, mask)
        assert new_image.shape == image.shape and new_mask.shape == mask.shape and new_mask.dtype == torch.uint8
        assert (new_image == new_mask).all()
        moved += not torch.equal(new_mask, mask)
    assert moved == 50  # control


def test_one_draw_is_one_result():
    image, mask = car_and_mask()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment_img(image, mask)[1])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_masks_do_not_grow():
    image, mask = car_and_mask()
    torch.manual_seed(0)
    areas = [augment_img(image, mask)[1].float().sum().item() for _ in range(200)]
    # uniform scales of 0.9 to 1.1 increase an area by a third of 1% on average
    assert np.mean(areas) / mask.float().sum().item() == pytest.approx(1.0033, abs=0.02)


@pytest.mark.parametrize(("height", "width"), [(60, 90), (60, 60), (40, 240), (240, 40)])
def test_no_black_corners(height, width):
    white = torch.full((3, height, width), 255, dtype=torch.uint8)
    torch.manual_seed(0)
    assert all(augment_img(white, white[:1])[0].min() >= 254 for _ in range(300))


def test_each_transform_is_used_up_to_its_limit():
    height, width = 96, 144
    rows, columns = np.mgrid[:height, :width]
    square = (abs(rows - 47.5) < 12) & (abs(columns - 71.5) < 12)
    mark = square & (columns < 72)  # its left half, which a flip makes the right one
    mask, image = (torch.from_numpy(each * 255).to(torch.uint8)[None] for each in (square, mark))
    shifts, areas, flips = [], [], []
    for seed in range(300):
        torch.manual_seed(seed)
        marks, moved = (each[0].double() / 255 for each in augment_img(image.expand(3, -1, -1), mask))
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        center = torch.stack([(moved * y).sum() / height, (moved * x).sum() / width]) / moved.sum()
        shifts.append((center - torch.tensor([47.5 / height, 71.5 / width])).tolist())
        areas.append((moved.sum() / mask.div(255).sum()).item())
        flips.append(((marks * x).sum() / marks.sum() > (moved * x).sum() / moved.sum()).item())
    shifts = np.abs(shifts)  # a rotation about the center of the image does not move it
    for side in (0, 1):
        assert 0.055 < shifts[:, side].max() < 0.0625 + 1 / height
    assert 0.81 - 0.02 < min(areas) < 0.85 and 1.17 < max(areas) < 1.21 + 0.02
    assert 0.4 < np.mean(flips) < 0.6


@pytest.mark.parametrize("size", [(160, 240), (120, 120), (80, 200)])
def test_a_rotation_is_not_a_shear(size):
    """In the proportions of the file a circle stays a circle: its second moments stay equal and uncorrelated."""
    rows, columns = np.mgrid[:160, :240]
    circle = torch.from_numpy(((rows - 80) ** 2 + (columns - 120) ** 2 < 25**2) * 255).to(torch.uint8)
    pairs = resize(circle.expand(4, -1, -1), size).expand(20, -1, -1, -1)  # squeezed, but for the first size
    numbers = torch.rand(20, NUMBERS, generator=torch.Generator().manual_seed(0))
    y, x = torch.meshgrid(*((torch.arange(n) + 0.5) * full / n for n, full in zip(size, (160, 240), strict=True)),
                          indexing="ij")
    errors = []
    for aspect in (240 / 160, size[1] / size[0]):
        rotate = Augmentation(shift=0, rotation=20)
        _, masks = rotate(pairs, torch.full((20,), aspect), numbers)
        errors.append(0)
        for moved in masks[:, 0].double():
            weights = moved / moved.sum()
            dy, dx = y - (weights * y).sum(), x - (weights * x).sum()
            spread_y, spread_x, shear = (weights * dy * dy).sum(), (weights * dx * dx).sum(), (weights * dx * dy).sum()
            errors[-1] = max(errors[-1], abs(spread_y / spread_x - 1), abs(shear / spread_x))
    assert errors[0] < 0.02
    assert size[1] / size[0] == 1.5 or errors[1] > 0.1  # control: rotated in the proportions of the squeezed image


@pytest.mark.seconds
def test_colors_change_the_same_everywhere_and_the_mask_does_not():
    """Pixels of one color keep one color; the geometry is the same as without color augmentation."""
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    image[:, 20:] = image[:, :20]
    lit = color_jitter(image.expand(40, -1, -1, -1), torch.rand(40, 7), 0.4, grayscale=0)
    assert lit.shape == (40, 3, 40, 60)
    torch.testing.assert_close(lit[:, :, 20:], lit[:, :, :20], rtol=0, atol=1e-3)
    assert len(set(lit.mean((1, 2, 3)).round().tolist())) > 20
    image, mask = car_and_mask()
    plain, lit = [], []
    for options, results in (({}, plain), (dict(color_jitter=0.4, grayscale=0.5, blur=2), lit)):
        for seed in range(20):
            torch.manual_seed(seed)
            results.append(augment_img(image, mask, **options))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(plain, lit, strict=True))
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(plain, lit, strict=True))


def test_brightness_and_channels_change_up_to_their_limit():
    middle = torch.full((400, 3, 8, 8), 100, dtype=torch.uint8)  # no contrast and no saturation to change
    numbers = torch.rand(400, 7, generator=torch.Generator().manual_seed(0))
    ratios = color_jitter(middle, numbers, 0.2, grayscale=0).mean((2, 3)) / 100  # brightness times a factor of each
    assert 0.6 < ratios.min() < 0.72 and 1.28 < ratios.max() < 1.5
    spread = ratios.max(1).values / ratios.min(1).values
    assert 1.2 < spread.max() < 1.2 / 0.8 * 1.3  # the colors drift apart


def test_contrast_and_saturation_change_up_to_their_limit():
    gray = torch.full((3, 8, 8), 80, dtype=torch.uint8)
    gray[:, :, 4:] = 120  # of two levels: brightness scales both, contrast their difference
    red = torch.tensor([120, 80, 80], dtype=torch.uint8)[:, None, None].expand(3, 8, 8)
    numbers = torch.rand(300, 7, generator=torch.Generator().manual_seed(0))
    lit, reds = (color_jitter(image.expand(300, -1, -1, -1), numbers, 0.2, grayscale=0).double().mean(2)
                 for image in (gray, red))  # (300, 3, 8)
    contrasts = ((lit[..., -1] - lit[..., 0]) / lit.mean(2) * 100 / 40).mean(1)
    reds = reds.mean(2) / lit.mean(2)  # the same light
    saturations = (reds[:, 0] - reds[:, 2]) * 100 / 40
    assert 0.8 - 1 / 20 < contrasts.min() < 0.85 and 1.15 < contrasts.max() < 1.2 + 1 / 20  # the gains shift the mean
    assert saturations.min() < 0.87 and saturations.max() > 1.13 and saturations.std() > 0.08


def test_contrast_changes_around_the_mean_of_each_image():
    """Of a dark and a bright image in one batch, whose means stay as they are."""
    images = torch.stack([torch.full((3, 8, 8), level) for level in (60.0, 180.0)])
    images[:, :, :4] += 20
    numbers = torch.full((2, 7), 0.5)
    numbers[:, 1] = 1.0
    lit = color_jitter(images, numbers, 0.5, grayscale=0)
    torch.testing.assert_close(lit.mean((2, 3)), images.mean((2, 3)))
    torch.testing.assert_close(lit.std((2, 3)), 1.5 * images.std((2, 3)))  # control


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (0.3, 60), (1.0, 200)])
def test_a_fraction_of_the_images_becomes_gray(fraction, expected):
    """The same gray as Pillow's "L", which follows the same standard."""
    image = torch.randint(0, 256, (3, 8, 12), dtype=torch.uint8)
    gray = torch.from_numpy(np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")))
    numbers = torch.rand(200, 7, generator=torch.Generator().manual_seed(0))
    count = 0
    for lit in color_jitter(image.expand(200, -1, -1, -1), numbers, 0, grayscale=fraction).float():
        is_gray = (lit - gray).abs().max() <= 1
        assert is_gray or torch.allclose(lit, image.float(), atol=1e-3)
        assert not is_gray or torch.allclose(lit[0], lit[2], atol=1e-3)
        count += is_gray.item()
    assert count == pytest.approx(expected, abs=25 if 0 < fraction < 1 else 0)


@pytest.mark.seconds
def test_half_of_the_images_are_blurred_up_to_the_largest_sigma():
    """A point becomes a Gaussian, whose second moment is the square of sigma. The other images keep each bit."""
    points = torch.zeros(300, 3, 41, 41, dtype=torch.uint8)
    points[:, :, 20, 20] = 255
    numbers = torch.rand(300, 2, generator=torch.Generator().manual_seed(0))
    soft = gaussian_blur(points, numbers, 1.5)
    skipped = numbers[:, 0] < 0.5
    assert torch.equal(soft[skipped], points[skipped].float()) and 0.35 < skipped.float().mean() < 0.65
    offset = (torch.arange(41) - 20.0).double() ** 2
    sigmas = ((soft[:, 0].double().sum(1) * offset).sum(1) / soft[:, 0].double().sum((1, 2))).sqrt()
    assert sigmas[skipped].max() == 0 and 1.2 < sigmas.max() <= 1.5
    applied = ~skipped & (1.5 * numbers[:, 1] >= 0.1)
    assert (sigmas[applied] > 0).all() and ((sigmas - 1.5 * numbers[:, 1])[applied].abs() < 0.25).all()
    assert gaussian_blur(points, numbers, 0) is points
    assert gaussian_blur(points[:10, :, :4, :6], numbers[:10], 100).shape == (10, 3, 4, 6)  # wider than the image


def test_a_limit_of_zero_changes_nothing():
    image, mask = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8), torch.randint(0, 256, (1, 40, 60)).byte()
    for seed in range(20):
        torch.manual_seed(seed)
        moved = augment_img(image, mask, flip=False, shift=0, scale=0, rotation=0)
        assert torch.equal(moved[0], image) and torch.equal(moved[1], mask)
    flips = 0
    for seed in range(40):
        torch.manual_seed(seed)
        moved = augment_img(image, mask, shift=0, scale=0, rotation=0)
        flips += torch.equal(moved[0], image.flip(-1)) and torch.equal(moved[1], mask.flip(-1))
        assert torch.equal(moved[0], image) or torch.equal(moved[0], image.flip(-1))
    assert 10 < flips < 30


def test_colors_are_the_same_to_the_bit_with_any_number_of_threads():
    """A training that is resumed may have another number of threads."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 300, 451), generator=generator, dtype=torch.uint8)
    numbers = torch.rand(4, 7, generator=generator)
    threads, lit = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            lit.append(color_jitter(images, numbers, 0.3, grayscale=0.2))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(lit[0], lit[1]) and torch.equal(lit[0], lit[2])


def test_augment_img_is_augmentation_of_a_batch_of_one():
    image, mask = car_and_mask()
    for options in ({}, dict(flip=False, rotation=30.0, color_jitter=0.3, grayscale=0.5, blur=2.0)):
        torch.manual_seed(0)
        result = augment_img(image, mask, **options)
        torch.manual_seed(0)
        numbers = torch.rand(1, NUMBERS)
        expected = Augmentation(**options)(torch.cat([image, mask])[None], torch.tensor([192 / 128]), numbers)
        assert all(torch.equal(one, batch[0].round().byte()) for one, batch in zip(result, expected, strict=True))
    with pytest.raises(TypeError):
        augment_img(image, mask, zoom=1.0)
