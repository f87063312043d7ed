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
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
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
    lines = ["device cpu (as requested)", "precision float32 (as requested)", "workers 3 (as requested)"]
    assert machine.choose_machine("cpu", "float32", 3) == Machine(workers=3, reasons=f"\n{12 * ' '}".join(lines))
    compiled = machine.choose_machine("cpu", "float32", 3, compile=True)
    assert compiled.compile and "torch.compile (the first training" in compiled.reasons.splitlines()[-1]


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
