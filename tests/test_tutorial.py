"""docs/tutorial.md is true: its snippets run, its commands exist, its tables and figures are those that were made."""

import doctest
import importlib
import re
import shlex
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
import tyro
from PIL import Image

import predict
from conftest import ROOT
from data.fetcher import DatasetFetcher
from data.layout import make_layout
from data.reader import Reader
from main import Hyperparameters
from runtime.errors import UserError
from runtime.run import check, parse
from test_main import PAGES

TUTORIAL = ROOT / "docs" / "tutorial.md"
FIGURES = ROOT / "docs" / "figures"
TEXT = TUTORIAL.read_text()
FLAGS = doctest.NORMALIZE_WHITESPACE


def blocks(language: str) -> list[str]:
    return [block for name, block in re.findall(r"^```(\w*)\n(.*?)^```", TEXT, re.DOTALL | re.M) if name == language]


def commands() -> list[str]:
    """The lines of the blocks that are not Python, with continued lines joined."""
    return "".join(blocks("")).replace("\\\n", " ").splitlines()


def failures(text: str) -> str:
    """The report of doctest on the snippets in `text`; "" if they print what they show."""
    report = []
    test = doctest.DocTestParser().get_doctest(text.replace("```", ""), {}, "tutorial", str(TUTORIAL), 0)
    doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(test, out=report.append)
    return "".join(report)


@pytest.mark.seconds
def test_the_snippets_print_what_they_show(tmp_path, monkeypatch):
    (tmp_path / "input").mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(doctest.DocTestParser().get_examples(TEXT.replace("```", ""))) > 50
    with torch.random.fork_rng():
        assert not failures(TEXT)


def test_a_snippet_that_prints_something_else_is_found():
    assert not failures(">>> (572 - 388) // 2\n92\n")
    assert "Expected:\n    91" in failures(">>> (572 - 388) // 2\n91\n")


def test_every_snippet_is_one_that_doctest_sees():
    assert len(blocks("python")) > 15
    assert all(block.startswith(">>> ") for block in blocks("python"))


@pytest.mark.parametrize("command", commands())
def test_the_commands_exist(command):
    program, *arguments = shlex.split(command)
    readme = (ROOT / "README.md").read_text()
    if program == "make":
        assert f"\n{arguments[0]}: " in (ROOT / "Makefile").read_text()
    elif arguments[0] == "main.py":
        check(*parse(Hyperparameters, arguments[1:]))
    elif arguments[0] == "predict.py":
        tyro.cli(predict.Options, args=arguments[1:])
    else:
        assert f"\n{command}\n" in readme


def test_the_commands_are_those_that_are_meant():
    assert {shlex.split(command)[0] for command in commands()} == {"make", "python", "tensorboard", "torchrun"}
    with pytest.raises(SystemExit):
        parse(Hyperparameters, ["--nonsense"])


def test_the_training_is_the_one_that_is_run():
    """The command in the text, of which docs/figures.py runs one for each padding."""
    (quoted,) = (command for command in commands() if "--padding" in command)
    script = " ".join(re.findall(r'"(.*?) ?"', re.search(r"TRAINING = \((.*?)\n\)", source(), re.DOTALL)[1]))
    assert shlex.split(quoted) == ["python", "main.py", *script.split(), "--padding", "reflect"]


def source() -> str:
    return "".join(path.read_text() for path in (ROOT / "docs").glob("*.py"))


def tables() -> dict[str, list[list[str]]]:
    """The rows of each table below its head, by the head."""
    found = {}
    for head, rows in re.findall(r"^(\|.*\|)\n\| ---.*\n((?:\|.*\|\n)+)", TEXT, re.MULTILINE):
        found[head] = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows.splitlines()]
    return found


@pytest.mark.parametrize(("head", "name"), [
    ("| image | mask | zoom | Dice |", "zoom"),
    ("| side | upsampled first | thresholded first |", "ceiling"),
])
def test_the_tables_are_those_that_were_made(head, name):
    table = pd.read_csv(FIGURES / f"{name}.csv")
    assert tables()[head] == [[shown(value) for value in row] for row in table.itertuples(index=False)]


def shown(value: float) -> str:
    """As in the tables: integers, a zoom with three decimals, Dice with four."""
    return f"{value:.0f}" if value == int(value) and value > 1 else f"{value:.3f}" if value > 1 else f"{value:.4f}"


