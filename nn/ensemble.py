"""Trained nets that predict together."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from img.transformer import upsample
from nn.classifier import CarvanaClassifier
from nn.unet import make_net
from runtime.files import checkpoint_errors
from runtime.machine import Machine


class Ensemble:
    """Averages the probabilities of trained nets, each with its own size and padding.

    checkpoints: path -> contents. machine: where the nets run. Raises UserError if a checkpoint has no net.

    sizes: the different (input size, mask size, padding) of the nets, see img.transformer.resize_size.
    """

    predict = CarvanaClassifier.predict  # calls predict_probs

    def __init__(self, checkpoints: Mapping[Path, dict[str, Any]], machine: Machine = Machine()):
        self.nets = {}  # classifier -> its sizes
        for path, checkpoint in checkpoints.items():
            with checkpoint_errors(path, checkpoint):
                net = make_net(checkpoint["net_name"], tuple(checkpoint["in_shape"]), checkpoint["net"] or {})
                sizes = net.in_shape[1:], net.output_size, checkpoint["hyperparameters"]["padding"]
            self.nets[CarvanaClassifier(net, 1, machine)] = sizes
        self.sizes = list(dict.fromkeys(self.nets.values()))

    def predict_probs(self, images: Sequence[Tensor]) -> Tensor:
        """Images of each of `sizes`, see CarvanaClassifier.predict_probs -> (N, h, w) float32, as the largest masks."""
        probs = [net.predict_probs(images[self.sizes.index(sizes)]) for net, sizes in self.nets.items()]
        size = max(each.shape[1:] for each in probs)
        return torch.stack([upsample(each, size) for each in probs]).mean(dim=0)
