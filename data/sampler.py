"""Which images a process reads, and in which order."""

from collections.abc import Iterator, Sized

import torch
from torch.utils.data import Sampler

from runtime.distributed import RANK, WORLD_SIZE


class ShardedRandomSampler(Sampler[int]):
    """Every world_size-th of the shuffled indices of a data set. The order is a function of (seed, epoch) alone.

    Together, the batches of all processes are the batch, world_size times as large, that a single process would read.
    Unlike torch's DistributedSampler, no image is repeated.
    """

    def __init__(self, dataset: Sized, seed: int = 0, rank: int = RANK, world_size: int = WORLD_SIZE):
        self.length, self.seed, self.epoch = len(dataset), seed, 0
        self.shard = slice(rank, None, world_size)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.length, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        return iter(order[self.shard].tolist())

    def __len__(self) -> int:
        return len(range(self.length)[self.shard])


def shard(length: int, batch_size: int, rank: int = RANK, world_size: int = WORLD_SIZE) -> list[int]:
    """The indices that a process predicts: every world_size-th of the batches that a single process would predict."""
    return [index for index in range(length) if index // batch_size % world_size == rank]
