"""docs/tutorial.ipynb is what docs/make_notebook.py makes of docs/tutorial.md, and it runs."""

import ast
import io
import json
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from conftest import ROOT
from test_tutorial import TEXT, anchors
from tiny import SMALL

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
make_notebook = runpy.run_path(str(ROOT / "docs" / "make_notebook.py"))["make_notebook"]


def cells(text: str, kind: str = "code") -> list[tuple[str, str]]:
    """The JSON of a notebook -> (source, text that its outputs show) of each cell of a kind."""
    found = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == kind]
    return [("".join(cell["source"]), shown(cell.get("outputs", []))) for cell in found]


def shown(outputs: list[dict]) -> str:
    return "".join(line for output in outputs for line in
                   output.get("text") or output.get("data", {}).get("text/plain", ""))


def is_magic(source: str) -> bool:
    return source.startswith(("!", "%")) or "IPython" in source


(_, (SETUP, _), _, (KAGGLE, _), *REST) = cells(NOTEBOOK.read_text())
SNIPPETS = [cell for cell in REST if not is_magic(cell[0])]
COMMANDS = [source for source, _ in REST if is_magic(source)]


def run_cell(source: str, names: dict) -> str:
    """Run a cell as IPython does -> what it prints, and its value."""
    *body, last = ast.parse(source).body
    with redirect_stdout(io.StringIO()) as printed:
        exec(compile(ast.Module(body, []), "cell", "exec"), names)
        exec(compile(ast.Interactive([last]), "cell", "single"), names)
    return printed.getvalue()


def test_it_is_what_the_script_makes():
    assert make_notebook(TEXT) == NOTEBOOK.read_text(), "run: make notebook"


def test_its_format_is_valid():
    notebook = json.loads(NOTEBOOK.read_text())
    nbformat.validate(notebook)
    with pytest.raises(nbformat.ValidationError):
        nbformat.validate(notebook | {"cells": [{"cell_type": "code"}]})


def test_it_has_every_snippet_in_order():
    unfolded = re.sub(r"^<details.*?^</details>", "", TEXT, flags=re.DOTALL | re.MULTILINE)
    lines = [line[4:].strip() for line in unfolded.splitlines() if line.startswith((">>> ", "... "))]
    in_notebook = iter([line.strip() for source, _ in SNIPPETS for line in source.splitlines()])
    assert len(lines) > 50 and all(line in in_notebook for line in lines)


def test_its_links_lead_somewhere():
    text = "\n".join(source for source, _ in cells(NOTEBOOK.read_text(), "markdown"))
    links = re.findall(r"\[[^\]]+\]\(([^)\s]+)\)", text)
    for link in links:
        name, _, anchor = link.partition("#")
        if not link.startswith("https://"):
            page = NOTEBOOK.parent / name
            assert page.is_file() and (not anchor or anchor in anchors(page)), link
    assert "tutorial.md" in links


def test_run_all_trains_the_demo_alone():
    trainings = [command for command in COMMANDS if "main.py" in command]
    assert trainings and all(" --dataset sample " in each and each.endswith(" --epochs {EPOCHS}") for each in trainings)


def test_each_form_of_a_page():
    page = """\
# Title

Text with a [link](#one).

## One

    indented = 1

```
source .venv/bin/activate
```
```python
>>> a = 1  # without output
>>> for i in range(2):
...     a += i
>>> a
2
>>> int("b.c")
Traceback (most recent call last):
    ...
ValueError: invalid literal for int()
with base 10: 'b.c'
```
```
python main.py --dataset sample --net UNet1024 \\
    --epochs 14
```
```
python main.py
tensorboard --logdir=./logs
```
<details>
<summary>Answer</summary>

### Not a cell

```python
>>> 1
1
```
</details>

![A figure](figures/levels.png)
Text ![in a line](figures/levels.png).
"""
    made = make_notebook(page)
    nbformat.validate(json.loads(made))
    assert cells(made)[4:] == [
        ("a = 1  # without output\nfor i in range(2):\n    a += i\na", "2\n"),
        ('try:\n    int("b.c")\nexcept Exception as error:\n    print(f"{type(error).__name__}: {error}")',
         "ValueError: invalid literal for int()\nwith base 10: 'b.c'\n"),
        ("!python main.py --dataset sample --net UNet1024 \\\n    --epochs {EPOCHS}", ""),
        ('# A figure\nIPython.display.Image("docs/figures/levels.png")', ""),
    ]
    title, *setup, one, answer, end = [source for source, _ in cells(made, "markdown")]
    assert title == "# Title\n\nText with a [link](tutorial.md#one)." and setup[0].startswith("## Set up")
    assert one == "## One\n\n    indented = 1\n\n```\nsource .venv/bin/activate\n```"
    assert answer.startswith("```\npython main.py\ntensorboard") and answer.endswith("1\n```\n</details>")
    assert end == "Text ![in a line](figures/levels.png)."


