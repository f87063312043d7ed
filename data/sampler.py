"""Which photos a process reads, and in which order. All processes together read each photo once."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from runtime.distributed import RANK, WORLD_SIZE


class ShardedRandomSampler(Sampler[int]):
    """The indices of the photos that this process trains on, in an order that is a function of (seed, epoch) alone.

    The order of all `length` photos is dealt out, so `count` processes with batches of B photos see together, batch by
    batch, what one process sees with batches of count * B. The last batch may be shorter, or empty in some processes.
    (torch's DistributedSampler shows some photos twice, so that all processes have as many.)
    """

    def __init__(self, length: int, seed: int = 0, rank: int = RANK, count: int = WORLD_SIZE):
        self.length, self.seed, self.rank, self.count, self.epoch = length, seed, rank, count, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        return iter(order[self.rank :: self.count].tolist())

    def __len__(self) -> int:
        return len(range(self.rank, self.length, self.count))


def shard(length: int, batch_size: int, rank: int = RANK, count: int = WORLD_SIZE) -> list[int]:
    """The indices of the photos that this process predicts: every count-th of the whole batches, in order.

    So each batch holds what it holds where one process has them all, and gives the same predictions to the bit.
    """
    firsts = range(rank * batch_size, length, count * batch_size)
    return [index for first in firsts for index in range(first, min(first + batch_size, length))]
