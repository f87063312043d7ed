"""How the weights are changed: the optimizer, the learning rate of each step, and the average of the weights."""

from __future__ import annotations

import math

import torch
import torch.nn as nn
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel


def make_optimizer(
    net: nn.Module, name: str, learning_rate: float, momentum: float = 0.0, weight_decay: float = 0.0
) -> Optimizer:
    """An optimizer of `net`. name: "SGD", "RMSprop" or "AdamW"; momentum: of SGD.

    weight_decay: AdamW takes learning_rate * weight_decay of each weight off it at each step (Loshchilov and Hutter
    2019, https://arxiv.org/abs/1711.05101); with the others it is the L2 penalty of the textbooks. It is for the
    kernels of convolutions alone: the scales and shifts of BatchNorms, and biases, of one dimension, are left alone.
    """
    params = list(net.parameters())
    groups = [
        {"params": [param for param in params if param.ndim > 1], "weight_decay": weight_decay},
        {"params": [param for param in params if param.ndim <= 1], "weight_decay": 0.0},
    ]
    if name == "SGD":
        return SGD(groups, lr=learning_rate, momentum=momentum)
    return {"RMSprop": RMSprop, "AdamW": AdamW}[name](groups, lr=learning_rate)


def make_schedule(optimizer: Optimizer, name: str, steps: int, warm_up: int = 0) -> LRScheduler:
    """The learning rate at each of a training's `steps` steps, as a multiple of the optimizer's own, the peak.

    "constant": the peak. "cosine": from the peak down to 0, along half a cosine (https://arxiv.org/abs/1608.03983).
    "one_cycle": from a 25th up to the peak in the first 30 % of the steps, then down to almost 0, both along half a
    cosine (https://arxiv.org/abs/1708.07120); the momentum stays as it is.
    warm_up: with the first two, so many steps at the start climb to the peak in a straight line.
    """
    if name == "one_cycle":
        peak = optimizer.param_groups[0]["lr"]
        return OneCycleLR(optimizer, max_lr=peak, total_steps=steps, pct_start=0.3, cycle_momentum=False)

    def multiple(step: int) -> float:  # steps count from 0
        if step < warm_up:
            return (step + 1) / (warm_up + 1)
        down = min((step - warm_up) / max(steps - warm_up, 1), 1) if name == "cosine" else 0
        return (1 + math.cos(math.pi * down)) / 2

    return LambdaLR(optimizer, multiple)


def average_weights(net: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the weights and of the BatchNorms' statistics of `net`.

    Each update_parameters(net) moves it 1 - decay of the way to what `net` is then; so it is a mean over about
    1 / (1 - decay) steps (Polyak and Juditsky 1992). In the n-th of the first steps the decay is (1 + n) / (10 + n),
    which is smaller: the random weights of the start would stay in it for long.
    """

    @torch.no_grad()
    def move(averaged: list[Tensor], current: list[Tensor], updates: Tensor | int) -> None:
        n = int(updates)  # counted on the CPU: nothing waits for a GPU
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))
        else:  # a BatchNorm's count of batches
            torch._foreach_copy_(averaged, current)

    return AveragedModel(net, multi_avg_fn=move, use_buffers=True)
