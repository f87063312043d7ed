"""Trains for an epoch, in one process or as one of several: share.py FOLDER IMAGES BATCH_SIZE ACCUMULATE LEARNING_RATE.

BatchNorm layers stay in evaluation mode, whose result does not depend on the batch. Saves to FOLDER by how much the
weights and their moving average changed (with a learning rate of 1, in one step, that is the gradient), metrics, and
the number of threads that communicate during the training and after it.
"""

import sys
from pathlib import Path

import torch
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent.parent))  # where main.py is

from data.sampler import ShardedRandomSampler, shard
from nn.classifier import CarvanaClassifier
from processes import communicating_threads
from runtime import distributed
from tiny import Pairs, SmallUNet


class Frozen(SmallUNet):
    """A net that stays in evaluation mode."""

    def train(self, mode=True):
        return super().train(False)


folder, count, batch_size, accumulate, rate = sys.argv[1], *map(int, sys.argv[2:5]), float(sys.argv[5])
torch.set_num_threads(1)
with distributed.init_distributed():
    torch.manual_seed(distributed.RANK)  # wrap_ddp gives all of them the weights of the main process
    net = Frozen((3, 32, 48))
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # otherwise the inputs of the ReLUs would be noise around 0
            module.running_mean.uniform_(-0.1, 0.1, generator=generator)
    images = torch.randint(0, 256, (count, 3, 32, 48), dtype=torch.uint8, generator=generator)
    dataset = Pairs(images, (images.float().mean(1) > 127).to(torch.uint8) * 255)
    classifier = CarvanaClassifier(net, 1, accumulate_steps=accumulate, grad_clip=0.5, ema_decay=0.9)
    before = [weights.detach().clone() for weights in net.parameters()]
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    train_loader = DataLoader(dataset, batch_size, sampler=ShardedRandomSampler(dataset))
    valid_loader = DataLoader(dataset, batch_size, sampler=shard(len(dataset), batch_size))
    classifier.train(train_loader, valid_loader, optimizer)
    changes = [
        old - new.detach()
        for trained in (net, classifier.eval_net)
        for old, new in zip(before, trained.parameters(), strict=True)
    ]
    metrics = {name: value for name, value in classifier.metrics[0].items() if name not in classifier.TIMING_METRICS}
    net.down1.convs[0].bn.running_mean.fill_(distributed.RANK)
    distributed.average_buffers(net)
    means = [net.down1.convs[0].bn.running_mean, net.up1.convs[0].bn.running_mean]
    saved = {"changes": changes, "metrics": metrics, "means": means, "threads": communicating_threads()}
saved["threads left"] = communicating_threads()
torch.save(saved, f"{folder}/{distributed.WORLD_SIZE}-{distributed.RANK}.pt")
