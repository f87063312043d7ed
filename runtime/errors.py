"""Errors in one sentence: UserError, how the program ends, range checks, advice for known failures."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EAGAIN, EIO, ENOSPC, EPIPE
from pathlib import Path
from typing import Any

import torch

from helpers import format_size, pluralize

OUT_OF_MEMORY = r"(?i)out of memory|(can't|cannot|could not|unable to) (allocate|mmap|create a memory)|ALLOC\w*_FAILED"
WORKER_FAILURES = {  # pattern of type and text -> sentence, which ends with the advice to use fewer workers
    rf"Too many open files|ancdata|Errno {EAGAIN}\b":
        "The limit of processes or open files is reached. Raise it (ulimit -a lists it), or",
    "shared memory": "Shared memory (/dev/shm) is full. Enlarge it, or",
    r"DataLoader worker \(pid|^(EOFError|ConnectionRe)":  # from PyTorch, or from a batch that it was sending
        "A DataLoader worker was killed, most likely because memory ran out. To use less,",
}

_exit_hints: list[tuple[str, Path]] = []  # at most one


class UserError(Exception):
    """A problem that the user can solve, printed without a traceback."""

    def __init__(self, sentence: str):
        # A DataLoader worker puts its traceback before the sentence
        super().__init__(sentence.rsplit("UserError: ", 1)[-1].strip())


def require(holds: Any, sentence: str) -> None:
    if not holds:
        raise UserError(sentence)


def check_ranges(values: object, **ranges: str) -> None:
    """Require that each attribute in `ranges` is None or in its range, such as threshold="(0, 1]"."""
    for name, text in ranges.items():
        value, (low, high) = getattr(values, name), map(float, text[1:-1].split(", "))
        inside = value is None or low < value < high
        at_end = (value == low and "[" in text) or (value == high and "]" in text)
        require(inside or at_end, f"--{name.replace('_', '-')} must be in the range {text}, not {value}.")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether Python, PyTorch, a GPU library or the operating system ran out of memory."""
    if isinstance(error, RuntimeError | OSError):
        return re.search(OUT_OF_MEMORY, str(error)) is not None
    return isinstance(error, MemoryError)


def set_exit_hint(sentence: str, saved: Path) -> None:
    """Set the sentence that ends the message of friendly_errors(), if the file `saved` exists then."""
    _exit_hints[:] = [(sentence, saved)]


@contextmanager
def friendly_errors() -> Iterator[None]:
    """End the program with one sentence, without a traceback, if a UserError or a signal ends the block.

    After Ctrl-C, SIGTERM (from a scheduler) or SIGHUP (the terminal was closed), the exit code is 128 plus the signal's
    number; a second signal ends the program at once. Bugs keep their traceback.
    """
    program = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # a log gets each line at once
    _exit_hints.clear()
    with _signals_interrupt() as received:
        try:
            yield
        except BaseException as error:
            _ignore_worker_exits()
            hints = [sentence for sentence, saved in _exit_hints if saved.exists()]
            if received:  # whatever `error` is: the signal may have ended a worker first
                print(f"{program}: stopped by {signal.Signals(received[0]).name}.", *hints, file=sys.stderr)
                sys.exit(128 + received[0])
            if sentence := _explain(error):
                sys.exit(" ".join([f"{program}: {sentence}", *hints]))
            if hints and not isinstance(error, SystemExit):
                print(*hints, file=sys.stderr)
            raise


@contextmanager
def _signals_interrupt() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt on the first signal, and add its number to the list that this yields."""
    before = {number: handler for number in signal.Signals if number.name in ("SIGINT", "SIGTERM", "SIGHUP")
              and (handler := signal.getsignal(number)) != signal.SIG_IGN}
    received, process = [], os.getpid()

    def stop(number: int, _frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            os._exit(128 + number)
        if os.getpid() == process:  # not in a forked worker, which this process ends
            signal.signal(number, signal.SIG_DFL)  # not the others: Python prints a traceback if one waits
            _ignore_worker_exits()
            raise KeyboardInterrupt

    for number in before:
        signal.signal(number, stop)
    try:
        yield received
    finally:
        if not received:
            for number, handler in before.items():
                signal.signal(number, handler)


def _ignore_worker_exits() -> None:
    """Replace PyTorch's handler, which raises an error when a DataLoader worker ends."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, lambda *_: None)


def _explain(error: BaseException) -> str:
    """One sentence for an error that is not a bug; else ""."""
    if isinstance(error, UserError):
        return str(error)
    if ran_out_of_memory(error):
        reason = (str(error).strip() or "in this process").splitlines()[-1]
        return f"Out of memory ({reason:.200}). Free some memory."
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be used ({error.strerror})."
    if isinstance(error, OSError) and error.errno in (EIO, ENOSPC, EPIPE):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, or Python fails again when it flushes stdout at exit
        return f"Cannot write to stdout ({error.strerror}), so the program stopped."
    return ""


def quiet_worker(_worker_id: int) -> None:
    """A worker_init_fn of DataLoader that prints no traceback if the training ends before it has taken a batch."""
    default = sys.excepthook
    sys.excepthook = lambda kind, *rest: None if issubclass(kind, EOFError | ConnectionError) else default(kind, *rest)


@contextmanager
def advise(hp: Any, machine: Any) -> Iterator[None]:
    """Turn known failures of a training or a prediction into a UserError that says which option to change.

    hp: main.py's Hyperparameters. machine: a runtime.machine.Machine.
    """
    try:
        yield
    except Exception as error:
        if advice := _advice(error, hp, machine):
            raise UserError(advice) from error
        raise


def _advice(error: Exception, hp: Any, machine: Any) -> str:
    if isinstance(error, FloatingPointError):
        float32 = "" if machine.precision == torch.float32 else ", or resume with --precision float32"
        lower = f"--learning-rate {hp.learning_rate / 10:g} (now {hp.learning_rate:g})"
        return f"{error} Resuming would fail again: start a new run with {lower}{float32}."
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):  # importing them takes seconds
        reason = " ".join(str(error).split())
        return f"torch.compile failed on this machine ({reason:.200}). Pass --no-compile."
    fewer = f"pass --workers {machine.workers // 2} (now {machine.workers})."
    for pattern, sentence in WORKER_FAILURES.items():
        if re.search(pattern, f"{type(error).__name__}: {error}"):
            return f"{sentence} {fewer}"
    if not ran_out_of_memory(error):
        return ""
    if "DataLoader worker process" in str(error) or isinstance(error, OSError):
        return f"A DataLoader worker ran out of memory: {fewer}"
    batch, per_step = hp.batch_size, hp.batch_size * hp.accumulate_steps
    remedy = "start a new run with a smaller --input-img-resize"
    if batch > 1:  # with as many images per optimizer step as before, or the run could not be resumed
        smaller = next(count for count in range(batch // 2, 0, -1) if per_step % count == 0)
        remedy = (f"resume with --batch-size {smaller} --accumulate-steps {per_step // smaller} "
                  f"(now {batch} and {hp.accumulate_steps})")
    images = f"{pluralize(batch, 'image')} of {format_size(hp.input_img_resize)}"
    return f"Out of memory on {machine.device} with a batch of {images}. Free some memory, or {remedy}."
