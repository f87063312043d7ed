"""A run that is killed, interrupted by a signal or short of memory, for real; and then it is resumed."""

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
import torch

from conftest import ROOT
from test_main import SMALL
from tiny import events

pytestmark = pytest.mark.slow


class Run:
    """main.py as a process with a session for itself, with the folders output/ and logs/ in `folder`.

    launch: what starts main.py, such as torchrun and its options. before: what starts Python.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: object,
        launch: Sequence[str] = (),
        before: Sequence[str] = (),
        stderr: int = subprocess.STDOUT,
    ):
        own = {"--output-dir": folder / "output", "--logs-dir": folder / "logs"}
        folders = [word for option in own if option not in arguments for word in (option, own[option])]
        command = [*before, sys.executable, *launch, "main.py", *map(str, [*arguments, *folders])]
        pipes = dict(stdout=subprocess.PIPE, stderr=stderr, text=True)
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        self.process = subprocess.Popen(command, cwd=ROOT, start_new_session=True, env=environment, **pipes)
        self.pid, self.printed, self.output = self.process.pid, "", folder / "output"

    def read_until(self, beginning: str) -> None:
        """Wait for a line that begins like this; fail if the process ends first."""
        for line in self.process.stdout:
            self.printed += line
            if line.startswith(beginning):
                return
        pytest.fail(self.printed)

    def wait_while_missing(self, name: str) -> None:
        """Wait for a file of that name in output/; fail if the process ends first."""
        while not list(self.output.rglob(name)):
            time.sleep(0.005)  # a busy loop would slow down the two threads of the training ten times
            if self.process.poll() is not None:
                pytest.fail(self.ended())

    def wait_while_there(self, name: str) -> None:
        while list(self.output.rglob(name)):
            time.sleep(0.005)

    def ended(self) -> str:
        """Wait for the end -> everything that was printed."""
        self.printed += self.process.communicate(timeout=300)[0]
        return self.printed

    def left(self) -> list[str]:
        """The other processes of its session that are alive."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(FileNotFoundError, ProcessLookupError):
                state, _, _, session = stat.read_text().rpartition(") ")[2].split()[:4]
                if int(session) == self.pid != int(stat.parent.name) and state != "Z":
                    found.append((stat.parent / "cmdline").read_text().replace("\0", " "))
        return found


def models(folder):
    return sorted((folder / "output" / "models").glob("model_*"))


def equal(a, b):
    """Whether two checkpoints are bit-identical."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def without_times(checkpoint):
    """A checkpoint without what differs between equal runs: the speed, and options that may change on resume."""
    for metrics in checkpoint["metrics"]:
        for name in ("seconds", "train_images_per_second", "valid_images_per_second"):
            del metrics[name]
    for name in ("output_dir", "logs_dir", "workers"):
        del checkpoint["options"][name]
    return checkpoint


@pytest.fixture(scope="module")
def training(drawn):
    """Two cars, 8 epochs of about two seconds. The net of SMALL has 35 million parameters, so saving takes a while.

    Everything that has a state, or draws random numbers, is switched on.
    """
    step = "--optimizer AdamW --weight-decay 0.01 --schedule one_cycle --grad-clip 1 --ema-decay 0.9".split()
    light = "--color-jitter 0.2 --grayscale 0.2 --blur 1 --tta".split()
    return ["--input-dir", drawn, *SMALL, *step, *light, "--sample-size", "0.5", "--epochs", "8", "--workers", "1"]


@pytest.fixture(scope="module")
def straight(training, tmp_path_factory):
    """The folder of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("straight")
    run = Run(folder, *training)
    assert "submission  " in run.ended() and run.process.returncode == 0, run.printed
    return folder


