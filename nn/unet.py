"""UNet1024, the tutorial's deeper U-Net for large images. A mask is as large as its image."""

from collections.abc import Mapping

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from nn.unet_origin import ConvBnRelu, StackEncoder, UNetOriginal, check_size


class UpsampleDecoder(nn.Module):
    """One level of the decoder: bilinear upsampling, concatenation with the trace, three padded ConvBnRelu."""

    def __init__(self, in_channels: int, trace_channels: int, out_channels: int):
        super().__init__()
        self.convs = nn.Sequential(
            ConvBnRelu(trace_channels + in_channels, out_channels, padding=1),
            ConvBnRelu(out_channels, out_channels, padding=1),
            ConvBnRelu(out_channels, out_channels, padding=1))

    def forward(self, x: Tensor, trace: Tensor) -> Tensor:
        """x (N, in, H/2, W/2), trace (N, trace, H, W) -> (N, out, H, W)."""
        x = F.interpolate(x, size=trace.shape[-2:], mode="bilinear", align_corners=False)  # (N, in, H, W)
        if x.requires_grad and len(x):  # torch.cat's gradient would not be channels_last, which is slow
            x.register_hook(lambda grad: grad.contiguous(memory_format=torch.channels_last))
        return self.convs(torch.cat([trace, x], dim=1))


class UNet1024(nn.Module):
    """A U-Net of six levels instead of four, with padded convolutions and fewer channels at high resolution.

    in_shape: (channels, height, width). Both sides must be multiples of 64, 128 or more. Raises SizeError otherwise.
    """

    valid_sizes = range(128, 2**16, 64)
    margin = 0
    check = classmethod(check_size)

    def __init__(self, in_shape: tuple[int, int, int] = (3, 1024, 1024)):
        super().__init__()
        channels, *size = in_shape
        self.in_shape = tuple(in_shape)
        self.output_size = self.check(size)

        self.down1 = StackEncoder(channels, 24, padding=1)
        self.down2 = StackEncoder(24, 64, padding=1)
        self.down3 = StackEncoder(64, 128, padding=1)
        self.down4 = StackEncoder(128, 256, padding=1)
        self.down5 = StackEncoder(256, 512, padding=1)
        self.down6 = StackEncoder(512, 768, padding=1)
        self.center = ConvBnRelu(768, 768, padding=1)
        self.up6 = UpsampleDecoder(768, 768, 512)
        self.up5 = UpsampleDecoder(512, 512, 256)
        self.up4 = UpsampleDecoder(256, 256, 128)
        self.up3 = UpsampleDecoder(128, 128, 64)
        self.up2 = UpsampleDecoder(64, 64, 24)
        self.up1 = UpsampleDecoder(24, 24, 24)
        self.head = nn.Conv2d(24, 1, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C, H, W) -> logits (N, H, W). Shapes below are for 1024x1024."""
        x, trace1 = self.down1(x)  # (N, 24, 512, 512), trace (N, 24, 1024, 1024)
        x, trace2 = self.down2(x)  # (N, 64, 256, 256)
        x, trace3 = self.down3(x)  # (N, 128, 128, 128)
        x, trace4 = self.down4(x)  # (N, 256, 64, 64)
        x, trace5 = self.down5(x)  # (N, 512, 32, 32)
        x, trace6 = self.down6(x)  # (N, 768, 16, 16)
        x = self.center(x)  # (N, 768, 16, 16)
        x = self.up6(x, trace6)  # (N, 512, 32, 32)
        x = self.up5(x, trace5)  # (N, 256, 64, 64)
        x = self.up4(x, trace4)  # (N, 128, 128, 128)
        x = self.up3(x, trace3)  # (N, 64, 256, 256)
        x = self.up2(x, trace2)  # (N, 24, 512, 512)
        x = self.up1(x, trace1)  # (N, 24, 1024, 1024)
        return self.head(x).squeeze(1)  # (N, 1024, 1024)


NETS = {"UNetOriginal": UNetOriginal, "UNet1024": UNet1024}


def make_net(name: str, in_shape: tuple[int, int, int], weights: Mapping[str, Tensor] | None = None) -> nn.Module:
    """A net for images of (channels, height, width), with these weights or random ones. Raises SizeError.

    weights: those of another net of that name, which may have been trained at any size. If not, raises RuntimeError.
    """
    net = NETS[name](in_shape)
    if weights is not None:
        net.load_state_dict(weights)
    return net
