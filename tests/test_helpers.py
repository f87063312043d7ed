import sys

import pytest
import torch

import helpers
from helpers import UserError, save_atomically


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
    helpers.make_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file.inside can't be written to \(Not a directory\)"):
        helpers.make_writable(tmp_path / "file" / "inside")


def test_seeds_are_a_function_of_all_their_numbers():
    draws = set()
    for numbers in ((1, 2, 0), (1, 3, 0), (1, 2, 1), (2, 2, 0), (1, 2, 0)):
        helpers.seed_everything(*numbers)
        draws.add(torch.rand(()).item())
    assert len(draws) == 4


def test_a_device_that_is_not_there_is_refused_by_name():
    assert helpers.choose_device("cpu") == (torch.device("cpu"), "as asked")
    for name in ("cuda:99", "abacus", "cpu:1"):
        with pytest.raises(UserError, match=f"--device {name} "):
            helpers.choose_device(name)


def test_each_choice_comes_with_a_reason(monkeypatch):
    cpu = torch.device("cpu")
    for capabilities, expected in (
        ({"avx512_bf16": True}, (torch.bfloat16, "this CPU has AVX512-BF16")),
        ({"amx_bf16": True}, (torch.bfloat16, "this CPU has AMX-BF16")),
        ({}, (torch.float32, "this CPU is not faster in bfloat16")),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert helpers.choose_precision(None, cpu) == expected
    assert helpers.choose_precision("float16", cpu) == (torch.float16, "as asked")
    reasons = "device cpu (as asked), precision float32 (as asked), workers 3 (as asked)"
    assert helpers.choose_machine("cpu", "float32", 3) == (cpu, torch.float32, 3, reasons)


@pytest.mark.parametrize(
    ("error", "expected"),
    [(UserError("a.jpg is broken."), "main.py: a.jpg is broken."), (KeyboardInterrupt(), "main.py: stopped; ")],
)
def test_errors_of_the_user_end_in_one_sentence(error, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/main.py"])
    with pytest.raises(SystemExit, match=expected), helpers.errors_in_one_sentence():
        raise error
    with pytest.raises(ZeroDivisionError), helpers.errors_in_one_sentence():  # control: a fault of ours is shown
        _ = 1 / 0
