"""Images and masks, decoded and resized once, in a file that all processes of a machine map into memory."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.reader import Reader
from data.unpack import format_bytes, require_space
from helpers import Progress, format_size
from runtime import distributed
from runtime.files import WriteError, lock, save_atomically, write_errors
from runtime.machine import count_cores

VERSION = 2  # of the decoded pixels; raise it if they change


def open_cache(reader: Reader, X: Sequence[Path], y: Sequence[Path], size: tuple[int, int],
               folder: Path | None) -> "Reader | PairCache":
    """Return what has reader.pair for these images and masks: a cache in `folder`, or `reader` if there can be none.

    The first process on each machine fills the cache. Raises UserError if a file cannot be read.
    """
    if folder is None:
        return reader
    cache = PairCache(reader, X, y, size, folder)
    with distributed.local_main_process_first():
        if distributed.LOCAL_RANK == 0:
            cache.fill()
    return cache if cache.open() else reader


class PairCache:
    """The results of Reader.pair in a file: a row per pair, sorted by name.

    The name of the file depends on all that the pixels depend on, and it is never changed. A process opens it when it
    needs it, so that data sets can be pickled.
    """

    def __init__(self, reader: Reader, X: Sequence[Path], y: Sequence[Path], size: tuple[int, int], folder: Path):
        self.reader, self.size, self.rows = reader, tuple(size), None
        self.pairs = sorted(zip(X, y, strict=True))
        self.index = {image: index for index, (image, _) in enumerate(self.pairs)}
        self.row = np.dtype([("pair", np.uint8, (4, *size)), ("aspect", np.float64)])
        self.bytes = len(self.pairs) * self.row.itemsize
        files = [(path.name, path.stat()) for image, mask in self.pairs for path in (image, *reader.files(mask))]
        stats = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in files]
        key = [VERSION, stats, reader.state(), reader.parts, reader.rotations]
        self.prefix = f"{_digest(ascii(X[0].parent.resolve()))}-{format_size(size)}-"  # of this data set at this size
        self.file = folder / f"{self.prefix}{_digest(json.dumps(key, sort_keys=True))}.cache"

    def __getstate__(self) -> dict:
        return vars(self) | {"rows": None}

    def pair(self, image_path: Path, mask_path: Path, size: tuple[int, int]) -> tuple[Tensor, float]:
        """As Reader.pair."""
        if tuple(size) != self.size or image_path not in self.index or not self.open():
            return self.reader.pair(image_path, mask_path, size)
        row = self.rows[self.index[image_path]]
        return torch.from_numpy(row["pair"].copy()), float(row["aspect"])

    def open(self) -> bool:
        """Map the file, unless it is mapped. Returns whether it is complete."""
        with suppress(OSError):
            if self.rows is None and self.file.stat().st_size == self.bytes:
                self.rows = np.memmap(self.file, self.row, mode="r")  # Linux refuses "c" if it is larger than memory
        return self.rows is not None

    def fill(self) -> None:
        """Write the file, unless it is there. If it cannot be written, print why."""
        folder = self.file.parent
        try:
            with write_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)  # another machine may have no output folder yet
            with lock(folder, wait=True):
                outdated = [] if self.open() else folder.glob(f"{self.prefix}*")
                for old in [*outdated, *folder.glob("*.part")]:
                    with suppress(OSError):  # Windows keeps a file that is mapped
                        old.unlink()
                if not self.open():
                    require_space(folder, self.bytes * 11 // 10, "the cache, with a tenth to spare,")
                    if _file_system(folder) in ("tmpfs", "ramfs"):
                        raise WriteError(f"{folder} is in memory, of which it takes {format_bytes(self.bytes)}")
                    self._write()
                total = sum(file.stat().st_size for file in folder.glob("*.cache"))
            print(f"cache       {folder}: {format_bytes(total)}, safe to delete; it contains copies of your images")
        except WriteError as error:
            print(f"cache       off: {error}")

    def _write(self) -> None:
        bar = Progress(self._decode(), "decoding images", len(self.pairs), unit="img")
        with save_atomically(self.file, f".{socket.gethostname()}-{os.getpid()}.part") as file:
            os.chmod(file.name, 0o600)
            for pair, aspect in bar:
                file.write(pair.numpy())
                file.write(np.float64(aspect))

    def _decode(self) -> Iterator[tuple[Tensor, float]]:
        """The pairs, decoded by all cores."""
        threads, block = torch.get_num_threads(), 4 * count_cores()
        torch.set_num_threads(1)  # in each thread of the pool
        try:
            with ThreadPoolExecutor(count_cores()) as pool:
                for start in range(0, len(self.pairs), block):
                    pairs = self.pairs[start : start + block]
                    yield from pool.map(lambda pair: self.reader.pair(*pair, self.size), pairs)
        finally:
            torch.set_num_threads(threads)


def _digest(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]


def _file_system(folder: Path) -> str:
    """Its type, such as tmpfs, or "" on a machine without `stat`."""
    with suppress(OSError):
        return subprocess.run(["stat", "-fc%T", folder], capture_output=True, text=True).stdout.strip()
    return ""