def test_the_table_of_both_runs_is_the_one_that_was_made():
    table = pd.read_csv(FIGURES / "runs.csv")
    (head,) = (head for head in tables() if head.startswith("| padding |"))
    epochs = sorted(table["epoch"].unique())
    assert head == "| padding | " + " | ".join(f"epoch {epoch}" for epoch in epochs) + " | score |"
    for padding, *cells in tables()[head]:
        run = table[table["padding"] == padding].sort_values("epoch")
        assert cells == [f"{dice:.4f}" for dice in [*run["valid_dice"], run["score"].dropna().item()]]


def test_each_figure_is_shown_and_is_made_by_the_script():
    shown = {page.parent / name for page in PAGES for name in re.findall(r"!\[[^\]]+\]\((.*?)\)", page.read_text())}
    assert {path.resolve() for path in shown} == set(FIGURES.glob("*.png")) and len(shown) > 6
    for path in FIGURES.glob("*.png"):
        assert f'"{path.name}"' in source()
        with Image.open(path) as image:
            assert 700 < image.width <= 1000
    assert sum(path.stat().st_size for path in FIGURES.iterdir()) < 1_000_000


@pytest.fixture
def figures(drawn, tmp_path, monkeypatch):
    """docs/figures.py, drawing into a temporary folder, from a small sample."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    script = importlib.import_module("figures")
    monkeypatch.setattr(importlib.import_module("drawing"), "OUT", tmp_path)
    monkeypatch.setattr(script, "run_of", None)  # no test trains
    monkeypatch.setattr(script, "fetcher", lambda: DatasetFetcher(make_layout("carvana", drawn, None, None)))
    return script


class Stub(predict.Segmenter):
    """In place of the demo's net: finds a car in the middle of each image."""

    def __init__(self):
        self.threshold, self.reader = 0.5, Reader()

    def probs(self, images):
        probs = torch.zeros(self.load(images).shape[1:])
        probs[30:60, 30:90] = 1
        return probs


@pytest.mark.seconds
@pytest.mark.parametrize("name", [
    "photo_mask_cutout", "levels", "geometry", "stretch", "augmentation", "gains", "speed", "cutout", "worst"])
def test_the_figures_that_need_no_training_can_be_drawn(figures, name, tmp_path, monkeypatch):
    _, _, X_valid, _ = figures.fetcher().get_train_files()
    table = pd.DataFrame({"image": [path.name for path in X_valid], "dice": 0.5})
    monkeypatch.setattr(figures, "demo", lambda: (Stub(), table))  # of any net
    figures.DRAW[name]()
    (drawn,) = tmp_path.iterdir()
    with Image.open(drawn) as image, Image.open(FIGURES / drawn.name) as committed:
        assert image.size == committed.size
        assert image.info.get("rows") == committed.info.get("rows")  # or the table has changed: make figures


def test_the_plots_have_all_rows_of_their_tables(figures):
    plots = importlib.import_module("plots")
    table = (ROOT / plots.SCORES).read_text().partition("\n## The parts, in")[2].partition("\n## ")[0]
    assert len(plots.gain_rows()) == table.count("\n| ") - 3  # less the titles, the rule and the first row
    names = [name for name, _ in plots.speed_rows()]
    assert {name.split()[0] for name in names} >= {"step", "train", "prediction"}
    assert not [name for name in names if "memory" in name]


def test_without_a_browser_all_other_figures_are_drawn(figures, monkeypatch):
    drawn = []
    for name in list(figures.DRAW)[:-1]:
        monkeypatch.setitem(figures.DRAW, name, lambda name=name: drawn.append(name))
    monkeypatch.setitem(sys.modules, "playwright", None)
    with pytest.raises(UserError, match="installed-browser, which installs one"):
        figures.main([])
    assert drawn == list(figures.DRAW)[:-1]
    assert "\n.venv/installed-browser: " in (ROOT / "Makefile").read_text()


def test_only_the_figures_that_are_named_are_drawn(figures, tmp_path):
    figures.main(["geometry", "ceiling"])
    assert {path.name for path in tmp_path.iterdir()} == {"geometry.png", "ceiling.csv"}
    with pytest.raises(UserError, match="There is no figure nothing"):
        figures.main(["nothing"])


def test_the_tables_that_need_no_training_can_be_made(figures, tmp_path):
    figures.ceiling()
    ceiling = pd.read_csv(tmp_path / "ceiling.csv")
    assert list(ceiling) == list(pd.read_csv(FIGURES / "ceiling.csv"))
    assert (ceiling[["upsampled_first", "thresholded_first"]].iloc[-1] > 0.999).all()  # a mask larger than the image
    figures.zoom()
    assert list(pd.read_csv(tmp_path / "zoom.csv")["zoom"]) == [2.84, 1.474]


