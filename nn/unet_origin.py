"""U-Net (Ronneberger, Fischer and Brox 2015, https://arxiv.org/abs/1505.04597), figure 1 of the paper.

Two differences: each 3x3 convolution is followed by a BatchNorm; the head has one channel instead of two classes.
"""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from helpers import format_size
from runtime.errors import UserError


class SizeError(UserError):
    """A net does not support images of this size. `nearest` are the two closest valid (height, width)."""

    nearest: list[tuple[int, int]]


def check_size(net: type[nn.Module], size: Sequence[int]) -> tuple[int, int]:
    """(height, width) of an image -> that of its mask. Raises SizeError."""
    start, step, last = net.valid_sizes.start, net.valid_sizes.step, net.valid_sizes[-1]
    below = tuple(min(max(start, side - (side - start) % step), last) for side in size)
    if below == tuple(size):
        return size[0] - net.margin, size[1] - net.margin
    above = tuple(lower if lower == side else min(lower + step, last) for lower, side in zip(below, size, strict=True))
    error = SizeError(
        f"{net.__name__} does not support images of {format_size(size)} (height x width): both sides must be {start}, "
        f"{start + step}, {start + 2 * step}, ... pixels. The nearest valid sizes are {format_size(below)} and "
        f"{format_size(above)}.")
    error.nearest = [below, above]
    raise error


def center_crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., H, W) -> the central window, (..., *size)."""
    height, width = x.shape[-2] - size[0], x.shape[-1] - size[1]  # to remove
    # Not by slicing, whose gradient is not channels_last and slows down everything after it
    return F.pad(x, [-(width // 2), width // 2 - width, -(height // 2), height // 2 - height])


class ConvBnRelu(nn.Module):
    """3x3 convolution, BatchNorm, ReLU: (N, in, H, W) -> (N, out, H - 2 + 2 * padding, W - 2 + 2 * padding).

    The initial weights have a standard deviation of sqrt(2 / fan-in), as in section 3 of the paper. The output of each
    convolution then has a variance of about 1, where the running variance of a BatchNorm starts.
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
    """One level of the encoder: two ConvBnRelu, whose output is the trace for the decoder, then 2x2 max pooling."""

    def __init__(self, in_channels: int, out_channels: int, padding: int = 0):
        super().__init__()
        self.convs = nn.Sequential(
            ConvBnRelu(in_channels, out_channels, padding),
            ConvBnRelu(out_channels, out_channels, padding))
        self.pool = nn.MaxPool2d(kernel_size=2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, in, H, W) -> (N, out, H/2 - 2, W/2 - 2) and trace (N, out, H - 4, W - 4), if padding is 0."""
        trace = self.convs(x)
        return self.pool(trace), trace


class StackDecoder(nn.Module):
    """One level of the decoder: 2x2 up-convolution, concatenation with the cropped trace, two ConvBnRelu."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.up = nn.ConvTranspose2d(in_channels, out_channels, kernel_size=2, stride=2)
        self.convs = nn.Sequential(ConvBnRelu(2 * out_channels, out_channels), ConvBnRelu(out_channels, out_channels))

    def forward(self, x: Tensor, trace: Tensor) -> Tensor:
        """x (N, in, h, w), trace (N, out, H >= 2h, W >= 2w) -> (N, out, 2h - 4, 2w - 4)."""
        x = self.up(x)  # (N, out, 2h, 2w)
        trace = center_crop(trace, x.shape[-2:])  # (N, out, 2h, 2w)
        return self.convs(torch.cat([trace, x], dim=1))


class UNetOriginal(nn.Module):
    """The paper's net. It predicts the central window: valid convolutions remove 92 pixels on each side.

    in_shape: (channels, height, width). Both sides must be 188, 204, ..., 572, ..., so that the size is even at each
        pooling. Raises SizeError otherwise.
    """

    valid_sizes = range(188, 2**16, 16)  # height and width of images
    margin = 184  # by which a mask is smaller than its image
    check = classmethod(check_size)

    def __init__(self, in_shape: tuple[int, int, int] = (3, 572, 572)):
        super().__init__()
        channels, *size = in_shape
        self.in_shape = tuple(in_shape)
        self.output_size = self.check(size)

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
        """Images (N, C, H, W) -> logits (N, H - 184, W - 184). Shapes below are for 572x572."""
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
