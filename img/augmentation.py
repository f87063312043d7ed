"""Other photos of the same cars: a flip, a shift, a turn, a change of scale, the same for a photo and its mask."""

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

SHIFT = 0.0625  # share of the height and of the width that a car moves at most
SCALE = 0.1  # a car becomes at most this share larger or smaller
ROTATION = 5  # degrees at most, either way: cars stand on a floor
MARGIN = 0.25  # share of height and width mirrored outwards before the turn: enough for all of the above together


def augment_img(image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """image (3, H, W) uint8, mask (1, H, W) uint8 -> the same shapes, moved together.

    Both travel as the channels of one picture, so there is one draw for both. What comes in from outside is the
    mirrored picture (and its mirrored mask), not a black corner. The turn is a turn only in the photo's own
    proportions: augment before the photo is squeezed to the net's size, or the car is sheared.
    """
    height, width = image.shape[-2:]
    move = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.Pad([round(MARGIN * width), round(MARGIN * height)], padding_mode="reflect"),
            # torchvision counts the shift in widths of the padded picture
            v2.RandomAffine(
                degrees=ROTATION,
                translate=(SHIFT / (1 + 2 * MARGIN), SHIFT / (1 + 2 * MARGIN)),
                scale=(1 - SCALE, 1 + SCALE),
                interpolation=InterpolationMode.BILINEAR,
            ),
            v2.CenterCrop([height, width]),
        ]
    )
    moved = move(torch.cat([image, mask]))  # (4, H, W)
    return moved[:3], moved[3:]
