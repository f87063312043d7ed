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

OUT_OF_MEMORY = re.compile(
    "out of memory|(can't|cannot|could not|unable to) (allocate|mmap|create a memory)|ALLOC(ATION)?_FAILED",
    re.IGNORECASE,
)
WORKER_KILLED = r"DataLoader worker (\(pid|exited)"
WORKER_FAILURES = {  # pattern in the error -> sentence, which ends with the advice to use fewer workers
    rf"Too many open files|ancdata|Errno {EAGAIN}\b":
        "The limit of processes or open files is reached. Raise it (ulimit -a lists it), or",
    "shared memory": "Shared memory (/dev/shm) is full. Enlarge it, or",
    WORKER_KILLED: "A DataLoader worker was killed, most likely because memory ran out. To use less,",
}

_exit_hints: list[tuple[str, Path]] = []  # at most one


class UserError(Exception):
    """A problem that the user can solve, in one sentence, which is printed without a traceback."""

    def __init__(self, sentence: str):
        # A DataLoader worker puts its traceback before the sentence
        super().__init__(sentence.rsplit("UserError: ", 1)[-1].strip())


def require(holds: bool, sentence: str) -> None:
    """Raise UserError(sentence) unless `holds`."""
    if not holds:
        raise UserError(sentence)


def check_ranges(values: object, **ranges: str) -> None:
    """Require that each attribute in `ranges` is None or in its range, such as rotation="[0, 180]", share="(0, 1]"."""
    for name, text in ranges.items():
        value, (low, high) = getattr(values, name), text[1:-1].split(", ")
        ends = [float(end) for end, included in ((low, "[" in text), (high, "]" in text)) if included]
        limits = [f"{'at least' if '[' in text else 'above'} {low}"]
        if high != "inf":
            limits.append(f"{'at most' if ']' in text else 'below'} {high}")
        require(
            value is None or float(low) < value < float(high) or value in ends,
            f"--{name.replace('_', '-')} must be {' and '.join(limits)}, not {value}.",
        )


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether Python, PyTorch, a GPU library or the operating system reports that memory ran out."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError) and bool(OUT_OF_MEMORY.search(str(error)))
    )


def set_exit_hint(sentence: str, saved: Path) -> None:
    """Set the sentence that friendly_errors() adds to the last message of the program, if the file `saved` exists."""
    _exit_hints[:] = [(sentence, saved)]


@contextmanager
def friendly_errors() -> Iterator[None]:
    """End the program with one sentence, without a traceback, if a user's error or a signal ends the block.

    Ctrl-C, SIGTERM (from a scheduler) and SIGHUP (the terminal was closed) raise KeyboardInterrupt; the exit code is
    then 128 plus the signal's number. A second signal ends the program at once. Bugs keep their traceback.
    """
    program = Path(sys.argv[0]).name
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as for a daemon
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, open until the program ends
        getattr(sys, name).reconfigure(line_buffering=True, errors="backslashreplace")  # a log gets each line at once
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
            sentence = _explain(error)
            if sentence:
                sys.exit(" ".join([f"{program}: {sentence}", *hints]))
            if hints and not isinstance(error, SystemExit):
                print(*hints, file=sys.stderr)
            raise


@contextmanager
def _signals_interrupt() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt on the first signal to end the program. Yields a list that the signal is added to."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    received, process = [], os.getpid()

    def stop(number: int, _frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        if os.getpid() == process:  # not in a forked worker, which this process ends
            _ignore_worker_exits()
            received.append(number)
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
    """Replace PyTorch's signal handler, which raises an error when a DataLoader worker ends."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, lambda *_: None)


def _explain(error: BaseException) -> str:
    """Return one sentence for an error that is not a bug; else ""."""
    if isinstance(error, UserError):
        return str(error)
    if ran_out_of_memory(error) or re.search(WORKER_KILLED, str(error)):
        reason = (str(error).strip() or "in this process").splitlines()[-1]
        return f"Out of memory ({reason:.200}). Free some memory."
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be used ({error.strerror})."
    if isinstance(error, OSError) and error.errno in (EIO, ENOSPC, EPIPE):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, or Python fails again when it flushes stdout at exit
        return f"Cannot write to stdout ({error.strerror}), so the program stopped."
    return ""


def quiet_worker(_worker_id: int) -> None:
    """A worker_init_fn of DataLoader: print no traceback if the training ends while it takes a batch from this worker.

    The thread that passes batches on would print it. Errors of the data set are raised in the main process instead.
    """
    default = sys.excepthook
    sys.excepthook = lambda kind, *rest: None if issubclass(kind, EOFError | ConnectionError) else default(kind, *rest)


@contextmanager
def advise(hp: Any, machine: Any, valid_sizes: range, margin: int) -> Iterator[None]:
    """Turn known failures of a training or a prediction into a UserError that says which option to change.

    hp: has batch_size, accumulate_steps, input_img_resize and learning_rate. machine: a runtime.machine.Machine.
    valid_sizes: heights and widths that the net accepts. margin: by how many pixels its masks are smaller.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, FloatingPointError):
            advice = _advice_on_divergence(error, hp, machine)
        elif type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):  # importing them takes seconds
            reason = " ".join(str(error).split())
            advice = f"torch.compile failed on this machine ({reason:.200}). Pass --no-compile."
        else:
            advice = _advice_on_workers(error, machine)
            if not advice and ran_out_of_memory(error):
                advice = _advice_on_memory(hp, machine, valid_sizes, margin)
        if advice:
            raise UserError(advice) from error
        raise


def _advice_on_divergence(error: FloatingPointError, hp: Any, machine: Any) -> str:
    float32 = "" if machine.precision == torch.float32 else ", or resume with --precision float32"
    lower = f"--learning-rate {hp.learning_rate / 10:g} (now {hp.learning_rate:g})"
    return f"{error} Resuming would fail again: start a new run with {lower}{float32}."


def _advice_on_workers(error: Exception, machine: Any) -> str:
    text, fewer = str(error), f"pass --workers {machine.workers // 2} (now {machine.workers})."
    for pattern, sentence in WORKER_FAILURES.items():
        if re.search(pattern, text):
            return f"{sentence} {fewer}"
    in_worker = "DataLoader worker process" in text or isinstance(error, OSError)
    return f"A DataLoader worker ran out of memory: {fewer}" if in_worker and ran_out_of_memory(error) else ""


def _advice_on_memory(hp: Any, machine: Any, valid_sizes: range, margin: int) -> str:
    """How to train with half the memory of the device."""
    batch, accumulate, size = hp.batch_size, hp.accumulate_steps, hp.input_img_resize
    remedies = ["Free some memory"]
    if batch > 1:  # with as many images per optimizer step as before, or the run could not be resumed
        smaller = max(count for count in range(1, batch // 2 + 1) if batch * accumulate % count == 0)
        options = f"--batch-size {smaller} --accumulate-steps {batch * accumulate // smaller}"
        remedies.append(f"resume with {options} (now {batch} and {accumulate})")
    steps = [(7 * side // 10 - valid_sizes.start) // valid_sizes.step for side in size]  # to 70% of each side
    height, width = (valid_sizes[max(0, step)] for step in steps)
    if (height, width) != tuple(size):
        output = f"--output-img-resize {height - margin} {width - margin}"
        remedies.append(f"start a new run with --input-img-resize {height} {width} {output}")
    images = f"{pluralize(batch, 'image')} of {format_size(size)}"
    return f"Out of memory on {machine.device} with a batch of {images}. {', or '.join(remedies)}."
