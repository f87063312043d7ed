"""Random changes of training images: the geometry of image and mask, and the colors and sharpness of the image.

Images are (3, H, W) uint8 tensors, masks (1, H, W) uint8. All random numbers come from PyTorch's global generator.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = 0.299, 0.587, 0.114  # weights of red, green and blue in gray (ITU-R BT.601)


@dataclass(frozen=True)
class Augmentation:
    """Called with an image and its mask, it returns both, changed at random."""

    flip: bool = True  # flip half of the images left to right
    shift: float = 0.0625  # largest shift, as a fraction of height and width
    scale: float = 0.1  # largest zoom in or out, as a fraction
    rotation: float = 5.0  # largest rotation in degrees, in both directions
    color_jitter: float = 0.0  # largest change of brightness, contrast, saturation and each channel, as a fraction
    grayscale: float = 0.0  # fraction of the images that become gray
    blur: float = 0.0  # largest sigma of a Gaussian blur, in pixels of the resized image; half of the images get it

    def __call__(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        image, mask = random_affine(image, mask, self.flip, self.shift, self.scale, self.rotation)
        return gaussian_blur(color_jitter(image, self.color_jitter, self.grayscale), self.blur), mask


def augment_img(image: Tensor, mask: Tensor, **options: float) -> tuple[Tensor, Tensor]:
    """Change an image and its mask. `options` are the fields of Augmentation."""
    return Augmentation(**options)(image, mask)


def random_affine(image: Tensor, mask: Tensor, flip: bool, shift: float, scale: float,
                  rotation: float) -> tuple[Tensor, Tensor]:
    """Flip, shift, zoom and rotate an image and its mask together.

    What moves in from outside is the reflected image, not a black corner. Call this before the image is resized to the
    net's proportions: later a rotation would be a shear.
    """
    height, width = image.shape[-2:]
    side, down, right, turn, zoom = (2 * torch.rand(5) - 1).tolist()  # each in [-1, 1)
    angle, size = math.radians(rotation) * turn, 1 + scale * zoom
    cos, sin, x_sign = math.cos(angle) / size, math.sin(angle) / size, -1 if flip and side < 0 else 1
    # Maps a pixel to where it comes from. Coordinates (x, y) run from -1 to 1 along each side, whatever its length
    inverse = torch.tensor([[x_sign * cos, x_sign * sin * height / width], [-sin * width / height, cos]])
    offset = 2 * shift * torch.tensor([[right], [down]])
    theta = torch.cat([inverse, -inverse @ offset], dim=1)[None]  # (1, 2, 3)
    pair = torch.cat([image, mask])[None].float()  # (1, 4, H, W)
    grid = F.affine_grid(theta, pair.shape, align_corners=False)
    pair = F.grid_sample(pair, grid, padding_mode="reflection", align_corners=False)[0].round_().byte()
    return pair[:3], pair[3:]


def color_jitter(image: Tensor, strength: float, grayscale: float) -> Tensor:
    """Multiply brightness, contrast, saturation, and red, green and blue by random factors in [1 - strength,
    1 + strength]; with probability `grayscale` the image becomes gray.
    """
    brightness, contrast, saturation, *gains = (1 + strength * (2 * torch.rand(6) - 1)).tolist()
    to_gray = bool(torch.rand(()) < grayscale)
    if not strength and not to_gray:
        return image
    saturation = 0.0 if to_gray else saturation
    luma = torch.tensor(LUMA)
    matrix = saturation * torch.diag(torch.tensor(gains)) + (1 - saturation) * luma.expand(3, 3)
    pixels = image.flatten(1).float()  # (3, H * W)
    mean = luma @ (image.flatten(1).sum(1) / pixels.shape[1])  # sums of integers do not depend on the number of threads
    pixels = brightness * (contrast * (matrix @ pixels) + (1 - contrast) * mean)
    return pixels.round_().clamp_(0, 255).byte().view_as(image)


def gaussian_blur(image: Tensor, max_sigma: float) -> Tensor:
    """Blur half of the images, with a random sigma of at most `max_sigma` pixels."""
    skip, fraction = torch.rand(2).tolist()
    sigma = max_sigma * fraction
    if skip < 0.5 or sigma < 0.1:  # a smaller sigma changes no pixel
        return image
    from torchvision.transforms.v2.functional import gaussian_blur as blur  # importing it takes seconds

    radius = min(math.ceil(2 * sigma), min(image.shape[-2:]) - 1)  # the reflected edge must fit in the image
    return blur(image, [2 * radius + 1] * 2, [sigma, sigma])