def test_a_run_that_is_killed_again_and_again_equals_one_that_was_never_stopped(training, straight, tmp_path):
    seed = random.randrange(10**6)
    print(f"random moments of seed {seed}")
    chance = random.Random(seed)
    moments = [*["any"] * 5, *["start.pt"] * 2, *["last.pt"] * 2, "best.pt"]  # what is being written, or any time
    chance.shuffle(moments)
    (tmp_path / "output").mkdir()
    submission = tmp_path / "output/submit.csv.gz"
    submission.write_bytes(b"an earlier one")
    epochs = []
    for moment in [*moments, "submit.csv.gz"]:
        for stale in (tmp_path / "output").rglob("*.part"):
            stale.unlink()
        resumed = ["--resume", "last", "--workers", chance.choice([0, 1, 2])]
        run = Run(tmp_path, *(resumed if list(tmp_path.glob("output/models/*/last.pt")) else training))
        run.read_until("watch")
        if moment == "any":
            time.sleep(chance.uniform(0, 2.5))
        else:
            run.wait_while_missing(f"{moment}.part".replace("start.pt", "last.pt"))
            if moment == "last.pt":  # the first one has the initial weights
                run.wait_while_there("last.pt.part")
                run.wait_while_missing("last.pt.part")
            time.sleep(chance.uniform(0, 0.05))
        os.kill(run.pid, signal.SIGKILL)
        run.ended()
        assert run.process.returncode == -signal.SIGKILL, run.printed
        last = next(tmp_path.glob("output/models/*/last.pt"), None)
        epochs.append(last and torch.load(last, weights_only=True)["epoch"])
        assert submission.read_bytes() in (b"an earlier one", (straight / "output/submit.csv.gz").read_bytes())
    print(f"saved when it was killed: {epochs}")
    last_of_all = Run(tmp_path, "--resume", "last")
    assert "submission  " in last_of_all.ended(), last_of_all.printed
    assert "is finished (8 epochs)." in last_of_all.printed
    assert "epoch 8/8" not in last_of_all.printed

    (mine,), (theirs,) = ([path.parent for path in run.glob("output/models/*/last.pt")] for run in (tmp_path, straight))
    for name in ("last.pt", "best.pt"):
        a, b = (without_times(torch.load(folder / name, weights_only=True)) for folder in (mine, theirs))
        assert equal(a, b), name
    for name in ("metrics.csv", "score.csv"):
        assert (mine / name).read_bytes() == (theirs / name).read_bytes()
    assert submission.read_bytes() == (straight / "output/submit.csv.gz").read_bytes()
    assert {path.name for path in mine.iterdir()} == {path.name for path in theirs.iterdir()}
    assert {path.name for path in (tmp_path / "output").iterdir()} == {"models", "submit.csv.gz", ".lock"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_cleanly(drawn, tmp_path, number):
    """Ctrl-C in a terminal and SIGTERM from a scheduler reach all processes at once, which is harder than `kill`."""
    run = Run(tmp_path, "--input-dir", drawn, *SMALL, "--sample-size", "0.5", "--workers", "2")
    run.read_until("epoch  2/50")
    time.sleep(random.uniform(0, 1.5))
    assert len(run.left()) >= 2, "control: its workers"
    os.killpg(run.pid, number)
    start = time.monotonic()
    printed = run.ended()
    assert time.monotonic() - start < 20
    assert run.process.returncode == 128 + number
    assert "Traceback" not in printed
    assert printed.splitlines()[-1].startswith(f"main.py: stopped by {number.name}. Epoch ")
    assert re.search(rf"continue with: \S*python main.py --resume {models(tmp_path)[0]}$", printed.rstrip())
    assert run.left() == []
    epoch = int(re.search(r"Epoch (\d+) of 50 is saved", printed)[1])
    saved = torch.load(models(tmp_path)[0] / "last.pt", weights_only=True)["epoch"]
    assert epoch >= 1 and saved in (epoch, epoch + 1)  # the signal may come between saving and saying so
    for folder in ("train", "valid"):
        log = events(next((tmp_path / "logs/tb_logs").iterdir()) / folder)
        steps = [event.step for event in log.Scalars("masks/loss")]
        assert steps in (list(range(1, saved + 1)), list(range(1, saved)))  # a resumed run adds what is missing


def test_a_second_ctrl_c_ends_at_once(drawn, tmp_path):
    run = Run(tmp_path, "--input-dir", drawn, *SMALL, "--sample-size", "0.5", "--workers", "2")
    run.read_until("epoch  1/50")
    os.killpg(run.pid, signal.SIGINT)
    time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    start = time.monotonic()
    printed = run.ended()
    assert time.monotonic() - start < 1 and run.process.returncode == -signal.SIGINT
    assert "Traceback" not in printed
    while run.left():
        assert time.monotonic() - start < 10


def test_output_that_nobody_reads_ends_the_run_after_its_checkpoint(drawn, tmp_path):
    """As when Ctrl-C ends the `tee` that it is piped to."""
    run = Run(tmp_path, "--input-dir", drawn, *SMALL, "--sample-size", "0.5", "--workers", "1", stderr=subprocess.PIPE)
    run.read_until(14 * " " + "train")  # the heading of the table of epochs
    run.process.stdout.close()
    message = run.process.stderr.read()
    assert run.process.wait() == 1
    expected = r"Cannot write to stdout \(Broken pipe\), so the program stopped\. Epoch 1 of 50 is saved; "
    assert re.search(expected, message)
    assert message.count("\n") == 1 and run.left() == []


def test_a_worker_is_killed(drawn, tmp_path):
    """As the kernel does when memory is short."""
    run = Run(tmp_path, "--input-dir", drawn, *SMALL, "--sample-size", "0.5", "--workers", "2")
    run.read_until("epoch  1/50")
    worker = next(int(path.name) for path in Path("/proc").glob("[0-9]*") if parent(path) == run.pid)
    os.kill(worker, signal.SIGKILL)
    printed = run.ended()
    assert run.process.returncode == 1 and "Traceback" not in printed
    assert "A DataLoader worker was killed, most likely because memory ran out" in printed
    assert "pass --workers 1 (now 2)." in printed
    assert re.search(r"is saved; continue with: \S*python main.py --resume", printed) and run.left() == []


def parent(process):
    with suppress(FileNotFoundError, ProcessLookupError):
        return int((process / "stat").read_text().rpartition(") ")[2].split()[1])


def test_memory_runs_out(drawn, tmp_path):
    sizes = "--net UNet1024 --input-img-resize 512 512 --output-img-resize 512 512 --batch-size 16 --workers 0".split()
    run = Run(tmp_path, "--input-dir", drawn, *sizes, "--device", "cpu")
    run.read_until("watch")
    now = 1024 * int(re.search(r"VmSize:\s+(\d+) kB", Path(f"/proc/{run.pid}/status").read_text())[1])
    resource.prlimit(run.pid, resource.RLIMIT_AS, (now + 600 * 2**20,) * 2)
    printed = run.ended()
    assert run.process.returncode == 1 and "Traceback" not in printed
    less = "Out of memory on cpu with a batch of 16 images of 512x512. Free some memory, or resume with --batch-size 8"
    assert f"{less} --accumulate-steps 2 (now 16 and 1). " in printed


@pytest.mark.parametrize("set_epoch", [True, False])
def test_epochs_differ_in_order_and_augmentation(drawn, main_here, monkeypatch, tmp_path, set_epoch):
    """With a learning rate of almost 0, nothing else makes the losses of epochs differ. Control: without set_epoch."""
    if not set_epoch:
        monkeypatch.setattr("data.dataset.TrainImageDataset.set_epoch", lambda self, epoch: None)
        monkeypatch.setattr("data.sampler.ShardedRandomSampler.set_epoch", lambda self, epoch: None)
    arguments = ["--input-dir", str(drawn), *SMALL, "--learning-rate", "1e-30", "--sample-size", "0.5"]
    code, _ = main_here(*arguments, "--epochs", "3", "--workers", "0", "--no-predict")
    assert code == 0
    losses = pd.read_csv(models(tmp_path)[0] / "metrics.csv")["train_loss"]
    assert len(set(losses)) == (3 if set_epoch else 1)
