"""Files that are complete or absent: atomic writes, locks, checkpoints."""

import errno
import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import torch
from filelock import FileLock, Timeout

from runtime.errors import UserError, ran_out_of_memory, require

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # errors of a file system that does not support locks


def make_writable(*folders: Path) -> None:
    """Create each folder and write a byte to it, so that a run fails before its first step if it could not save."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=folder) as file:
                file.write(b"\0")
        except OSError as error:
            raise UserError(f"Cannot write to {folder} ({error.strerror}). Pass another folder.") from error


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Re-raise an OSError in the block, which writes `path`, as a UserError that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"Cannot write {path} ({error.strerror}). Make room, or fix the folder.") from error


@contextmanager
def save_atomically(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that appears at `path` when the block ends, complete, in place of an earlier one.

    The block writes to a temporary file in the same folder, which is then flushed to the disk and renamed. If the block
    fails, the temporary file is removed. Raises UserError if the file cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.part")
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
        _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Flush the names in `folder` to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(folder: Path, waiting: str = "") -> ExitStack:
    """Lock `folder` against other processes until the returned object is closed or this process ends.

    If another process has locked it, print `waiting` and wait for that process; without `waiting`, raise UserError.
    On a file system without locks, the folder is not locked.
    """
    file_lock = FileLock(folder / ".lock", thread_local=False, is_singleton=True, fallback_to_soft=False)
    held = ExitStack()
    try:
        held.enter_context(file_lock.acquire(timeout=0 if waiting else 2))  # a process that was killed takes a moment
    except Timeout:
        require(bool(waiting), f"{folder} is in use by another process. Wait for it, or stop it.")
        print(waiting)
        held.enter_context(file_lock.acquire())
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise UserError(f"Cannot lock {folder} ({error.strerror}). Pass another folder.") from error
    return held


def load_checkpoint(path: str | Path) -> dict:
    """Load the checkpoint at `path` to the CPU, without running code in it. Raises UserError if it is not valid."""
    try:
        with zipfile.ZipFile(path) as archive:  # the format of torch.save; torch.load does not verify checksums
            require(archive.testzip() is None, "wrong checksum")
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} may contain code, so it was not loaded. Pass a checkpoint of this program.") from error
    except Exception as error:  # zipfile and torch raise a dozen types, depending on what is damaged
        if ran_out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"Cannot read {path} ({error.strerror}).") from error
        raise UserError(f"{path} is not a checkpoint, or it is incomplete or damaged.") from error
