"""Unpack a zip into a folder that is either complete or absent."""

import os
import shutil
import zipfile
from pathlib import Path, PureWindowsPath

from helpers import Progress
from runtime.errors import UserError, ran_out_of_memory
from runtime.files import WriteError, write_errors


class RefusedError(UserError):
    """The zip is damaged, empty or ambiguous."""


def unpack(archive: Path, target: Path) -> None:
    """Unpack `archive` into the folder `target`, and delete it.

    Folders inside the zip are dropped. Raises RefusedError.
    """
    part = target.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        _unpack_into(part, archive)
        with write_errors(target):
            if hasattr(os, "sync"):
                os.sync()  # the files must be on disk before the folder gets its final name
            os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    with write_errors(archive):
        archive.unlink()


def _unpack_into(folder: Path, archive: Path) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _list_members(opened)
            names = {member.filename.lower() for member in members}
            if not names or len(names) < len(members):
                reason = "two files of the same name" if names else "no files"
                raise RefusedError(f"{archive} contains {reason}. Download it again.")
            require_space(folder.parent, sum(member.file_size for member in members), f"unpacking {archive}")
            for member in Progress(members, f"unpacking {archive.name}", unit="file"):
                with write_errors(folder / member.filename):
                    opened.extract(member, folder)  # checks the CRC and reads at most member.file_size bytes
    except Exception as error:  # zipfile raises a dozen types, depending on where the zip is damaged
        if isinstance(error, UserError) or ran_out_of_memory(error):
            raise
        raise RefusedError(f"{archive} is damaged or not a zip ({str(error)!a:.200}). Download it again.") from error


def _list_members(opened: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Returns the files in the zip, renamed to drop their folders. Hidden ones, as macOS adds them, are left out."""
    members = []
    for member in opened.infolist():
        path = PureWindowsPath(member.filename)  # splits at / and \, and recognizes drives
        if not (member.is_dir() or path.name.startswith(".")):
            member.filename = path.name
            members.append(member)
    return members


def require_space(folder: Path, needed: int, task: str) -> None:
    """Raises WriteError if the disk of `folder` has fewer than `needed` bytes free for the task."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise WriteError(f"The disk of {folder} has {format_bytes(free)} free, but {task} takes "
                         f"{format_bytes(needed)}. Free {format_bytes(needed - free)}.")


def format_bytes(count: int) -> str:
    return Progress.format_sizeof(count, "B", 1024)
