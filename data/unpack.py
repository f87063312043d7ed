"""Unpack a zip into a folder or file that is either complete or absent."""

import os
import shutil
import stat
import zipfile
from pathlib import Path, PureWindowsPath

from tqdm import tqdm

from helpers import Progress
from runtime.errors import UserError, ran_out_of_memory, require
from runtime.files import write_errors


class RefusedError(UserError):
    """The zip is damaged, unsafe, or not the expected one."""


def unpack(archive: Path, target: Path, count: int | None = None) -> None:
    """Unpack `archive` into the folder `target`, or its one file of that name, and delete it.

    Folders inside the zip are dropped. count: how many images it must contain, 16 per car. Raises RefusedError if it
    is damaged, contains unsafe paths, or is not the expected zip.
    """
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with write_errors(part):
            part.mkdir()
        _unpack_into(part, archive, target.name, count)
        with write_errors(target):
            if hasattr(os, "sync"):
                os.sync()  # the files must be on disk before the folder gets its final name
            os.replace(part / target.name if target.suffix else part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    with write_errors(archive):
        archive.unlink()


def _unpack_into(folder: Path, archive: Path, name: str, count: int | None) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _list_members(opened, archive)
            _check_names([member.filename for member in members], archive, name, count)
            require_space(folder.parent, sum(member.file_size for member in members), f"unpacking {archive}")
            for member in Progress(members, f"unpacking {name}", unit="file"):
                path = folder / member.filename
                with write_errors(path):
                    opened.extract(member, folder)  # checks the CRC and reads at most member.file_size bytes
                _check(path.stat().st_size == member.file_size, archive, f"{member.filename} is truncated")
    except UserError:
        raise
    except Exception as error:  # zipfile raises a dozen types, depending on where the zip is damaged
        if ran_out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{archive} cannot be read ({error.strerror}).") from error
        raise RefusedError(f"{archive} is damaged or not a zip ({str(error)!a:.200}). Download it again.") from error


def _list_members(opened: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    """Returns the files in the zip, renamed to drop their folders. Hidden ones, as macOS adds them, are left out."""
    members, names = [], set()
    for member in opened.infolist():
        path = PureWindowsPath(member.filename)  # splits at / and \, and recognizes drives
        unsafe = path.drive or path.root or ".." in path.parts
        _check(not unsafe, archive, f"{member.filename!a} is outside of its folder")
        kind = stat.S_IFMT(member.external_attr >> 16)  # 0 if the zip was not made on Unix
        _check(kind in (0, stat.S_IFREG, stat.S_IFDIR), archive, f"{member.filename!a} is a link or a special file")
        _check(not member.flag_bits & 1, archive, "it is encrypted")
        if member.is_dir() or kind == stat.S_IFDIR or path.name.startswith(".") or "__MACOSX" in path.parts:
            continue
        _check(path.name.lower() not in names, archive, f"it contains {path.name!a} twice")
        names.add(path.name.lower())
        member.filename = path.name
        members.append(member)
    return members


def _check_names(names: list[str], archive: Path, name: str, count: int | None) -> None:
    _check(len(names) > 0, archive, "it contains no files")
    _check(name in names or not name.endswith(".csv"), archive, f"it does not contain {name}")
    cars = len({each.partition("_")[0] for each in names})
    expected = count is None or (len(names), cars) == (count, count // 16)
    _check(expected, archive, f"it contains {len(names)} images of {cars} cars, not {count} images, 16 per car")


def _check(holds: bool, archive: Path, reason: str) -> None:
    if not holds:
        raise RefusedError(f"{archive} is refused: {reason}. Download it again.")


def require_space(folder: Path, needed: int, task: str) -> None:
    """Raises UserError if the disk of `folder` has fewer than `needed` bytes free for the task."""
    free = shutil.disk_usage(folder).free
    require(
        needed <= free,
        f"The disk of {folder} has {format_bytes(free)} free, but {task} takes {format_bytes(needed)}. "
        f"Free {format_bytes(needed - free)}, or pass --input-dir with a folder on another disk.",
    )


def format_bytes(count: int) -> str:
    return tqdm.format_sizeof(count, "B", 1024)
