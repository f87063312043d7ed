"""Other photos of the same cars: a flip, a shift, a turn, a change of scale, the same for a photo and its mask."""

import math

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

SHIFT = 0.0625  # share of the height and of the width that a car moves at most
SCALE = 0.1  # a car becomes at most this share larger or smaller
ROTATION = 5  # degrees at most, either way: cars stand on a floor


def outside(length: int, other: int) -> int:
    """How many pixels beyond an edge come into view at most, along a side of `length` with the other of `other`."""
    turn = math.radians(ROTATION)
    reach = (0.5 + SHIFT) * (length * math.cos(turn) + other * math.sin(turn)) / (1 - SCALE)  # from the centre
    return math.ceil(reach - 0.5 * length) + 1  # and one for the interpolation


def augment_img(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """image (3, H, W) uint8, mask (1, H, W) uint8 -> the same shapes, moved together.

    Both travel as the channels of one picture, so there is one draw for both. What comes in from outside is the
    mirrored picture (and its mirrored mask), not a black corner. The turn is a turn only in the photo's own
    proportions: augment before the photo is squeezed to the net's size, or the car is sheared.
    """
    height, width = image.shape[-2:]
    rows, columns = outside(height, width), outside(width, height)
    move = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.Pad([columns, rows], padding_mode="reflect"),
            v2.RandomAffine(
                degrees=ROTATION,
                translate=(SHIFT * width / (width + 2 * columns), SHIFT * height / (height + 2 * rows)),
                scale=(1 - SCALE, 1 + SCALE),
                interpolation=InterpolationMode.BILINEAR,
            ),
            v2.CenterCrop([height, width]),
        ]
    )
    moved = move(torch.cat([image, mask]))  # (4, H, W)
    return moved[:3], moved[3:]
