"""The rules of the code: what imports what, how long files and functions are, and which names stay importable."""

import ast
import importlib
import inspect
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from conftest import ROOT

LINES = {"main.py": 125, "nn/classifier.py": 250, "helpers.py": 100}
FUNCTION_LINES = 40  # of any function but main()
MAIN_LINES = 55
CHARACTERS = 240_000
HYPERPARAMETERS = 25
FORBIDDEN = {  # package: what it must not import
    "img": ("callbacks", "data", "runtime.run"),
    "nn": ("callbacks", "data", "runtime.run"),
}
TUTORIAL_NAMES = [
    "nn.unet_origin.ConvBnRelu",
    "nn.unet_origin.StackEncoder",
    "nn.unet_origin.StackDecoder",
    "nn.unet_origin.UNetOriginal",
    "nn.unet.UNet1024",
    "nn.losses.SoftDiceLoss",
    "nn.classifier.CarvanaClassifier._criterion",
    "nn.classifier.CarvanaClassifier.train",
    "nn.classifier.CarvanaClassifier.predict",
    "nn.classifier.CarvanaClassifier.restore_model",
    "img.augmentation.augment_img",
    "helpers.get_model_timestamp",
    "data.fetcher.DatasetFetcher.download_dataset",
    "data.fetcher.DatasetFetcher.get_train_files",
    "data.fetcher.DatasetFetcher.get_test_files",
    "data.dataset.TrainImageDataset",
    "data.dataset.TestImageDataset",
    "callbacks.predictions_saver.PredictionsSaverCallback.close_saver",
    "callbacks.tensorboard.TensorboardLoggerCallback",
    "callbacks.tensorboard.TensorboardVisualizerCallback",
]

FILES = [path for path in ROOT.glob("*.py")] + [
    path for folder in ("callbacks", "data", "img", "nn", "runtime") for path in (ROOT / folder).glob("*.py")
]
SOURCE = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted(FILES)}


def module_name(path: str) -> str:
    """"nn/unet.py" -> "nn.unet"."""
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


MODULES = {module_name(path): ast.parse(text) for path, text in SOURCE.items()}


def imported(tree: ast.AST) -> set[str]:
    """The modules of ours that are imported, anywhere in the file but under `if TYPE_CHECKING`."""
    names = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        names |= imported(node)
    return names & MODULES.keys()


def functions(tree: ast.AST) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def line_count(node: ast.FunctionDef) -> int:
    return node.end_lineno - node.lineno + 1


def forbidden(module: str, names: set[str]) -> set[str]:
    """What that module imports against the rules."""
    packages = FORBIDDEN.get(module.partition(".")[0], ())
    wrong = {name for name in names for each in packages if f"{name}.".startswith(f"{each}.")}
    return wrong | (names if module == "helpers" else names & {"main"})


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of an import cycle, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_it_may(module):
    assert not forbidden(module, imported(MODULES[module]))


def test_a_forbidden_import_is_found():
    modules = imported(ast.parse("def f():\n    from data.fetcher import DatasetFetcher\n    import main"))
    assert modules == {"data.fetcher", "main"}
    assert forbidden("nn.unet", modules) == modules
    assert forbidden("data.check", modules) == {"main"}
    assert forbidden("helpers", {"nn.unet"}) == {"nn.unet"}
    assert not imported(ast.parse("if TYPE_CHECKING:\n    import main"))


def test_there_is_no_import_cycle():
    assert not cycle({module: imported(tree) - {module} for module, tree in MODULES.items()})
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}})  # control


def test_functions_fit_a_screen():
    long = [
        f"{module}.{function.name}: {line_count(function)} lines"
        for module, tree in MODULES.items()
        for function in functions(tree)
        if line_count(function) > FUNCTION_LINES and (module, function.name) != ("main", "main")
    ]
    assert not long


@pytest.mark.parametrize("path", LINES)
def test_a_file_holds_one_idea(path):
    lines = SOURCE[path].count("\n")
    assert lines <= LINES[path]


def test_main_tells_the_story():
    (story,) = (function for function in functions(MODULES["main"]) if function.name == "main")
    assert line_count(story) <= MAIN_LINES
    branches = ast.If | ast.IfExp | ast.Match | ast.Try | ast.For | ast.While | ast.JoinedStr
    assert not [ast.unparse(node) for node in ast.walk(story) if isinstance(node, branches)]


def test_the_hyperparameters_fit_a_screen():
    (kind,) = (node for node in MODULES["main"].body if getattr(node, "name", "") == "Hyperparameters")
    assert 10 < len([node for node in kind.body if isinstance(node, ast.AnnAssign)]) <= HYPERPARAMETERS


def test_the_source_is_read_in_an_afternoon():
    characters = sum(len(text) for text in SOURCE.values())
    assert characters <= CHARACTERS


def test_the_tutorial_names_every_file():
    tutorial = (ROOT / "docs" / "tutorial.md").read_text()
    files = {path for path in SOURCE if not path.endswith("__init__.py") and not path.startswith("callbacks/")}
    named = {path for path in files if f"\n| `{path}` |" in tutorial}
    assert named == files and "\n| `callbacks/` |" in tutorial


@pytest.mark.parametrize("name", TUTORIAL_NAMES)
def test_the_names_of_the_tutorial_are_importable(name):
    parts = name.split(".")
    length = next(n for n in range(len(parts), 0, -1) if Path(ROOT, *parts[:n]).with_suffix(".py").exists())
    found = importlib.import_module(".".join(parts[:length]))
    for part in parts[length:]:
        found = getattr(found, part)
    assert callable(found)


@pytest.mark.parametrize(("module", "name", "parameters"), [
    ("data.dataset", "TrainImageDataset", "X y input_img_resize output_img_resize X_transform"),
    ("data.dataset", "TestImageDataset", "X input_img_resize output_img_resize"),
    ("nn.classifier", "CarvanaClassifier", "net epochs threshold"),
    ("callbacks.predictions_saver", "PredictionsSaverCallback", "to_file origin_img_size threshold"),
])
def test_the_parameters_of_the_tutorial_keep_their_names(module, name, parameters):
    found = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    assert [each for each in found if each in parameters.split()] == parameters.split()
