"""What any part may need: errors, signals, progress, machine, seeds, whole files. Knows nothing of the rest."""

import ctypes
import errno
import io
import os
import pickle
import re
import signal
import sys
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args, get_origin, get_type_hints

import numpy as np
import torch
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows, where a folder isn't locked
    fcntl = None


class UserError(Exception):
    """A mistake that the user can mend, told in one sentence. main.py prints the sentence, without a traceback."""

    def __init__(self, sentence: str):
        # A DataLoader worker hands its error on with its traceback written in front; the sentence stands behind it.
        super().__init__(sentence.rsplit("UserError: ", 1)[-1].strip())


OUT_OF_MEMORY = re.compile(
    "out of memory|(can't|cannot|could not|unable to) (allocate|mmap|create a memory)|ALLOC(ATION)?_FAILED",
    re.IGNORECASE,
)
NO_MORE = (errno.EAGAIN, errno.EMFILE, errno.ENFILE)  # processes, or open files
_last_words: list[tuple[str, Path]] = []


def say_if_stopped(sentence: str, saved: Path) -> None:
    """What errors_in_one_sentence adds, from now on, to what ends the program, if the file `saved` is there then."""
    _last_words[:] = [(sentence, saved)]


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether this is how Python, torch, a GPU's library or the system says that memory ran out."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError) and bool(OUT_OF_MEMORY.search(str(error)))
    )


@contextmanager
def errors_in_one_sentence() -> Iterator[None]:
    """Ends the program with the sentence of a UserError, or of a signal to stop, and no traceback.

    Ctrl-C, SIGTERM (as schedulers send it) and SIGHUP (a terminal that is closed) raise KeyboardInterrupt; the program
    then ends with code 128 plus the signal's number, and at once on a second one. What nobody foresaw keeps its
    traceback.
    """
    program, process, stopped_by = Path(sys.argv[0]).name, os.getpid(), []
    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in signals if signal.getsignal(number) != signal.SIG_IGN}

    def stop(number: int, _frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        if os.getpid() == process:  # the loaders' processes, forked from this one, wait to be told
            ignore_ends()
            stopped_by.append(number)
            raise KeyboardInterrupt

    def ignore_ends() -> None:  # a process of a loader that ends now is no fault, or one that is told already
        if hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, lambda *_: None)

    for number in before:
        signal.signal(number, stop)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # as a daemon has them
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, as long as the program lives
        getattr(sys, name).reconfigure(line_buffering=True, errors="backslashreplace")  # a log has each line at once
    _last_words.clear()
    try:
        yield
    except BaseException as error:
        ignore_ends()
        last_words = [sentence for sentence, saved in _last_words if saved.exists()]
        if stopped_by:  # whatever came up meanwhile, as from a loader's process that got the signal too
            print(f"{program}: stopped by {signal.Signals(stopped_by[0]).name}.", *last_words, file=sys.stderr)
            sys.exit(128 + stopped_by[0])
        if isinstance(error, UserError):
            sys.exit(" ".join([f"{program}: {error}", *last_words]))
        if ran_out_of_memory(error) or "DataLoader worker (pid" in str(error):
            reason = (str(error).strip() or "of this process").splitlines()[-1]
            sys.exit(" ".join([f"{program}: Memory ran out ({reason:.200}): free some.", *last_words]))
        if isinstance(error, OSError) and error.filename:
            sys.exit(" ".join([f"{program}: {error.filename} can't be used ({error.strerror}).", *last_words]))
        if isinstance(error, OSError) and error.errno in NO_MORE:
            remedy = "say a smaller --workers, or raise its limit (ulimit -a shows them)"
            told = f"The system gives this program no more processes or files ({error.strerror}): {remedy}."
            sys.exit(" ".join([f"{program}: {told}", *last_words]))
        if isinstance(error, OSError):  # those of files have a name: this is what it prints
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115, or Python complains once more when it ends
            sys.exit(" ".join([f"{program}: what it prints can't be written ({error}), so it stopped.", *last_words]))
        if last_words and not isinstance(error, SystemExit):
            print(*last_words, file=sys.stderr)
        raise
    finally:
        if not stopped_by:
            for number, handler in before.items():
                signal.signal(number, handler)


def hand_over_quietly(_worker: int) -> None:
    """A DataLoader's worker_init_fn: no traceback where the training ends while it takes a batch from this process.

    The thread that hands batches over would print one. Errors of reading don't come here: they travel with the batches.
    """
    told = sys.excepthook
    sys.excepthook = lambda kind, *error: None if issubclass(kind, EOFError | ConnectionError) else told(kind, *error)


class Progress(tqdm):
    """tqdm's bar. Where no terminal shows it, as in a log, a line every EVERY seconds, without control characters."""

    EVERY = 60

    def __init__(self, iterable: Iterable | None = None, desc: str = "", **options: Any):
        options = dict(unit="it", unit_scale=False, unit_divisor=1000, initial=0, leave=False) | options
        form = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{remaining}, {rate_fmt}{postfix}]"  # fits into 80 columns
        super().__init__(iterable, desc, disable=None, dynamic_ncols=True, bar_format=form, **options)
        self.told = self.began = time.monotonic()
        if self.disable:  # tqdm keeps nothing then
            self.desc, self.options, self.postfix = desc, options, None

    def __iter__(self) -> Iterator:
        if not self.disable:
            yield from super().__iter__()
            return
        for each in self.iterable:
            yield each
            self.update()

    def update(self, n: float = 1) -> bool | None:
        shown = super().update(n)
        if self.disable:
            self.n += n
            now = time.monotonic()
            if now - self.told >= self.EVERY:
                self.told = now
                units = {name: self.options[name] for name in ("unit", "unit_scale", "unit_divisor", "initial")}
                form = "{desc}: {n_fmt} of {total_fmt} in {elapsed}, {remaining} left, {rate_fmt}{postfix}"
                told = dict(prefix=self.desc, bar_format=form, postfix=self.postfix)
                print(self.format_meter(self.n, self.total, now - self.began, **units, **told))
        return shown


