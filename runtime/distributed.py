"""The processes of one training, as torchrun starts them: `torchrun --nproc_per_node=4 main.py`. Alone, one has it all.

Each works on its share of a batch's photos; the first one (rank 0) prints, saves and writes what all of them found.
"""

import hashlib
import math
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from runtime.errors import UserError, require

# What torchrun tells each process; a scheduler that sets some of it starts no training of several. LOCAL: on this box
STARTED = all(os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"))
WORLD_SIZE, RANK, LOCAL_WORLD_SIZE, LOCAL_RANK = (
    int(os.environ.get(name, alone)) if STARTED else alone
    for name, alone in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_WORLD_SIZE", 1), ("LOCAL_RANK", 0))
)
TIMEOUT = timedelta(minutes=10)  # who gives no sign for so long, where all do the same, is taken for dead
DATA_TIMEOUT = timedelta(days=2)  # and for so long while photos are fetched

_groups: dict[str, dist.ProcessGroup] = {}  # "talk" and "data": what goes through the CPU
_agents: set[str] = set()


def is_main_process() -> bool:
    return RANK == 0


@contextmanager
def init_distributed() -> Iterator[None]:
    """In the block the processes know each other, and all but the first are mute. The error of one ends them all.

    It is told once, by the process that has it, or by the first where several have the same. Where a process ended
    without a word (kill -9, a box without power), or hangs for TIMEOUT, another one tells that.
    """
    if WORLD_SIZE == 1:
        _agents.add(_agent())
        yield
        return
    spoken = sys.stdout, sys.stderr
    if not is_main_process():
        sys.stdout = sys.stderr = open(os.devnull, "w", errors="replace")  # noqa: SIM115, as long as the program lives
    store = None
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))
        store = dist.PrefixStore(_rendezvous_id(store), store)
        dist.init_process_group(store=dist.PrefixStore("groups", store), rank=RANK, world_size=WORLD_SIZE, timeout=TIMEOUT)
        _groups["talk"] = dist.new_group(backend="gloo", timeout=TIMEOUT)
        _groups["data"] = dist.new_group(backend="gloo", timeout=DATA_TIMEOUT)
        _agents.update(all_gather(_agent()))
        yield
        dist.destroy_process_group()
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):  # all get the signal, and read the same command line
            raise
        told_by = _elect_reporter(store)
        if told_by != RANK and not is_main_process():
            sys.exit(1)
        sys.stdout, sys.stderr = spoken
        if told_by != RANK:
            raise UserError(f"Process {told_by} ended with an error, and the others with it.") from error
        if _is_of_another(error):
            raise UserError(
                f"Another process of this training ended without a word, or gave none for {TIMEOUT.seconds / 60:.3g} "
                f"minutes, so all of them stop ({' '.join(str(error).split()):.200})"
                f"{'' if is_main_process() else '. Go on with --resume last'}."
            ) from error
        raise


def _rendezvous_id(store: dist.Store) -> str:
    """What all processes that started together, and none before them, call this start.

    torchrun keeps its store when it starts its processes anew, with all that those before have written to it, such as
    the addresses that they had. So each shows a name that is new, and the first one shows its own to each of them.
    """
    mine, until = uuid4().hex, time.monotonic() + TIMEOUT.total_seconds()
    store.set(f"process {RANK}", mine)
    if not is_main_process():
        store.wait([f"to {mine}"], TIMEOUT)
        first = store.get(f"to {mine}").decode()
        store.set(f"{mine} got {first}", "")
        return first
    silent = set(range(1, WORLD_SIZE))
    while silent:
        for rank in [rank for rank in silent if store.check([f"process {rank}"])]:
            other = store.get(f"process {rank}").decode()  # or that of its predecessor, which says no more
            store.set(f"to {other}", mine)
            if store.check([f"{other} got {mine}"]):
                silent.remove(rank)
        if time.monotonic() > until:
            raise dist.DistError("not all processes have come")
        time.sleep(0.05)
    return mine


def _elect_reporter(store: dist.Store | None) -> int:
    """The rank of the process that tells of the error that ends all: the first one, or else who comes first."""
    time.sleep(0 if is_main_process() else 1)
    told_by = []

    def agree() -> None:
        with suppress(AttributeError, RuntimeError):  # there is no store, or no more
            told_by.append(int(store.compare_set("told by", "", str(RANK))))

    thread = Thread(target=agree, daemon=True)  # for where the cable is cut, it never ends
    thread.start()
    thread.join(5)
    return told_by[0] if told_by else RANK


