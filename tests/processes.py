"""Programs in processes of their own, forked from a server that has imported the libraries, which takes seconds."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Timer

import pytest
from torch.distributed import TCPStore

ROOT = Path(__file__).parent.parent
LIBRARIES = (  # those of the package. Its own files are imported in the new process: they read the environment
    "pytest PIL.Image kagglesdk pandas scipy.stats simplejpeg sklearn.model_selection tensorboardX torch torch._dynamo "
    "torch.distributed torchvision.transforms.v2 tyro"
).split()
LIMIT = 240  # seconds, after which a program is killed
SMALL_MAIN = ["tests/small_main.py", "main.py"]  # main.py with a small net
TORCHRUN = ["-m", "torch.distributed.run"]

forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(LIBRARIES)


def fork(action: Callable, *arguments: object, environ: dict[str, str] | None = None) -> multiprocessing.Process:
    """Start a process that runs action(*arguments) in the environment of now, or another one."""
    process = forks.Process(target=_act, args=(dict(os.environ if environ is None else environ), action, *arguments))
    process.start()
    return process


def _act(environ: dict[str, str], action: Callable, *arguments: object) -> None:
    os.environ.clear()
    os.environ.update(environ)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    action(*arguments)


def run_script(command: Sequence[str], stdout: Connection, stderr: Connection) -> None:
    """What `python *command` does, from the root of the repository."""
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)  # the default, of workers
    os.setsid()
    os.dup2(stdout.fileno(), 1)
    os.dup2(stderr.fileno(), 2)
    stdout.close()
    stderr.close()
    sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
    os.chdir(ROOT)
    sys.argv = list(command)
    sys.path.insert(0, str((ROOT / command[0]).parent))
    runpy.run_path(command[0], run_name="__main__")


def ended(process: multiprocessing.Process, timeout: float = 60) -> int:
    """Wait for the end -> the exit code."""
    process.join(timeout)
    assert process.exitcode is not None, "it still runs"
    return process.exitcode


class Program:
    """A Python program, forked, whose output can be read.

    command: a script and its arguments. processes: how many, each with the environment that torchrun would give it.
    apart: read stderr apart from stdout.
    """

    def __init__(self, *command: object, processes: int = 1, apart: bool = False):
        out, out_end = forks.Pipe(duplex=False)
        err, err_end = forks.Pipe(duplex=False)
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if processes > 1 else None
        environs = environs_of_ranks(processes, self.store) if processes > 1 else [dict(os.environ)]
        self.processes = [
            fork(run_script, list(map(str, command)), out_end, err_end if apart else out_end, environ=environ)
            for environ in environs
        ]
        self.stdout, self.stderr = (os.fdopen(os.dup(pipe.fileno())) for pipe in (out, err))
        for pipe in (out, err, out_end, err_end):
            pipe.close()  # the output ends when the program does
        self.pids, self.printed = [process.pid for process in self.processes], ""
        self._limit_time()

    def _limit_time(self) -> None:
        self.limit = Timer(LIMIT, self.kill)
        self.limit.daemon = True
        self.limit.start()

    def kill(self) -> None:
        """Kill it, with its workers."""
        for pid in self.pids:
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def read_until(self, beginning: str) -> None:
        """Wait for a line that begins like this; fail if the program ends first."""
        for line in self.stdout:
            self.printed += line
            if line.startswith(beginning):
                return
        pytest.fail(self.printed)

    def ended(self) -> str:
        """Wait for the end -> everything that was printed."""
        self.printed += self.stdout.read()
        self.stdout.close()
        self.stderr.close()
        self.limit.cancel()
        self.codes = [ended(process) for process in self.processes]
        return self.printed

    @property
    def pid(self) -> int:
        return self.pids[0]

    @property
    def code(self) -> int:
        """The exit code of its only process, or the highest one."""
        return max(self.codes, key=abs)


class Torchrun(Program):
    """A script, started by torchrun with these options, in a session of its own. before: what starts Python."""

    def __init__(self, options: Sequence[object], *command: object, before: Sequence[str] = ()):
        full = [*before, sys.executable, *TORCHRUN, *map(str, [*options, *command])]
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.process = subprocess.Popen(full, cwd=ROOT, start_new_session=True, **pipes)
        self.stdout, self.pids, self.printed = self.process.stdout, [self.process.pid], ""
        self._limit_time()

    def ended(self) -> str:
        self.printed += self.process.communicate()[0]
        self.limit.cancel()
        self.codes = [self.process.returncode]
        return self.printed

    def of_rank(self, rank: int) -> int:
        """The process id of a rank."""
        for path in Path("/proc").glob("[0-9]*"):
            if parent(path) == self.pid and f"RANK={rank}".encode() in (path / "environ").read_bytes().split(b"\0"):
                return int(path.name)
        raise AssertionError(f"no process of rank {rank}")


def environs_of_ranks(count: int, store: TCPStore) -> Iterator[dict[str, str]]:
    """The environments of `count` processes of this machine, as torchrun sets them. store: torchrun's."""
    all_ranks = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    for rank in range(count):
        yield dict(os.environ) | all_ranks | {"RANK": str(rank), "LOCAL_RANK": str(rank)}


def in_folder(folder: Path, *arguments: object) -> list[object]:
    """Arguments of main.py, with the folders output/ and logs/ in `folder` unless they name others."""
    own = {"--output-dir": folder / "output", "--logs-dir": folder / "logs"}
    return [*arguments, *(word for option in own if option not in arguments for word in (option, own[option]))]


def models(folder: Path) -> list[Path]:
    """The folders of the runs of a main.py whose output is in `folder`."""
    return sorted((folder / "output" / "models").glob("model_*"))


def left(session: int) -> list[str]:
    """The command lines of the processes of a session that are alive, without its first one."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _, _, its = stat.read_text().rpartition(") ")[2].split()[:4]
            if int(its) == session != int(stat.parent.name) and state != "Z":
                found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
    return found


def parent(process: Path) -> int | None:
    """The parent of a process, a folder in /proc."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return int((process / "stat").read_text().rpartition(") ")[2].split()[1])


def catches(process: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    status = Path(f"/proc/{process}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) >> (number - 1) & 1)


def communicating_threads() -> int:
    """How many threads this process has that send tensors to other ones."""
    return sum(path.read_text().startswith("pt_gloo") for path in Path("/proc/self/task").glob("*/comm"))


def wait_until(holds: Callable[[], object], seconds: float = 10) -> None:
    """Wait for holds() to be true."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)
