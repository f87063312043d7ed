import numpy as np
import pytest
import torch
from PIL import Image

from img.augmentation import augment_img, relight, soften


def car_and_mask(height=128, width=192):
    rows, columns = np.mgrid[:height, :width]
    car = ((rows - 0.5 * height) / (0.25 * height)) ** 2 + ((columns - 0.45 * width) / (0.3 * width)) ** 2 < 1
    mask = torch.from_numpy(car * 255).to(torch.uint8)[None]
    return mask.expand(3, -1, -1).clone(), mask


def test_photo_and_mask_move_together():
    """A photo of nothing but the car is its own mask, before the augmentation and after it, fifty times."""
    photo, mask = car_and_mask()
    moved = 0
    for seed in range(50):
        torch.manual_seed(seed)
        new_photo, new_mask = augment_img(photo, mask)
        assert new_photo.shape == photo.shape and new_mask.shape == mask.shape and new_mask.dtype == torch.uint8
        assert (new_photo == new_mask).all()
        moved += not torch.equal(new_mask, mask)
    assert moved == 50  # control


def test_one_draw_is_one_result():
    photo, mask = car_and_mask()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment_img(photo, mask)[1])
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_masks_do_not_grow():
    photo, mask = car_and_mask()
    torch.manual_seed(0)
    areas = [augment_img(photo, mask)[1].float().sum().item() for _ in range(200)]
    # uniform scales of 0.9 to 1.1 enlarge an area by a third of 1 % on average
    assert np.mean(areas) / mask.float().sum().item() == pytest.approx(1.0033, abs=0.02)


@pytest.mark.parametrize(("height", "width"), [(60, 90), (60, 60), (40, 240), (240, 40)])
def test_no_black_corners(height, width):
    white = torch.full((3, height, width), 255, dtype=torch.uint8)
    torch.manual_seed(0)
    assert all(augment_img(white, white[:1])[0].min() >= 254 for _ in range(300))


def test_each_move_is_made_and_none_goes_beyond_its_limit():
    height, width = 96, 144
    rows, columns = np.mgrid[:height, :width]
    square = (abs(rows - 47.5) < 12) & (abs(columns - 71.5) < 12)
    mark = square & (columns < 72)  # its left half, which a flip makes the right one
    mask, photo = (torch.from_numpy(each * 255).to(torch.uint8)[None] for each in (square, mark))
    shifts, areas, flips = [], [], []
    for seed in range(300):
        torch.manual_seed(seed)
        marks, moved = (each[0].double() / 255 for each in augment_img(photo.expand(3, -1, -1), mask))
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        center = torch.stack([(moved * y).sum() / height, (moved * x).sum() / width]) / moved.sum()
        shifts.append((center - torch.tensor([47.5 / height, 71.5 / width])).tolist())
        areas.append((moved.sum() / mask.div(255).sum()).item())
        flips.append(((marks * x).sum() / marks.sum() > (moved * x).sum() / moved.sum()).item())
    shifts = np.abs(shifts)  # a turn about the center of the picture does not move its middle
    for side in (0, 1):
        assert 0.055 < shifts[:, side].max() < 0.0625 + 1 / height
    assert 0.81 - 0.02 < min(areas) < 0.85 and 1.17 < max(areas) < 1.21 + 0.02
    assert 0.4 < np.mean(flips) < 0.6


def test_a_turn_is_a_turn():
    """Seen in the photo's own proportions a circle stays a circle: its second moments stay equal and uncorrelated."""
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


def test_light_is_one_map_of_colours_and_leaves_the_mask():
    """Two pixels of one color keep one color; gray stays between; the geometry is that of the same draw without."""
    photo = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8)
    photo[:, 20:] = photo[:, :20]
    changed = set()
    for seed in range(40):
        torch.manual_seed(seed)
        lit = relight(photo, color_jitter=0.4, grayscale=0)
        assert lit.shape == photo.shape and lit.dtype == torch.uint8 and torch.equal(lit[:, 20:], lit[:, :20])
        changed.add(lit.float().mean().round().item())
    assert len(changed) > 20
    photo, mask = car_and_mask()
    plain, lit = [], []
    for options, results in (({}, plain), (dict(color_jitter=0.4, grayscale=0.5, blur=2), lit)):
        for seed in range(20):
            torch.manual_seed(seed)
            results.append(augment_img(photo, mask, **options))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(plain, lit, strict=True))
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(plain, lit, strict=True))


