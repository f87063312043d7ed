import os
import runpy
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import hypothesis
import pytest
import torch
from PIL import Image, ImageDraw

from data.sample import draw_sample
from nn.unet import NETS
from processes import ROOT, SMALL_MAIN, Program, in_folder, models
from tiny import SMALL, SMALL_NETS

hypothesis.settings.register_profile("any machine", deadline=None)  # a busy one is not a failure
hypothesis.settings.load_profile("any machine")
torch.set_num_threads(1)  # two processes run the tests
os.environ["OMP_NUM_THREADS"] = "1"  # and the programs that they start
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job of a shell ignores


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(autouse=True)
def no_account(monkeypatch, empty_home):
    """No test uses the Kaggle account of the user who runs it; requests to Kaggle go to this machine."""
    for name in [name for name in os.environ if name.startswith("KAGGLE")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(empty_home))
    monkeypatch.setenv("KAGGLE_API_ENVIRONMENT", "LOCALHOST")


@pytest.fixture(autouse=True)
def no_tmpfs(monkeypatch):
    """Cache files are written even where the folders of tests are in memory."""
    monkeypatch.setattr("data.cache._file_system", lambda folder: "")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory) -> Path:
    """An input folder with five small drawn cars, four to train and one to test. Read only: copy it to change it."""
    folder = tmp_path_factory.mktemp("drawn") / "sample"
    draw_sample(folder, cars=5, test_cars=1, size=(80, 120), processes=1)
    return folder


@pytest.fixture
def own(tmp_path) -> Path:
    """A folder of own images in images/ and masks/: two of each of four cats, in two formats and sizes."""
    folder = tmp_path / "own"
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for cat in range(4):
        for ending, size in (("jpg", (120, 80)), ("PNG", (70, 90 + cat))):
            image, mask = Image.new("RGB", size, (60, 90, 60 + cat)), Image.new("L", size)
            for drawn_on, color in ((image, (230, 200, 40)), (mask, 255)):
                ImageDraw.Draw(drawn_on).ellipse((20, 20, 60, 50 + cat), color)
            image.save(folder / f"images/cat {cat}-{ending.lower()}.{ending}")
            mask.save(folder / f"masks/cat {cat}-{ending.lower()}{'_mask' * (ending == 'PNG')}.png")
    return folder


@pytest.fixture
def run_main(tmp_path):
    """Runs main.py with small nets in a process, whose output and logs go to the folder of the test -> code, output."""

    def run(*arguments: object) -> tuple[int, str]:
        program = Program(*SMALL_MAIN, *in_folder(tmp_path, *arguments))
        return program.ended() and program.code, program.printed

    return run


def call_main(patch: pytest.MonkeyPatch, folder: Path, *arguments: object) -> int | str:
    """Run main.py in this process, with output and logs in `folder` -> the exit code."""
    patch.setattr("sys.argv", ["main.py", *map(str, in_folder(folder, *arguments))])
    patch.chdir(ROOT)
    try:
        runpy.run_path("main.py", run_name="__main__")
    except SystemExit as ended:
        return ended.code
    return 0


@pytest.fixture
def main_here(tmp_path, monkeypatch, capsys):
    """Runs main.py in this process -> the exit code and the output. With small_net, its nets are small."""

    def run(*arguments: str) -> tuple[int | str, str]:
        code = call_main(monkeypatch, tmp_path, *arguments)
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.fixture(scope="session")
def small_runs(drawn, tmp_path_factory) -> dict[str, Path]:
    """The folders of three runs of small nets, each trained on another one of the four drawn cars. Read only.

    first, of UNet1024; original, of UNetOriginal at another size; second, which began with the weights of first.
    """
    folder, runs = tmp_path_factory.mktemp("small_runs"), {}
    one_car = ["--input-dir", drawn, *SMALL, *"--sample-size 0.5 --epochs 2 --workers 0 --no-predict".split()]
    one_car += "--optimizer AdamW --learning-rate 0.009 --batch-size 2".split()
    size, others = "--input-img-resize {} --output-img-resize {}", "--optimizer RMSprop --learning-rate 0.001"
    for name, options in (
        ("first", ["--seed", "0"]),
        ("original", ["--seed", "4", "--net", "UNetOriginal", *size.format("64 80", "48 64").split()]),
        ("second", ["--seed", "3", "--weights", "FIRST", *size.format("64 80", "64 80").split(), *others.split()]),
    ):
        options = [runs["first"] if option == "FIRST" else option for option in options]
        with pytest.MonkeyPatch.context() as patch:
            for net_name, net in SMALL_NETS.items():
                patch.setitem(NETS, net_name, net)
            assert call_main(patch, folder / name, *one_car, *options) == 0
        (runs[name],) = models(folder / name)
    return runs


@pytest.fixture
def small_net(monkeypatch):
    """UNet1024 and UNetOriginal are small nets in this process."""
    for name, net in SMALL_NETS.items():
        monkeypatch.setitem(NETS, name, net)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 KiB -> its path, and a function that fills it."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)

    def fill():
        with suppress(OSError), open(folder / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    yield folder, fill
    subprocess.run(["umount", "--lazy", folder], check=True)
