"""The file of decoded pairs: what is in it, when it is written again, and what can go wrong."""

import os
import pickle
import random
import shutil
import signal
import subprocess
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data import cache as module
from data.cache import PairCache, _file_system, open_cache
from data.dataset import TrainImageDataset
from data.reader import Reader
from data.unpack import format_bytes
from img.mask import MaskValues
from nn.classifier import CarvanaClassifier
from processes import ended, fork, wait_until
from runtime import files
from runtime.errors import UserError
from tiny import SMALL

SIZE = (40, 56)
ROW = 4 * 40 * 56 + 8  # bytes
HINT = "safe to delete; it contains copies of your images"


def write_pair(folder, name, size, ending="png", seed=0):
    """An image of noise, and its mask with soft edges."""
    rng = np.random.default_rng([seed, *name.encode()])
    for kind, shape in (("images", (*size, 3)), ("masks", size)):
        (folder / kind).mkdir(exist_ok=True, parents=True)
        pixels = rng.integers(0, 256, shape, np.uint8)
        pixels[:2, :2] = 255
        Image.fromarray(pixels).save(folder / kind / f"{name}.{ending if kind == 'images' else 'png'}")


@pytest.fixture
def pairs(tmp_path) -> tuple[list[Path], list[Path]]:
    """Six images and their masks, of several sizes and formats, not sorted."""
    sizes = [(40, 56), (30, 90), (81, 113), (120, 120), (64, 64), (50, 40)]
    for name, size, ending in zip("fbdace", sizes, ("png", "jpg", "bmp", "bmp", "png", "jpg"), strict=True):
        write_pair(tmp_path / "data", name, size, ending)
    X = [next((tmp_path / "data/images").glob(f"{name}.*")) for name in "fbdace"]
    return X, [tmp_path / f"data/masks/{path.stem}.png" for path in X]


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "output" / "cache"


@pytest.fixture
def decoded(monkeypatch):
    """The names of the images that were decoded."""
    names, pair = [], Reader.pair

    def logged(self, image_path, *arguments):
        names.append(image_path.name)
        return pair(self, image_path, *arguments)

    monkeypatch.setattr(Reader, "pair", logged)
    return names


