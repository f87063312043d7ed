import errno
import os
import signal
import subprocess
import sys
import textwrap
from multiprocessing.connection import Client
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from conftest import ROOT
from runtime import errors
from runtime.errors import UserError
from runtime.machine import Machine
from tiny import Tiny


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
    with pytest.raises(ZeroDivisionError), errors.friendly_errors():  # control: a bug keeps its traceback
        errors.set_exit_hint("Epoch 4 is saved.", saved)
        _ = 1 / 0
    assert capsys.readouterr().err == "Epoch 4 is saved.\n"
    with pytest.raises(SystemExit, match=r"broken\.$"), errors.friendly_errors():
        errors.set_exit_hint("Epoch 5 is saved.", tmp_path / "vanished")
        raise UserError("a.jpg is broken.")
    with pytest.raises(SystemExit, match=r"^main\.py: Out of memory \(can't all"), errors.friendly_errors():
        raise RuntimeError("can't allocate memory")


def test_the_sentence_of_a_worker_comes_without_its_traceback():
    text = "Caught UserError in DataLoader worker process 0.\nTraceback ...\nruntime.errors.UserError: a is b."
    assert str(UserError(text)) == "a is b."


@pytest.mark.seconds
def test_an_error_is_printed_when_output_is_full():
    script = "from runtime import errors\nwith errors.friendly_errors(): print('a line')"
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1 and "Cannot write to stdout (No space left on device), so" in done.stderr, done
    assert "Traceback" not in done.stderr, done


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_program_in_one_sentence_and_a_second_one_at_once(number, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/main.py"])
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD]
    before = [signal.getsignal(each) for each in signals]
    signal.signal(number, signal.SIG_DFL)  # whatever started these tests, such as nohup
    try:
        with pytest.raises(SystemExit) as ended, errors.friendly_errors():
            errors.set_exit_hint("Epoch 3 is saved.", Path(__file__))
            try:
                os.kill(os.getpid(), number)
            finally:
                assert signal.getsignal(number) == signal.SIG_DFL
                raise RuntimeError("another error while it stops")
        assert ended.value.code == 128 + number
        assert capsys.readouterr().err == f"main.py: stopped by {number.name}. Epoch 3 is saved.\n"
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


@pytest.mark.seconds
@pytest.mark.parametrize("in_worker", [False, True])
def test_two_signals_at_once_end_a_process_without_a_traceback(in_worker):
    """As when SIGTERM follows Ctrl-C while the program computes a step."""
    script = textwrap.dedent(f"""
        import os, signal, sys, time
        from runtime.errors import friendly_errors
        two = [signal.SIGINT, signal.SIGTERM]
        with friendly_errors():
            if {in_worker} and (worker := os.fork()):
                sys.exit(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))
            signal.pthread_sigmask(signal.SIG_BLOCK, two)
            for each in two:
                os.kill(os.getpid(), each)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, two)
            time.sleep(60)
        """)
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (128 + signal.SIGTERM, "")


def test_a_forked_worker_keeps_its_handlers_at_the_first_signal(monkeypatch):
    """They are not replaced by the default, with which Python prints a traceback if another signal waits."""
    signals = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = [signal.getsignal(each) for each in signals]
    with errors.friendly_errors():
        inside = [signal.getsignal(each) for each in signals]
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 0)
            signal.raise_signal(signal.SIGINT)
        assert [signal.getsignal(each) for each in signals] == inside != before
    for each, handler in zip(signals, before, strict=True):
        signal.signal(each, handler)


def test_a_signal_that_is_to_be_ignored_stays_ignored():
    """As nohup ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with errors.friendly_errors():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("quietly", [True, False])
def test_a_worker_whose_batch_is_not_taken_prints_no_traceback(quietly, monkeypatch, capfd):
    """As when the training is stopped while it takes a batch. Control: what Python prints by default."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    if quietly:
        errors.quiet_worker(0)
    with open(os.devnull) as file:
        passed_on = DupFd(file.fileno())
        with Client(passed_on._id[0], authkey=None) as taking:
            taking.recv_bytes()  # the first message of the handshake, which is never answered
        os.close(passed_on.detach())  # the next client is served
    assert ("Traceback" in capfd.readouterr().err) is not quietly
    sys.excepthook(ValueError, ValueError("another error"), None)
    assert "another error" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.EPIPE, "Broken pipe"), "Cannot write to stdout (Broken pipe), so the program stopped."),
        (OSError(errno.EACCES, "Permission denied", "a/b"), "a/b cannot be used (Permission denied)."),
        (OSError(errno.EDOM, "of another kind"), None),
    ],
)
def test_an_error_of_the_system_is_named(error, expected, monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # which the first one replaces
    with pytest.raises(SystemExit if expected else OSError) as ended, errors.friendly_errors():
        raise error
    assert ended.value is error if expected is None else ended.value.code.endswith(expected)


class Values:
    share, rate, count, none = 1.0, 0.0, 7, None


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        ({"share": "(0, 1]", "rate": "[0, 1)", "count": "[1, inf)", "none": "(0, 1)"}, None),
        ({"share": "(0, 1)"}, "--share must be in the range (0, 1), not 1.0."),
        ({"rate": "(0, 1]"}, "--rate must be in the range (0, 1], not 0.0."),
        ({"count": "[8, inf)"}, "--count must be in the range [8, inf), not 7."),
    ],
)
def test_a_value_out_of_its_range_is_named_with_the_range(ranges, expected):
    if expected is None:
        errors.check_ranges(Values, **ranges)
    else:
        with pytest.raises(UserError) as error:
            errors.check_ranges(Values, **ranges)
        assert str(error.value) == expected


