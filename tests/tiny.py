"""A training of seconds that tests of callbacks share: tiny nets on drawn cars."""

import io
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, TensorDataset

from data.dataset import TrainImageDataset
from nn.callback import Callback
from nn.classifier import CarvanaClassifier
from nn.optimizer import make_scheduler
from nn.unet import UpsampleDecoder
from nn.unet_origin import ConvBnRelu, StackDecoder, StackEncoder, check_size

SMALL = (  # options of main.py for a SmallUNet
    "--net UNet1024 --input-img-resize 32 48 --output-img-resize 32 48 --optimizer RMSprop --learning-rate 0.001 "
    "--batch-size 8 --device cpu"
).split()


class Tiny(torch.nn.Module):
    """A 1x1 convolution."""

    def __init__(self, in_shape=(3, 16, 24)):
        super().__init__()
        self.in_shape, self.output_size = in_shape, in_shape[1:]
        self.conv = torch.nn.Conv2d(3, 1, 1)

    def forward(self, x):
        return self.conv(x).squeeze(1)


class Pairs(TensorDataset):
    """Images (N, 3, H, W) and masks (N, h, w), both uint8: the stand-in of a TrainImageDataset."""

    def prepare(self, batch, device):
        images, masks = (each.to(device).float() / 255 for each in batch)
        return images, masks


class SmallNet(torch.nn.Module):
    """One level of a U-Net, with 8 channels."""

    check = classmethod(check_size)

    def __init__(self, in_shape, padding, decoder):
        super().__init__()
        channels, *size = in_shape
        self.in_shape, self.output_size = tuple(in_shape), self.check(size)
        self.down1 = StackEncoder(channels, 8, padding)
        self.center = torch.nn.Sequential(ConvBnRelu(8, 8, padding), ConvBnRelu(8, 8, padding))
        self.up1 = decoder
        self.head = torch.nn.Conv2d(8, 1, 1)

    def forward(self, x):
        x, trace = self.down1(x)
        return self.head(self.up1(self.center(x), trace)).squeeze(1)


class SmallUNet(SmallNet):
    """As UNet1024, whose name it has, to take its place in NETS."""

    valid_sizes = range(16, 2**16, 8)
    margin = 0

    def __init__(self, in_shape):
        super().__init__(in_shape, 1, UpsampleDecoder(8, 8, 8))


class SmallOriginal(SmallNet):
    """As UNetOriginal, with valid convolutions."""

    valid_sizes = range(24, 2**16, 2)
    margin = 16

    def __init__(self, in_shape):
        super().__init__(in_shape, 0, StackDecoder(8, 8))


SmallUNet.__name__, SmallOriginal.__name__ = "UNet1024", "UNetOriginal"
SMALL_NETS = {"UNet1024": SmallUNet, "UNetOriginal": SmallOriginal}


class Bright(torch.nn.Module):
    """Predicts car where the red of the central window is bright: a net with a margin, of 2 pixels per side."""

    in_shape, output_size = (3, 20, 28), (16, 24)

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(100.0))

    def forward(self, x):
        return (x[:, 0, 2:-2, 2:-2] - 0.5) * self.scale


@dataclass
class Jitter:
    flip: bool = True
    blur: float = 0.0


@dataclass
class Settings:
    """Hyperparameters, or options."""

    net: str = "Tiny"
    learning_rate: float = 3.0
    sizes: tuple[int, int] = (16, 24)
    sample_size: float | None = None
    schedule: str = "constant"
    threshold: float = 0.5
    augment_img: Jitter = field(default_factory=Jitter)


class AfterEpoch1(Callback):
    """Calls a function when the callbacks before this one have seen the first epoch."""

    def __init__(self, act):
        self.act = act

    def on_epoch_end(self, classifier, epoch, metrics):
        if epoch == 1:
            self.act()


def find_files(drawn, cars):
    """Paths of the images and the masks of some of the drawn cars, each of which has 16, sorted by name."""
    X = sorted((drawn / "train").glob("*.jpg"))
    X = [path for car in cars for path in X[16 * car : 16 * car + 16]]
    return X, [drawn / "train_masks" / f"{path.stem}_mask.gif" for path in X]


def train(drawn, epochs, callbacks, resume=False, schedule_epochs=None):
    """Train a net of one 1x1 convolution on a drawn car and validate on another.

    resume: from what callbacks[0], a model saver, has saved.
    schedule_epochs: use all that an optimizer step can have, with a schedule over so many epochs.
    """
    torch.manual_seed(0)
    train_loader, valid_loader = (
        DataLoader(TrainImageDataset(*find_files(drawn, [car]), (16, 24), (16, 24)), 8) for car in (0, 1)
    )
    options = dict(grad_clip=0.5, ema_decay=0.9) if schedule_epochs else {}
    classifier = CarvanaClassifier(Tiny(), epochs, **options)
    optimizer = torch.optim.SGD(classifier.net.parameters(), lr=3, momentum=0.9)
    if resume:
        callbacks[0].resume(classifier, optimizer)
    scheduler = None
    if schedule_epochs:
        steps = len(train_loader)
        scheduler = make_scheduler(optimizer, "one_cycle", schedule_epochs, 0, steps, done=classifier.epoch)
    classifier.train(train_loader, valid_loader, optimizer, scheduler, callbacks)
    return classifier


def events(folder):
    """What TensorBoard shows of a folder."""
    accumulator = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0, "histograms": 0})
    accumulator.Reload()
    return accumulator


def pixels(image):
    """An image in TensorBoard -> (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(image.encoded_image_string)))