def files_in(folder):
    """The names in a folder, but for the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def assert_equals_reader(cache, reader, X, y, size=SIZE):
    for image, mask in zip(X, y, strict=True):
        mine, theirs = (each.pair(image, mask, size) for each in (cache, reader))
        assert mine[0].dtype == torch.uint8 and mine[0].shape == (4, *size)
        assert torch.equal(mine[0], theirs[0]) and mine[1] == theirs[1]


def test_a_cache_returns_the_bytes_and_the_aspect_of_the_reader(pairs, folder, decoded):
    (X, y), reader = pairs, Reader()
    assert open_cache(reader, X, y, SIZE, None) is reader and not folder.parent.exists()
    cache = open_cache(reader, X, y, SIZE, folder)
    assert isinstance(cache, PairCache) and sorted(decoded) == sorted(path.name for path in X)
    decoded.clear()
    first, aspect = cache.pair(X[1], y[1], SIZE)
    other, _ = cache.pair(X[0], y[0], SIZE)
    assert decoded == [] and aspect == 90 / 30 and not torch.equal(first, other)
    assert_equals_reader(cache, reader, X, y)
    assert cache.pair(X[0], y[0], (32, 48))[0].shape == (4, 32, 48)  # of another size: as from the reader
    write_pair(folder.parent / "new", "new", (40, 56))
    new = folder.parent / "new/images/new.png", folder.parent / "new/masks/new.png"
    assert_equals_reader(cache, reader, *([path] for path in new))  # or if it is not in the file
    first.zero_()
    assert_equals_reader(cache, reader, X, y)  # what a caller does with a pair changes nothing


def test_a_file_has_a_row_for_each_pair_sorted_by_name_and_only_for_its_owner(pairs, folder):
    X, y = pairs
    cache = open_cache(Reader(), X, y, SIZE, folder)
    rows = cache.file.read_bytes()
    assert len(rows) == 6 * ROW and cache.file.stat().st_mode & 0o777 == 0o600
    for index, name in enumerate("abcdef"):
        image, mask = next((image, mask) for image, mask in zip(X, y, strict=True) if image.stem == name)
        pair, aspect = Reader().pair(image, mask, SIZE)
        row = rows[index * ROW : (index + 1) * ROW]
        assert row == pair.numpy().tobytes() + np.float64(aspect).tobytes()


def test_another_order_or_split_uses_the_same_file(pairs, folder, decoded, capsys):
    X, y = pairs
    first = open_cache(Reader(), X, y, SIZE, folder)
    before, printed = first.file.stat(), capsys.readouterr().out
    assert len(decoded) == 6 and printed == f"cache       {folder}: {format_bytes(6 * ROW)}, {HINT}\n"
    order = random.Random(0).sample(range(6), 6)
    second = open_cache(Reader(), [X[i] for i in order], [y[i] for i in order], SIZE, folder)
    assert len(decoded) == 6 and second.file == first.file
    now = second.file.stat()
    assert (now.st_ino, now.st_mtime_ns, now.st_size) == (before.st_ino, before.st_mtime_ns, before.st_size)
    assert_equals_reader(second, Reader(), X, y)


def touch(path):
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


def lengthen(path):
    """Another size at the same time of change."""
    stat = path.stat()
    with path.open("ab") as file:
        file.write(b"\0")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def merged(*names):
    return Reader(parts={"a.png": list(names)})


CHANGES = {
    "time of an image": (touch, "images/a.bmp", Reader()),
    "size of an image": (lengthen, "images/d.bmp", Reader()),
    "time of a mask": (touch, "masks/e.png", Reader()),
    "size of a mask": (lengthen, "masks/e.png", Reader()),
    "values of masks": (None, None, Reader(MaskValues("gray", (255,), False))),
    "bits": (None, None, Reader(bits=12)),
    "a part of a mask": (None, None, merged("a_1.png", "a_2.png")),
    "a rotation": (None, None, Reader(parts={"a.png": ["a_1.png"]}, rotations={"a.png": 3})),
    "time of a part": (touch, "masks/a_1.png", merged("a_1.png")),
    "nothing": (None, None, merged("a_1.png")),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_pixels_depend_on_makes_another_file_which_replaces_the_first(pairs, folder, decoded, change):
    X, y = pairs
    for number in (1, 2):
        Image.fromarray(np.full((120, 120), 255, np.uint8)).save(y[3].with_stem(f"a_{number}"))
    act, name, reader = CHANGES[change]
    before = merged("a_1.png") if reader.parts else Reader()
    first = open_cache(before, X, y, SIZE, folder).file
    other_size = open_cache(before, X, y, (32, 48), folder).file
    kept = first.stat().st_ino
    decoded.clear()
    if act:
        act(folder.parent.parent / "data" / name)
    second = open_cache(reader, X, y, SIZE, folder)
    if change == "nothing":
        assert second.file == first and decoded == [] and first.stat().st_ino == kept
    else:
        assert second.file != first and len(decoded) == 6
    assert files_in(folder) == sorted([second.file.name, other_size.name])
    assert_equals_reader(second, reader, X, y)


def test_another_version_makes_another_file(pairs, folder, monkeypatch):
    first = open_cache(Reader(), *pairs, SIZE, folder).file
    monkeypatch.setattr(module, "VERSION", module.VERSION + 1)
    assert open_cache(Reader(), *pairs, SIZE, folder).file != first and not first.exists()


DIGESTS = {1: "cc65b058cc7ded39", 2: "cc65b058cc7ded39"}  # of the pixels below, by the version of the cache


def save_exact(folder):
    """Images and masks of lossless formats, whose sizes make each way of resizing exact arithmetic -> X, y, a reader.

    They have the size of the pairs, or twice or half of it, with values that are divisible by 16.
    """
    rng = np.random.default_rng(0)

    def values(*shape):
        return rng.integers(0, 16, shape, np.uint8) * 16

    height, width = SIZE
    images = {
        "same.png": Image.fromarray(values(height, width, 3)),
        "twice.bmp": Image.fromarray(values(2 * height, 2 * width, 3)),
        "half.tiff": Image.fromarray(values(height // 2, width // 2, 3)),
        "palette.gif": Image.fromarray(values(height, width) // 16, "P"),
        "transparent.png": Image.fromarray(values(height, width, 4)),
        "deep.png": Image.fromarray(values(height, width).astype(np.uint16) * 256),
        "sideways.png": Image.fromarray(values(width, height, 3)),
    }
    soft = values(height, width)
    soft[:4] = 255
    masks = {
        "same": Image.fromarray(soft),
        "twice": Image.fromarray((values(2 * height, 2 * width) > 99) * np.uint8(255)),
        "half": Image.fromarray((values(height // 2, width // 2) > 99) * np.uint8(255)),
        "palette": Image.fromarray(values(height, width) > 99),
        "transparent": Image.fromarray((values(height, width) > 99) * np.uint8(255)),
        "deep": Image.fromarray((values(height, width) > 99) * np.uint8(255)),
        "sideways": Image.fromarray((values(width, height) > 99) * np.uint8(255)),
        "same_1": Image.fromarray((values(height, width) > 199) * np.uint8(255)),
    }
    folder.mkdir()
    images["palette.gif"].putpalette(values(16, 3).tobytes())
    exif = Image.Exif()
    exif[0x0112] = 6
    for name, image in images.items():
        image.save(folder / name, **({"exif": exif} if name == "sideways.png" else {}))
    for name, mask in masks.items():
        mask.save(folder / f"{name}_mask.png")
    reader = Reader(parts={"same_mask.png": ["same_1_mask.png"]}, rotations={"sideways_mask.png": 6})
    return [folder / name for name in images], [folder / f"{name.split('.')[0]}_mask.png" for name in images], reader


def test_the_decoded_pixels_are_those_of_this_version(tmp_path, folder):
    X, y, reader = save_exact(tmp_path / "exact")
    content = open_cache(reader, X, y, SIZE, folder).file.read_bytes()
    assert sha256(content).hexdigest()[:16] == DIGESTS[module.VERSION], (
        "The decoded pixels have changed: raise VERSION in data/cache.py, and add the digest of the new ones here."
    )
    others = open_cache(Reader(rotations=reader.rotations), X, y, SIZE, folder).file.read_bytes()
    assert sha256(others).hexdigest()[:16] != DIGESTS[module.VERSION], "control: without the second part of a mask"


def fill_and_die(pairs, folder, rows):
    """Kill this process when it has written so many rows; 6: before the file is renamed."""
    decode = PairCache._decode

    def limited(self):
        for number, row in enumerate(decode(self)):
            if number == rows:
                os.kill(os.getpid(), signal.SIGKILL)
            yield row

    PairCache._decode, module._file_system = limited, lambda folder: ""
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    open_cache(Reader(), *pairs, SIZE, folder)


@pytest.mark.seconds
@pytest.mark.parametrize("rows", [0, 1, 5, 6])
def test_a_process_that_is_killed_while_it_writes_leaves_no_cache(pairs, folder, decoded, rows):
    assert ended(fork(fill_and_die, pairs, folder, rows)) == -signal.SIGKILL
    (part,) = files_in(folder)
    assert part.endswith(".part") and (folder / part).stat().st_size <= rows * ROW
    assert rows < 6 or (folder / part).stat().st_size == 6 * ROW, "control: all of it, but for its name"
    assert not PairCache(Reader(), *pairs, SIZE, folder).open()
    if rows == 1:  # an orphan of another size goes too, and also if nothing has to be written
        other = open_cache(Reader(), *pairs, (32, 48), folder)
        assert files_in(folder) == [other.file.name]
        other.file.with_suffix(".cache.host-1.part").touch()
        assert open_cache(Reader(), *pairs, (32, 48), folder).open() and files_in(folder) == [other.file.name]
        other.file.unlink()
        decoded.clear()
    cache = open_cache(Reader(), *pairs, SIZE, folder)
    assert len(decoded) == 6 and files_in(folder) == [cache.file.name]
    assert_equals_reader(cache, Reader(), *pairs)


@pytest.mark.parametrize("size", [0, 6 * ROW - 1, 6 * ROW + 1])
def test_a_file_of_another_length_does_not_count_and_is_replaced(pairs, folder, size):
    file = open_cache(Reader(), *pairs, SIZE, folder).file
    whole = file.read_bytes()
    os.truncate(file, size)
    assert not PairCache(Reader(), *pairs, SIZE, folder).open()
    assert open_cache(Reader(), *pairs, SIZE, folder).open() and file.read_bytes() == whole


@pytest.mark.parametrize("change", ["replaced", "deleted"])
def test_a_file_in_use_stays_readable(pairs, folder, decoded, change):
    """A process that has it mapped reads on; one that has yet to open it decodes."""
    X, y = pairs
    used = open_cache(Reader(), X, y, SIZE, folder)
    number = os.open(used.file, os.O_RDONLY)
    before = used.file.read_bytes()
    expected = [used.pair(*pair, SIZE)[0] for pair in zip(X, y, strict=True)]
    if change == "replaced":
        touch(X[0])
        other = open_cache(Reader(), X, y, SIZE, folder)
        assert other.file.stat().st_ino != os.fstat(number).st_ino and other.open()
    else:
        used.file.unlink()
    assert os.fstat(number).st_nlink == 0 and os.pread(number, 6 * ROW + 1, 0) == before
    os.close(number)
    decoded.clear()
    for process, count in ((used, 0), (pickle.loads(pickle.dumps(used)), 6)):
        assert all(map(torch.equal, (process.pair(*pair, SIZE)[0] for pair in zip(X, y, strict=True)), expected))
        assert len(decoded) == count


def test_a_file_larger_than_memory_is_mapped(pairs, folder):
    """Linux refuses a private mapping of such a file that may be written to."""
    X, y = pairs
    memory = sum(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith(("MemTotal", "SwapTotal"))
    )
    size = (8000, 8000)
    count = memory // (4 * 8000 * 8000) + 1
    cache = PairCache(Reader(), X[:1] * count, y[:1] * count, size, folder)
    folder.mkdir(parents=True)
    cache.file.touch()
    os.truncate(cache.file, count * cache.row.itemsize)  # without any block
    assert cache.open() and not cache.pair(X[0], y[0], size)[0][:, -1, -1].any()


@pytest.mark.seconds
def test_workers_read_the_same_and_a_pickle_has_no_pixels(pairs, folder):
    X, y = pairs
    dataset = TrainImageDataset(X, y, SIZE, SIZE, reader=open_cache(Reader(), X, y, SIZE, folder))
    expected = list(DataLoader(dataset, 4))
    assert len(pickle.dumps(dataset)) < ROW
    for context in ("fork", "spawn"):
        batches = list(DataLoader(dataset, 4, num_workers=1, multiprocessing_context=context))
        assert len(batches) == 2
        for mine, theirs in zip(batches, expected, strict=True):
            assert all(map(torch.equal, mine, theirs))


def fill_slowly(pairs, folder, started, go):
    decode = PairCache._decode

    def waiting(self):
        started.touch()
        wait_until(go.exists, 60)
        yield from decode(self)

    PairCache._decode, module._file_system = waiting, lambda folder: ""
    open_cache(Reader(), *pairs, SIZE, folder)


@pytest.mark.seconds
def test_of_two_runs_at_once_one_decodes_and_the_other_waits(pairs, folder, decoded, monkeypatch):
    started, go, printed = folder.parent.parent / "started", folder.parent.parent / "go", []
    monkeypatch.setattr(files, "print", lambda text: (printed.append(text), go.touch()), raising=False)
    other = fork(fill_slowly, pairs, folder, started, go)
    wait_until(started.exists, 60)
    cache = open_cache(Reader(), *pairs, SIZE, folder)
    assert printed == [f"Another process is writing to {folder}. Waiting for it."]
    assert decoded == [] and cache.open() and files_in(folder) == [cache.file.name] and ended(other) == 0
    assert_equals_reader(cache, Reader(), *pairs)


def test_only_the_first_process_of_a_machine_writes(pairs, folder, monkeypatch):
    monkeypatch.setattr("runtime.distributed.LOCAL_RANK", 1)
    reader = Reader()
    assert open_cache(reader, *pairs, SIZE, folder) is reader and not folder.exists()
    monkeypatch.undo()
    cache = open_cache(reader, *pairs, SIZE, folder)
    monkeypatch.setattr("runtime.distributed.LOCAL_RANK", 1)
    assert open_cache(reader, *pairs, SIZE, folder).file == cache.file


def test_a_damaged_image_is_named_and_nothing_is_left(pairs, folder, capsys):
    X, y = pairs
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        os.truncate(X[2], 200)
        with pytest.raises(UserError, match=rf"^{X[2]} cannot be read as an image"):
            open_cache(Reader(), X, y, SIZE, folder)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    assert files_in(folder) == [] and "cache" not in capsys.readouterr().out


@pytest.fixture
def folder_on_small_disk(small_disk, folder):
    """The folder of a cache, on a disk of 256 KiB."""
    folder.parent.mkdir()
    folder.symlink_to(small_disk[0])
    return folder


def assert_off(printed, reason, folder):
    (line,) = printed.splitlines()
    assert line.startswith("cache       off: ") and reason in line
    assert not folder.exists() or [name for name in files_in(folder) if name != "filler"] == []


def test_a_disk_that_gets_full_turns_the_cache_off(pairs, folder_on_small_disk, small_disk, capsys, monkeypatch):
    folder, reader = folder_on_small_disk, Reader()
    small_disk[1]()
    assert open_cache(reader, *pairs, SIZE, folder) is reader
    assert_off(capsys.readouterr().out, f"The disk of {folder} has 0.00B free, but the cache, with a tenth to", folder)
    monkeypatch.setattr(module, "require_space", lambda *_: None)  # it was free when that was checked
    torch.set_num_threads(2)
    assert open_cache(reader, *pairs, SIZE, folder) is reader
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    assert_off(capsys.readouterr().out, ".cache (No space left on device). Make room, or fix the folder.", folder)
    (folder / "filler").unlink()
    assert open_cache(reader, *pairs, SIZE, folder).open()  # control


def test_a_folder_in_memory_gets_no_cache(pairs, folder_on_small_disk, capsys, monkeypatch):
    assert _file_system(folder_on_small_disk) == "tmpfs" and _file_system(Path("/proc/self")) == "proc"
    monkeypatch.setattr(module, "_file_system", _file_system)
    reader = Reader()
    assert open_cache(reader, *pairs, SIZE, folder_on_small_disk) is reader
    assert_off(capsys.readouterr().out, " is in memory, of which it takes 52.5k", folder_on_small_disk)


@pytest.fixture(params=["My Disk", os.fsdecode(b"caf\xe9")])
def oddly_named_disk(tmp_path, request):
    """A small disk in memory, whose name has a space or is not UTF-8."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a disk")
    disk = tmp_path / request.param
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "-", disk], check=True)
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_file_system_is_recognized_whatever_its_name(oddly_named_disk):
    assert _file_system(oddly_named_disk) == "tmpfs" != _file_system(oddly_named_disk.parent)


