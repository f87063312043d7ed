"""The baseline: the tutorial's recipe written in the most straightforward way, for comparison with the package.

float32 in contiguous NCHW; Pillow decodes the whole image and resizes it with a Lanczos filter; images go to the device
as float32; the loss is read with .item() at each step; masks are upsampled, thresholded and written one by one.
"""

import csv
import gzip
import io
import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader


def conv_bn_relu(inputs: int, outputs: int, padding: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def stack(*widths: int, padding: int = 0) -> nn.Sequential:
    return nn.Sequential(*(conv_bn_relu(inputs, outputs, padding) for inputs, outputs in pairwise(widths)))


class PlainUNetOriginal(nn.Module):
    """The layers of nn.unet_origin.UNetOriginal, with its parameters in the same order."""

    def __init__(self):
        super().__init__()
        self.downs = nn.ModuleList([stack(3, 64, 64), stack(64, 128, 128), stack(128, 256, 256), stack(256, 512, 512)])
        self.center = stack(512, 1024, 1024)
        self.ups = nn.ModuleList()
        for width in (512, 256, 128, 64):
            up = nn.ConvTranspose2d(2 * width, width, kernel_size=2, stride=2)
            self.ups.append(nn.ModuleList([up, stack(2 * width, width, width)]))
        self.head = nn.Conv2d(64, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        traces = []
        for down in self.downs:
            x = down(x)
            traces.append(x)
            x = F.max_pool2d(x, 2)
        x = self.center(x)
        for up, convs in self.ups:
            x, trace = up(x), traces.pop()
            top, left = (trace.shape[2] - x.shape[2]) // 2, (trace.shape[3] - x.shape[3]) // 2
            trace = trace[:, :, top : top + x.shape[2], left : left + x.shape[3]]
            x = convs(torch.cat([trace, x], dim=1))
        return self.head(x).squeeze(1)


class PlainUNet1024(nn.Module):
    """The layers of nn.unet.UNet1024, with its parameters in the same order."""

    def __init__(self):
        super().__init__()
        widths = (3, 24, 64, 128, 256, 512, 768)
        self.downs = nn.ModuleList(stack(inputs, width, width, padding=1) for inputs, width in pairwise(widths))
        self.center = stack(768, 768, padding=1)
        ups = ((768 + 768, 512), (512 + 512, 256), (256 + 256, 128), (128 + 128, 64), (64 + 64, 24), (24 + 24, 24))
        self.ups = nn.ModuleList(stack(inputs, width, width, width, padding=1) for inputs, width in ups)
        self.head = nn.Conv2d(24, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        traces = []
        for down in self.downs:
            x = down(x)
            traces.append(x)
            x = F.max_pool2d(x, 2)
        x = self.center(x)
        for up in self.ups:
            x, trace = F.interpolate(x, scale_factor=2, mode="bilinear"), traces.pop()
            x = up(torch.cat([trace, x], dim=1))
        return self.head(x).squeeze(1)


PLAIN = {"UNetOriginal": PlainUNetOriginal, "UNet1024": PlainUNet1024}


def make_net(name: str, like: nn.Module | None = None) -> nn.Module:
    """The plain net of that name; with `like`, one of our nets, a copy of its parameters and buffers."""
    net = PLAIN[name]()
    if like is not None:
        net.load_state_dict(dict(zip(net.state_dict(), like.state_dict().values(), strict=True)))
    return net


def criterion(logits: Tensor, targets: Tensor) -> Tensor:
    probs = torch.sigmoid(logits)
    score = 2 * ((probs * targets).sum() + 1) / (probs.sum() + targets.sum() + 1)
    return F.binary_cross_entropy(probs, targets) + 1 - score


def dice(probs: Tensor, targets: Tensor) -> float:
    """The mean over the images of a batch."""
    predictions, truth = (probs > 0.5).float().flatten(1), (targets > 0.5).float().flatten(1)
    return (2 * (predictions * truth).sum(1) / (predictions.sum(1) + truth.sum(1))).mean().item()


def train_epoch(net: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
    """Returns the means of loss and Dice over the steps."""
    net.train()
    losses, dices, device = [], [], next(net.parameters()).device
    for images, targets in loader:
        images, targets = images.to(device), targets.to(device)
        optimizer.zero_grad()
        logits = net(images)
        loss = criterion(logits, targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        dices.append(dice(torch.sigmoid(logits.detach()), targets))
    return float(np.mean(losses)), float(np.mean(dices))


@torch.no_grad()
def validate(net: nn.Module, loader: DataLoader) -> float:
    """Returns the mean of Dice over the batches."""
    net.eval()
    return float(np.mean([dice(torch.sigmoid(net(images)), targets) for images, targets in loader]))


def load_image(path: Path, size: Sequence[int]) -> Image.Image:
    return Image.open(path).convert("RGB").resize(size[::-1], Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> Tensor:
    """(H, W) or (H, W, 3), 0 to 255 -> (H, W) or (3, H, W) float32 in [0, 1]."""
    values = torch.from_numpy(np.array(image)).float() / 255
    return values.permute(2, 0, 1).contiguous() if values.dim() == 3 else values


class PlainTrainDataset(torch.utils.data.Dataset):
    """Images and masks, resized and then augmented: flip, rotation, shift, scale."""

    def __init__(
        self, X: Sequence[Path], y: Sequence[Path], size: Sequence[int], mask_size: Sequence[int], augment: bool
    ):
        self.X, self.y, self.size, self.mask_size, self.augment = X, y, size, mask_size, augment

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = load_image(self.X[index], self.size)
        mask = Image.open(self.y[index]).convert("RGB").convert("L")
        mask = mask.resize(self.mask_size[::-1], Image.Resampling.LANCZOS)
        if self.augment:
            draw = np.random.uniform(-1, 1, size=5)
            image, mask = augment(image, draw), augment(mask, draw)
        return to_tensor(image), to_tensor(mask)


def augment(image: Image.Image, draw: np.ndarray) -> Image.Image:
    if draw[0] < 0:
        image = ImageOps.mirror(image)
    width, height = image.size
    scale, angle = 1 + 0.1 * draw[1], math.radians(5 * draw[2])
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    right, down = width / 2 + 0.0625 * width * draw[3], height / 2 + 0.0625 * height * draw[4]
    origin = (cos, sin, width / 2 - cos * right - sin * down, -sin, cos, height / 2 + sin * right - cos * down)
    return image.transform(image.size, Image.Transform.AFFINE, origin, Image.Resampling.BILINEAR)


class PlainTestDataset(torch.utils.data.Dataset):
    def __init__(self, X: Sequence[Path], size: Sequence[int]):
        self.X, self.size = X, size

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        return to_tensor(load_image(self.X[index], self.size)), self.X[index].name


def rle_encode(mask: np.ndarray) -> str:
    pixels = np.concatenate([[0], mask.flatten(), [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(number) for number in runs)


@torch.no_grad()
def predict(net: nn.Module, loader: DataLoader, to_file: Path, origin_img_size: Sequence[int]) -> None:
    net.eval()
    device = next(net.parameters()).device
    with gzip.open(to_file, "wb") as archive, io.TextIOWrapper(archive, newline="") as text:
        rows = csv.writer(text)
        rows.writerow(["img", "rle_mask"])
        for images, names in loader:
            save(rows, names, torch.sigmoid(net(images.to(device))).cpu().numpy(), origin_img_size)


def save(rows: "csv._writer", names: Iterable[str], probs: np.ndarray, origin_img_size: Sequence[int]) -> None:
    for name, prob in zip(names, probs, strict=True):
        full_size = np.array(Image.fromarray(prob).resize(origin_img_size[::-1], Image.Resampling.BILINEAR))
        rows.writerow([name, rle_encode(full_size > 0.5)])
