"""Choose device, precision and workers, each with the reason."""

import ctypes
import os
import sys

import torch

from runtime.errors import UserError, require


def choose_device(name: str | None, process: int = 0, processes: int = 1) -> tuple[torch.device, str]:
    """The device called `name` ("cpu", "cuda:1", "mps", ...), for None the accelerator of this machine. And why.

    Where the machine has several `processes` of one training, each takes an accelerator of its own.
    """
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    if name is None:
        device = here
        reason = "the accelerator that torch found" if here.type != "cpu" else "torch found no accelerator"
    else:
        reason = "as asked"
        try:
            device = torch.device(name)
        except RuntimeError:
            raise UserError(f"--device {name} is no device that torch knows; try cpu, cuda, cuda:1 or mps.") from None
    count = 1 if device.type == "cpu" else torch.accelerator.device_count() if device.type == here.type else 0
    if (device.index or 0) >= count:
        raise UserError(
            f"--device {name} is not on this machine, which has: {here.type}; say --device {here.type}."
        )
    if processes > 1 and device.type != "cpu":
        require(
            device.index is None and processes <= count,
            f"{processes} processes can't share out --device {name or device}, of which this machine has {count}: say "
            f"--nproc_per_node={count} to torchrun, and --device {device.type} or nothing of it.",
        )
        device = torch.device(device.type, process)
    if device.type != "cpu" and device.index is not None:
        torch.accelerator.set_device_index(device.index)  # what asks torch for "the" GPU means this one
    return device, reason


def choose_precision(name: str | None, device: torch.device) -> tuple[torch.dtype, str]:
    """The type that the net's products are computed in on `device`; None takes the fastest that is safe. And why."""
    if name is not None:
        return getattr(torch, name), "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "this GPU computes in bfloat16"
        return torch.float16, "this GPU is older than bfloat16"
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        for flag, unit in (("amx_bf16", "AMX-BF16"), ("avx512_bf16", "AVX512-BF16")):
            if has.get(flag):
                return torch.bfloat16, f"this CPU has {unit}"
        return torch.float32, "this CPU is not faster in bfloat16"
    return torch.float32, f"the safe choice on {device.type}"


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def choose_workers(count: int | None, device: torch.device, processes: int = 1) -> tuple[int, str]:
    """How many processes read photos for one of the `processes` that train here; None takes what the machine has to
    spare. And why.
    """
    if count is not None:
        require(count >= 0, f"--workers {count} can't be: it must be 0 or more.")
        return count, "as asked"
    cores = count_cores()
    if device.type == "cpu":
        # A process more than there are cores makes all of torch's threads wait for the one that shares its core
        return cores // processes // 4, f"the net needs {'most of ' if cores > 3 else ''}the {cores} cores"
    shared = f" for {processes} processes" if processes > 1 else ""
    return min(max(cores // processes, 1), 8), f"this machine has {cores} cores{shared}"


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, where its C library is glibc; elsewhere do nothing.

    glibc hands a block as large as the tensors of a net back to the kernel at once. The next step's tensors come as
    new pages, each zeroed when it is first touched, which takes a large part of a training step on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: no block is mapped on its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: what is free at the end of the heap stays there


def choose_machine(
    device: str | None, precision: str | None, workers: int | None, process: int = 0, processes: int = 1
) -> tuple[torch.device, torch.dtype, int, str]:
    """Device, precision and count of workers, as asked or, for None, as this machine suggests. And three lines of why.

    process, processes: which one this is of those that train on this machine, from 0, and how many they are.
    The process is told to keep_freed_memory from here on.
    """
    keep_freed_memory()
    device, device_reason = choose_device(device, process, processes)
    precision, precision_reason = choose_precision(precision, device)
    workers, workers_reason = choose_workers(workers, device, processes)
    if device.type == "cpu" and processes > 1:  # torchrun leaves each of them one thread
        torch.set_num_threads(max(count_cores() // processes, 1))
    reasons = (
        f"device {device} ({device_reason})\n"
        f"            precision {str(precision).removeprefix('torch.')} ({precision_reason})\n"
        f"            workers {workers} ({workers_reason})"
    )
    return device, precision, workers, reasons