def advice(error, batch_size=8, accumulate_steps=1, workers=0, **machine):
    """The sentence that advise() raises in place of `error`, or None if it raises `error` itself."""
    hp = SimpleNamespace(
        input_img_resize=(572, 570), batch_size=batch_size, accumulate_steps=accumulate_steps, learning_rate=0.01
    )
    with pytest.raises(BaseException) as raised:  # noqa: SIM117
        with errors.advise(hp, Machine(workers=workers, **machine)):
            raise error
    assert isinstance(raised.value, UserError) or raised.value is error
    return str(raised.value) if isinstance(raised.value, UserError) else None


@pytest.mark.parametrize(
    ("error", "batch_size", "workers", "expected"),
    [
        (MemoryError(), 8, 0, "on cpu with a batch of 8 images of 572x570. Free some memory, or resume with --batch"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 3, 4,
         "resume with --batch-size 1 --accumulate-steps 3 (now 3 and 1)."),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory:"), 1, 0, "1 image of 572x570. Free some memory, or"),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling"), 2, 0,
         "resume with --batch-size 1 --accumulate-steps 2 (now 2 and 1)."),
        (MemoryError("Caught MemoryError in DataLoader worker process 0."), 8, 5, "pass --workers 2 (now 5)."),
        (OSError(12, "Cannot allocate memory"), 8, 5, "worker ran out of memory: pass --workers 2 (now 5)."),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), 8, 1, "was killed, most likely"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), 8, 1, "pass --workers 0 (now 1)."),
        (EOFError(), 8, 3, "pass --workers 1 (now 3)."),
        (ConnectionResetError(104, "Connection reset by peer"), 8, 3, "was killed, most likely"),
        (BrokenPipeError(32, "Broken pipe"), 8, 3, None),  # of stdout
        (RuntimeError("Bus error. ... out of shared memory."), 8, 2, "(/dev/shm) is full. Enlarge it, or"),
        (RuntimeError("unable to allocate shared memory(shm) for file"), 8, 2, "or pass --workers 1 (now 2)."),
        (OSError(24, "Too many open files"), 8, 2, "Raise it (ulimit -a lists it), or pass --workers 1 (now 2)."),
        (OSError(11, "Resource temporarily unavailable"), 8, 2, "The limit of processes or open files is reached."),
        (RuntimeError("received 0 items of ancdata"), 8, 2, "The limit of processes or open files is reached."),
        (RuntimeError("a bug"), 8, 2, None),
        (KeyboardInterrupt(), 8, 2, None),
    ],
)
def test_if_memory_runs_out_the_error_names_what_to_lower_and_to_what(error, batch_size, workers, expected):
    sentence = advice(error, batch_size=batch_size, workers=workers)
    assert (sentence is None) if expected is None else (expected in sentence)


def test_what_cannot_be_lowered_is_not_advised():
    assert "--batch-size 2 --accumulate-steps 7 (now 7 and 2)" in advice(MemoryError(), 7, 2)  # 14 is no multiple of 3
    assert advice(MemoryError(), 1).endswith("or start a new run with a smaller --input-img-resize.")


def test_a_loss_that_is_not_finite_comes_with_a_lower_learning_rate():
    error = FloatingPointError("The loss was not finite at step 3 of epoch 1 (train), so training stopped.")
    lower = f"{error} Resuming would fail again: start a new run with --learning-rate 0.001 (now 0.01)"
    assert advice(error) == f"{lower}."
    assert advice(error, precision=torch.bfloat16) == f"{lower}, or resume with --precision float32."


@pytest.mark.seconds
def test_a_net_that_cannot_be_compiled_ends_the_run_in_one_sentence():
    def no_compiler(*_):
        raise RuntimeError("No working C++ compiler found")

    net = Tiny()
    net.compile(backend=no_compiler)
    with pytest.raises(Exception, match="No working") as failed:
        net(torch.ones(1, *net.in_shape))
    expected = r"torch.compile failed on this machine (backend='no_compiler' raised: RuntimeError: No working C++"
    sentence = advice(failed.value)
    assert sentence.startswith(expected) and sentence.endswith("Pass --no-compile.")
