"""The optimizer, the learning rate at each step, and the exponential moving average (EMA) of the weights."""

import math
from copy import deepcopy

import torch
import torch.nn as nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import get_ema_multi_avg_fn


def make_optimizer(
    net: nn.Module, name: str, learning_rate: float, momentum: float = 0.0, weight_decay: float = 0.0
) -> Optimizer:
    """name: "SGD", "RMSprop" or "AdamW" (https://arxiv.org/abs/1711.05101). momentum: of SGD.

    weight_decay: of convolution kernels, not of biases and BatchNorms. It is decoupled in AdamW, else an L2 penalty.
    """
    groups = [
        {"params": [param for param in net.parameters() if param.ndim > 1], "weight_decay": weight_decay},
        {"params": [param for param in net.parameters() if param.ndim <= 1], "weight_decay": 0.0},
    ]
    options = {"SGD": dict(momentum=momentum, fused=True), "RMSprop": {}, "AdamW": dict(fused=True)}[name]
    return getattr(torch.optim, name)(groups, lr=learning_rate, **options)


def make_scheduler(
    optimizer: Optimizer, name: str, epochs: int, warmup_epochs: float, steps_per_epoch: int, done: int = 0
) -> LRScheduler:
    """A scheduler to step after each optimizer step. The optimizer's learning rate is the peak.

    name: "constant"; "cosine", from the peak to 0 along half a cosine (https://arxiv.org/abs/1608.03983); "one_cycle",
        from 1/25 of the peak to the peak in the first 30% of the steps, then to almost 0, both along half a cosine
        (https://arxiv.org/abs/1708.07120).
    warmup_epochs: of linear warmup, for "constant" and "cosine". done: finished epochs.
    """
    steps, warmup = epochs * steps_per_epoch, round(warmup_epochs * steps_per_epoch)
    last = done * steps_per_epoch - 1  # the last finished step
    if name == "one_cycle":
        peak = optimizer.defaults["lr"]
        return OneCycleLR(optimizer, peak, total_steps=steps, pct_start=0.3, cycle_momentum=False, last_epoch=last)

    def factor(step: int) -> float:  # of the peak; steps count from 0
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min((step - warmup) / max(steps - warmup, 1), 1) if name == "cosine" else 0
        return (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor, last_epoch=last)


class ModelEma:
    """Exponential moving average of the weights of a net and of the running statistics of its BatchNorms.

    torch's AveragedModel would wait for the GPU at each step, to read its counter.

    decay: what an update keeps of the average, which is thus over about 1 / (1 - decay) steps (Polyak and Juditsky
        1992); 0: no average. Update n keeps (1 + n) / (10 + n) if that is less, to soon forget the initial weights.
    """

    def __init__(self, net: nn.Module, decay: float):
        self.net = deepcopy(net) if decay else net  # the average
        self.decay, self.updates = decay, 0
        pairs = zip(self.net.state_dict().values(), net.state_dict().values(), strict=True)
        self.floats = [pair for pair in pairs if pair[0].is_floating_point()]  # all but BatchNorm's counters of batches

    @torch.no_grad()
    def update(self) -> None:
        """Call this after each optimizer step. The weights of `net` must be changed in place only."""
        if not self.decay:
            return
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        get_ema_multi_avg_fn(decay)(*zip(*self.floats, strict=True), None)
        self.updates += 1
