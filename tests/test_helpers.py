import time

import torch

import helpers


def test_without_a_terminal_lines_show_the_progress(capsys, monkeypatch):
    """In a terminal, tqdm's bar is all there is."""
    seconds = iter(range(0, 1000, 25))
    monkeypatch.setattr("helpers.time.monotonic", lambda: next(seconds))
    assert list(helpers.Progress(range(6), "checking", unit="image")) == list(range(6))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "checking: 3 of 6 in 01:15, 01:15 left, 25.00s/image",
        "checking: 6 of 6 in 02:30, 00:00 left, 25.00s/image",
    ]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("helpers.time.monotonic", time.monotonic)
    assert list(helpers.Progress(range(3), "checking")) == [0, 1, 2]
    shown = capsys.readouterr()
    assert "\r" in shown.err and not shown.out


def test_seeds_are_a_function_of_all_their_numbers():
    draws = set()
    for numbers in ((1, 2, 0), (1, 3, 0), (1, 2, 1), (2, 2, 0), (1, 2, 0)):
        helpers.seed_everything(*numbers)
        draws.add(torch.rand(()).item())
    assert len(draws) == 4


def test_nouns_have_a_plural():
    expected = {0: "0 cars", 1: "1 car", 2: "2 cars", 1024: "1,024 cars"}
    assert {number: helpers.pluralize(number, "car") for number in expected} == expected


def test_long_lists_of_names_are_cut_short():
    expected = {"": "", "a": "a", "abc": "a, b, c", "abcde": "a, b, c and 2 more"}
    assert {names: helpers.first_few(names) for names in expected} == expected
    assert helpers.first_few("abcde", None) == "a, b, c, d, e"


def test_a_size_is_height_by_width():
    assert helpers.format_size((388, 572)) == "388x572"
