import resource
import subprocess
import sys

import pytest
import torch

from conftest import ROOT
from runtime import machine
from runtime.errors import UserError
from runtime.machine import Machine

CPU = torch.device("cpu")


def test_a_device_that_does_not_exist_is_refused_by_name():
    assert machine.choose_device("cpu") == (CPU, "as requested")
    for name in ("cuda:99", "abacus", "cpu:1"):
        with pytest.raises(UserError, match=f"^--device {name} is not "):
            machine.choose_device(name)


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs and 16 cores -> the indexes that were made the current device."""
    chosen = []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", chosen.append)
    monkeypatch.setattr(machine, "count_cores", lambda: 16)
    return chosen


@pytest.fixture
def process(monkeypatch):
    """Makes this one of the processes that torchrun started on this machine."""
    def become(local_rank, local_world_size):
        monkeypatch.setattr(machine, "LOCAL_RANK", local_rank)
        monkeypatch.setattr(machine, "LOCAL_WORLD_SIZE", local_world_size)

    return become


def test_each_process_gets_its_own_accelerator(two_gpus, process):
    process(1, 2)
    for name in (None, "cuda"):
        assert machine.choose_device(name)[0] == torch.device("cuda:1")
    process(0, 1)
    assert machine.choose_device(None)[0] == torch.device("cuda") and two_gpus == [1, 1]
    assert machine.choose_device("cuda:0")[0] == torch.device("cuda:0") and two_gpus.pop() == 0
    for name, count in (("cuda:0", 2), (None, 3)):
        process(0, count)
        expected = f"^{count} processes cannot share --device {name or 'cuda'}: .* has 2. Pass --nproc_per_node=2 "
        with pytest.raises(UserError, match=expected):
            machine.choose_device(name)


def test_processes_share_the_cores(two_gpus, process, monkeypatch):
    cuda = torch.device("cuda")
    threads = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    process(1, 2)
    assert [machine.choose_workers(None, device)[0] for device in (CPU, cuda)] == [2, 8]
    machine.choose_machine("cpu", workers=0)
    process(0, 4)
    assert machine.choose_workers(None, cuda) == (4, "this machine has 16 cores for 4 processes")
    process(0, 1)
    machine.choose_machine("cpu", workers=0)
    assert threads == [8]


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (3, 0), (4, 1), (16, 4)])
def test_on_a_cpu_most_cores_are_left_to_the_net(cores, workers, monkeypatch):
    monkeypatch.setattr(machine, "count_cores", lambda: cores)
    assert machine.choose_workers(None, CPU) == (workers, "the net needs the CPU")


def test_each_choice_comes_with_a_reason(monkeypatch):
    for capabilities, expected in (
        ({"avx512_bf16": True}, (torch.bfloat16, "this CPU supports bfloat16")),
        ({"amx_bf16": True}, (torch.bfloat16, "this CPU supports bfloat16")),
        ({}, (torch.float32, "bfloat16 is not faster on this CPU")),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert machine.choose_precision(None, CPU) == expected
    assert machine.choose_precision("float16", CPU) == (torch.float16, "as requested")
    lines = ["device cpu (as requested)", "precision float32 (as requested)", "workers 3 (as requested)",
             "eager mode (PyTorch's default)"]
    assert machine.choose_machine("cpu", "float32", 3) == Machine(workers=3, reasons=f"\n{12 * ' '}".join(lines))
    compiled = machine.choose_machine("cpu", "float32", 3, compile=True)
    assert compiled.mode == "compile" and "compile mode (as requested; " in compiled.reasons.splitlines()[-1]


@pytest.mark.parametrize(("compile", "device", "precision", "accumulate", "processes", "mode"), [
    (False, "cuda", torch.bfloat16, 1, 1, "CUDA graph"),
    (False, "cuda:1", torch.float32, 1, 1, "CUDA graph"),
    (False, "cuda", torch.float16, 1, 1, "eager"),  # its GradScaler may skip steps
    (False, "cuda", torch.bfloat16, 2, 1, "eager"),  # replays overwrite gradients
    (False, "cuda", torch.bfloat16, 1, 2, "eager"),
    (False, "cpu", torch.bfloat16, 1, 1, "eager"),
    (False, "mps", torch.bfloat16, 1, 1, "eager"),
    (True, "cuda", torch.bfloat16, 1, 1, "compile"),
    (True, "cuda", torch.float16, 2, 2, "compile"),
    (True, "cpu", torch.float32, 1, 1, "compile"),
])  # fmt: skip
def test_the_mode_is_one_that_the_training_allows(monkeypatch, compile, device, precision, accumulate, processes, mode):
    monkeypatch.setattr(machine, "WORLD_SIZE", processes)
    assert machine.choose_mode(compile, torch.device(device), precision, accumulate)[0] == mode


class Plain(torch.nn.Module):
    """A net that records the sizes of its batches."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        return images + 1