def test_an_error_map_is_the_middle_of_tensorboards_images(figures):
    image, mask = torch.full((3, 64, 96), 100, dtype=torch.uint8), torch.zeros(64, 96, dtype=torch.bool)
    mask[:, 48:] = True
    error_map = figures.error_map(image, mask, mask)
    assert error_map.shape == image.shape
    assert (error_map[:, :, :48] == 0).all()  # black
    assert (error_map[1, :, 48:] > error_map[0, :, 48:]).all()  # green


def unindented(text: str) -> str:
    return re.sub("^ +", "", text, flags=re.M)


def test_the_excerpts_are_in_the_source():
    sources = [unindented((ROOT / name).read_text()) for name in ("main.py", "nn/classifier.py")]
    excerpts = [unindented(part) for block in blocks("py") for part in block.split("\n\n")]
    assert len(excerpts) == 5 and any("def optimizer_step" in excerpt for excerpt in excerpts)
    assert all(any(excerpt in source for source in sources) for excerpt in excerpts)


def gain(section: str, row: str) -> float:
    """That row's gain in the first table of a section of the results that docs/score.md is about."""
    results = (ROOT / "benchmarks" / "results" / "2026-11-26-h200-score.md").read_text()
    table = results.partition(f"## {section}\n")[2].partition("\n\n| ")[2].partition("\n\n")[0]
    (line,) = (line for line in table.splitlines() if line.startswith(f"| {row} |"))
    return float(line.split("|")[-5])


def test_the_gains_are_those_that_were_measured():
    gains = [float(row[2].split()[-1]) for row in tables()["| setting | reason | gain | measured with |"]]
    assert gains == sorted(gains, reverse=True)
    side = pd.read_csv(FIGURES / "ceiling.csv").set_index("side").loc[256]
    changes = partial(gain, "Changes to the recipe")
    both = partial(gain, "The recipe and the tutorial's setup")
    expected = [
        -gain("The paper's net", "stretch"), -gain("The parts, in a short training", "the tutorial's"),
        -changes("small affine transforms"), -changes("batch size 8"),
        side["upsampled_first"] - side["thresholded_first"], -changes("hard labels"), changes("512x512"),
        both("the recipe") - both("the recipe, without TTA"), -changes("without color jitter"),
    ]
    assert gains == pytest.approx(expected, abs=1e-6)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the page's titles."""
    titles = re.findall(r"^#+ (.*)", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_lead_somewhere(page):
    links = re.findall(r"\[[^\]]+\]\(([^)\s]+)\)", page.read_text())
    assert links
    for link in links:
        name, _, anchor = link.partition("#")
        if not link.startswith("https://"):
            place = page.parent / name if name else page
            assert place.exists(), link
            assert not anchor or anchor in anchors(place), link


def test_the_anchors_are_those_of_github():
    assert {"8-the-loop-nnclassifierpy-and-nnoptimizerpy", "where-things-are"} <= anchors(TUTORIAL)
    assert "nowhere" not in anchors(TUTORIAL)


def test_the_numbers_quoted_of_real_images_are_those_of_score_md():
    score = (ROOT / "docs" / "score.md").read_text()
    held_out = re.search(r"^\| \| seed 0 .*\n(\|.*\n)+", score, re.M)[0]  # the first table
    titles, _, *rows = [line.strip("|").split("|") for line in held_out.splitlines()]
    means = {row[0].strip(): row[titles.index(" mean ")].strip() for row in rows}
    of_score = ("the tutorial's", "the recipe, without TTA", "the recipe")
    for (name, dice), row in zip(tables()["| | Dice |"], of_score, strict=True):
        assert name.startswith(row) and means[row] == dice
    recipe = score.partition("## The recipe, part by part\n")[2].partition("\n## ")[0]
    results = (ROOT / "README.md").read_text().partition("## Results\n")[2].partition("\n## ")[0]
    summary = score.partition("\n## ")[0]
    rest = score.replace(recipe, "").replace(summary, "")
    for text, count in ((summary + recipe, 6), (results, 2)):
        quoted = re.findall(r"0\.9\d{3}\b", text)
        assert len(quoted) > count and all(f"| {figure} |" in rest for figure in quoted)
