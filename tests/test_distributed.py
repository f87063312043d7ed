"""A training in several processes: forked with the environment that torchrun gives them, or by torchrun itself."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext, suppress
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.distributed as dist
from torch.distributed.run import parse_args

from conftest import ROOT
from data.sampler import ShardedRandomSampler
from processes import SMALL_MAIN, TORCHRUN, Program, Torchrun, in_folder, models, wait_until
from runtime import distributed
from runtime.errors import UserError
from test_main import PAGES, commands, fetcher
from tiny import SMALL


def start(folder, processes, *arguments):
    """main.py with a small net in so many processes."""
    return Program(*SMALL_MAIN, *in_folder(folder, *arguments), processes=processes)


def start_torchrun(folder, *arguments, options=()):
    """The same by torchrun, in two processes."""
    return Torchrun(["--standalone", "--nproc_per_node=2", *options], *SMALL_MAIN, *in_folder(folder, *arguments))


def test_a_restart_keeps_the_name_of_the_run(monkeypatch):
    assert [distributed.first_name(name) for name in ("a", "b")] == ["a", "b"]  # without torchrun
    store = dist.HashStore()  # in place of that of torchrun
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(store, 0, 1)]))
    assert [distributed.first_name(name) for name in ("a", "b")] == ["a", "a"]


@pytest.mark.seconds
def test_images_that_differ_and_too_few_of_them_are_refused(monkeypatch, drawn, main_here, small_net):
    with monkeypatch.context() as patch:
        patch.setattr("runtime.distributed.all_gather", lambda names: [names, ["train/b.jpg"], ["train/a.jpg"]])
        with pytest.raises(UserError, match=r"^The images of process 1 must be those of process 0\. "):
            distributed.require_same([Path("somewhere/train/a.jpg")])
    monkeypatch.setattr("runtime.distributed.WORLD_SIZE", 17)
    for name, alone in (
        ("init_distributed", nullcontext),
        ("all_gather", lambda value: [value]),
        ("broadcast", lambda make: make()),
    ):
        monkeypatch.setattr(f"runtime.distributed.{name}", alone)
    monkeypatch.setattr("runtime.distributed._data_barrier", lambda: None)
    code, _ = main_here("--input-dir", str(drawn), *HALF)
    assert code.startswith("main.py: 16 images to train on is too few for 17 processes. Pass --nproc_per_node=16 or ")


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("images", "count", "batch_size", "accumulate", "step", "rate"),
    [(7, 2, 4, 1, 8, 1), (7, 3, 2, 2, 8, 1), (19, 2, 1, 1, 2, 0.01)],
)
def test_several_processes_take_the_optimizer_steps_of_one(tmp_path, images, count, batch_size, accumulate, step, rate):
    """Two processes get four and three of seven images. Of three processes, one has no image in its second batch. Of
    19 images, the tenth batch of the second process is empty.
    """
    for processes, size, batches in ((1, step, 1), (count, batch_size, accumulate)):
        run = Program("tests/share.py", tmp_path, images, size, batches, rate, processes=processes)
        assert run.ended() is not None and run.code == 0, run.printed
    alone = torch.load(tmp_path / "1-0.pt")
    assert max(change.abs().max().item() for change in alone["changes"]) > 1e-2, "control: the weights changed"
    for rank in range(count):
        share = torch.load(tmp_path / f"{count}-{rank}.pt")
        if sys.platform == "linux":  # PyTorch keeps those of DDP's group
            assert (share["threads"], share["threads left"]) == (6, 2), "a thread could abort the exit"
        for mine, theirs in zip(share["changes"], alone["changes"], strict=True):
            assert (mine - theirs).abs().max() < 1e-6
        first, last = share["means"]
        assert (first == (count - 1) / 2).all() and torch.allclose(last, alone["means"][1])
        # after ten steps, some pixels cross the threshold
        assert share["metrics"] == pytest.approx(alone["metrics"], rel=1e-5, abs=1e-6 if images == 7 else 1e-4)


@pytest.mark.seconds
@pytest.mark.skipif(sys.platform != "linux", reason="/proc has the names of threads")
def test_an_error_leaves_no_thread_that_could_abort_the_exit(tmp_path):
    """Of three groups with two threads each, ours are ended. Nothing uses the third, which a net would use."""
    script = tmp_path / "fails.py"
    script.write_text(f"""
