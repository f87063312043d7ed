import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Client
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Literal

import pytest
import torch

import helpers
from conftest import ROOT
from runtime import errors, files, machine
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


def test_where_no_terminal_shows_a_bar_lines_tell_how_far_it_is(capsys, monkeypatch):
    """In a terminal, tqdm's bar is all there is."""
    seconds = iter(range(0, 1000, 25))
    monkeypatch.setattr("helpers.time.monotonic", lambda: next(seconds))
    assert list(helpers.Progress(range(6), "checking", unit="photo")) == list(range(6))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "checking: 3 of 6 in 01:15, 01:15 left, 25.00s/photo",
        "checking: 6 of 6 in 02:30, 00:00 left, 25.00s/photo",
    ]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("helpers.time.monotonic", time.monotonic)
    assert list(helpers.Progress(range(3), "checking")) == [0, 1, 2]
    shown = capsys.readouterr()
    assert "\r" in shown.err and not shown.out


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


def test_seeds_are_a_function_of_all_their_numbers():
    draws = set()
    for numbers in ((1, 2, 0), (1, 3, 0), (1, 2, 1), (2, 2, 0), (1, 2, 0)):
        helpers.seed_everything(*numbers)
        draws.add(torch.rand(()).item())
    assert len(draws) == 4


def test_a_device_that_is_not_there_is_refused_by_name():
    assert machine.choose_device("cpu") == (torch.device("cpu"), "as asked")
    for name in ("cuda:99", "abacus", "cpu:1"):
        with pytest.raises(UserError, match=f"--device {name} "):
            machine.choose_device(name)


