"""How the weights are changed: the optimizer, the learning rate of each step, and the average of the weights."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import partial

import torch
import torch.nn as nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import get_ema_multi_avg_fn


def make_optimizer(
    net: nn.Module, name: str, learning_rate: float, momentum: float = 0.0, weight_decay: float = 0.0
) -> Optimizer:
    """An optimizer of `net`. name: "SGD", "RMSprop" or "AdamW"; momentum: of SGD.

    weight_decay: AdamW takes learning_rate * weight_decay of each weight off it at each step (Loshchilov and Hutter
    2019, https://arxiv.org/abs/1711.05101); with the others it is the L2 penalty of the textbooks. It is for the
    kernels of convolutions alone: the scales and shifts of BatchNorms, and biases, of one dimension, are left alone.
    AdamW is torch's fused one, which goes through the weights once a step: with small batches, that is time well saved.
    """
    params = list(net.parameters())
    groups = [
        {"params": [param for param in params if param.ndim > 1], "weight_decay": weight_decay},
        {"params": [param for param in params if param.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "SGD":
        return SGD(groups, lr=learning_rate, momentum=momentum)
    return {"RMSprop": RMSprop, "AdamW": partial(AdamW, fused=True)}[name](groups, lr=learning_rate)


def make_scheduler(optimizer: Optimizer, name: str, steps: int, warmup_steps: int = 0, done: int = 0) -> LRScheduler:
    """The learning rate at each of a training's `steps` steps, as a multiple of the optimizer's own, the peak.

    It begins behind the first `done` steps. The rate is a function of the step alone, and needs no checkpoint.

    "constant": the peak. "cosine": from the peak down to 0, along half a cosine (https://arxiv.org/abs/1608.03983).
    "one_cycle": from a 25th up to the peak in the first 30 % of the steps, then down to almost 0, both along half a
    cosine (https://arxiv.org/abs/1708.07120); the momentum stays as it is.
    warmup_steps: with the first two, so many steps at the start climb to the peak in a straight line.
    """
    if name == "one_cycle":
        peak = optimizer.defaults["lr"]
        cycle = dict(max_lr=peak, total_steps=steps, pct_start=0.3, cycle_momentum=False)
        return OneCycleLR(optimizer, **cycle, last_epoch=done - 1)

    def multiple(step: int) -> float:  # steps count from 0
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        down = min((step - warmup_steps) / max(steps - warmup_steps, 1), 1) if name == "cosine" else 0
        return (1 + math.cos(math.pi * down)) / 2

    return LambdaLR(optimizer, multiple, last_epoch=done - 1)


class ModelEma:
    """An exponential moving average of the weights of `net`, and of the statistics of its BatchNorms.

    net: the net that has them. updates: how many update()s there were; both are all of its state.
    decay: each update goes 1 - decay of the way to what the net is then, so it is a mean over about 1 / (1 - decay)
        steps (Polyak and Juditsky 1992). The n-th of the first updates takes (1 + n) / (10 + n) where that is less, or
        the random weights of the start would stay in it for long.

    torch's AveragedModel does the same, but reads its count from the GPU at each step, and so waits for it.
    """

    def __init__(self, net: nn.Module, decay: float):
        self.net, self.decay, self.updates = deepcopy(net), decay, 0

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        move = get_ema_multi_avg_fn(min(self.decay, (1 + self.updates) / (10 + self.updates)))
        pairs = list(zip(self.net.state_dict().values(), net.state_dict().values(), strict=True))
        move(*zip(*[pair for pair in pairs if pair[0].is_floating_point()], strict=True), self.updates)
        for mine, current in pairs:
            if not mine.is_floating_point():  # a BatchNorm's count of batches
                mine.copy_(current)
        self.updates += 1