def _is_of_another(error: BaseException) -> bool:
    """Whether it comes from this process waiting for another that isn't there."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and bool(re.search(r"\bgloo\b|NCCL|Connection (closed|reset)", str(error)))
    )


def _agent() -> str:
    """The torchrun that started this process: it stays when it starts its processes anew, and no other is called so.

    Nothing where none did.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ""
    agent = os.getppid()
    started = ""
    with suppress(OSError):  # where there is no /proc
        started = Path(f"/proc/{agent}/stat").read_text().rpartition(") ")[2].split()[19]
    return f"{socket.gethostname()} {agent} {started}"


def is_restart() -> bool:
    """Whether torchrun knows that it has started these processes before (on a box whose own ones ended)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def agents() -> list[str]:
    """The torchruns of this training, one a box; none where it is started without."""
    return sorted(_agents - {""})


def broadcast(make: Callable[[], Any]) -> Any:
    """What make() returns in the first process, the only one that calls it; all of them get it."""
    if WORLD_SIZE == 1:
        return make()
    made = [make() if is_main_process() else None]
    dist.broadcast_object_list(made, src=0, group=_groups["talk"])
    return made[0]


def all_gather(value: Any) -> list[Any]:
    """The values of all processes, by rank."""
    values = [value] * WORLD_SIZE
    if WORLD_SIZE > 1:
        dist.all_gather_object(values, value, group=_groups["talk"])
    return values


def gather(value: Any) -> list[Any]:
    """In the first process the values of all, by rank; in the others nothing."""
    if WORLD_SIZE == 1:
        return [value]
    values = [None] * WORLD_SIZE if is_main_process() else None
    dist.gather_object(value, values, dst=0, group=_groups["talk"])
    return values or []


@contextmanager
def local_main_process_first() -> Iterator[None]:
    """The block is run by the first process of each box, and only then by its others, which find the work done."""
    if LOCAL_RANK:
        _wait_for_data()
    yield
    if not LOCAL_RANK:
        _wait_for_data()


def _wait_for_data() -> None:
    if WORLD_SIZE > 1:
        dist.monitored_barrier(_groups["data"], timeout=DATA_TIMEOUT)


def require_same(what: str, values: Sequence[object]) -> None:
    """Raises UserError where the `values` of a process are not those of the first. Each may come when its data do."""
    _wait_for_data()
    digests = all_gather(hashlib.sha256(repr(list(values)).encode()).hexdigest())
    others = [str(rank) for rank, digest in enumerate(digests) if digest != digests[0]]
    require(
        not others,
        f"{what} of process {', '.join(others)} are not those of process 0: all boxes need the same.",
    )


def all_reduce(sums: Tensor) -> None:
    """Add to `sums`, on the CPU, those of the other processes, in place."""
    if WORLD_SIZE > 1:
        dist.all_reduce(sums, group=_groups["talk"])


def average_buffers(net: nn.Module) -> None:
    """Give `net` the mean of what the BatchNorms of each process have gathered from its own share of the photos."""
    buffers = [buffer for buffer in net.buffers() if buffer.is_floating_point()]
    if WORLD_SIZE == 1 or not buffers:
        return
    together = torch.cat([buffer.flatten() for buffer in buffers])
    dist.all_reduce(together)
    together /= WORLD_SIZE
    for buffer, mean in zip(buffers, together.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))


def wrap_ddp(net: nn.Module, device: torch.device) -> nn.Module:
    """`net`, whose gradients become, while backward() goes on, the mean of those of all processes. Its weights too are
    those of the first. On a GPU its BatchNorms take the statistics of all processes' images.
    """
    if WORLD_SIZE == 1 or not dist.is_initialized():  # predict.py starts no training, whatever started it
        return net
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(net)  # in place: the names and the weights stay
    devices = None if device.type == "cpu" else [device]
    return DistributedDataParallel(net, device_ids=devices, forward_sync_buffers=False, gradient_as_bucket_view=True)


def count_batches(loader: DataLoader) -> int:
    """Batches per pass of the main process, which has the most."""
    return math.ceil(len(loader.dataset) / (loader.batch_size * WORLD_SIZE))


def lockstep(loader: DataLoader, image_shape: Sequence[int]) -> Iterator[tuple[Tensor, Sequence]]:
    """The loader's batches, then empty ones while other processes still have some: all take the same steps.

    image_shape: (C, H, W) of the images in an empty batch, for a process that has no image at all.
    """
    images, others = torch.empty(0, *image_shape), []
    for images, others in batches(loader):
        yield images, others
    for _ in range(count_batches(loader) - len(loader)):
        yield images[:0], others[:0]


def batches(loader: DataLoader) -> Iterator[tuple[Tensor, Sequence]]:
    """The loader's batches. Raises RuntimeError, as torch does, if a worker ends while it hands one over."""
    try:
        yield from loader
    except (EOFError, ConnectionError) as error:
        raise RuntimeError("DataLoader worker exited unexpectedly") from error
