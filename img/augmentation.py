"""Other photos of the same cars: moved and turned, the same for a photo and its mask; in another light, the photo."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

LUMA = 0.299, 0.587, 0.114  # the share of red, green and blue in the gray that the eye sees (ITU-R BT.601)


def augment_img(
    image: Tensor,
    mask: Tensor,
    flip: bool = True,
    shift: float = 0.0625,
    scale: float = 0.1,
    rotation: float = 5.0,
    color_jitter: float = 0.0,
    grayscale: float = 0.0,
    blur: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """image (3, H, W) uint8, mask (1, H, W) uint8 -> the same shapes. What is drawn depends on torch's generator alone.

    flip: mirror half of the photos, left for right.
    shift: share of the height and of the width that a car moves at most.
    scale: a car becomes at most this share larger or smaller.
    rotation: degrees at most, either way.
    color_jitter, grayscale, blur: see relight and soften; the mask stays as it is.
    """
    image, mask = move(image, mask, flip, shift, scale, rotation)
    return soften(relight(image, color_jitter, grayscale), blur), mask


def move(
    image: Tensor, mask: Tensor, flip: bool, shift: float, scale: float, rotation: float
) -> tuple[Tensor, Tensor]:
    """image (3, H, W) uint8, mask (1, H, W) uint8 -> the same shapes, moved together.

    Both travel as the channels of one picture, so there is one draw for both, and one interpolation for all four
    moves. What comes in from outside is the mirrored picture (and its mirrored mask), not a black corner. The turn is a
    turn only in the photo's own proportions: augment before the photo is squeezed to the net's size, or the car is
    sheared.
    """
    height, width = image.shape[-2:]
    side, down, right, turn, zoom = (2 * torch.rand(5) - 1).tolist()  # each in [-1, 1)
    angle, size = math.radians(rotation) * turn, 1 + scale * zoom
    cos, sin, mirrored = math.cos(angle) / size, math.sin(angle) / size, -1 if flip and side < 0 else 1
    # Where each pixel comes from. Coordinates (x, y) run from -1 to 1 along either side, whatever its length
    back = torch.tensor([[mirrored * cos, mirrored * sin * height / width], [-sin * width / height, cos]])
    moved = 2 * shift * torch.tensor([[right], [down]])
    origin = torch.cat([back, -back @ moved], dim=1)[None]  # (1, 2, 3)
    both = torch.cat([image, mask])[None].float()  # (1, 4, H, W)
    grid = F.affine_grid(origin, both.shape, align_corners=False)
    both = F.grid_sample(both, grid, padding_mode="reflection", align_corners=False)[0].round_().to(torch.uint8)
    return both[:3], both[3:]


def relight(image: Tensor, color_jitter: float, grayscale: float) -> Tensor:
    """image (3, H, W) uint8 -> the same shape, in other light and other paint.

    color_jitter: brightness, contrast, saturation, and red, green and blue each by itself, are multiplied by at most this
        share more or less. All of them are one matrix and one offset, the same at each pixel.
    grayscale: the share of photos that lose their colors.
    """
    brightness, contrast, saturation, *gains = (1 + color_jitter * (2 * torch.rand(6) - 1)).tolist()
    turns_grey = bool(torch.rand(()) < grayscale)
    if not color_jitter and not turns_grey:
        return image
    saturation = 0.0 if turns_grey else saturation
    luma = torch.tensor(LUMA)
    matrix = saturation * torch.diag(torch.tensor(gains)) + (1 - saturation) * luma.expand(3, 3)
    photo = image.flatten(1).float()  # (3, H * W)
    middle = luma @ (image.flatten(1).sum(1) / photo.shape[1])  # whole numbers: the same by any count of threads
    photo = brightness * (contrast * (matrix @ photo) + (1 - contrast) * middle)
    return photo.round_().clamp_(0, 255).to(torch.uint8).view_as(image)


def soften(image: Tensor, blur: float) -> Tensor:
    """image (3, H, W) uint8 -> the same shape; half of them blurred, by a Gaussian of a sigma up to `blur` pixels."""
    some, much = torch.rand(2).tolist()
    sigma = blur * much
    if some < 0.5 or sigma < 0.1:  # of less, the neighbours get nothing
        return image
    size = 2 * min(math.ceil(2 * sigma), min(image.shape[-2:]) - 1) + 1  # no wider than the mirrored picture
    return transforms.gaussian_blur(image, [size, size], [sigma, sigma])
