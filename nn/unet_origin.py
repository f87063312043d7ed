"""U-Net as its paper draws it: Ronneberger, Fischer, Brox 2015, https://arxiv.org/abs/1505.04597, figure 1.

Two things are not the paper's: each convolution is followed by a BatchNorm (which makes its bias needless), and the
last 1x1 convolution has one filter, the logit of "car", where the paper has two classes.
"""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from runtime.errors import UserError


class ConvBnRelu(nn.Module):
    """A 3x3 convolution, a BatchNorm and a ReLU: (N, in, H, W) -> (N, out, H - 2 + 2 padding, W - 2 + 2 padding).

    The weights begin with a standard deviation of sqrt(2 / fan-in), so that what the convolution hands to the BatchNorm
    has a variance of about 1 (the paper, section 3). The running variance, which the BatchNorm predicts with, begins at
    1 as well: it need not first unlearn that, and the predictions of the first epochs make sense.
    """

    def __init__(self, in_channels: int, out_channels: int, padding: int = 0):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=padding, bias=False)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        self.bn = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class StackEncoder(nn.Module):
    """One level down: two ConvBnRelu, whose result is kept as the trace for the way up, then a 2x2 max pooling."""

    def __init__(self, in_channels: int, out_channels: int, padding: int = 0):
        super().__init__()
        self.convs = nn.Sequential(
            ConvBnRelu(in_channels, out_channels, padding), ConvBnRelu(out_channels, out_channels, padding)
        )
        self.pool = nn.MaxPool2d(kernel_size=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, in, H, W) -> pooled (N, out, H/2 - 2, W/2 - 2), trace (N, out, H - 4, W - 4), if nothing is padded."""
        trace = self.convs(x)
        return self.pool(trace), trace


class StackDecoder(nn.Module):
    """One level up: a 2x2 up-convolution, the center of the trace beside it, two ConvBnRelu."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
        self.convs = nn.Sequential(ConvBnRelu(2 * out_channels, out_channels), ConvBnRelu(out_channels, out_channels))

    def forward(self, x: Tensor, trace: Tensor) -> Tensor:
        """x (N, in, h, w), trace (N, out, H, W) of at least twice x's size -> (N, out, 2h - 4, 2w - 4)."""
        x = self.up(x)  # (N, out, 2h, 2w)
        return self.convs(torch.cat([center_crop(trace, x.shape[-2:]), x], dim=1))


def center_crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The central (height, width) window of x (..., H, W), where x is larger.

    It is a padding of less than nothing: the gradient of a slice x[..., a:b, c:d] would be a tensor that does not lie
    in channels_last, which all behind it then works on at a crawl.
    """
    high, wide = x.shape[-2] - size[0], x.shape[-1] - size[1]  # what is too much
    return F.pad(x, [-(wide // 2), wide // 2 - wide, -(high // 2), high // 2 - high])


def check_size(net: str, size: Sequence[int], sides: range, margin: int) -> tuple[int, int]:
    """The (height, width) of the masks that a net makes of images of this size.

    Heights and widths among `sides` work, and the mask has `margin` pixels less of each. Raises UserError at any other
    size, and names the two nearest that work.
    """
    smallest, step = sides.start, sides.step
    below = [max(smallest, length - (length - smallest) % step) for length in size]
    above = [near if near == length else near + step for near, length in zip(below, size, strict=True)]
    if below != list(size):
        options = "--input-img-resize {} {} --output-img-resize {} {}"
        works = ", and ".join(options.format(h, w, h - margin, w - margin) for h, w in (below, above))
        raise UserError(
            f"{net} can't take images of {size[0]} {size[1]} (height, width), only sides of {smallest}, "
            f"{smallest + step}, {smallest + 2 * step}, ... pixels; the nearest that work are {works}."
        )
    return size[0] - margin, size[1] - margin


class UNetOriginal(nn.Module):
    """The paper's net. Nothing is padded, so the mask is that of the image's central window, 92 pixels in on each side.

    in_shape: (channels, height, width) of the images. Height and width are 188, 204, 220, ... 572, ...: then every
    pooling halves an even number and at least one pixel is left at the end. They need not be equal.
    Raises UserError at any other size, and names the two nearest that work.
    """

    valid_sizes = range(188, 2**16, 16)  # the heights and widths that work

    def __init__(self, in_shape: tuple[int, int, int] = (3, 572, 572)):
        super().__init__()
        channels, *size = in_shape
        self.in_shape = tuple(in_shape)
        self.output_size = check_size("UNetOriginal", size, self.valid_sizes, margin=184)  # (height, width)

        self.down1 = StackEncoder(channels, 64)
        self.down2 = StackEncoder(64, 128)
        self.down3 = StackEncoder(128, 256)
        self.down4 = StackEncoder(256, 512)
        self.center = nn.Sequential(ConvBnRelu(512, 1024), ConvBnRelu(1024, 1024))
        self.up4 = StackDecoder(1024, 512)
        self.up3 = StackDecoder(512, 256)
        self.up2 = StackDecoder(256, 128)
        self.up1 = StackDecoder(128, 64)
        self.head = nn.Conv2d(64, 1, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """images (N, C, H, W) -> logits (N, H - 184, W - 184). The sizes behind each line are those of 572 x 572."""
        x, trace1 = self.down1(x)  # (N, 64, 284, 284), trace (N, 64, 568, 568)
        x, trace2 = self.down2(x)  # (N, 128, 140, 140), trace (N, 128, 280, 280)
        x, trace3 = self.down3(x)  # (N, 256, 68, 68), trace (N, 256, 136, 136)
        x, trace4 = self.down4(x)  # (N, 512, 32, 32), trace (N, 512, 64, 64)
        x = self.center(x)  # (N, 1024, 28, 28)
        x = self.up4(x, trace4)  # (N, 512, 52, 52)
        x = self.up3(x, trace3)  # (N, 256, 100, 100)
        x = self.up2(x, trace2)  # (N, 128, 196, 196)
        x = self.up1(x, trace1)  # (N, 64, 388, 388)
        return self.head(x).squeeze(1)  # (N, 388, 388)
