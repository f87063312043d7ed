import errno
import os
import stat
import subprocess

import pytest
import torch

from runtime import files
from runtime.errors import UserError
from runtime.files import save_atomically


def test_an_unfinished_file_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), save_atomically(path) as file:
        file.write(b"half of the n")
        assert path.read_bytes() == b"old"
        raise RuntimeError
    assert path.read_bytes() == b"old" and [each.name for each in tmp_path.iterdir()] == ["a.txt"]
    with save_atomically(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_folders_that_cannot_be_written_are_named(tmp_path):
    files.make_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.inside can't be written to \(Not a directory\)"):
        files.make_writable(tmp_path / "file" / "inside")


def test_a_folder_on_a_full_or_read_only_disk_is_named(small_disk):
    folder, fill = small_disk
    fill()
    with pytest.raises(UserError, match=r"disk can't be written to \(No space left on device\); name another folder"):
        files.make_writable(folder)
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    with pytest.raises(UserError, match=r"disk can't be written to \(Read-only file system\); name another folder"):
        files.make_writable(folder)


def test_a_disk_without_locks_is_used_without(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", no_locks)
    assert files.lock(tmp_path) is None


def test_what_is_no_whole_checkpoint_is_refused_by_name(tmp_path):
    torch.save({"net": torch.arange(10_000)}, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()
    assert files.load_checkpoint(tmp_path / "a.pt")["net"].sum() == 49_995_000
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    torch.save([1, 2], tmp_path / "list.pt")
    faults = {"half.pt": whole[: len(whole) // 2], "flipped.pt": damaged, "text.pt": b"no checkpoint", "empty.pt": b""}
    for name, content in faults.items():
        (tmp_path / name).write_bytes(content)
    for name in (*faults, "list.pt"):
        with pytest.raises(UserError, match=f"{name} is no checkpoint, or was cut short or damaged"):
            files.load_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match=r"none\.pt can't be read \(No such file"):
        files.load_checkpoint(tmp_path / "none.pt")


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "gone" / "a"
    with pytest.raises(UserError, match=r"gone/a can't be written \(No such file"), save_atomically(path):
        pass
    (tmp_path / "b.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"b can't be written \(No space left"), save_atomically(tmp_path / "b") as file:
        file.write(b"much")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_cannot_sync_a_folder_is_no_error(tmp_path, monkeypatch):
    def fsync(number):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("os.fsync", fsync)
    with save_atomically(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
