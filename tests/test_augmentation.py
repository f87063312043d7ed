import numpy as np
import pytest
import torch
from PIL import Image

from img.augmentation import Augmentation, augment_img, color_jitter, gaussian_blur


def car_and_mask(height=128, width=192):
    rows, columns = np.mgrid[:height, :width]
    car = ((rows - 0.5 * height) / (0.25 * height)) ** 2 + ((columns - 0.45 * width) / (0.3 * width)) ** 2 < 1
    mask = torch.from_numpy(car * 255).to(torch.uint8)[None]
    return mask.expand(3, -1, -1).clone(), mask


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


def test_a_rotation_is_not_a_shear():
    """In the proportions of the image a circle stays a circle: its second moments stay equal and uncorrelated."""
    rows, columns = np.mgrid[:160, :240]
    circle = torch.from_numpy(((rows - 80) ** 2 + (columns - 120) ** 2 < 25**2) * 255).to(torch.uint8)[None]
    torch.manual_seed(0)
    for _ in range(20):
        moved = augment_img(circle.expand(3, -1, -1), circle, shift=0, rotation=20)[1][0].double() / 255
        weights = moved / moved.sum()
        y, x = torch.meshgrid(torch.arange(160.0), torch.arange(240.0), indexing="ij")
        dy, dx = y - (weights * y).sum(), x - (weights * x).sum()
        spread_y, spread_x, shear = (weights * dy * dy).sum(), (weights * dx * dx).sum(), (weights * dx * dy).sum()
        assert abs(spread_y / spread_x - 1) < 0.02 and abs(shear / spread_x) < 0.02


@pytest.mark.seconds
def test_colors_change_the_same_everywhere_and_the_mask_does_not():
    """Pixels of one color keep one color; the geometry is the same as without color augmentation."""
    image = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    image[:, 20:] = image[:, :20]
    changed = set()
    for seed in range(40):
        torch.manual_seed(seed)
        lit = color_jitter(image, 0.4, grayscale=0)
        assert lit.shape == image.shape and lit.dtype == torch.uint8 and torch.equal(lit[:, 20:], lit[:, :20])
        changed.add(lit.float().mean().round().item())
    assert len(changed) > 20
    image, mask = car_and_mask()
    plain, lit = [], []
    for options, results in (({}, plain), (dict(color_jitter=0.4, grayscale=0.5, blur=2), lit)):
        for seed in range(20):
            torch.manual_seed(seed)
            results.append(augment_img(image, mask, **options))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(plain, lit, strict=True))
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(plain, lit, strict=True))


def test_brightness_and_channels_change_up_to_their_limit():
    middle = torch.full((3, 8, 8), 100, dtype=torch.uint8)  # no contrast and no saturation to change
    ratios = []
    for seed in range(400):
        torch.manual_seed(seed)
        ratios.append(color_jitter(middle, 0.2, grayscale=0).float().mean((1, 2)) / 100)
    ratios = torch.stack(ratios)  # brightness times a factor for each of red, green and blue
    assert 0.6 < ratios.min() < 0.72 and 1.28 < ratios.max() < 1.5
    spread = ratios.max(1).values / ratios.min(1).values
    assert 1.2 < spread.max() < 1.2 / 0.8 * 1.3  # the colors drift apart


def test_contrast_and_saturation_change_up_to_their_limit():
    gray = torch.full((3, 8, 8), 80, dtype=torch.uint8)
    gray[:, :, 4:] = 120  # of two levels: brightness scales both, contrast their difference
    red = torch.tensor([120, 80, 80], dtype=torch.uint8)[:, None, None].expand(3, 8, 8)
    contrasts, saturations = [], []
    for seed in range(300):
        torch.manual_seed(seed)
        lit = color_jitter(gray, 0.2, grayscale=0).double().mean(1)  # (3, 8)
        contrasts.append(((lit[:, -1] - lit[:, 0]) / lit.mean(1) * 100 / 40).mean().item())
        torch.manual_seed(seed)
        reds = color_jitter(red, 0.2, grayscale=0).double().mean((1, 2)) / lit.mean(1)  # the same light
        saturations.append(((reds[0] - reds[2]) * 100 / 40).item())
    assert 0.8 - 1 / 20 < min(contrasts) < 0.85 and 1.15 < max(contrasts) < 1.2 + 1 / 20  # of rounding
    assert min(saturations) < 0.87 and max(saturations) > 1.13 and np.std(saturations) > 0.08


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (0.3, 60), (1.0, 200)])
def test_a_fraction_of_the_images_becomes_gray(fraction, expected):
    """The same gray as Pillow's "L", which follows the same standard."""
    image = torch.randint(0, 256, (3, 8, 12), dtype=torch.uint8)
    gray = torch.from_numpy(np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))).int()
    count = 0
    for seed in range(200):
        torch.manual_seed(seed)
        lit = color_jitter(image, 0, grayscale=fraction).int()
        count += (lit - gray).abs().max().item() <= 1
        assert torch.equal(lit, image.int()) or (lit - gray).abs().max() <= 1
    assert count == pytest.approx(expected, abs=25 if 0 < fraction < 1 else 0)


@pytest.mark.seconds
def test_half_of_the_images_are_blurred_up_to_the_largest_sigma():
    """A point becomes a Gaussian, whose second moment is the square of sigma."""
    point = torch.zeros(3, 41, 41, dtype=torch.uint8)
    point[:, 20, 20] = 255
    sigmas = []
    for seed in range(300):
        torch.manual_seed(seed)
        soft = gaussian_blur(point, 1.5).double()[0]
        offset = (torch.arange(41) - 20.0) ** 2
        sigmas.append(((soft.sum(0) * offset).sum() / soft.sum()).sqrt().item())
    assert 0.35 < np.mean(np.array(sigmas) == 0) < 0.65 and 1.2 < max(sigmas) <= 1.5
    assert torch.equal(gaussian_blur(point, 0), point)
    assert all(gaussian_blur(point[:, :4, :6], 100).shape == (3, 4, 6) for _ in range(10))  # wider than the image


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
    """A worker process has one thread; without workers, there are several."""
    image = torch.randint(0, 256, (3, 300, 451), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    threads, lit = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            lit.append(torch.stack([color_jitter(image, 0.3, grayscale=0.2) for _ in range(20)]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(lit[0], lit[1]) and torch.equal(lit[0], lit[2])


def test_augmentation_and_augment_img_are_the_same():
    image, mask = car_and_mask()
    for options in ({}, dict(flip=False, rotation=30.0, color_jitter=0.3, grayscale=0.5, blur=2.0)):
        torch.manual_seed(0)
        expected = augment_img(image, mask, **options)
        torch.manual_seed(0)
        assert all(torch.equal(*pair) for pair in zip(Augmentation(**options)(image, mask), expected, strict=True))
    with pytest.raises(TypeError):
        augment_img(image, mask, zoom=1.0)
