"""Random changes of training images: the geometry of image and mask, and the colors and sharpness of the image.

They work on a batch, on its device. Pairs are images with their masks as a fourth channel, from 0 to 255: (N, 4, H, W).
They are squeezed to the size of a net; `aspect` (N,) is width / height before that. Random numbers are on the CPU and
uniform in [0, 1): (N, NUMBERS), of which each function gets columns of its own.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from img.transformer import to_device

NUMBERS = 14  # random numbers per image: 5 of random_affine, 7 of color_jitter, 2 of gaussian_blur
LUMA = torch.tensor([0.299, 0.587, 0.114])  # weights of red, green and blue in gray (ITU-R BT.601)


@dataclass(frozen=True)
class Augmentation:
    """Called with pairs, their aspect and random numbers, it returns images (N, 3, H, W) and masks (N, 1, H, W)."""

    flip: bool = True  # flip half of the images left to right
    shift: float = 0.0625  # largest shift, as a fraction of height and width
    scale: float = 0.1  # largest zoom in or out, as a fraction
    rotation: float = 5.0  # largest rotation in degrees, in both directions
    color_jitter: float = 0.0  # largest change of brightness, contrast, saturation and each channel, as a fraction
    grayscale: float = 0.0  # fraction of the images that become gray
    blur: float = 0.0  # largest sigma of a Gaussian blur, in pixels of the resized image; half of the images get it

    def __call__(self, pairs: Tensor, aspect: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        geometry, colors, sharpness = numbers.split([5, 7, 2], dim=1)
        pairs = random_affine(pairs, aspect, geometry, self.flip, self.shift, self.scale, self.rotation)
        images = color_jitter(pairs[:, :3], colors, self.color_jitter, self.grayscale)
        return gaussian_blur(images, sharpness, self.blur), pairs[:, 3:]


def augment_img(image: Tensor, mask: Tensor, **options: float) -> tuple[Tensor, Tensor]:
    """Change an image (3, H, W) and its mask (1, H, W), both uint8, at random. `options`: fields of Augmentation."""
    height, width = image.shape[1:]
    pairs, aspect = torch.cat([image, mask])[None], torch.tensor([width / height])
    changed = Augmentation(**options)(pairs, aspect, torch.rand(1, NUMBERS))
    image, mask = (each[0].float().round().byte() for each in changed)
    return image, mask


def random_affine(pairs: Tensor, aspect: Tensor, numbers: Tensor, flip: bool, shift: float, scale: float,
                  rotation: float) -> Tensor:
    """Flip, shift, zoom and rotate images and their masks together, by one interpolation at most.

    What moves in from outside is the reflected image, not a black corner. A rotation is one in the proportions that the
    images had before they were squeezed.
    """
    side, down, right, turn, zoom = (2 * numbers - 1).unbind(1)  # (N,) each, in [-1, 1)
    if not (shift or scale or rotation) or not len(pairs):  # no pixel moves to between others
        pairs = pairs.clone()
        for index in (side < 0).nonzero()[:, 0].tolist() if flip else ():  # faster than torch.where
            pairs[index] = pairs[index].flip(-1)
        return pairs
    angle, size = math.radians(rotation) * turn, 1 + scale * zoom
    cos, sin, x_sign = angle.cos() / size, angle.sin() / size, torch.where((side < 0) & flip, -1.0, 1.0)
    # Maps a pixel to where it comes from. Coordinates (x, y) run from -1 to 1 along each side, whatever its length
    inverse = torch.stack([x_sign * cos, x_sign * sin / aspect, -sin * aspect, cos], dim=1).view(-1, 2, 2)
    offset = 2 * shift * torch.stack([right, down], dim=1)[..., None]  # (N, 2, 1)
    theta = torch.cat([inverse, -inverse @ offset], dim=2)  # (N, 2, 3)
    grid = F.affine_grid(to_device(theta, pairs.device), pairs.shape, align_corners=False)
    return F.grid_sample(pairs.float(), grid, padding_mode="reflection", align_corners=False)


def color_jitter(images: Tensor, numbers: Tensor, strength: float, grayscale: float) -> Tensor:
    """Multiply brightness, contrast, saturation, and red, green and blue by random factors in [1 - strength,
    1 + strength]; with probability `grayscale` an image becomes gray. Images are (N, 3, H, W).
    """
    to_gray = numbers[:, 6] < grayscale
    if not strength and not to_gray.any():
        return images
    factors = 1 + strength * (2 * numbers[:, :6] - 1)
    brightness, contrast, saturation = factors[:, :3, None, None].unbind(1)  # (N, 1, 1) each
    saturation = saturation.where(~to_gray[:, None, None], 0)
    matrix = saturation * torch.diag_embed(factors[:, 3:]) + (1 - saturation) * LUMA  # (N, 3, 3)
    scale, shift = brightness * contrast * matrix, brightness * (1 - contrast) * LUMA  # (N, 3, 3), (N, 1, 3)
    scale, shift = to_device(scale, images.device), to_device(shift, images.device)
    pixels = images.float().flatten(2)  # (N, 3, H * W)
    offset = shift @ pixels.mean(2, keepdim=True)  # (N, 1, 1): contrast is relative to the mean of an image
    return (scale @ pixels).add_(offset).clamp_(0, 255).view(images.shape)


def gaussian_blur(images: Tensor, numbers: Tensor, max_sigma: float) -> Tensor:
    """Blur half of the images (N, 3, H, W), each with a random sigma of at most `max_sigma` pixels."""
    images = images.float() if max_sigma else images
    for image, (skip, fraction) in zip(images, numbers.tolist(), strict=True):
        sigma = max_sigma * fraction
        if skip >= 0.5 and sigma >= 0.1:  # a smaller sigma changes no pixel
            from torchvision.transforms.v2.functional import gaussian_blur as blur  # importing it takes seconds

            radius = min(math.ceil(2 * sigma), min(image.shape[-2:]) - 1)  # the reflected edge must fit in the image
            image.copy_(blur(image, [2 * radius + 1] * 2, [sigma, sigma]))
    return images
