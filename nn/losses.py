"""The two losses, whose sum training minimizes. Both are computed in float32, whatever the precision of the net."""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class SoftDiceLoss(nn.Module):
    """1 - Dice, with probabilities instead of a binary mask: per image, averaged over the batch, in [0, 1].

        loss = 1 - (2 * sum(p * t) + smooth) / (sum(p) + sum(t) + smooth),  p = sigmoid(logits)

    `smooth` is added once to the numerator and once to the denominator, so an empty mask that is predicted empty has a
    loss of 0. (The tutorial's formula adds it twice to the numerator, so its loss falls to -1 there.)
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


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross entropy per pixel, in nats: logits (N, H, W), targets (N, H, W) in [0, 1] -> scalar.

    It takes logits, not probabilities: the gradient of a confidently wrong pixel does not vanish in the sigmoid.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())
