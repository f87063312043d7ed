"""Errors in one sentence: UserError, the end of the program, advice for known failures."""

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints


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


def set_exit_hint(sentence: str, saved: Path) -> None:
    """What friendly_errors adds, from now on, to what ends the program, if the file `saved` is there then."""
    _last_words[:] = [(sentence, saved)]


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether this is how Python, torch, a GPU's library or the system says that memory ran out."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError | OSError) and bool(OUT_OF_MEMORY.search(str(error)))
    )


@contextmanager
def friendly_errors() -> Iterator[None]:
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


def quiet_worker(_worker: int) -> None:
    """A DataLoader's worker_init_fn: no traceback where the training ends while it takes a batch from this process.

    The thread that hands batches over would print one. Errors of reading don't come here: they travel with the batches.
    """
    told = sys.excepthook
    sys.excepthook = lambda kind, *error: None if issubclass(kind, EOFError | ConnectionError) else told(kind, *error)


def require(holds: bool, sentence: str) -> None:
    if not holds:
        raise UserError(sentence)


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
