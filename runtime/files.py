"""Files that are complete or absent: atomic writes, locks, checkpoints."""

import io
import os
import pickle
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import torch

from runtime.errors import UserError, ran_out_of_memory, require

try:
    import fcntl
except ImportError:  # Windows, where a folder isn't locked
    fcntl = None


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
        with write_errors(path, self.beside):
            super().__init__(part or path, mode)

    def write(self, data: bytes) -> int:
        with write_errors(self.path, self.beside):
            return super().write(data)


@contextmanager
def write_errors(path: Path, beside: bool = True) -> Iterator[None]:
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
    with write_errors(folder / ".lock"):
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
            with write_errors(path):
                os.fsync(file.fileno())
        with write_errors(path):
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
