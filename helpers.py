"""What any part may need: device, precision, workers, seeds, atomic files. Knows nothing of the rest of the package."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch


class UserError(Exception):
    """A mistake that the user can mend, told in one sentence. main.py prints the sentence, without a traceback."""

    def __init__(self, sentence: str):
        # A DataLoader worker hands its error on with its traceback written in front; the sentence stands behind it.
        super().__init__(sentence.rsplit("UserError: ", 1)[-1].strip())


@contextmanager
def errors_in_one_sentence() -> Iterator[None]:
    """Ends the program with the sentence of a UserError, or of Ctrl-C, and no traceback."""
    try:
        yield
    except UserError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    except KeyboardInterrupt:
        sys.exit(f"{Path(sys.argv[0]).name}: stopped; what was saved before is whole, and stays as it is.")


def require(holds: bool, sentence: str) -> None:
    if not holds:
        raise UserError(sentence)


def choose_device(name: str | None) -> tuple[torch.device, str]:
    """The device called `name` ("cpu", "cuda:1", "mps", ...), for None the accelerator of this machine. And why."""
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    if name is None:
        return here, "the accelerator that torch found" if here.type != "cpu" else "torch found no accelerator"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is no device that torch knows; try cpu, cuda, cuda:1 or mps.") from None
    count = 1 if device.type == "cpu" else torch.accelerator.device_count() if device.type == here.type else 0
    if (device.index or 0) >= count:
        raise UserError(
            f"--device {name} is not on this machine, which has: {here.type}; leave --device out to use it."
        )
    return device, "as asked"


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


def choose_workers(count: int | None, device: torch.device) -> tuple[int, str]:
    """How many processes read photos; None takes what the machine has to spare. And why."""
    if count is not None:
        require(count >= 0, f"--workers {count} can't be: it must be 0 or more.")
        return count, "as asked"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if device.type == "cpu":
        return max(1, cores // 4), f"the net needs most of the {cores} cores"
    return min(cores, 8), f"this machine has {cores} cores"


def choose_machine(
    device: str | None, precision: str | None, workers: int | None
) -> tuple[torch.device, torch.dtype, int, str]:
    """Device, precision and count of workers, as asked or, for None, as this machine suggests. And a line of why."""
    device, device_reason = choose_device(device)
    precision, precision_reason = choose_precision(precision, device)
    workers, workers_reason = choose_workers(workers, device)
    reasons = (
        f"device {device} ({device_reason}), precision {str(precision).removeprefix('torch.')} ({precision_reason}), "
        f"workers {workers} ({workers_reason})"
    )
    return device, precision, workers, reasons


def seed_everything(*numbers: int) -> None:
    """Make all that torch's generator draws a function of these numbers, such as (seed, epoch, index)."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def get_model_timestamp() -> str:
    """The name of a run: the second it began in, as 2026-11-23_16h05m09s."""
    return time.strftime("%Y-%m-%d_%Hh%Mm%Ss")


def make_writable(*folders: Path) -> None:
    """Make each folder and write a byte to it, so that a run learns before its first step that it couldn't save."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / f".writable-{os.getpid()}"
            with save_atomically(probe) as file:
                file.write(b"\0")
            probe.unlink()
        except OSError as error:
            raise UserError(f"{folder} can't be written to ({error.strerror}); name another folder for it.") from error


@contextmanager
def save_atomically(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that stands at `path` whole or not at all: written beside it, flushed to disk, then moved there.

    Whatever ends the `with` block early leaves the file that stood there before, and removes the unfinished one.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