import sys, time
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests")!r}]
from pathlib import Path
from processes import communicating_threads
from runtime import distributed
from runtime.errors import UserError
try:
    with distributed.init_distributed():
        while communicating_threads() < 6:  # until all have started
            time.sleep(0.01)
        raise UserError(distributed.all_gather("it failed")[0])
finally:
    Path({str(tmp_path)!r}, str(distributed.RANK)).write_text(str(communicating_threads()))
""")
    run = Program(script, processes=2)
    assert "UserError: it failed" in run.ended() and run.codes == [1, 1]
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2", "2"]


HALF = [*SMALL, "--sample-size", "0.5", "--workers", "0"]  # 16 images to train on, 16 to validate, 16 to predict
ENDLESS = [*HALF, "--epochs", "1000"]


@pytest.fixture(scope="module")
def alone(drawn, tmp_path_factory):
    """The folder of a run of one epoch in one process: 32 images to train on, 2 batches to validate, 3 to predict."""
    folder = tmp_path_factory.mktemp("alone")
    shutil.copytree(drawn, folder / "input")
    for path in list((folder / "input/test").iterdir()):
        for copy in "ab":
            shutil.copy(path, path.with_name(f"{copy * 12}_{path.stem[-2:]}.jpg"))
    options = ["--batch-size", "5", "--epochs", "1", "--precision", "float32", "--tta"]
    options += ["--sample-size", "1", "--validation-size", "0.5"]
    run = start(folder, 1, "--input-dir", folder / "input", *HALF, *options)
    assert "submission  " in run.ended(), run.printed
    return folder


@pytest.mark.seconds
def test_several_processes_resume_the_run_of_one(drawn, alone, tmp_path, monkeypatch):
    """With batches of 5, three processes take 15 images per step, so that one of them has none of the last two."""
    shutil.copytree(alone, tmp_path, ignore=lambda *_: ["input"], dirs_exist_ok=True)
    monkeypatch.setenv("READ_LOG", str(tmp_path / "read.txt"))
    (run,) = models(tmp_path)
    score, submission = (run / "score.csv").read_bytes(), (tmp_path / "output/submit.csv.gz").read_bytes()
    (run / "score.csv").unlink()
    (tmp_path / "output/submit.csv.gz").unlink()
    predicted = start(tmp_path, 2, "--resume", "last")
    assert "Warning: 10 images per optimizer step from here on, not 5." in predicted.ended()
    assert "2 processes, 5 images per batch in each: 10 per optimizer step" in predicted.printed
    assert len(re.findall("^score ", predicted.printed, re.MULTILINE)) == 1  # only one process prints
    assert (run / "score.csv").read_bytes() == score
    assert (tmp_path / "output/submit.csv.gz").read_bytes() == submission
    assert {path.name for path in (tmp_path / "output").iterdir()} == {"models", "submit.csv.gz", ".lock", "cache"}
    split = pd.read_csv(run / "split.csv").set_index("image")["part"]

    def times_read():
        times = Counter((tmp_path / "read.txt").read_text().splitlines())
        (tmp_path / "read.txt").unlink()
        of_train = [count for path, count in times.items() if split.get(Path(path).name) == "train"]
        return of_train, [count for path, count in times.items() if Path(path).parent.name == "test"]

    assert times_read() == ([], [1] * 48)  # the cache of the first run has those to train on
    trained = start(tmp_path, 3, "--resume", "last", "--epochs", "2", "--no-cache")
    assert "after epoch 1 of 2." in trained.ended() and "epoch 2/2" in trained.printed, trained.printed
    assert times_read() == ([1] * 32, [1] * 48)
    assert len(pd.read_csv(run / "metrics.csv")) == 2


@pytest.mark.seconds
def test_a_run_may_be_resumed_with_the_same_effective_batch_size(alone, tmp_path, main_here, small_net):
    shutil.copytree(alone, tmp_path, ignore=lambda *_: ["input"], dirs_exist_ok=True)
    code, _ = main_here("--resume", "last", "--batch-size", "1")
    assert code.startswith("main.py: --batch-size must stay 5 in ")
    five = "--batch-size 1 --accumulate-steps 5 --epochs 2 --no-predict".split()
    code, printed = main_here("--resume", "last", *five)
    assert code == 0 and "epoch 2/2" in printed


@pytest.mark.seconds
def test_the_command_of_the_readme_starts_several_processes_of_which_one_prints():
    (command,) = commands("torchrun", PAGES[:1])
    assert command == "torchrun --standalone --nproc_per_node=4 main.py"
    launch = [sys.executable, *TORCHRUN, *command.replace("=4", "=2").split()[1:], "--help"]
    done = subprocess.run(launch, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("usage: main.py") == 1


def test_the_torchrun_commands_of_the_pages_are_valid():
    for command in commands("torchrun"):
        assert parse_args(shlex.split(command)[1:]).training_script == "main.py"
    with pytest.raises(SystemExit):
        parse_args(["--nonsense", "main.py"])


SAVED = r"Epoch \d+ of 1000 is saved; continue with: torchrun \.\.\. main.py --resume "


@pytest.mark.seconds
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed_ends_the_others(drawn, tmp_path, rank):
    (tmp_path / "output").mkdir()
    (tmp_path / "output/submit.csv.gz").write_bytes(b"an earlier one")
    run = start_torchrun(tmp_path, *ENDLESS, "--input-dir", drawn)
    run.read_until("epoch    1/1000")
    others = [run.of_rank(each) for each in (0, 1) if each != rank]
    os.kill(run.of_rank(rank), signal.SIGKILL)
    messages = [line for line in run.ended().splitlines() if line.startswith("main.py: ")]
    assert run.code == 1
    assert "Traceback" not in run.printed.replace(TRACEBACK_OF_TORCHRUN, "")
    if rank == 1:
        assert len(messages) == 1 and re.search(SAVED, messages[0])
    else:
        assert len(messages) <= 1  # torchrun may end the other one before it notices
    assert not any(Path(f"/proc/{other}").exists() for other in others)
    assert (tmp_path / "output/submit.csv.gz").read_bytes() == b"an earlier one"
    assert list((tmp_path / "output").rglob("*.part")) == []


TRACEBACK_OF_TORCHRUN = 'Traceback (most recent call last):\n  File "<frozen runpy>'


@pytest.mark.seconds
def test_a_process_that_hangs_ends_all_of_them(drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("DISTRIBUTED_TIMEOUT", "5")
    run = start(tmp_path, 2, *ENDLESS, "--input-dir", drawn)
    run.read_until("epoch    1/1000")
    os.kill(run.pids[1], signal.SIGSTOP)
    run.read_until("main.py: Another process was killed or does not answer, so all processes stopped ")
    os.kill(run.pids[1], signal.SIGCONT)
    printed = run.ended()
    assert re.search(SAVED, printed) and run.codes == [1, 1]


@pytest.mark.seconds
def test_torchrun_restarts_a_killed_training_from_its_last_epoch(drawn, tmp_path, monkeypatch):
    """And in the 8 epochs of two processes, each image that trains is decoded once."""
    training = ["--input-dir", drawn, *HALF, "--epochs", "8"]
    monkeypatch.setenv("READ_LOG", str(tmp_path / "read.txt"))
    straight = start(tmp_path / "straight", 2, *training)
    assert "submission  " in straight.ended(), straight.printed
    monkeypatch.delenv("READ_LOG")
    times = Counter((tmp_path / "read.txt").read_text().splitlines())
    of_masks = [count for path, count in times.items() if path.endswith("_mask.gif")]
    assert sorted(of_masks) == [1] * 16 + [2] * 16  # the score reads those that validate
    run = start_torchrun(tmp_path / "killed", *training, options=["--max-restarts=1"])
    run.read_until("epoch 2/8")
    (own,) = models(tmp_path / "killed")
    shutil.copytree(models(tmp_path / "straight")[0], own.with_name("model_9999"))  # another run that began later
    os.kill(run.of_rank(1), signal.SIGKILL)
    assert f"Resuming {own} after" in run.ended() and "submission  " in run.printed and run.code == 0
    for name in ("metrics.csv", "score.csv"):
        assert (own / name).read_bytes() == (models(tmp_path / "straight")[0] / name).read_bytes()
    assert len(models(tmp_path / "killed")) == 2


@pytest.mark.seconds
def test_torchrun_does_not_resume_an_older_run(drawn, tmp_path):
    """Its own was killed before it was saved."""
    training = ["--input-dir", drawn, *HALF, "--epochs", "1", "--no-predict"]
    start(tmp_path, 1, *training).ended()
    (older,) = models(tmp_path)
    run = Torchrun(["--standalone", "--nproc_per_node=1", "--max-restarts=1"], *SMALL_MAIN,
                   *in_folder(tmp_path, *training))

    def started():
        with suppress(AssertionError, OSError):  # OSError: a process that has ended in between
            return run.of_rank(0)

    wait_until(started, 60)
    os.kill(run.of_rank(0), signal.SIGKILL)
    assert "Resuming " not in run.ended() and "is finished" not in run.printed and run.code == 0, run.printed
    assert len(set(models(tmp_path)) - {older}) == 1


@pytest.mark.seconds
def test_an_error_of_one_process_is_printed_once(drawn, tmp_path):
    folder = tmp_path / "input"
    shutil.copytree(drawn, folder)
    X_train, *_ = fetcher(folder).get_train_files(0.5)
    (share := ShardedRandomSampler(X_train, 0, 1, 2)).set_epoch(1)
    broken = X_train[next(iter(share))]
    broken.write_bytes(broken.read_bytes()[:2000])
    run = start(tmp_path, 2, "--input-dir", folder, *HALF, "--no-cache")
    messages = re.findall(r"^main\.py: .*", run.ended(), re.MULTILINE)
    assert len(messages) == 2 and sum(str(broken) in line for line in messages) == 1
    (other,) = [line for line in messages if str(broken) not in line]
    expected = r"main\.py: Process 1 failed, so all processes stopped\. The initial weights are saved; continue with: "
    assert re.match(expected, other)

    first = start(tmp_path, 2, "--input-dir", folder, *HALF)  # that of the first process, which fills the cache
    (message,) = re.findall(r"^main\.py: .*", first.ended(), re.MULTILINE)
    assert str(broken) in message and first.codes == [1, 1]
    assert [path.name for path in (tmp_path / "output/cache").iterdir()] == [".lock"]
    same = start(tmp_path, 2, "--input-dir", folder, *HALF, "--batch-size", "0")
    assert same.ended().count("--batch-size must be in the range [1, 1e6], not 0.") == 1
    assert same.printed.count("main.py: ") == 1


@pytest.mark.seconds
def test_a_signal_to_torchrun_ends_all_processes_cleanly(drawn, tmp_path):
    run = start_torchrun(tmp_path, *ENDLESS, "--input-dir", drawn)
    run.read_until("epoch    1/1000")
    own = [run.of_rank(rank) for rank in (0, 1)]
    os.killpg(run.pid, signal.SIGTERM)
    messages = [line for line in run.ended().splitlines() if line.startswith("main.py: ")]
    assert len(messages) == 1 and re.match(rf"main.py: stopped by SIGTERM\. {SAVED}", messages[0]), run.printed
    assert not any(Path(f"/proc/{each}").exists() for each in own)


@pytest.fixture
def nodes():
    """Two network namespaces and a cable between them -> their names, and a function that sets it "up" or "down"."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("only root can make network namespaces, with ip")

    def ip(*words):
        return subprocess.run(["ip", *map(str, words)], check=True)

    names = [f"node{number}-{os.getpid()}" for number in (1, 2)]
    for name in names:
        ip("netns", "add", name)
    ip("link", "add", "cable", "netns", names[0], "type", "veth", "peer", "name", "cable", "netns", names[1])
    for number, name in enumerate(names, start=1):
        ip("-n", name, "addr", "add", f"10.9.0.{number}/24", "dev", "cable")
        for device in ("cable", "lo"):
            ip("-n", name, "link", "set", device, "up")
    yield names, lambda state: ip("-n", names[1], "link", "set", "cable", state)
    for name in names:
        ip("netns", "del", name)


