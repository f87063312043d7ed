"""How good a mask is: Dice and pixel accuracy, per image."""

from torch import Tensor


def dice_per_image(predictions: Tensor, targets: Tensor) -> Tensor:
    """Dice 2 |X & Y| / (|X| + |Y|) of cut masks (N, H, W) of bool -> (N,) in [0, 1]; two empty masks agree: 1."""
    predictions, targets = predictions.flatten(1), targets.flatten(1)
    sizes = predictions.sum(1) + targets.sum(1)
    return ((2 * (predictions & targets).sum(1)) / sizes.clamp(min=1)).masked_fill(sizes == 0, 1.0)


def pixel_accuracy_per_image(predictions: Tensor, targets: Tensor) -> Tensor:
    """The share of pixels on which two cut masks (N, H, W) of bool agree -> (N,) in [0, 1]."""
    return (predictions == targets).flatten(1).float().mean(1)