def require(holds: bool, sentence: str) -> None:
    if not holds:
        raise UserError(sentence)


def counted(number: int, noun: str) -> str:
    """1 photo, 0 photos, 1,024 photos."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def some(names: Iterable[str], count: int | None = 3) -> str:
    """The first `count` names, and how many more there are; None is all."""
    names = list(names)
    shown = ", ".join(names[:count])
    return f"{shown} and {len(names) - count} more" if count is not None and len(names) > count else shown


def validate(values: object, **ranges: str) -> None:
    """Require that each attribute, if not None, lies in its range, such as "(0, 1]"; name the option that doesn't."""
    for name, written in ranges.items():
        value, (low, high) = getattr(values, name), written[1:-1].split(", ")
        ends = [float(end) for end, there in ((low, "[" in written), (high, "]" in written)) if there]
        fits = value is None or float(low) < value < float(high) or value in ends
        limits = [f"{'at least' if '[' in written else 'above'} {low}"]
        if high != "inf":
            limits.append(f"{'at most' if ']' in written else 'below'} {high}")
        require(fits, f"--{name.replace('_', '-')} {value} can't be: it must be {' and '.join(limits)}.")


def validate_defaults(kind: type) -> None:
    """Require that the defaults of a dataclass are of the types that stand beside them; name the one that isn't."""
    for name, its in get_type_hints(kind).items():
        value = getattr(kind, name)
        require(_is_of(value, its), f"{name} = {value!r} can't be: it must be {_in_words(its)}.")


def _is_of(value: object, kind: Any) -> bool:
    """Whether a value is of a type, as it is written: a class, a Literal, a tuple of a certain length, or a choice."""
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return value in parts
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(_is_of, value, parts))
    if parts:
        return any(_is_of(value, part) for part in parts)
    if kind in (bool, int):
        return type(value) is kind  # True would be an int too
    return isinstance(value, kind) or (kind is float and type(value) is int)


def _in_words(kind: Any) -> str:
    words = {bool: "True or False", int: "a whole number", float: "a number", str: "text", Path: 'a Path("...")'}
    parts = get_args(kind)
    if get_origin(kind) is Literal:
        return " or ".join(map(str, parts))
    if get_origin(kind) is tuple:
        return f"({', '.join(map(_in_words, parts))})"
    return " or ".join(map(_in_words, parts)) if parts else words.get(kind, "None")


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
            try:
                probe.write_bytes(b"\0")
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{folder} can't be written to ({error.strerror}); name another folder for it.") from error


class File(io.FileIO):
    """A file to write, or with mode "a" to go on with, whose errors are sentences.

    They name `path`, which is where it is, or where it will be when it has been written as `part`.
    """

    def __init__(self, path: Path, part: Path | None = None, mode: str = "w"):
        self.path, self.beside = path, part is not None
        with naming(path, self.beside):
            super().__init__(part or path, mode)

    def write(self, data: bytes) -> int:
        with naming(self.path, self.beside):
            return super().write(data)


@contextmanager
def naming(path: Path, beside: bool = True) -> Iterator[None]:
    """Tells an error of the system in a sentence that names `path`, which was to be written; beside: not in place."""
    try:
        yield
    except OSError as error:
        before = "; what stood there before is as it was" if beside and path.exists() else ""
        raise UserError(
            f"{path} can't be written ({error.strerror}){before}. Make room or mend the folder first."
        ) from error


def lock(folder: Path, waiting: str = "") -> BinaryIO | None:
    """Keep other processes from locking `folder` while the returned file is open.

    Where one does: prints the sentence `waiting` and waits for its end, or without one raises UserError. None where the
    system or the disk knows no locks.
    """
    with naming(folder / ".lock"):
        file = (folder / ".lock").open("wb")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        if not waiting:
            raise UserError(f"{folder} is in use by another process. Wait for it, or stop it.") from error
        print(waiting)
        fcntl.lockf(file, fcntl.LOCK_EX)
    except (OSError, AttributeError):
        file.close()
        return None
    return file


@contextmanager
def save_atomically(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file that stands at `path` whole or not at all: written beside it, flushed to disk, then moved there.

    Whatever ends the `with` block early leaves the file that stood there before, and removes the unfinished one. Raises
    UserError with the path where it can't be written.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    try:
        with io.BufferedWriter(File(path, part)) as file:
            yield file
            file.flush()
            with naming(path):
                os.fsync(file.fileno())
        with naming(path):
            os.replace(part, path)
            if hasattr(os, "O_DIRECTORY"):  # the new name is on the disk too, before anything goes on
                _sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    """Have the names in it written to the disk, where its file system can (some of networks can't)."""
    with suppress(OSError):
        opened = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def load_checkpoint(path: str | Path) -> dict:
    """The checkpoint at `path`, on the CPU. Raises UserError where it is none; code in it is not run."""
    try:
        with zipfile.ZipFile(path) as archive:  # which is what torch.save writes; torch.load checks no sum
            require(archive.testzip() is None, "a sum is wrong")
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} holds more than numbers and could run code, so it is refused.") from error
    except Exception as error:  # zipfile and torch raise a dozen types, according to where the file is broken
        if ran_out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{path} can't be read ({error.strerror}).") from error
        raise UserError(f"{path} is no checkpoint, or was cut short or damaged.") from error
