"""The merged prediction of two views is aligned with the image and finer than either."""

import pytest
import torch

from data.dataset import preprocess
from img.transformer import halve, resize, upsample
from img.tta import merge_tta, tta_view
from nn.metrics import dice_per_image

MASK = (48, 64)


def disc(size, center, radius):
    """An image (3, *size) uint8 of a white disc; center and radius as fractions of height and width."""
    rows, columns = (torch.arange(length).add(0.5) / length for length in size)
    distance = torch.hypot((rows[:, None] - center[0]) / radius[0], (columns - center[1]) / radius[1])
    return (distance < 1).to(torch.uint8).expand(3, -1, -1) * 255


def perfect_probs(image, window=MASK):
    """Return what a perfect net predicts of both views, (1, 2, *window)."""
    views = [resize(image, window), tta_view(image, MASK, window)]
    return torch.stack(views)[None, :, 0].float() / 255


def first_view(image, window):
    return resize(halve(image, window), window)


def center_of(probs):
    """As fractions of height and width."""
    ends = [torch.arange(length).add(0.5) / length for length in probs.shape]
    return [(probs.sum(1 - dim) * ends[dim]).sum().item() / probs.sum().item() for dim in (0, 1)]


@pytest.mark.parametrize("size", [(96, 128), (192, 320), (300, 500), (60, 90)])
def test_the_merged_prediction_is_aligned_with_the_image(size):
    image = disc(size, (0.4, 0.3), (0.2, 0.15))
    views, fine = perfect_probs(image), [0.5 / length for length in MASK]  # half a pixel of the mask
    (merged,) = merge_tta(views)
    assert merged.shape == (96, 128)
    center = center_of(image[0].float())
    assert center_of(merged) == pytest.approx(center, abs=0.05 * fine[0])
    moved = center_of(views[0, 1].flip(-1))  # control: half a pixel up and to the left
    assert [a - b for a, b in zip(center, moved, strict=True)] == pytest.approx(fine, rel=0.1)


def test_both_views_have_the_size_of_the_window():
    """The second view is shifted by half a pixel of the mask even if the window is larger than the mask."""
    image, window = disc((192, 320), (0.4, 0.3), (0.2, 0.15)), (72, 100)
    views = perfect_probs(image, window)
    assert views.shape == (1, 2, *window)
    center, moved = center_of(views[0, 0]), center_of(views[0, 1].flip(-1))
    fine = [0.5 / length for length in MASK]
    assert [a - b for a, b in zip(center, moved, strict=True)] == pytest.approx(fine, rel=0.1)


def test_two_views_locate_an_edge_between_the_pixels():
    """If a net predicts 0 or 1 at each pixel, the merged mask is much better than that of the first view."""
    errors = []
    for step in range(8):
        image = disc((384, 512), (0.5 + 0.003 * step, 0.47), (0.3, 0.31 + 0.002 * step))
        hard = (perfect_probs(image) > 0.5).float()
        masks = [upsample(probs, (384, 512)) for probs in (hard[:, 0], merge_tta(hard))]
        errors.append([1 - dice_per_image(mask > 0.5, image[:1] > 127).item() for mask in masks])
    one, two = torch.tensor(errors).mean(0).tolist()
    assert two < 0.8 * one


def test_the_last_row_and_column_are_repeated():
    """In an image that gets darker to the right and down, no edge shows anything of the opposite one."""
    dark = torch.linspace(255, 0, 96)[:, None].minimum(torch.linspace(255, 0, 128))
    image = dark.round().byte().expand(3, -1, -1)
    view = tta_view(image, MASK, MASK).flip(-1)[0].float()
    assert (view[-1] < 4).all() and (view[:, -1] < 4).all() and view[0, 0] > 245
    probs = dark[::2, ::2].div(255).expand(1, 2, -1, -1)
    probs = torch.stack([probs[:, 0], probs[:, 1].flip(-1)], dim=1)
    (merged,) = merge_tta(probs)
    torch.testing.assert_close(merged[0, :3], torch.ones(3), atol=0.02, rtol=0)
    torch.testing.assert_close(merged[:3, 0], torch.ones(3), atol=0.02, rtol=0)
    assert merge_tta(torch.ones(0, 2, 5, 7)).shape == (0, 10, 14)


def test_both_views_have_the_same_weight_and_the_result_is_a_probability():
    probs = torch.rand(1, 2, 5, 7, generator=torch.Generator().manual_seed(0)).round()
    for first, second in ((0.0, 1.0), (1.0, 0.0)):
        merged = merge_tta(torch.tensor([first, second])[None, :, None, None].expand(1, 2, 5, 7))
        torch.testing.assert_close(merged, torch.full((1, 10, 14), 0.5))
    assert merge_tta(probs).min() >= 0 and merge_tta(probs).max() <= 1


@pytest.mark.parametrize(("window", "size"), [
    (MASK, (96, 128)), (MASK, (110, 132)), (MASK, (160, 200)), (MASK, (480, 600)),
    (MASK, (80, 100)), (MASK, (70, 95)),  # less than twice the window, or odd: not reduced
    ((60, 80), (110, 140)), ((60, 80), (240, 330)),  # padding stretch: the window is larger than the mask
])  # fmt: skip
def test_the_second_view_is_as_sharp_as_the_first(window, size):
    """Shown by noise, which every filter changes."""
    image = torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    first, second = (view.float().std() for view in (first_view(image, window), tta_view(image, MASK, window)))
    assert 0.95 * first < second < 1.1 * first
    assert torch.equal(preprocess(image, window, MASK, "stretch", tta=True)[0], first_view(image, window))


def test_without_more_pixels_the_second_view_is_blurred():
    """The control of the test above."""
    image = torch.randint(256, (3, *MASK), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert tta_view(image, MASK, MASK).float().std() < 0.6 * image.float().std()
