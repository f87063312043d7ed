"""Other photos of the same cars: a flip, a shift, a turn, a change of scale, the same for a photo and its mask."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 0.0625  # share of the height and of the width that a car moves at most
SCALE = 0.1  # a car becomes at most this share larger or smaller
ROTATION = 5  # degrees at most, either way: cars stand on a floor


def augment_img(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """image (3, H, W) uint8, mask (1, H, W) uint8 -> the same shapes, moved together.

    Both travel as the channels of one picture, so there is one draw for both, and one interpolation for all four
    moves. What comes in from outside is the mirrored picture (and its mirrored mask), not a black corner. The turn is a
    turn only in the photo's own proportions: augment before the photo is squeezed to the net's size, or the car is
    sheared.
    """
    height, width = image.shape[-2:]
    flip, down, right, turn, zoom = (2 * torch.rand(5) - 1).tolist()  # each in [-1, 1)
    angle, scale = math.radians(ROTATION) * turn, 1 + SCALE * zoom
    cos, sin, mirrored = math.cos(angle) / scale, math.sin(angle) / scale, -1 if flip < 0 else 1
    # Where each pixel comes from. Coordinates (x, y) run from -1 to 1 along either side, whatever its length
    back = torch.tensor([[mirrored * cos, mirrored * sin * height / width], [-sin * width / height, cos]])
    shift = 2 * SHIFT * torch.tensor([[right], [down]])
    origin = torch.cat([back, -back @ shift], dim=1)[None]  # (1, 2, 3)
    both = torch.cat([image, mask])[None].float()  # (1, 4, H, W)
    grid = F.affine_grid(origin, both.shape, align_corners=False)
    moved = F.grid_sample(both, grid, padding_mode="reflection", align_corners=False)[0].round_().to(torch.uint8)
    return moved[:3], moved[3:]
