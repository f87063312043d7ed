import numpy as np
import pytest
import torch

from img.augmentation import ROTATION, augment_img


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
        centre = torch.stack([(moved * y).sum() / height, (moved * x).sum() / width]) / moved.sum()
        shifts.append((centre - torch.tensor([47.5 / height, 71.5 / width])).tolist())
        areas.append((moved.sum() / mask.div(255).sum()).item())
        flips.append(((marks * x).sum() / marks.sum() > (moved * x).sum() / moved.sum()).item())
    shifts = np.abs(shifts)  # a turn about the centre of the picture does not move its middle
    for side in (0, 1):
        assert 0.055 < shifts[:, side].max() < 0.0625 + 1 / height
    assert 0.81 - 0.02 < min(areas) < 0.85 and 1.17 < max(areas) < 1.21 + 0.02
    assert 0.4 < np.mean(flips) < 0.6


def test_a_turn_is_a_turn():
    """Seen in the photo's own proportions a circle stays a circle: its second moments stay equal and uncorrelated."""
    rows, columns = np.mgrid[:160, :240]
    circle = torch.from_numpy(((rows - 80) ** 2 + (columns - 120) ** 2 < 40**2) * 255).to(torch.uint8)[None]
    torch.manual_seed(0)
    assert ROTATION > 0
    for _ in range(20):
        moved = augment_img(circle.expand(3, -1, -1), circle)[1][0].double() / 255
        weights = moved / moved.sum()
        y, x = torch.meshgrid(torch.arange(160.0), torch.arange(240.0), indexing="ij")
        dy, dx = y - (weights * y).sum(), x - (weights * x).sum()
        spread_y, spread_x, shear = (weights * dy * dy).sum(), (weights * dx * dx).sum(), (weights * dx * dy).sum()
        assert abs(spread_y / spread_x - 1) < 0.02 and abs(shear / spread_x) < 0.02
