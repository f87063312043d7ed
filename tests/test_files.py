import errno
import fcntl
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import pytest
import torch

from conftest import ROOT
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
    with pytest.raises(UserError, match=r"^Cannot write to .*file.inside \(Not a directory\)"):
        files.make_writable(tmp_path / "file" / "inside")


def test_a_folder_on_a_full_or_read_only_disk_is_named(small_disk):
    folder, fill = small_disk
    fill()
    with pytest.raises(UserError, match=r"disk \(No space left on device\)\. Pass another folder"):
        files.make_writable(folder)
    subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
    with pytest.raises(UserError, match=r"disk \(Read-only file system\)\. Pass another folder"):
        files.make_writable(folder)


HOLDER = """
import fcntl, sys, time
from pathlib import Path
from torch.utils.data import DataLoader
from runtime import files
if sys.argv[2] == "flock":
    held = open(f"{sys.argv[1]}/.lock", "w")
    fcntl.flock(held, fcntl.LOCK_EX)
else:
    held = files.lock(Path(sys.argv[1]))
batches = iter(DataLoader(range(100), num_workers=2))
next(batches)
print(*[worker.pid for worker in batches._workers], flush=True)
sys.stdin.read()
Path(sys.argv[1], "finished").touch()
"""


@contextmanager
def locked_by_another(folder, how="lock"):
    """A process with two workers that locks `folder` until its stdin is closed -> the process, its workers' ids."""
    command, pipes = [sys.executable, "-c", HOLDER, folder, how], dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes) as process:
        yield process, [int(pid) for pid in process.stdout.readline().split()]
        os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.seconds
def test_a_folder_is_locked_against_other_processes(tmp_path, capsys):
    with locked_by_another(tmp_path) as (process, _):
        with pytest.raises(UserError, match=f"^{tmp_path} is in use by another process"):
            files.lock(tmp_path)
        assert not (tmp_path / "finished").exists()
        Timer(0.2, process.stdin.close).start()
        with files.lock(tmp_path, wait=True):
            assert (tmp_path / "finished").exists()
            assert capsys.readouterr().out == f"Another process is writing to {tmp_path}. Waiting for it.\n"
            files.lock(tmp_path).close()  # a process may lock a folder twice
    with (tmp_path / ".lock").open() as file:  # control: it is unlocked
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.seconds
@pytest.mark.parametrize("how", ["lock", "flock"])
def test_a_lock_ends_with_a_killed_process_before_its_workers_do(tmp_path, how):
    """Forked workers inherit open files, and find out only after seconds that their parent was killed.

    Control: a plain flock outlives the process that took it.
    """
    with locked_by_another(tmp_path, how) as (process, workers):
        assert len(workers) == 2
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)  # they do not find out at all
        process.kill()
        process.wait()
        if how == "lock":
            files.lock(tmp_path).close()
        else:
            with pytest.raises(UserError, match="in use by another process"):
                files.lock(tmp_path)
        assert all(Path(f"/proc/{worker}").exists() for worker in workers)


def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    files.lock(tmp_path).close()


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
        with pytest.raises(UserError, match=f"{name} is not a checkpoint, or it is incomplete or damaged"):
            files.load_checkpoint(tmp_path / name)
    with pytest.raises(UserError, match=r"^Cannot read .*none\.pt \(No such file"):
        files.load_checkpoint(tmp_path / "none.pt")


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "gone" / "a"
    with pytest.raises(UserError, match=r"^Cannot write .*gone/a \(No such file"), save_atomically(path):
        pass
    (tmp_path / "b.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"b \(No space left"), save_atomically(tmp_path / "b") as file:
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


NUMBER = re.search(r'^version = "([\d.]+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]


def test_the_version_has_the_commit_of_a_clone(tmp_path, monkeypatch):
    """A tag does not hide it, and changes that are not committed show. Without git, there is only the number."""
    (tmp_path / "runtime").mkdir()
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    monkeypatch.setattr("runtime.files.__file__", str(tmp_path / "runtime" / "files.py"))
    assert files.version() == NUMBER

    def git(*arguments):
        command = ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    assert files.version() == NUMBER  # nothing is committed yet
    git("add", "pyproject.toml")
    git("commit", "--message", "first")
    git("tag", "v1")
    commit = git("rev-parse", "--short", "HEAD")
    assert len(commit) >= 7 and files.version() == f"{NUMBER} ({commit})"
    with (tmp_path / "pyproject.toml").open("a") as file:
        file.write("# changed")
    assert files.version() == f"{NUMBER} ({commit}-dirty)"
    monkeypatch.setenv("PATH", "")
    assert files.version() == NUMBER


def test_the_sentence_about_another_version_names_both(monkeypatch):
    monkeypatch.setattr(files, "version", lambda: "1.2.0 (aaaaaaa)")
    for saved, other in (({"version": "1.1.0"}, "1.1.0"), ({}, "an earlier one or another program")):
        with pytest.raises(UserError) as raised, files.checkpoint_errors("a.pt", saved):
            raise RuntimeError("Error(s) in loading:\n\tMissing key")
        assert str(raised.value) == (
            f"a.pt is not a checkpoint of this version of the program, 1.2.0 (aaaaaaa), but of {other} (RuntimeError: "
            "Error(s) in loading: Missing key). Use that version, or start a new run.")
    with pytest.raises(UserError, match=r"^another sentence$"), files.checkpoint_errors("a.pt", {}):
        raise UserError("another sentence")
    with pytest.raises(RuntimeError, match="out of memory"), files.checkpoint_errors("a.pt", {}):
        raise RuntimeError("CUDA out of memory")