def test_each_process_of_a_box_has_its_own_accelerator_and_its_share_of_the_cores(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    for name in (None, "cuda"):
        assert machine.choose_device(name, 1, 2)[0] == torch.device("cuda:1")
    assert machine.choose_device(None)[0] == torch.device("cuda") and chosen == [1, 1]
    assert machine.choose_device("cuda:0")[0] == torch.device("cuda:0") and chosen.pop() == 0
    for name, count in (("cuda:0", 2), (None, 3)):
        told = f"^{count} processes can't share out --device {name or 'cuda'}, of which this machine has 2: say --nproc"
        with pytest.raises(UserError, match=told):
            machine.choose_device(name, 0, count)
    monkeypatch.setattr(machine, "count_cores", lambda: 16)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [machine.choose_workers(None, device, 2)[0] for device in (cpu, cuda)] == [2, 8]
    assert machine.choose_workers(None, cuda, 4) == (4, "this machine has 16 cores for 4 processes")
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    machine.choose_machine("cpu", None, 0, 1, 2)
    machine.choose_machine("cpu", None, 0)
    assert threads == [8]


def test_each_choice_comes_with_a_reason(monkeypatch):
    cpu = torch.device("cpu")
    for capabilities, expected in (
        ({"avx512_bf16": True}, (torch.bfloat16, "this CPU has AVX512-BF16")),
        ({"amx_bf16": True}, (torch.bfloat16, "this CPU has AMX-BF16")),
        ({}, (torch.float32, "this CPU is not faster in bfloat16")),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert machine.choose_precision(None, cpu) == expected
    assert machine.choose_precision("float16", cpu) == (torch.float16, "as asked")
    reasons = "device cpu (as asked)\n            precision float32 (as asked)\n            workers 3 (as asked)"
    assert machine.choose_machine("cpu", "float32", 3) == (cpu, torch.float32, 3, reasons)


def test_errors_of_the_user_end_in_one_sentence(monkeypatch, capsys, tmp_path):
    saved = tmp_path / "last.pt"
    saved.touch()
    monkeypatch.setattr(sys, "argv", ["/somewhere/main.py"])
    with pytest.raises(SystemExit, match=r"^main\.py: a\.jpg is broken\.$"), errors.friendly_errors():
        raise UserError("a.jpg is broken.")
    with pytest.raises(SystemExit, match=r"broken\. Epoch 3 is saved\.$"), errors.friendly_errors():
        errors.set_exit_hint("Epoch 2 is saved.", saved)
        errors.set_exit_hint("Epoch 3 is saved.", saved)
        raise UserError("a.jpg is broken.")
    with pytest.raises(ZeroDivisionError), errors.friendly_errors():  # control: a fault of ours is shown
        errors.set_exit_hint("Epoch 4 is saved.", saved)
        _ = 1 / 0
    assert capsys.readouterr().err == "Epoch 4 is saved.\n"
    with pytest.raises(SystemExit, match=r"broken\.$"), errors.friendly_errors():
        errors.set_exit_hint("Epoch 5 is saved.", tmp_path / "vanished")
        raise UserError("a.jpg is broken.")
    with pytest.raises(SystemExit, match=r"^main\.py: Memory ran out \(can't all"), errors.friendly_errors():
        raise RuntimeError("can't allocate memory")
    with pytest.raises(SystemExit, match=r"DataLoader worker.*\): free some\.$"), errors.friendly_errors():
        raise RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly")


@pytest.mark.slow
def test_it_runs_without_output_and_says_when_output_is_full():
    script = "from runtime import errors\nwith errors.friendly_errors(): print('a line')"
    for redirect, code, told in ((">&-", 0, ""), ("2>&-", 0, ""), (">/dev/full", 1, "can't be written ([Errno 28] No")):
        done = subprocess.run(
            f"{sys.executable} -c \"{script}\" {redirect}", shell=True, cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        assert done.returncode == code and told in done.stderr and "Traceback" not in done.stderr, (redirect, done)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_program_in_one_sentence_and_a_second_one_at_once(number, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/main.py"])
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD]
    before = [signal.getsignal(each) for each in signals]
    signal.signal(number, signal.SIG_DFL)  # whatever these tests were started by, as nohup
    try:
        with pytest.raises(SystemExit) as ended, errors.friendly_errors():
            errors.set_exit_hint("Epoch 3 is saved.", Path(__file__))
            try:
                os.kill(os.getpid(), number)
            finally:
                assert signal.getsignal(number) == signal.SIG_DFL
                raise RuntimeError("what comes up while it stops")
        assert ended.value.code == 128 + number
        assert capsys.readouterr().err == f"main.py: stopped by {number.name}. Epoch 3 is saved.\n"
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


@pytest.mark.parametrize("quietly", [True, False])
def test_a_batch_that_nobody_takes_any_more_is_no_traceback(quietly, monkeypatch, capfd):
    """As when the training is stopped in the middle of taking it. Control: what Python prints of its own accord."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    if quietly:
        errors.quiet_worker(0)
    with open(os.devnull) as file:
        handed_over = DupFd(file.fileno())
        with Client(handed_over._id[0], authkey=None) as taking:
            taking.recv_bytes()  # the first of its questions; the answer never comes
        os.close(handed_over.detach())  # who comes next is served all the same
    assert ("Traceback" in capfd.readouterr().err) is not quietly
    sys.excepthook(ValueError, ValueError("another error"), None)
    assert "another error" in capfd.readouterr().err


def test_a_signal_that_is_to_be_ignored_stays_ignored():
    """As nohup has it for SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with errors.friendly_errors():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


class Values:
    share, rate, count, none = 1.0, 0.0, 7, None


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ({"share": "(0, 1]", "rate": "[0, 1)", "count": "[1, inf)", "none": "(0, 1)"}, None),
        ({"share": "(0, 1)"}, "--share 1.0 can't be: it must be above 0 and below 1."),
        ({"rate": "(0, 1]"}, "--rate 0.0 can't be: it must be above 0 and at most 1."),
        ({"count": "[8, inf)"}, "--count 7 can't be: it must be at least 8."),
    ],
)
def test_a_value_out_of_its_range_is_named_with_the_range(ranges, expected):
    if expected is None:
        errors.validate(Values, **ranges)
    else:
        with pytest.raises(UserError) as error:
            errors.validate(Values, **ranges)
        assert str(error.value) == expected


def test_what_is_counted_has_its_plural():
    assert [helpers.pluralize(number, "car") for number in (0, 1, 2, 1024)] == ["0 cars", "1 car", "2 cars", "1,024 cars"]


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


def test_a_file_that_can_not_be_written_is_named(tmp_path):
    path = tmp_path / "gone" / "a"
    with pytest.raises(UserError, match=r"gone/a can't be written \(No such file"), save_atomically(path):
        pass
    (tmp_path / "b.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"b can't be written \(No space left"), save_atomically(tmp_path / "b") as file:
        file.write(b"much")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
@pytest.mark.parametrize("kept", [True, False])
def test_memory_that_is_freed_is_kept_for_the_next_step(kept):
    """A block of 64 MiB, asked for and freed ten times: each time new pages, or once."""
    program = f"""
import resource
import torch
from runtime import machine
if {kept}:
    machine.keep_freed_memory()
for _ in range(30):  # until the heap has found its shape
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    pages = 10 * 2**26 // resource.getpagesize()
    assert int(done.stdout) < pages / 10 if kept else int(done.stdout) > pages / 2


def test_a_disk_that_can_not_sync_a_folder_is_no_fault(tmp_path, monkeypatch):
    def fsync(number):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr("os.fsync", fsync)
    with save_atomically(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.EAGAIN, "The system gives this program no more processes or files (Resource temporarily unavailable)"),
        (errno.EMFILE, "The system gives this program no more processes or files (Too many open files): say a smaller"),
        (errno.EPIPE, "what it prints can't be written ([Errno 32] Broken pipe), so it stopped."),
    ],
)
def test_an_error_of_the_system_is_called_what_it_is(number, told, monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # which the last one replaces
    with pytest.raises(SystemExit) as ended, errors.friendly_errors():
        raise OSError(number, os.strerror(number))
    assert told in ended.value.code


@dataclass
class Defaults:
    """As at the top of main.py."""

    padding: Literal["reflect", "stretch"] = "reflect"
    precision: Literal["float32"] | None = None
    size: tuple[int, int] = (572, 572)
    count: int = 3
    rate: float = 1
    flip: bool = True
    folder: Path = Path("input")
    device: str | None = None


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("padding", "mirrored", "padding = 'mirrored' can't be: it must be reflect or stretch."),
        ("precision", "float", "precision = 'float' can't be: it must be float32 or None."),
        ("size", 572, "size = 572 can't be: it must be (a whole number, a whole number)."),
        ("size", (572, 5.0), "size = (572, 5.0) can't be: it must be (a whole number, a whole number)."),
        ("size", (1, 2, 3), "size = (1, 2, 3) can't be: it must be (a whole number, a whole number)."),
        ("count", 2.5, "count = 2.5 can't be: it must be a whole number."),
        ("count", True, "count = True can't be: it must be a whole number."),
        ("rate", "0.1", "rate = '0.1' can't be: it must be a number."),
        ("flip", "no", "flip = 'no' can't be: it must be True or False."),
        ("folder", "input", "folder = 'input' can't be: it must be a Path(\"...\")."),
        ("device", 0, "device = 0 can't be: it must be text or None."),
    ],
)
def test_a_default_that_is_not_of_its_type_is_named(name, value, expected, monkeypatch):
    errors.validate_defaults(Defaults)
    monkeypatch.setattr(Defaults, name, value)
    with pytest.raises(UserError) as error:
        errors.validate_defaults(Defaults)
    assert str(error.value) == expected
