"""Files that are complete or absent: atomic writes, locks, checkpoints."""

import os
import pickle
import subprocess
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from errno import ENAMETOOLONG
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import torch
from filelock import FileLock, Timeout

from runtime.errors import UserError, ran_out_of_memory, require


def make_writable(*folders: Path) -> None:
    """Create each folder, and raise UserError if nothing can be written to it."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder) as file:
                file.write(b"\0")
        except OSError as error:
            raise UserError(f"Cannot write to {folder} ({error.strerror}). Pass another folder.") from error


class WriteError(UserError):
    """A file cannot be written."""


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Re-raise an OSError as a WriteError that names `path`."""
    try:
        yield
    except OSError as error:
        remedy = "Shorten the name." if error.errno == ENAMETOOLONG else "Make room, or fix the folder."
        raise WriteError(f"Cannot write {path} ({error.strerror}). {remedy}") from error


@contextmanager
def save_atomically(path: Path, suffix: str = ".part") -> Iterator[BinaryIO]:
    """Open a binary file that replaces the one at `path` when the block ends. Raises WriteError.

    A temporary file in the same folder, whose name ends in `suffix`, is written, flushed to the disk and renamed.
    """
    temporary = path.with_name(path.name + suffix)
    try:
        with write_errors(path):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    with suppress(OSError):  # Windows and some network file systems cannot flush a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save_table(table: Any, path: Path) -> None:
    """Save a DataFrame as CSV. Raises WriteError."""
    with save_atomically(path) as file:
        table.to_csv(file, index=False)


def lock(folder: Path, wait: bool = False) -> ExitStack:
    """Lock `folder` against other processes until the returned object is closed or this process ends.

    If another process has locked it, wait for it, or else raise UserError.
    """
    file_lock = FileLock(folder / ".lock", thread_local=False, is_singleton=True, fallback_to_soft=False)
    held = ExitStack()
    try:
        held.enter_context(file_lock.acquire(timeout=0 if wait else 2))  # a process that was killed takes a moment
    except Timeout:
        require(wait, f"{folder} is in use by another process. Wait for it, or stop it.")
        print(f"Another process is writing to {folder}. Waiting for it.")
        held.enter_context(file_lock.acquire())
    except OSError:  # a file system without locks
        pass
    return held


def version() -> str:
    """The version and, in a clone, the commit, as in "1.0.0 (0a1b2c3)"."""
    root = Path(__file__).parent.parent
    number, commit = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"], ""
    if (root / ".git").exists():
        with suppress(OSError):  # there is no git
            describe = ["git", "-C", root, "describe", "--always", "--dirty", "--exclude=*"]
            commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    return f"{number} ({commit})" if commit else number


def saved_runs(output_dir: Path, holding: str = "last.pt") -> list[Path]:
    """The folders of the runs, by time."""
    return [saved.parent for saved in sorted((output_dir / "models").glob(f"model_[0-9]*/{holding}"))]


@contextmanager
def checkpoint_errors(path: str | Path, checkpoint: dict[str, Any]) -> Iterator[None]:
    """Turn an error of using a checkpoint into a UserError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if ran_out_of_memory(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} is not a checkpoint of this version of the program, {version()}, but of "
                        f"{checkpoint.get('version', 'an earlier one or another program')} "
                        f"({reason:.200}). Use that version, or start a new run.") from error


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint, or a folder's best.pt, to the CPU, without running code in it. Raises UserError."""
    path = Path(path, "best.pt") if Path(path).is_dir() else path
    try:
        with zipfile.ZipFile(path) as archive:  # the format of torch.save; torch.load does not verify checksums
            require(archive.testzip() is None, "wrong checksum")
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} may contain code, so it was not loaded. Pass a checkpoint of this program.") from error
    except Exception as error:  # zipfile and torch raise a dozen types
        if ran_out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"Cannot read {path} ({error.strerror}).") from error
        raise UserError(f"{path} is not a checkpoint, or it is incomplete or damaged.") from error
