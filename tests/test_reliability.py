"""A run that is killed, interrupted by a signal or short of memory, for real; and then it is resumed."""

import os
import random
import re
import resource
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

from processes import SMALL_MAIN, Program, catches, ended, in_folder, left, models, parent, wait_until
from tiny import SMALL, events

pytestmark = pytest.mark.seconds


def start(folder, *arguments, **options):
    """main.py with a small net, whose output is in `folder`."""
    return Program(*SMALL_MAIN, *in_folder(folder, *arguments), **options)


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
    for name in ("output_dir", "logs_dir", "workers", "cache"):
        del checkpoint["options"][name]
    return checkpoint


@pytest.fixture(scope="module")
def training(drawn):
    """Two cars, twenty epochs. Everything that has a state, or draws random numbers, is switched on."""
    step = "--optimizer AdamW --weight-decay 0.01 --schedule one_cycle --grad-clip 1 --ema-decay 0.9".split()
    light = "--color-jitter 0.2 --grayscale 0.2 --blur 1 --tta".split()
    return ["--input-dir", drawn, *SMALL, *step, *light, "--sample-size", "0.5", "--epochs", "20", "--workers", "1"]


@pytest.fixture(scope="module")
def straight(training, tmp_path_factory):
    """The folder of a run that nothing happens to. changes.txt has what it did to its files, in order."""
    folder = tmp_path_factory.mktemp("straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHANGE_LOG", str(folder / "changes.txt"))
        run = start(folder, *training)
    assert "submission  " in run.ended() and run.code == 0, run.printed
    return folder


def test_every_file_is_written_to_a_temporary_one_and_renamed(straight):
    changes = [change.split() for change in (straight / "changes.txt").read_text().splitlines()]
    assert {what for what, _ in changes} == {"open", "half", "os.rename"}
    files = "hyperparameters.json split.csv last.pt best.pt metrics.csv score.csv submit.csv.gz"
    of_cache = [what for what, name in changes if re.fullmatch(r"\w+-32x48-\w+\.cache\..*-\d+\.part", name)]
    assert of_cache == ["open", "os.rename"]
    assert {name for _, name in changes if ".cache" not in name} == {f"{name}.part" for name in files.split()}


def test_a_run_that_is_killed_again_and_again_equals_one_that_was_never_stopped(
    training, straight, tmp_path, monkeypatch
):
    seed = random.randrange(10**6)
    print(f"random moments of seed {seed}")
    chance = random.Random(seed)
    (tmp_path / "output").mkdir()
    submission = tmp_path / "output/submit.csv.gz"
    submission.write_bytes(b"an earlier one")
    moments = ["any", "any", *(str(chance.randrange(1, 17)) for _ in range(6))]  # or before a change of a file
    chance.shuffle(moments)
    epochs = []
    for moment in [*moments, "os.rename submit.csv.gz.part"]:
        for stale in (tmp_path / "output/models").rglob("*.part"):
            stale.unlink()
        resumed = ["--resume", "last", "--workers", chance.choice([0, 1, 2]), chance.choice(["--cache", "--no-cache"])]
        monkeypatch.setenv("KILL_AT", moment)
        if list(tmp_path.glob("output/models/*/last.pt")):
            run = start(tmp_path, *resumed)
        else:
            time.sleep(1)  # the folder of a run is named by the second
            run = start(tmp_path, *training)
        if moment == "any":
            run.read_until("watch")
            time.sleep(chance.uniform(0, 0.5))
            run.kill()
        run.ended()
        assert run.code == -signal.SIGKILL, run.printed
        last = next(tmp_path.glob("output/models/*/last.pt"), None)
        epochs.append(last and torch.load(last, weights_only=True)["epoch"])
        assert submission.read_bytes() in (b"an earlier one", (straight / "output/submit.csv.gz").read_bytes())
    print(f"saved when it was killed: {epochs}")
    monkeypatch.delenv("KILL_AT")
    last_of_all = start(tmp_path, "--resume", "last", "--cache")
    assert "submission  " in last_of_all.ended(), last_of_all.printed
    assert "is finished (20 epochs)." in last_of_all.printed
    assert "epoch 20/20" not in last_of_all.printed

    (mine,), (theirs,) = ([path.parent for path in run.glob("output/models/*/last.pt")] for run in (tmp_path, straight))
    for name in ("last.pt", "best.pt"):
        a, b = (without_times(torch.load(folder / name, weights_only=True)) for folder in (mine, theirs))
        assert equal(a, b), name
    for name in ("metrics.csv", "score.csv"):
        assert (mine / name).read_bytes() == (theirs / name).read_bytes()
    assert submission.read_bytes() == (straight / "output/submit.csv.gz").read_bytes()
    assert {path.name for path in mine.iterdir()} == {path.name for path in theirs.iterdir()}
    assert {path.name for path in (tmp_path / "output").iterdir()} == {"models", "submit.csv.gz", ".lock", "cache"}
    cached, same = (sorted(run.glob("output/cache/[!.]*")) for run in (tmp_path, straight))
    assert [path.name for path in cached] == [path.name for path in same]  # no .part, and no second one
    assert cached[0].read_bytes() == same[0].read_bytes()


