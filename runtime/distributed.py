"""Training in several processes, as torchrun --nproc_per_node=4 main.py; without torchrun, in a world of size 1.

Each process trains on its shard of the images. The main process (rank 0) prints and saves.
"""

import math
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from runtime.errors import UserError, require

# Set by torchrun; some schedulers set only a few of these, in a single process
_environ = os.environ if {"WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys() else {}
WORLD_SIZE, LOCAL_WORLD_SIZE = int(_environ.get("WORLD_SIZE", 1)), int(_environ.get("LOCAL_WORLD_SIZE", 1))
RANK, LOCAL_RANK = int(_environ.get("RANK", 0)), int(_environ.get("LOCAL_RANK", 0))  # "local": on this machine

TIMEOUT = timedelta(minutes=10)  # a process that does not answer for longer is taken for dead
DATA_TIMEOUT = timedelta(days=2)  # the same during a download, or while one process reads masks

_groups: dict[str, dist.ProcessGroup] = {}  # "control" and "data", both on the CPU (gloo)


def is_main_process() -> bool:
    return RANK == 0


@contextmanager
def init_distributed() -> Iterator[None]:
    """Connect the processes, and silence all but the main process. An error in one ends all, and only one prints it."""
    if WORLD_SIZE == 1:
        yield
        return
    streams, store = (sys.stdout, sys.stderr), None
    if not is_main_process():
        sys.stdout = sys.stderr = open(os.devnull, "w", errors="replace")  # noqa: SIM115
    try:
        store = _connect()
        dist.init_process_group(store=store, rank=RANK, world_size=WORLD_SIZE, timeout=TIMEOUT)
        _groups["control"] = dist.new_group(backend="gloo", timeout=TIMEOUT)
        _groups["data"] = dist.new_group(backend="gloo", timeout=DATA_TIMEOUT)
        yield
    except Exception as error:  # but not a signal or a wrong command line, which all processes get
        reporter = _elect_reporter(store)
        if reporter != RANK and not is_main_process():
            sys.exit(1)
        sys.stdout, sys.stderr = streams
        if reporter != RANK:
            raise UserError(f"Process {reporter} failed, so all processes stopped.") from error
        reason = " ".join(str(error).split())
        lost = isinstance(error, RuntimeError) and re.search(r"\bgloo\b|NCCL|Connection (closed|reset)", reason)
        if lost or isinstance(error, dist.DistError):
            resume = "" if is_main_process() else " Resume with --resume last."
            raise UserError("Another process was killed or does not answer, so all processes stopped "
                            f"({reason:.200}).{resume}") from error
        raise
    finally:  # end the groups' threads: one that frees a tensor while Python exits would abort it
        while _groups:
            dist.destroy_process_group(_groups.popitem()[1])
    dist.destroy_process_group()


def _connect() -> dist.Store:
    """A store that has only keys of this start: torchrun's own store outlives a restart of the processes."""
    store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    start = store.add(f"starts of process {RANK} of {WORLD_SIZE}", 1)  # torchrun counts them only where one failed
    return dist.PrefixStore(f"start {start}", store)


def _elect_reporter(store: dist.Store | None) -> int:
    """The rank of the process that prints the error: the main process if it failed, or else the first to fail."""
    time.sleep(0 if is_main_process() else 1)
    elected = [RANK]

    def elect() -> None:
        with suppress(AttributeError, RuntimeError):  # there is no store
            elected.append(int(store.compare_set("reporter", "", str(RANK))))

    thread = Thread(target=elect, daemon=True)  # without a network, it never ends
    thread.start()
    thread.join(5)
    return elected[-1]


def first_name(name: str) -> str:
    """`name`, or the one that this returned before torchrun restarted the processes."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return name
    store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
    return store.compare_set("name of the run", "", name).decode()


def broadcast(make: Callable[[], Any]) -> Any:
    """The result of `make`, which only the main process calls."""
    results = [make() if is_main_process() else None]
    if WORLD_SIZE > 1:
        dist.broadcast_object_list(results, src=0, group=_groups["data"])
    return results[0]


def all_gather(value: Any) -> list[Any]:
    """The values of all processes, by rank."""
    values = [value] * WORLD_SIZE
    if WORLD_SIZE > 1:
        dist.all_gather_object(values, value, group=_groups["control"])
    return values


def all_reduce(sums: Tensor) -> None:
    """Replace `sums`, a tensor on the CPU, with the sum over all processes."""
    if WORLD_SIZE > 1:
        dist.all_reduce(sums, group=_groups["control"])


@contextmanager
def local_main_process_first() -> Iterator[None]:
    """Run the block in the main process of each machine first, then in the others."""
    if LOCAL_RANK:
        _data_barrier()
    yield
    if not LOCAL_RANK:
        _data_barrier()


def _data_barrier() -> None:
    if WORLD_SIZE > 1:
        dist.monitored_barrier(_groups["data"], timeout=DATA_TIMEOUT)


def require_same(images: Iterable[Path]) -> None:
    """Raise UserError unless all processes have images of these names, in folders of these names."""
    _data_barrier()
    of_processes = all_gather(["/".join(path.parts[-2:]) for path in images])
    others = ", ".join(str(rank) for rank, theirs in enumerate(of_processes) if theirs != of_processes[0])
    require(not others, f"The images of process {others} must be those of process 0. Copy them to each machine.")


def average_buffers(net: nn.Module) -> None:
    """Average the BatchNorm statistics of `net` over the processes."""
    for buffer in net.buffers():
        if WORLD_SIZE > 1 and buffer.is_floating_point():
            sums = buffer.cpu()
            all_reduce(sums)
            buffer.copy_(sums / WORLD_SIZE)


def wrap_ddp(net: nn.Module, device: torch.device) -> nn.Module:
    """`net` with the weights of the main process, and with gradients averaged over all processes.

    On a GPU, BatchNorm layers are converted in place, to normalize over the batches of all processes.
    """
    if not dist.is_initialized():  # a single process, or predict.py
        return net
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(net)
    model = DistributedDataParallel(net, gradient_as_bucket_view=True)
    model.broadcast_buffers = False  # average_buffers is enough
    return model


def count_batches(loader: DataLoader) -> int:
    """Batches per pass of the main process, which has the most."""
    return math.ceil(len(loader.dataset) / (loader.batch_size * WORLD_SIZE))


def lockstep(loader: DataLoader) -> Iterator[Sequence]:
    """The loader's batches, then empty ones while other processes still have some: all take the same steps.

    A batch is a sequence of tensors or lists; ([], []) in a process without images to predict.
    """
    batch = [], []
    for batch in loader:
        yield batch
    for _ in range(count_batches(loader) - len(loader)):
        yield [part[:0] for part in batch]