def test_images_may_be_in_a_folder_whose_name_is_not_utf_8(pairs, folder, tmp_path):
    moved = (tmp_path / "data").rename(tmp_path / os.fsdecode(b"caf\xe9"))
    X, y = ([moved / path.relative_to(tmp_path / "data") for path in paths] for paths in pairs)
    assert_equals_reader(open_cache(Reader(), X, y, SIZE, folder), Reader(), X, y)


def test_a_folder_that_cannot_be_written_turns_the_cache_off(pairs, folder_on_small_disk, small_disk, capsys):
    """Of another machine, whose output folder nobody has checked. What it has is used."""
    folder, reader = folder_on_small_disk, Reader()
    cache = open_cache(reader, *pairs, SIZE, folder)
    capsys.readouterr()
    subprocess.run(["mount", "-o", "remount,ro", small_disk[0]], check=True)
    assert open_cache(reader, *pairs, SIZE, folder).file == cache.file
    assert capsys.readouterr().out.startswith(f"cache       {folder}: ")
    for no_folder in (small_disk[0] / "inside", pairs[0][0] / "inside"):
        assert open_cache(reader, *pairs, SIZE, no_folder) is reader
        assert_off(capsys.readouterr().out, f"Cannot write {no_folder} (", no_folder)
    assert open_cache(reader, *pairs, (32, 48), folder) is reader
    assert "cache       off: Cannot write " in capsys.readouterr().out


