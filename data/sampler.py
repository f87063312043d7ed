"""Which images a process reads, and in which order. Together, all processes read each image once."""

from collections.abc import Iterator, Sized

import torch
from torch.utils.data import Sampler

from runtime.distributed import RANK, WORLD_SIZE


class ShardedRandomSampler(Sampler[int]):
    """Shuffled indices of a data set, of which each process gets every world_size-th.

    The order is a function of (seed, epoch) alone. All processes together read, at each step, the images of one batch
    that is world_size times as large in a single process. Unlike torch's DistributedSampler, no image is repeated.
    """

    def __init__(self, dataset: Sized, seed: int = 0, rank: int = RANK, world_size: int = WORLD_SIZE):
        self.length, self.seed, self.epoch = len(dataset), seed, 0
        self.rank, self.world_size = rank, world_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        return iter(order[self.rank :: self.world_size].tolist())

    def __len__(self) -> int:
        return len(range(self.rank, self.length, self.world_size))


def shard(length: int, batch_size: int, rank: int = RANK, world_size: int = WORLD_SIZE) -> list[int]:
    """The indices that a process predicts: every world_size-th of the batches that a single process would predict."""
    starts = range(rank * batch_size, length, world_size * batch_size)
    return [index for start in starts for index in range(start, min(start + batch_size, length))]