@pytest.fixture
def on_nodes(drawn, nodes, tmp_path, monkeypatch):
    """Starts main.py with a torchrun on each node, with these options of torchrun -> a Run for each.

    They share no folder: what the second one needs of a checkpoint comes over the network.
    """
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "cable")
    monkeypatch.setenv("DISTRIBUTED_TIMEOUT", "10")

    def start(options, *arguments):
        runs = []
        for number, name in enumerate(nodes[0]):
            torchrun = ["--nnodes=2", "--nproc_per_node=1", *options(number)]
            command = [*SMALL_MAIN, *in_folder(tmp_path / name, *arguments)]
            runs.append(Torchrun(torchrun, *command, before=["ip", "netns", "exec", name]))
        return runs

    return start


@pytest.mark.slow
@pytest.mark.seconds
def test_two_nodes_train_and_resume_after_the_cable_was_cut(drawn, nodes, on_nodes, tmp_path):
    def options(number):
        return [f"--node_rank={number}", "--master_addr=10.9.0.1", "--master_port=29400"]

    names, plug = nodes
    first, second = on_nodes(options, "--input-dir", drawn, *ENDLESS)
    first.read_until("epoch    2/1000")
    plug("down")
    assert "main.py: Another process was killed or does not answer, so all processes stopped " in first.ended()
    hint = r"Epoch \d+ of 1000 is saved; continue with: torchrun \.\.\. \S*main.py --re"
    assert re.search(hint, first.printed)
    assert re.search(r"so all processes stopped \(.*\)\. Resume with --resume last\.", second.ended()), second.printed
    assert first.code == second.code == 1
    saved = torch.load(models(tmp_path / names[0])[0] / "last.pt", weights_only=True)["epoch"]
    plug("up")
    first, second = on_nodes(options, "--resume", "last", "--epochs", saved + 1)
    assert f"after epoch {saved} of {saved + 1}" in first.ended() and "submission  " in first.printed
    assert second.ended() is not None and second.code == 0
    assert [path.name for path in (tmp_path / names[1] / "output").iterdir()] == ["cache"]  # each machine has its own


@pytest.mark.slow
@pytest.mark.seconds
def test_torchrun_restarts_the_processes_of_both_nodes(drawn, on_nodes):
    def options(number):
        where = ["--rdzv_backend=c10d", "--rdzv_endpoint=10.9.0.1:29400", f"--local_addr=10.9.0.{number + 1}"]
        return [*where, f"--rdzv_conf=is_host={number == 0}", "--rdzv_id=1", "--max-restarts=1"]

    first, second = on_nodes(options, "--input-dir", drawn, *HALF, "--epochs", "8", "--no-predict")
    first.read_until("epoch 1/8")
    os.kill(second.of_rank(1), signal.SIGKILL)
    assert re.search(r"after epoch \d of 8", first.ended()) and "scores  " in first.printed, first.printed
    assert second.ended() is not None and first.code == second.code == 0