@pytest.mark.seconds
def test_its_snippets_print_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    with torch.random.fork_rng():
        for source, expected in SNIPPETS:
            assert run_cell(source, names).split() == expected.split(), source


@pytest.fixture
def run_setup(tmp_path, monkeypatch):
    """-> a function that runs the setup in a folder, and returns the folder that it goes to. package/ is a package."""
    (tmp_path / "package" / "nn").mkdir(parents=True)
    (tmp_path / "package" / "docs").mkdir()
    (tmp_path / "package" / "nn" / "unet_origin.py").touch()
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PATH", os.environ["PATH"])

    def run(folder: str, repository: str = "") -> str:
        monkeypatch.chdir(tmp_path / folder)
        run_cell(SETUP, {"REPOSITORY": repository})
        assert sys.path[0] == os.getcwd() and shutil.which("python") == str(Path(sys.executable).with_name("python"))
        return str(Path.cwd().relative_to(tmp_path))

    return run


def test_the_setup_finds_the_package(run_setup):
    assert run_setup("package/docs") == run_setup("package") == "package"


def test_the_setup_clones_the_package_once(run_setup, tmp_path):
    git = ["git", "-C", tmp_path / "package", "-c", "user.name=a", "-c", "user.email=a"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *arguments], check=True)
    (tmp_path / "content").mkdir()
    with pytest.raises(AssertionError, match="Set REPOSITORY, in the cell above, to the address"):
        run_setup("content")
    assert run_setup("content", str(tmp_path / "package")) == "content/carvana-unet"
    assert run_setup("content") == "content/carvana-unet"  # after a restart of the kernel


@pytest.fixture
def kaggle_input(tmp_path):
    """-> a function that copies folders to kaggle/input, or zips them there, and mounts it read-only."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a folder read-only")
    folder = tmp_path / "kaggle" / "input"

    def fill(sources: list[Path], zipped: bool) -> None:
        for source in sources:
            if zipped:
                shutil.make_archive(folder / "competitions" / source.name, "zip", source)
            else:
                shutil.copytree(source, folder / "cars" / source.name / source.name)
        subprocess.run(["mount", "--bind", "-o", "ro", folder, folder], check=True)
        with pytest.raises(OSError, match="Read-only"):
            (folder / "train").mkdir()

    yield fill
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.seconds
@pytest.mark.parametrize(("names", "zipped"), [("train train_masks", False), ("train train_masks test", True)])
def test_kaggles_images_are_linked_and_trained_on(names, zipped, drawn, kaggle_input, tmp_path, small_net, main_here):
    kaggle_input([drawn / name for name in names.split()], zipped)
    cell = KAGGLE.replace("/kaggle/", f"{tmp_path}/kaggle/")
    (command,) = {run_cell(cell, {"os": os, "Path": Path}) for _ in range(2)}
    assert ("--no-predict" in command) == ("test" not in names.split())
    assert all(path.is_symlink() for path in (tmp_path / "kaggle" / "working" / "carvana").iterdir())
    code, printed = main_here(*shlex.split(command)[2:], *SMALL, "--epochs", "1", "--workers", "0")
    assert code == 0 and "Validation Dice" in printed
    assert (tmp_path / "output" / "submit.csv.gz").exists() == zipped


def test_without_kaggles_images_nothing_is_linked(tmp_path):
    printed = run_cell(KAGGLE.replace("/kaggle/", f"{tmp_path}/kaggle/"), {"os": os, "Path": Path})
    assert printed.startswith("There are no images") and not any(tmp_path.iterdir())


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    """As a kernel runs it that was started in docs/, where Jupyter starts it."""
    ignored = shutil.ignore_patterns(".*", "__pycache__", "input", "output", "logs", "tests")
    shutil.copytree(ROOT, tmp_path / "package", ignore=ignored)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, 4)
    resources = {"metadata": {"path": str(tmp_path / "package" / "docs")}}
    try:
        NotebookClient(notebook, timeout=1800, resources=resources).execute()  # raises an error if a cell does
    finally:
        for server in (tmp_path / ".tensorboard-info").glob("*.info"):
            os.kill(json.loads(server.read_text())["pid"], signal.SIGTERM)
    printed = {cell.source: shown(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"}
    for source, expected in SNIPPETS:
        assert printed[source].split() == expected.split(), source
    assert [source for source, text in printed.items() if re.search(r"Validation Dice 0\.\d{4} in epoch", text)] == [
        command for command in COMMANDS if "main.py" in command]
