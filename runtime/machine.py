"""Choose device, precision, workers and how a net runs, each with the reason."""

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from inspect import signature

import torch
from torch import Tensor, nn

from runtime.distributed import LOCAL_RANK, LOCAL_WORLD_SIZE, WORLD_SIZE
from runtime.errors import UserError, ran_out_of_memory, require

CPU = torch.device("cpu")
REQUESTED = "as requested"


@dataclass(frozen=True)
class Machine:
    """Where and how a net runs."""

    device: torch.device = CPU
    precision: torch.dtype = torch.float32  # of autocast on the device
    workers: int = 0  # processes of each DataLoader; 0: batches are loaded in this process
    mode: str = "eager"  # how full training batches run: a key of MODES
    reasons: str = ""  # the choices and why, a line each


def choose_machine(device: str | None = None, precision: str | None = None, workers: int | None = None,
                   compile: bool = False, accumulate_steps: int = 1) -> Machine:
    """What is requested; for None, what suits this machine. Raises UserError if it has no such device."""
    keep_freed_memory()
    where, why_device = choose_device(device)
    dtype, why_dtype = choose_precision(precision, where)
    count, why_count = choose_workers(workers, where)
    mode, why_mode = choose_mode(compile, where, dtype, accumulate_steps)
    if where.type == "cpu" and LOCAL_WORLD_SIZE > 1:  # torchrun gives each process a single thread
        torch.set_num_threads(max(count_cores() // LOCAL_WORLD_SIZE, 1))
    reasons = [f"device {where} ({why_device})", f"precision {str(dtype).removeprefix('torch.')} ({why_dtype})",
               f"workers {count} ({why_count})", f"{mode} mode ({why_mode})"]
    return Machine(where, dtype, count, mode, "\n            ".join(reasons))


def choose_device(name: str | None) -> tuple[torch.device, str]:
    """The device, and the reason. Each process gets its own accelerator. Raises UserError if there are too few."""
    found = torch.accelerator.current_accelerator(check_available=True) or CPU
    device, reason = found, "no accelerator found" if found.type == "cpu" else "found by PyTorch"
    if name is not None:
        try:
            device, reason = torch.device(name), REQUESTED
        except RuntimeError:
            raise UserError(f"--device {name} is not a PyTorch device. Pass cpu, cuda, cuda:1 or mps.") from None
    count = {found.type: torch.accelerator.device_count(), "cpu": 1}.get(device.type, 0)
    require((device.index or 0) < count, f"--device {name} is not on this machine. Pass --device {found.type}.")
    if LOCAL_WORLD_SIZE > 1 and device.type != "cpu":
        require(device.index is None and count >= LOCAL_WORLD_SIZE,
                f"{LOCAL_WORLD_SIZE} processes cannot share --device {name or device}: this machine has {count}. Pass "
                f"--nproc_per_node={count} to torchrun, and omit --device.")
        device = torch.device(device.type, LOCAL_RANK)
    if device.type != "cpu" and device.index is not None:
        torch.accelerator.set_device_index(device.index)  # the device of tensors on "cuda" without an index
    return device, reason


def choose_precision(name: str | None, device: torch.device) -> tuple[torch.dtype, str]:
    if name is not None:
        return getattr(torch, name), REQUESTED
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU supports bfloat16"
        return torch.float16, "this GPU does not support bfloat16"
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        if capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"):
            return torch.bfloat16, "this CPU supports bfloat16"
        return torch.float32, "bfloat16 is not faster on this CPU"
    return torch.float32, f"the safe choice on {device.type}"


def choose_mode(compile: bool, device: torch.device, precision: torch.dtype, accumulate_steps: int) -> tuple[str, str]:
    if compile:
        return "compile", "as requested; the first step takes a minute or more"
    # A GradScaler may skip steps, and gradients of several replays of a graph cannot be accumulated
    if device.type == "cuda" and precision != torch.float16 and WORLD_SIZE == accumulate_steps == 1:
        return "CUDA graph", "launches all kernels of a full batch at once"
    return "eager", "PyTorch's default"


def choose_workers(count: int | None, device: torch.device) -> tuple[int, str]:
    if count is not None:
        return count, REQUESTED
    cores = count_cores()
    if device.type == "cpu":  # oversubscribing the cores stalls the thread pool of PyTorch
        return cores // LOCAL_WORLD_SIZE // 4, "the net needs the CPU"
    shared = f" for {LOCAL_WORLD_SIZE} processes" if LOCAL_WORLD_SIZE > 1 else ""
    return min(max(cores // LOCAL_WORLD_SIZE, 1), 16), f"this machine has {cores} cores{shared}"


def count_cores() -> int:  # that this process may use
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for the next training step.

    By default, it returns large blocks to the kernel, which fills the pages of the next tensors with zeros: a large
    part of the time of a step on a CPU.
    """
    with suppress(AttributeError, TypeError):  # macOS and Windows have no glibc
        glibc = ctypes.CDLL(None)
        glibc.mallopt(-4, 0)  # M_MMAP_MAX: allocate large blocks on the heap too
        glibc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap


def capture(net: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    """`net`, forward and backward, as CUDA graphs for images of this shape. The next call overwrites the result."""
    before, make = [buffer.clone() for buffer in net.buffers()], torch.cuda.make_graphed_callables
    # Otherwise, a DataLoader's thread that pins memory would make the capture fail; PyTorch 2.11 has no such parameter
    options = {"capture_error_mode": "thread_local"} if "capture_error_mode" in signature(make).parameters else {}
    try:
        return make(nn.Sequential(net), (images.clone(),), **options)
    finally:
        for buffer, value in zip(net.buffers(), before, strict=True):  # which the steps before the capture changed
            buffer.copy_(value)


MODES = {"compile": lambda net, _: torch.compile(net, dynamic=False), "CUDA graph": capture}


def accelerate(net: nn.Module, mode: str) -> nn.Module:
    """`net` in the mode of a Machine."""
    return Accelerated(net, MODES[mode]) if mode in MODES else net


class Accelerated(nn.Module):
    """Runs full training batches by speed_up(net, images), made once per shape, and other batches by `net`.

    If speed_up fails, a warning is printed, and `net` runs all of them.
    """

    def __init__(self, net: nn.Module, speed_up: Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]]):
        super().__init__()
        self.net, self.speed_up = net, speed_up
        self.batch_size, self.faster = 0, {}  # of the largest batch so far, which is a full one; shape -> callable

    def forward(self, images: Tensor) -> Tensor:
        self.batch_size = max(self.batch_size, len(images))
        if len(images) < self.batch_size or not self.training:
            return self.net(images)
        if images.shape not in self.faster:
            self.faster[images.shape] = self._attempt(images)
        return self.faster[images.shape](images)

    def _attempt(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        try:
            return self.speed_up(self.net, images)
        except RuntimeError as error:
            if ran_out_of_memory(error):
                raise
            reason = " ".join(str(error).split())
            print(f"Warning: {reason:.200}. The training continues in eager mode.")
            return self.net
