import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score

from nn.losses import SoftDiceLoss, binary_cross_entropy
from nn.metrics import boundary_distance, dice_per_image, overlap_per_image, pixel_accuracy_per_image

pairs = arrays(bool, (2, 3, 4, 5))  # predictions and targets of three images


@pytest.mark.seconds
@given(pairs)
def test_dice_is_scikit_learns_f1_score_of_each_image(pair):
    predictions, targets = torch.from_numpy(pair)
    expected = [
        f1_score(truth.flatten(), guess.flatten(), zero_division=1.0)
        for guess, truth in zip(predictions, targets, strict=True)
    ]
    assert dice_per_image(predictions, targets).tolist() == pytest.approx(expected)


@pytest.mark.seconds
@given(pairs)
def test_overlap_metrics_are_scikit_learns_of_each_image(pair):
    """Where only one mask is empty, precision and recall are 0 here; without any object they are 1."""
    result = overlap_per_image(*torch.from_numpy(pair))
    metrics = {"dice": f1_score, "iou": jaccard_score, "precision": precision_score, "recall": recall_score}
    assert list(result) == list(metrics)
    for name, metric in metrics.items():
        expected = [
            metric(truth.flatten(), guess.flatten(), zero_division=float(not (truth | guess).any()))
            for guess, truth in zip(*pair, strict=True)
        ]
        assert result[name].tolist() == pytest.approx(expected), name


def test_precision_without_prediction_and_recall_without_object_are_0():
    masks = torch.tensor([[[True, False]], [[False, False]]])
    result = overlap_per_image(masks, masks.flip(0))
    assert result["precision"].tolist() == result["recall"].tolist() == [0, 0]
    assert all(values.tolist() == [1, 1] for values in overlap_per_image(masks, masks).values())


def brute_boundary(mask):
    """Looks at each pixel's neighbors."""
    padded = np.pad(mask, 1)
    steps = ((0, 1), (2, 1), (1, 0), (1, 2))
    return [(y, x) for y, x in np.argwhere(mask) if not all(padded[y + dy, x + dx] for dy, dx in steps)]


@given(arrays(bool, (2, 6, 7)))
def test_boundary_distance_is_that_of_all_pairs_of_pixels(pair):
    a, b = map(brute_boundary, pair)
    result = boundary_distance(*torch.from_numpy(pair))
    if not a or not b:
        assert math.isnan(result)
        return
    nearest = [min(math.dist(p, q) for q in b) for p in a] + [min(math.dist(p, q) for q in a) for p in b]
    assert result == pytest.approx(sum(nearest) / len(nearest))


def test_boundary_distance_of_squares_is_known():
    """4x4 at an edge of the image, and the 2x2 in its middle: 8 pixels are 1 away, 4 corners sqrt(2); back, 4 are 1."""
    outer, inner = torch.zeros(2, 6, 8, dtype=torch.bool)
    outer[:4, 2:6], inner[1:3, 3:5] = True, True
    assert boundary_distance(outer, inner) == pytest.approx((12 + 4 * 2**0.5) / 16)
    assert boundary_distance(outer, outer) == 0


@given(pairs)
def test_pixel_accuracy_is_scikit_learns(pair):
    predictions, targets = torch.from_numpy(pair)
    expected = [accuracy_score(t.flatten(), p.flatten()) for p, t in zip(predictions, targets, strict=True)]
    assert pixel_accuracy_per_image(predictions, targets).tolist() == pytest.approx(expected)


def test_dice_is_not_pooled_over_the_batch():
    targets = torch.zeros(2, 10, 10, dtype=torch.bool)
    targets[0], targets[1, 0, 0] = True, True
    predictions = targets.clone()
    predictions[1] = False
    assert dice_per_image(predictions, targets).tolist() == [1, 0]  # pooled over pixels it would be 0.995


def test_two_empty_masks_have_dice_1_and_loss_0():
    empty = torch.zeros(1, 4, 4, dtype=torch.bool)
    assert dice_per_image(empty, empty).tolist() == [1]
    assert SoftDiceLoss()(torch.full((1, 4, 4), -100.0), empty).item() == pytest.approx(0)


@given(arrays("float32", (2, 3, 4), elements=st.floats(-300, 300, width=32)), arrays("uint8", (2, 3, 4)))
def test_soft_dice_stays_between_0_and_1(logits, masks):
    loss = SoftDiceLoss()(torch.from_numpy(logits), torch.from_numpy(masks) / 255)
    assert -1e-6 <= loss.item() <= 1


def test_soft_dice_of_a_certain_prediction_is_1_minus_dice():
    torch.manual_seed(0)
    prediction, targets = torch.rand(2, 3, 40, 40) > 0.5
    loss = SoftDiceLoss(smooth=0)((prediction * 2.0 - 1) * 100, targets)
    assert loss.item() == pytest.approx(1 - dice_per_image(prediction, targets).mean().item(), abs=1e-6)


def test_cross_entropy_has_a_gradient_where_that_of_the_sigmoid_vanishes():
    logits = torch.full((1, 2, 2), -200.0, requires_grad=True)
    binary_cross_entropy(logits, torch.ones(1, 2, 2)).backward()
    assert (logits.grad.abs() > 0.2).all()


def test_pixels_near_an_edge_have_the_edge_weight_and_the_mean_weight_is_1():
    targets = torch.zeros(3, 48, 40)
    targets[0, :, 24:] = 1
    targets[1, 20:] = 1
    logits = torch.zeros(3, 48, 40, requires_grad=True)
    binary_cross_entropy(logits, targets, edge_weight=3.0).backward()
    weights = logits.grad.abs() * 2 * logits.numel()  # the gradient of each pixel is its weight times one half
    assert weights.mean((1, 2)).tolist() == pytest.approx([1] * 3)
    near = 48 // 24  # pixels on both sides
    column = torch.tensor([1.0] * (24 - near) + [3.0] * 2 * near + [1.0] * (16 - near))
    row = torch.tensor([1.0] * (20 - near) + [3.0] * 2 * near + [1.0] * (28 - near))
    expected = torch.stack([column.expand(48, 40), row[:, None].expand(48, 40), torch.ones(48, 40)])
    torch.testing.assert_close(weights, expected / expected.mean((1, 2), keepdim=True))
    for loss in (binary_cross_entropy(logits, targets), binary_cross_entropy(logits, targets, 3.0)):
        assert loss.item() == pytest.approx(math.log(2), rel=1e-6)  # all pixels have the same, whatever their weights


def test_losses_are_computed_in_float32():
    logits, targets = torch.randn(1, 64, 64, dtype=torch.bfloat16), torch.ones(1, 64, 64)
    for loss in (SoftDiceLoss(), binary_cross_entropy):
        assert loss(logits, targets).dtype == torch.float32
        assert loss(logits, targets) == loss(logits.float(), targets)
