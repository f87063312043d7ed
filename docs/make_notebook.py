"""Make docs/tutorial.ipynb, a notebook for Jupyter, Colab and Kaggle, of docs/tutorial.md.

    python docs/make_notebook.py        (or: make notebook)

A snippet becomes a code cell per output, which comes with this output: the notebook can be read without being run.
A figure becomes a code cell that has it as output, because Colab shows neither images with a relative path nor
attachments. Commands stay text, except those of MAGICS.
"""

import json
import re
from base64 import b64encode
from doctest import DocTestParser
from pathlib import Path
from textwrap import indent

DOCS = Path(__file__).parent
TUTORIAL, NOTEBOOK = DOCS / "tutorial.md", DOCS / "tutorial.ipynb"
MAGICS = {  # how the commands begin that "Run all" runs, and what goes before them
    "python main.py --dataset sample --net UNet1024 ": "!",
    "tensorboard ": "%load_ext tensorboard\n%",
}
PART = re.compile(  # a title, an answer to unfold, code, or a figure
    r"^(?=#+ )|^<details.*?</details>$|^```(?P<language>\w*)\n(?P<code>.*?)^```$"
    r"|^!\[(?P<title>[^]]+)\]\((?P<figure>[^)]+)\)$",
    re.DOTALL | re.MULTILINE,
)
SETUP = '''\
## Set up this notebook

This is [tutorial.md](tutorial.md) as a notebook for Jupyter, Colab and Kaggle. Run its cells in order, instead of
installing the package and typing the snippets. The outputs that are already there are the expected ones. Commands that
are not in a cell train for longer, or need other files. To run one here, paste it into a cell with a `!` before it.

```python
REPOSITORY = ""  # the address to clone the package from, if this notebook is not in the package's folder
EPOCHS = 2  # of the training below; more of them make a better net
```

The next two cells go to the package's folder, or clone it, and install what is missing. They keep a PyTorch that is
recent enough. On Kaggle, first turn on *Internet* in the notebook's settings.

```python
import os
import subprocess
import sys
from pathlib import Path

import IPython.display

CLONE = "carvana-unet"  # the folder to clone into
folders = [Path(name).resolve() for name in (".", "..", CLONE) if Path(name, "nn", "unet_origin.py").exists()]
if not folders:
    assert REPOSITORY, "Set REPOSITORY, in the cell above, to the address of the package's Git repository."
    subprocess.run(["git", "clone", "--quiet", REPOSITORY, CLONE], check=True)
os.chdir(folders[0] if folders else CLONE)
sys.path.insert(0, os.getcwd())  # where import looks first
os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]  # where !python looks first
```

```python
%pip install --quiet -r requirements.txt
```

On Kaggle, you can add the competition's images as an input, which is read-only. The next cell links them, packed or
unpacked, into a folder that is not. It prints the command that trains on them, which
[takes long](kaggle.md#hours-and-gigabytes), so it is not run here. All sections below use drawn cars.

```python
LINKS = Path("/kaggle/working/carvana")
NAMES = [name + ending for name in ("train", "train_masks", "test") for ending in ("", ".zip")]
for folder, _, files in os.walk("/kaggle/input"):
    for path in [Path(folder), *(Path(folder, file) for file in files)]:
        if path.name in NAMES and files and not (LINKS / path.name).exists():
            LINKS.mkdir(parents=True, exist_ok=True)
            (LINKS / path.name).symlink_to(path)
found = {path.stem for path in LINKS.glob("*")}
if {"train", "train_masks"} <= found:
    print(f"python main.py --input-dir {LINKS}" + " --no-predict" * ("test" not in found))
else:
    print("There are no images of the competition in /kaggle/input.")
```

'''


def make_notebook(text: str) -> str:
    """A Markdown page with snippets for doctest -> the JSON of a notebook."""
    text = text.replace("](#", f"]({TUTORIAL.name}#")  # notebooks have other anchors
    text = text.replace("\n## ", f"\n{SETUP}## ", 1)
    cells, start = [], 0
    for part in PART.finditer(text):
        code = code_cells(part)
        if code or not part[0]:  # other parts stay in the Markdown cell
            cells += [markdown_cell(text[start : part.start()]), *code]
            start = part.end()
    cells = [cell for cell in [*cells, markdown_cell(text[start:])] if cell["source"]]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    notebook = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 4}  # 5 has random ids
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def code_cells(part: re.Match) -> list[dict]:
    if part["figure"]:
        return [figure_cell(part["title"], part["figure"])]
    cells_of = {"python": snippet_cells, "": command_cells}.get(part["language"])
    return cells_of(part["code"]) if cells_of else []


def snippet_cells(code: str) -> list[dict]:
    """Python, with prompts and outputs -> a cell up to each output. Without prompts -> one cell."""
    cells, source = [], ""
    for example in DocTestParser().get_examples(code):
        tried, shown = example.source, example.want
        if example.exc_msg:  # only some programs continue "Run all" after a cell with the tag raises-exception
            tried = f"try:\n{indent(tried, '    ')}except Exception as error:\n"
            tried += '    print(f"{type(error).__name__}: {error}")\n'
            shown = re.sub(r"^[\w.]+\.", "", example.exc_msg)  # without its module
        source += tried
        if shown:
            cells.append(code_cell(source, {"name": "stdout", "output_type": "stream", "text": split(shown)}))
            source = ""
    return cells + [code_cell(source)] * bool(source) or [code_cell(code)]


def command_cells(code: str) -> list[dict]:
    """Shell commands -> a cell that runs them, if "Run all" may run each of them."""
    commands = re.split(r"(?<!\\)\n", code.strip())
    magics = [magic for command in commands for start, magic in MAGICS.items() if command.startswith(start)]
    if len(magics) < len(commands):
        return []
    source = "\n".join(magic + command for magic, command in zip(magics, commands, strict=True))
    return [code_cell(re.sub(r"--epochs \d+", "--epochs {EPOCHS}", source))]


def figure_cell(title: str, name: str) -> dict:
    data = {"image/png": b64encode((DOCS / name).read_bytes()).decode()}
    output = {"data": data, "metadata": {}, "output_type": "display_data"}
    return code_cell(f'# {title}\nIPython.display.Image("{DOCS.name}/{name}")', output)


def code_cell(source: str, *outputs: dict) -> dict:
    cell = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": outputs}
    return cell | {"source": split(source.strip("\n"))}


def markdown_cell(source: str) -> dict:
    return {"cell_type": "markdown", "metadata": {}, "source": split(source.strip("\n"))}


def split(text: str) -> list[str]:
    """-> lines, as notebooks are saved."""
    return text.splitlines(keepends=True)


if __name__ == "__main__":
    NOTEBOOK.write_text(make_notebook(TUTORIAL.read_text()))