@pytest.mark.seconds
def test_a_run_reads_images_that_changed_before_it_was_resumed(
    drawn, main_here, small_net, tmp_path, decoded, monkeypatch
):
    """And goes on without its cache if that is deleted. A run with another split finds the cache of the first one."""
    inputs, folder = shutil.copytree(drawn, tmp_path / "input"), tmp_path / "output/cache"
    training = ["--input-dir", str(inputs), *SMALL, "--workers", "0", "--no-predict"]
    epochs, train_epoch = [], CarvanaClassifier.train_epoch

    def delete_and_train(self, loader):
        epochs.append(self.epoch)
        if self.epoch == 2:
            for file in folder.glob("*.cache"):
                file.unlink()
        return train_epoch(self, loader)

    monkeypatch.setattr(CarvanaClassifier, "train_epoch", delete_and_train)
    assert main_here(*training, "--epochs", "1")[0] == 0 and len(decoded) == 64
    (first,) = folder.glob("*.cache")
    image = min((inputs / "train").iterdir())
    Image.open(image).rotate(180).save(image, quality=90)
    mask = inputs / f"train_masks/{image.stem}_mask.gif"
    assert main_here("--resume", "last", "--epochs", "2")[0] == 0 and len(decoded) == 2 * 64 and epochs == [1, 2]
    assert list(folder.glob("*.cache")) == []
    assert main_here("--resume", "last", "--epochs", "3")[0] == 0 and len(decoded) == 3 * 64
    (second,) = folder.glob("*.cache")
    pixels = Reader().pair(image, mask, (32, 48))[0].numpy().tobytes()
    assert second != first and second.read_bytes().startswith(pixels)  # of the first row
    decoded.clear()
    other_split = ["--seed", "1", "--validation-size", "0.5", "--epochs", "1"]
    shutil.rmtree(tmp_path / "output/models")  # or a run that begins in the same second has the same name
    assert main_here(*training, *other_split)[0] == 0 and decoded == []


@pytest.mark.seconds
def test_a_run_trains_although_its_cache_does_not_fit(drawn, main_here, small_net, folder_on_small_disk, monkeypatch):
    folder = folder_on_small_disk
    training = ["--input-dir", drawn, *SMALL, "--workers", "0", "--no-predict", "--epochs", "1"]
    reasons = "256kB free, but the cache, with a tenth to spare, takes 42", "(No space left on device)"
    for number, reason in enumerate(reasons):
        code, printed = main_here(*training, "--seed", number)
        assert code == 0 and "cache       off: " in printed and reason in printed, printed
        assert files_in(folder) == []
        shutil.rmtree(folder.parent / "models")  # or a run that begins in the same second has the same name
        monkeypatch.setattr(module, "require_space", lambda *_: None)  # there was room when that was checked


def test_an_output_folder_that_is_read_only_is_named(drawn, main_here, small_net, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", small_disk[0]], check=True)
    code, _ = main_here("--input-dir", str(drawn), *SMALL, "--output-dir", str(small_disk[0]))
    assert code == f"main.py: Cannot write to {small_disk[0]} (Read-only file system). Pass another folder."
