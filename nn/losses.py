"""What training minimizes and what it is judged by. Everything is computed in float32, whatever the net computes in."""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


class SoftDiceLoss(nn.Module):
    """1 - Dice with probabilities in the place of a cut mask, per image, ema over the images: in [0, 1].

        loss = 1 - (2 sum(p t) + smooth) / (sum(p) + sum(t) + smooth),  p = sigmoid(logits)

    `smooth` stands once in the numerator and once in the denominator, so an empty mask that is predicted empty costs 0.
    (The tutorial's formula doubles the upper one, and falls to -1 there.)
    """

    def __init__(self, smooth: float = 1.0):
        super().__init__()
        self.smooth = smooth

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """logits (N, H, W), targets (N, H, W) in [0, 1] -> a scalar."""
        probs, targets = logits.float().sigmoid().flatten(1), targets.float().flatten(1)  # (N, H * W)
        intersection = (probs * targets).sum(1)
        score = (2 * intersection + self.smooth) / (probs.sum(1) + targets.sum(1) + self.smooth)
        return 1 - score.mean()


def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross entropy of "car or not" in nats a pixel: logits (N, H, W), targets (N, H, W) in [0, 1] -> a scalar.

    Taken from the logits, so that the gradient of a pixel that is wrong by far does not vanish in the sigmoid.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), targets.float())
