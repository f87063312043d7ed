"""Choose device, precision and workers, each with the reason."""

import ctypes
import os
from contextlib import suppress
from dataclasses import dataclass

import torch

from runtime.distributed import LOCAL_RANK, LOCAL_WORLD_SIZE
from runtime.errors import UserError, require

CPU = torch.device("cpu")
REQUESTED = "as requested"


@dataclass(frozen=True)
class Machine:
    """Where and how a net runs."""

    device: torch.device = CPU
    precision: torch.dtype = torch.float32  # of autocast on the device
    workers: int = 0  # processes of each DataLoader; 0: batches are loaded in this process
    compile: bool = False  # whether to use torch.compile
    reasons: str = ""  # the choices and why, a line each


def choose_machine(device: str | None = None, precision: str | None = None, workers: int | None = None,
                   compile: bool = False) -> Machine:
    """What is requested; for None, what suits this machine. Raises UserError if it has no such device."""
    keep_freed_memory()
    where, why_device = choose_device(device)
    dtype, why_dtype = choose_precision(precision, where)
    count, why_count = choose_workers(workers, where)
    if where.type == "cpu" and LOCAL_WORLD_SIZE > 1:  # torchrun gives each process a single thread
        torch.set_num_threads(max(count_cores() // LOCAL_WORLD_SIZE, 1))
    reasons = [f"device {where} ({why_device})", f"precision {str(dtype).removeprefix('torch.')} ({why_dtype})",
               f"workers {count} ({why_count})"]
    if compile:
        reasons.append("torch.compile (the first training and validation steps take a few minutes)")
    return Machine(where, dtype, count, compile, "\n            ".join(reasons))


def choose_device(name: str | None) -> tuple[torch.device, str]:
    """The device, and the reason. Each process gets its own accelerator. Raises UserError if there are too few."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else CPU
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


def choose_workers(count: int | None, device: torch.device) -> tuple[int, str]:
    if count is not None:
        return count, REQUESTED
    cores = count_cores()
    if device.type == "cpu":  # oversubscribing the cores stalls the thread pool of PyTorch
        return cores // LOCAL_WORLD_SIZE // 4, "the net needs the CPU"
    shared = f" for {LOCAL_WORLD_SIZE} processes" if LOCAL_WORLD_SIZE > 1 else ""
    return min(max(cores // LOCAL_WORLD_SIZE, 1), 8), f"this machine has {cores} cores{shared}"


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
