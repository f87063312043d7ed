"""Two views of a photo give one answer, which stands where the photo stands and is finer than either."""

import pytest
import torch
import torch.nn.functional as F

from img.transformer import downsample, resize
from img.tta import merge_tta, tta_view
from nn.metrics import dice_per_image

MASK = (48, 64)


def disc(size, center, radius):
    """A photo (3, *size) uint8 of a white disc; center and radius as shares of height and width."""
    rows, columns = (torch.arange(length).add(0.5) / length for length in size)
    far = torch.hypot((rows[:, None] - center[0]) / radius[0], (columns - center[1]) / radius[1])
    return (far < 1).to(torch.uint8).expand(3, -1, -1) * 255


def seen(photo, window=MASK):
    """Both views as a perfect net would answer for them, (1, 2, *window)."""
    views = [resize(photo, window), tta_view(photo, MASK, window)]
    return torch.stack(views)[None, :, 0].float() / 255


def centre_of(probs):
    """Shares of height and width."""
    ends = [torch.arange(length).add(0.5) / length for length in probs.shape]
    return [(probs.sum(1 - dim) * ends[dim]).sum().item() / probs.sum().item() for dim in (0, 1)]


@pytest.mark.parametrize("size", [(96, 128), (192, 320), (300, 500), (60, 90)])
def test_the_answer_stands_where_the_photo_stands(size):
    photo = disc(size, (0.4, 0.3), (0.2, 0.15))
    views, fine = seen(photo), [0.5 / length for length in MASK]  # half a pixel of the mask
    (answer,) = merge_tta(views)
    assert answer.shape == (96, 128)
    there = centre_of(photo[0].float())
    assert centre_of(answer) == pytest.approx(there, abs=0.05 * fine[0])
    moved = centre_of(views[0, 1].flip(-1))  # control: the second view shows it half a pixel higher and to the left
    assert [a - b for a, b in zip(there, moved, strict=True)] == pytest.approx(fine, rel=0.1)


def test_both_views_are_of_the_border_that_they_are_asked_for():
    """A photo that is stretched over a window larger than the mask is moved by a pixel of the mask all the same."""
    photo, window = disc((192, 320), (0.4, 0.3), (0.2, 0.15)), (72, 100)
    views = seen(photo, window)
    assert views.shape == (1, 2, *window)
    there, moved = centre_of(views[0, 0]), centre_of(views[0, 1].flip(-1))
    fine = [0.5 / length for length in MASK]
    assert [a - b for a, b in zip(there, moved, strict=True)] == pytest.approx(fine, rel=0.1)


def test_two_views_find_an_edge_between_the_pixels():
    """Of a net that says 0 or 1 at each pixel: the answer's mask is much nearer to the truth than the first view's."""
    errors = []
    for step in range(8):
        photo = disc((384, 512), (0.5 + 0.003 * step, 0.47), (0.3, 0.31 + 0.002 * step))
        cut = (seen(photo) > 0.5).float()
        masks = [F.interpolate(probs, (384, 512), mode="bilinear")[0] for probs in (cut[:, :1], merge_tta(cut)[None])]
        errors.append([1 - dice_per_image(mask > 0.5, photo[:1] > 127).item() for mask in masks])
    one, two = torch.tensor(errors).mean(0).tolist()
    assert two < 0.8 * one


def test_the_last_row_and_column_are_repeated():
    """Of what grows darker to the right and down, neither end shows anything of the other."""
    dark = torch.linspace(255, 0, 96)[:, None].minimum(torch.linspace(255, 0, 128))
    photo = dark.round().byte().expand(3, -1, -1)
    view = tta_view(photo, MASK, MASK).flip(-1)[0].float()
    assert (view[-1] < 4).all() and (view[:, -1] < 4).all() and view[0, 0] > 245
    probs = dark[::2, ::2].div(255).expand(1, 2, -1, -1)
    probs = torch.stack([probs[:, 0], probs[:, 1].flip(-1)], dim=1)
    (answer,) = merge_tta(probs)
    torch.testing.assert_close(answer[0, :3], torch.ones(3), atol=0.02, rtol=0)
    torch.testing.assert_close(answer[:3, 0], torch.ones(3), atol=0.02, rtol=0)
    assert merge_tta(torch.ones(0, 2, 5, 7)).shape == (0, 10, 14)


def test_both_views_count_alike_and_probabilities_stay_probabilities():
    probs = torch.rand(1, 2, 5, 7, generator=torch.Generator().manual_seed(0)).round()
    for straight, second in ((0.0, 1.0), (1.0, 0.0)):
        answer = merge_tta(torch.tensor([straight, second])[None, :, None, None].expand(1, 2, 5, 7))
        torch.testing.assert_close(answer, torch.full((1, 10, 14), 0.5))
    assert merge_tta(probs).min() >= 0 and merge_tta(probs).max() <= 1


@pytest.mark.parametrize(("window", "size"), [
    (MASK, (96, 128)), (MASK, (110, 132)), (MASK, (160, 200)), (MASK, (480, 600)),
    (MASK, (80, 100)), (MASK, (70, 95)),  # less than twice the window, or odd: the photo isn't downsample
    ((60, 80), (110, 140)), ((60, 80), (240, 330)),  # stretched over a window larger than the mask
])  # fmt: skip
def test_the_second_view_is_as_sharp_as_the_first(window, size):
    """Of noise, which shows every filter."""
    photo = torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    first, second = resize(downsample(photo, window), window).float().std(), tta_view(photo, MASK, window).float().std()
    assert 0.95 * first < second < 1.1 * first


def test_without_finer_pixels_the_second_view_is_blurred():
    """The control of the test above."""
    photo = torch.randint(256, (3, *MASK), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert tta_view(photo, MASK, MASK).float().std() < 0.6 * photo.float().std()