def run(net, *shapes):
    for shape in shapes:
        images = torch.rand(shape)
        assert torch.equal(net(images), images + 1)


def test_full_batches_of_each_shape_are_sped_up_once_and_others_are_not():
    plain, made, faster = Plain(), [], []

    def speed_up(net, images):
        assert net is plain
        made.append(tuple(images.shape))
        return lambda images: faster.append(tuple(images.shape)) or images + 1

    net, large, small = machine.Accelerated(plain, speed_up), (4, 3, 8, 8), (4, 3, 4, 4)
    run(net, large, large, (3, 3, 8, 8), large, (1, 3, 8, 8), (0, 3, 8, 8), small, small, (3, 3, 4, 4), large)
    assert made == [large, small] and faster == [large, large, large, small, small, large]
    assert plain.seen == [(3, 3, 8, 8), (1, 3, 8, 8), (0, 3, 8, 8), (3, 3, 4, 4)]
    net.eval()
    run(net, large)
    assert len(faster) == 6 and plain.seen[4:] == [large] and not plain.training
    net.train()
    run(net, large)
    assert len(faster) == 7 and len(made) == 2 and plain.training


def test_a_net_that_cannot_be_sped_up_runs_as_it_is_after_one_warning(capsys):
    def speed_up(net, images):
        raise RuntimeError("operation not permitted\n  when stream is capturing")

    plain = Plain()
    run(machine.Accelerated(plain, speed_up), *[(4, 3, 8, 8)] * 3)
    reason = "operation not permitted when stream is capturing"
    assert capsys.readouterr().out == f"Warning: {reason}. The training continues in eager mode.\n"
    assert plain.seen == [(4, 3, 8, 8)] * 3


def test_out_of_memory_is_not_taken_for_a_net_that_cannot_be_sped_up(capsys):
    def speed_up(net, images):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    plain = Plain()
    with pytest.raises(torch.OutOfMemoryError):
        run(machine.Accelerated(plain, speed_up), (4, 3, 8, 8))
    assert not plain.seen and not capsys.readouterr().out


def test_a_mode_without_a_faster_way_is_the_net_itself():
    plain = Plain()
    assert machine.accelerate(plain, "eager") is plain
    for mode, speed_up in machine.MODES.items():
        assert machine.accelerate(plain, mode).net is plain and machine.accelerate(plain, mode).speed_up is speed_up


def test_capture_undoes_what_its_trial_steps_do_to_batch_norms(monkeypatch):
    """With trial steps in place of CUDA's."""
    def trial_steps(net, sample):
        for _ in range(3):
            net(*sample)
        return net

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", trial_steps)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    net(torch.rand(2, 3, 4, 4))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    graphs = machine.capture(net, torch.rand(2, 3, 4, 4))
    assert before["1.num_batches_tracked"] == 1
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    graphs(torch.rand(2, 3, 4, 4))
    assert not torch.equal(net[1].running_mean, before["1.running_mean"])  # control: a step is not undone


@pytest.mark.seconds
@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
@pytest.mark.parametrize("kept", [True, False])
def test_freed_memory_is_kept_for_the_next_step(kept):
    """A block of 64 MiB, allocated and freed ten times: new pages each time, or once."""
    program = f"""
import resource
import torch
from runtime import machine
if {kept}:
    machine.keep_freed_memory()
for _ in range(30):  # until the heap has its final shape
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    pages = 10 * 2**26 // resource.getpagesize()
    assert int(done.stdout) < pages / 10 if kept else int(done.stdout) > pages / 2