@pytest.fixture
def endless(drawn):
    """Arguments of a training that a test ends, of one car, with two workers."""
    return ["--input-dir", drawn, *SMALL, "--sample-size", "0.5", "--workers", "2", "--epochs", "1000"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_cleanly(endless, tmp_path, number):
    """Ctrl-C in a terminal and SIGTERM from a scheduler reach all processes at once, which is harder than `kill`."""
    run = start(tmp_path, *endless)
    run.read_until("epoch    2/1000")
    time.sleep(random.uniform(0, 0.5))
    assert len(left(run.pid)) >= 2, "control: its workers"
    os.killpg(run.pid, number)
    printed = run.ended()
    assert run.code == 128 + number
    assert "Traceback" not in printed
    assert printed.splitlines()[-1].startswith(f"main.py: stopped by {number.name}. Epoch ")
    assert re.search(rf"continue with: \S*python main.py --resume {models(tmp_path)[0]}$", printed.rstrip())
    wait_until(lambda: not left(run.pid))
    epoch = int(re.search(r"Epoch (\d+) of 1000 is saved", printed)[1])
    saved = torch.load(models(tmp_path)[0] / "last.pt", weights_only=True)["epoch"]
    assert epoch >= 1 and saved in (epoch, epoch + 1)  # the signal may come between saving and saying so
    for folder in ("train", "valid"):
        log = events(next((tmp_path / "logs/tb_logs").iterdir()) / folder)
        steps = [event.step for event in log.Scalars("masks/loss")]
        assert steps in (list(range(1, saved + 1)), list(range(1, saved)))  # a resumed run adds what is missing


def test_a_second_ctrl_c_ends_at_once(endless, tmp_path):
    """Its workers hang, so that after the first one it would wait for seconds."""
    run = start(tmp_path, *endless)
    run.read_until("epoch    1/1000")
    workers = [int(path.name) for path in Path("/proc").glob("[0-9]*") if parent(path) == run.pid]
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    os.killpg(run.pid, signal.SIGINT)
    wait_until(lambda: not catches(run.pid, signal.SIGINT))  # or both would be received as one
    os.killpg(run.pid, signal.SIGINT)
    assert len(workers) >= 2 and ended(run.processes[0]) == -signal.SIGINT
    for worker in workers:
        os.kill(worker, signal.SIGCONT)
    assert "Traceback" not in run.ended()
    wait_until(lambda: not left(run.pid))


def test_output_that_nobody_reads_ends_the_run_after_its_checkpoint(endless, tmp_path):
    """As when Ctrl-C ends the `tee` that it is piped to."""
    slow = "--input-img-resize 256 384 --output-img-resize 256 384".split()
    run = start(tmp_path, *endless, *slow, apart=True)  # so that stdout is closed before the first epoch ends
    run.read_until(18 * " " + "train")  # the heading of the table of epochs
    run.stdout.close()
    message = run.stderr.read()
    assert ended(run.processes[0]) == 1
    expected = r"Cannot write to stdout \(Broken pipe\), so the program stopped\. Epoch 1 of 1000 is saved; "
    assert re.search(expected, message)
    assert message.count("\n") == 1
    wait_until(lambda: not left(run.pid))


def test_a_worker_is_killed(endless, tmp_path):
    """As the kernel does when memory is short."""
    run = start(tmp_path, *endless)
    run.read_until("epoch    1/1000")
    worker = next(int(path.name) for path in Path("/proc").glob("[0-9]*") if parent(path) == run.pid)
    os.kill(worker, signal.SIGKILL)
    printed = run.ended()
    assert run.code == 1 and "Traceback" not in printed
    assert "A DataLoader worker was killed, most likely because memory ran out" in printed
    assert "pass --workers 1 (now 2)." in printed
    assert re.search(r"is saved; continue with: \S*python main.py --resume", printed)
    wait_until(lambda: not left(run.pid))


def test_memory_runs_out(drawn, tmp_path):
    sizes = "--net UNet1024 --input-img-resize 1024 1024 --output-img-resize 1024 1024 --batch-size 16".split()
    run = start(tmp_path, "--input-dir", drawn, *sizes, "--workers", "0", "--device", "cpu")
    run.read_until("watch")
    now = 1024 * int(re.search(r"VmSize:\s+(\d+) kB", Path(f"/proc/{run.pid}/status").read_text())[1])
    resource.prlimit(run.pid, resource.RLIMIT_AS, (now + 200 * 2**20,) * 2)
    printed = run.ended()
    assert run.code == 1 and "Traceback" not in printed
    less = "Out of memory on cpu with a batch of 16 images of 1024x1024. Free some memory, or resume with --batch-size"
    assert f"{less} 8 --accumulate-steps 2 (now 16 and 1). " in printed


@pytest.mark.parametrize("set_epoch", [True, False])
def test_epochs_differ_in_order_and_augmentation(drawn, main_here, small_net, monkeypatch, tmp_path, set_epoch):
    """With a learning rate of almost 0, nothing else makes the losses of epochs differ. Control: without set_epoch."""
    if not set_epoch:
        monkeypatch.setattr("data.dataset.TrainImageDataset.set_epoch", lambda self, epoch: None)
        monkeypatch.setattr("data.sampler.ShardedRandomSampler.set_epoch", lambda self, epoch: None)
    arguments = ["--input-dir", str(drawn), *SMALL, "--learning-rate", "1e-30", "--sample-size", "0.5"]
    code, _ = main_here(*arguments, "--epochs", "3", "--workers", "0", "--no-predict")
    assert code == 0
    losses = pd.read_csv(models(tmp_path)[0] / "metrics.csv")["train_loss"]
    assert len(set(losses)) == (3 if set_epoch else 1)


WAYS = [["--workers", workers, cache] for cache in ("--cache", "--no-cache") for workers in ("0", "1", "2")]


def test_a_resumed_run_is_the_same_with_any_workers_with_and_without_a_cache(drawn, main_here, small_net, tmp_path):
    """Two epochs and then one, in each of the six ways, compared with three at once. Control: another seed."""
    step = "--optimizer AdamW --ema-decay 0.9 --color-jitter 0.2 --blur 1 --half-size-epochs 1 --tta".split()
    training = ["--input-dir", drawn, *SMALL, *step, "--sample-size", "0.5"]
    results = []
    straight, stopped = ["--epochs", "3"], ["--epochs", "2", "--no-predict"]
    runs = [(way, straight) for way in (WAYS[0], WAYS[-1], [*WAYS[0], "--seed", "1"])]
    runs += [(way, stopped) for way in WAYS]
    for number, (way, epochs) in enumerate(runs):
        output = ["--output-dir", str(tmp_path / f"{number}/output")]
        code, printed = main_here(*training, *way, *epochs, *output)
        assert code == 0, printed
        if epochs is stopped:
            code, printed = main_here("--resume", "last", *way, *straight, "--predict", *output)
            assert code == 0 and "after epoch 2 of 3." in printed, printed
        (folder,) = models(tmp_path / str(number))
        assert (tmp_path / f"{number}/output/cache").exists() == ("--cache" in way)
        tables = [(folder / name).read_bytes() for name in ("metrics.csv", "score.csv")]
        tables.append((tmp_path / f"{number}/output/submit.csv.gz").read_bytes())
        last, best = (without_times(torch.load(folder / f"{name}.pt")) for name in ("last", "best"))
        results.append([tables, last, best["net"], best["epoch"]])
    for (way, _), result in zip(runs, results, strict=True):
        if "--seed" in way:
            assert result[0] != results[0][0] and not equal(result[2], results[0][2])
        else:
            assert equal(result, results[0]), way