def test_brightness_contrast_and_colours_stay_within_their_share():
    middle = torch.full((3, 8, 8), 100, dtype=torch.uint8)  # no contrast and no saturation to change
    ratios = []
    for seed in range(400):
        torch.manual_seed(seed)
        ratios.append(relight(middle, color_jitter=0.2, grayscale=0).float().mean((1, 2)) / 100)
    ratios = torch.stack(ratios)  # brightness times a gain for each of red, green and blue
    assert 0.6 < ratios.min() < 0.72 and 1.28 < ratios.max() < 1.5
    spread = ratios.max(1).values / ratios.min(1).values
    assert 1.2 < spread.max() < 1.2 / 0.8 * 1.3  # the colors drift apart


def test_contrast_and_saturation_change_within_their_share():
    gray = torch.full((3, 8, 8), 80, dtype=torch.uint8)
    gray[:, :, 4:] = 120  # of two levels: brightness scales both, contrast their difference
    red = torch.tensor([120, 80, 80], dtype=torch.uint8)[:, None, None].expand(3, 8, 8)
    contrasts, saturations = [], []
    for seed in range(300):
        torch.manual_seed(seed)
        lit = relight(gray, color_jitter=0.2, grayscale=0).double().mean(1)  # (3, 8)
        contrasts.append(((lit[:, -1] - lit[:, 0]) / lit.mean(1) * 100 / 40).mean().item())
        torch.manual_seed(seed)
        reds = relight(red, color_jitter=0.2, grayscale=0).double().mean((1, 2)) / lit.mean(1)  # the same light
        saturations.append(((reds[0] - reds[2]) * 100 / 40).item())
    assert 0.8 - 1 / 20 < min(contrasts) < 0.85 and 1.15 < max(contrasts) < 1.2 + 1 / 20  # of rounding
    assert min(saturations) < 0.87 and max(saturations) > 1.13 and np.std(saturations) > 0.08


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.3, 60), (1.0, 200)])
def test_a_share_of_the_photos_turns_grey(share, expected):
    """Grey as Pillow's "L" is, which is the same standard."""
    photo = torch.randint(0, 256, (3, 8, 12), dtype=torch.uint8)
    gray = torch.from_numpy(np.array(Image.fromarray(photo.permute(1, 2, 0).numpy()).convert("L"))).int()
    count = 0
    for seed in range(200):
        torch.manual_seed(seed)
        lit = relight(photo, color_jitter=0, grayscale=share).int()
        count += (lit - gray).abs().max().item() <= 1
        assert torch.equal(lit, photo.int()) or (lit - gray).abs().max() <= 1
    assert count == pytest.approx(expected, abs=25 if 0 < share < 1 else 0)


def test_half_of_the_photos_are_blurred_and_no_wider_than_told():
    """A point becomes a Gaussian, whose second moment is the square of sigma."""
    point = torch.zeros(3, 41, 41, dtype=torch.uint8)
    point[:, 20, 20] = 255
    sigmas = []
    for seed in range(300):
        torch.manual_seed(seed)
        soft = soften(point, blur=1.5).double()[0]
        offset = (torch.arange(41) - 20.0) ** 2
        sigmas.append(((soft.sum(0) * offset).sum() / soft.sum()).sqrt().item())
    assert 0.35 < np.mean(np.array(sigmas) == 0) < 0.65 and 1.2 < max(sigmas) <= 1.5
    assert torch.equal(soften(point, blur=0), point)
    assert all(soften(point[:, :4, :6], blur=100).shape == (3, 4, 6) for _ in range(10))  # wider than the picture


def test_what_is_not_asked_for_is_not_done():
    photo, mask = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8), torch.randint(0, 256, (1, 40, 60)).byte()
    for seed in range(20):
        torch.manual_seed(seed)
        moved = augment_img(photo, mask, flip=False, shift=0, scale=0, rotation=0)
        assert torch.equal(moved[0], photo) and torch.equal(moved[1], mask)
    flips = 0
    for seed in range(40):
        torch.manual_seed(seed)
        moved = augment_img(photo, mask, shift=0, scale=0, rotation=0)
        flips += torch.equal(moved[0], photo.flip(-1)) and torch.equal(moved[1], mask.flip(-1))
        assert torch.equal(moved[0], photo) or torch.equal(moved[0], photo.flip(-1))
    assert 10 < flips < 30


def test_light_is_the_same_to_the_bit_by_any_count_of_threads():
    """Processes that read have one, main.py without them all."""
    photo = torch.randint(0, 256, (3, 300, 451), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    threads, lit = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            lit.append(torch.stack([relight(photo, color_jitter=0.3, grayscale=0.2) for _ in range(20)]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(lit[0], lit[1]) and torch.equal(lit[0], lit[2])
