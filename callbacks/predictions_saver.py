"""Writes the submission while the net predicts, so that no mask stays in memory."""

import csv
import gzip
import io
import zlib
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path

from torch import Tensor

from helpers import Progress
from img import rle
from nn.callback import Callback
from runtime.errors import UserError
from runtime.files import lock, save_atomically


class PredictionsSaverCallback(Callback):
    """Streams rows "img,rle_mask" to a gzip file, which stands at its place only when close_saver() has been called.

    to_file: the submission, such as output/submit.csv.gz; one of an earlier run stays as it is until then.
    origin_img_size: (height, width) of the photos and so of the masks.
    threshold: a pixel is car where its probability, enlarged to that size, is above this.

    The rows stand in the order of the predictions: give the photos sorted by name.
    """

    def __init__(self, to_file: str | Path, origin_img_size: tuple[int, int], threshold: float):
        self.to_file, self.origin_img_size, self.threshold = Path(to_file), origin_img_size, threshold
        self.odd: dict[str, list[str]] = {}  # what is strange about a mask -> the photos
        self._open_files = ExitStack()
        self._csv = None

    def on_predict_batch(self, names: Sequence[str], probs: Tensor) -> list[tuple[str, str]]:
        """Rows of the submission."""
        masks = zip(names, probs.cpu().numpy(), strict=True)
        return [(name, rle.encode_probs(prob, self.origin_img_size, self.threshold)) for name, prob in masks]

    def on_batch_gathered(self, made: list[tuple[str, str]]) -> None:
        if self._csv is None:
            self._open()
        height, width = self.origin_img_size
        for name, runs in made:
            self._csv.writerow([name, runs])
            if runs in ("", f"1 {height * width}"):
                self.odd.setdefault("all car" if runs else "without a car", []).append(name)

    def close_saver(self) -> None:
        """Move the finished file to its place, and warn of masks that are all car or hold none."""
        if self._csv is None:
            self._open()
        self._open_files.close()
        self._csv = None
        for what, names in self.odd.items():
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            print(f"Look at these: {len(names)} of the masks {'is' if len(names) == 1 else 'are'} {what} ({some}).")

    def on_exception(self) -> None:
        with suppress(UserError):
            self._open_files.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)  # save_atomically leaves nothing

    def _open(self) -> None:
        self._open_files.enter_context(lock(self.to_file.parent) or nullcontext())
        file = self._open_files.enter_context(save_atomically(self.to_file))
        # no name and no time in the archive: the same masks make the same bytes
        archive = self._open_files.enter_context(gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0))
        text = self._open_files.enter_context(io.TextIOWrapper(archive, encoding="utf-8", newline=""))
        self._csv = csv.writer(text, lineterminator="\n")
        self._csv.writerow(["img", "rle_mask"])


def check_submission(path: Path, names: Sequence[str], size: tuple[int, int]) -> None:
    """Read the submission back, as Kaggle will. Raises UserError where it isn't a row for each of `names`, in their
    order, with the runs of a mask of `size` (height, width).
    """
    csv.field_size_limit(2**31 - 1)
    row = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
            rows = csv.reader(file)
            if next(rows, None) != ["img", "rle_mask"]:
                raise ValueError("it should be img,rle_mask")
            for name in Progress(names, "reading back", unit="mask"):
                row += 1
                found, *runs = next(rows, ["the end"])
                if found != name:
                    raise ValueError(f"{found} in place of {name}")
                (runs,) = runs
                rle.parse(runs, size)
            row += 1
            if next(rows, None) is not None:
                raise ValueError("more rows than photos")
    except (ValueError, OSError, EOFError, zlib.error, csv.Error) as error:
        raise UserError(f"{path} is no whole submission (row {row}: {error!s:.200}): predict once more.") from error
