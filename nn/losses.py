"""The losses, whose sum training minimizes. They are computed in float32, whatever the precision of the net."""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class SoftDiceLoss(nn.Module):
    """1 - Dice, with probabilities instead of a binary mask: per image, averaged over the batch, in [0, 1].

    smooth: makes the loss 0, not undefined, if mask and prediction are empty. (The tutorial's formula has it
        twice in the numerator, which makes that loss -1.)
    """

    def __init__(self, smooth: float = 1.0):
        super().__init__()
        self.smooth = smooth

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits (N, H, W), targets (N, H, W) in [0, 1] -> scalar."""
        probs = logits.float().sigmoid().flatten(1)  # (N, H * W)
        targets = targets.float().flatten(1)  # (N, H * W)
        intersection = (probs * targets).sum(1)  # (N,)
        dice = (2 * intersection + self.smooth) / (probs.sum(1) + targets.sum(1) + self.smooth)
        return 1 - dice.mean()


def binary_cross_entropy(logits: Tensor, targets: Tensor, edge_weight: float = 1.0) -> Tensor:
    """Mean over the pixels, in nats: logits (N, H, W), targets (N, H, W) in [0, 1] -> scalar.

    edge_weight: how much a pixel near an edge (within 1/24 of the height) weighs, relative to the others; the mean of
        an image is 1. After weighted_bce_dice_loss of
        https://github.com/petrosgk/Kaggle-Carvana-Image-Masking-Challenge.
    """
    weights = None
    if edge_weight != 1:
        radius, means = targets.shape[-2] // 24, targets.float()
        for _ in range(2):  # the mean of a square is that along its rows, then along its columns
            means = F.avg_pool1d(means, 2 * radius + 1, stride=1, padding=radius, count_include_pad=False).mT
        weights = 1 + (edge_weight - 1) * ((means > 0.005) & (means < 0.995))
        weights = weights / weights.mean((1, 2), keepdim=True)
    # From logits: the gradient of a confidently wrong pixel would vanish in the sigmoid
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float(), weights)
