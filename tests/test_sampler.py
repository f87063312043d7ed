from itertools import chain

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from data.sampler import ShardedRandomSampler, shard


@pytest.mark.parametrize(("length", "world_size"), [(12, 1), (12, 3), (13, 3), (2, 3), (7, 2)])
def test_processes_read_each_image_once_in_the_order_of_a_single_process(length, world_size):
    batch_size, orders = 2, []
    samplers = [ShardedRandomSampler(range(length), 5, rank, world_size) for rank in range(world_size)]
    single = ShardedRandomSampler(range(length), 5, 0, 1)
    for epoch in (1, 2):
        for sampler in (*samplers, single):
            sampler.set_epoch(epoch)
        shards = [list(sampler) for sampler in samplers]
        assert [len(each) for each in shards] == [len(sampler) for sampler in samplers]
        assert sorted(chain(*shards)) == list(range(length))
        orders.append(list(single))
        for start in range(0, length, batch_size * world_size):
            batches = chain(*(each[start // world_size :][:batch_size] for each in shards))
            assert sorted(batches) == sorted(orders[-1][start : start + batch_size * world_size])
    assert orders[0] != orders[1] or length == 2
    reference = DistributedSampler(range(length), 1, 0, seed=5)
    reference.set_epoch(2)
    assert list(reference) == orders[1]


@pytest.mark.parametrize(("length", "batch_size", "world_size"), [(16, 3, 2), (16, 3, 3), (2, 3, 3), (9, 1, 4)])
def test_processes_predict_the_batches_of_a_single_process(length, batch_size, world_size):
    single = list(DataLoader(range(length), batch_size, sampler=shard(length, batch_size, 0, 1)))
    shards = [
        list(DataLoader(range(length), batch_size, sampler=shard(length, batch_size, rank, world_size)))
        for rank in range(world_size)
    ]
    batches = [shards[number % world_size][number // world_size] for number in range(len(single))]
    assert sum(map(len, shards)) == len(single)
    assert all(torch.equal(a, b) for a, b in zip(batches, single, strict=True))
