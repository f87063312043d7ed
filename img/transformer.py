"""From a file's bytes to a tensor, to the net's size and back. Tensors are (C, H, W) uint8, sizes (height, width)."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as transforms


def decode_photo(encoded: bytes) -> Tensor:
    """The bytes of a JPEG or PNG file -> (3, H, W) uint8 RGB, upright.

    Raises RuntimeError or ValueError where the bytes are broken or end early.
    """
    return decode_image(
        torch.frombuffer(bytearray(encoded), dtype=torch.uint8), mode=ImageReadMode.RGB, apply_exif_orientation=True
    )


def decode_mask(encoded: bytes) -> Tensor:
    """The bytes of a mask of any kind -> (1, H, W) uint8: how much of each pixel is car, 0 (nothing) to 255 (all).

    A mask's brightest value means "car", be it the 1 of Kaggle's palette GIFs, a grey of 255 or of 65535, or a colour;
    what is transparent is not. Raises OSError where the bytes are broken.
    """
    image = Image.open(io.BytesIO(encoded))
    if image.has_transparency_data:
        black = Image.new("RGBA", image.size, "black")
        image = Image.alpha_composite(black, image.convert("RGBA"))
    if image.mode in ("P", "PA", "RGB", "RGBA", "CMYK"):
        image = image.convert("L")
    values = np.asarray(image)
    brightest = values.max()
    if brightest not in (0, 255) or values.dtype != np.uint8:
        values = np.rint(values * (255.0 / max(brightest, 1))).astype(np.uint8)
    return torch.from_numpy(np.array(values))[None]


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) uint8 -> (C, *size) uint8. Made smaller, each pixel is the weighted mean of the area that it covers.

    Photo and mask go through the same filter: an edge pixel of a small mask keeps its share of car, and the mask stays
    where its photo is, to a fraction of a pixel.
    """
    return transforms.resize(image, list(size), antialias=True)


def mirror_border(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Mirror a (C, H, W) image outwards, as far on either side, until it is (C, *size); no border where it already is.

    The overlap-tile strategy of the U-Net paper, section 2: "missing input data is extrapolated by mirroring". The
    outermost pixel is the mirror and stands once; an image smaller than its border is mirrored again and again.
    """
    for dim, length in ((-2, size[0]), (-1, size[1])):
        n = image.shape[dim]
        if n != length:
            period = max(2 * n - 2, 1)  # there and back again
            at = (torch.arange(length) - (length - n) // 2).remainder(period)
            image = image.index_select(dim, torch.minimum(at, period - at).clamp(max=n - 1))
    return image


def enlarge(probs: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities (N, h, w) -> (N, *size), bilinear. Cut them at the threshold afterwards, not before."""
    return F.interpolate(probs[:, None].float(), size=tuple(size), mode="bilinear", align_corners=False)[:, 0]
