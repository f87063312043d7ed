"""A zip -> the folder or file that it holds, which stands there whole or not at all."""

import io
import os
import shutil
import stat
import zipfile
from collections.abc import Collection
from pathlib import Path, PureWindowsPath

from tqdm import tqdm

from helpers import Progress
from runtime.errors import UserError, ran_out_of_memory, require
from runtime.files import File, write_errors


class RefusedError(UserError):
    """A zip that can't be taken as it is."""


def unpack(archive: Path, target: Path, count: int | None = None) -> None:
    """Unpack the zip into the folder `target`, or the one file of that name; it stands there whole or not at all.

    The zip is removed. Folders inside it are left out, as photos lie in one. count: how many files must be in it.
    Raises RefusedError for a zip that is damaged, leads elsewhere, or holds something else.
    """
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        with write_errors(part):
            part.mkdir()
        _unpack_into(part, archive, target.name, count)
        with write_errors(target):
            if hasattr(os, "sync"):
                os.sync()  # what is in it is on the disk before it has its name
            os.replace(part / target.name if target.suffix else part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    with write_errors(archive):
        archive.unlink()


def _unpack_into(folder: Path, archive: Path, name: str, count: int | None) -> None:
    try:
        with zipfile.ZipFile(archive) as opened:
            members = _members(opened, archive)
            _check_count(members, archive, name, count)
            require_space(folder.parent, sum(member.file_size for member in members.values()), f"to unpack {archive}")
            progress = Progress(members.items(), f"unpacking {name}", unit="file")
            for own_name, member in progress:
                with opened.open(member) as source, io.BufferedWriter(File(folder / own_name)) as file:
                    shutil.copyfileobj(source, file)  # checks the sum, and reads no more than the zip declares
                    _take(file.tell() == member.file_size, f"{archive} is damaged: {own_name} ends early in it.")
    except UserError:
        raise
    except Exception as error:  # zipfile raises a dozen types, according to where the file is broken
        if ran_out_of_memory(error):
            raise
        if isinstance(error, OSError) and error.errno:
            raise UserError(f"{archive} can't be read ({error.strerror}).") from error
        raise RefusedError(f"{archive} is damaged, or no whole zip ({str(error)!a:.200}): get it once more.") from error


def _members(opened: zipfile.ZipFile, archive: Path) -> dict[str, zipfile.ZipInfo]:
    """The files of a zip by their names without folders; hidden ones, as macOS adds them, left out."""
    members, seen = {}, set()
    for member in opened.infolist():
        path = PureWindowsPath(member.filename)  # which knows / and \ and drives
        kind = stat.S_IFMT(member.external_attr >> 16)  # of Unix; 0 where the zip was made elsewhere
        _take(
            not (path.drive or path.root or ".." in path.parts),
            f"{archive} is refused: {member.filename!a} in it leads elsewhere.",
        )
        _take(
            kind in (0, stat.S_IFREG, stat.S_IFDIR),
            f"{archive} is refused: {member.filename!a} in it is a link, or no file at all.",
        )
        _take(not member.flag_bits & 1, f"{archive} is refused: it asks for a password.")
        if member.is_dir() or kind == stat.S_IFDIR or path.name.startswith(".") or "__MACOSX" in path.parts:
            continue
        _take(path.name.lower() not in seen, f"{archive} is refused: it holds {path.name!a} twice.")
        seen.add(path.name.lower())
        members[path.name] = member
    return members


def _check_count(members: Collection[str], archive: Path, name: str, count: int | None) -> None:
    _take(len(members) > 0, f"{archive} is refused: it holds no files.")
    _take(name in members or not name.endswith(".csv"), f"{archive} is refused: it holds no {name}.")
    if count is not None:
        cars = len({member.partition("_")[0] for member in members})
        _take(
            (len(members), cars) == (count, count // 16),
            f"{archive} holds {len(members):,} files of {cars:,} cars, but the competition has {count:,} of "
            f"{count // 16:,}.",
        )


def _take(holds: bool, sentence: str) -> None:
    if not holds:
        raise RefusedError(sentence)


def require_space(folder: Path, needed: int, to_do: str) -> None:
    """Raises UserError where the disk of `folder` has fewer bytes left than are needed `to_do` something."""
    free = shutil.disk_usage(folder).free
    require(
        needed <= free,
        f"The disk of {folder} has {format_bytes(free)} left, but it takes {format_bytes(needed)} {to_do}: "
        f"{format_bytes(needed - free)} are missing. Make room, or name a folder on another disk: --input-dir FOLDER",
    )


def format_bytes(count: int) -> str:
    return tqdm.format_sizeof(count, "B", 1024)
