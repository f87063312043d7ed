"""Write the submission while the net predicts, so that masks do not pile up in memory."""

import csv
import gzip
import io
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from torch import Tensor

from helpers import first_few, pluralize
from img import rle
from img.transformer import to_mask
from nn.callback import Callback
from runtime.errors import UserError
from runtime.files import lock, save_atomically, write_errors


class PredictionsSaverCallback(Callback):
    """Writes rows "img,rle_mask" to a gzip file, in the order of the predictions.

    to_file: an earlier one is replaced by close_saver(), not before. origin_img_size: (height, width) of the masks.
    threshold: that of CarvanaClassifier.
    """

    def __init__(self, to_file: str | Path, origin_img_size: tuple[int, int], threshold: float):
        self.to_file, self.origin_img_size, self.threshold = Path(to_file), origin_img_size, threshold
        self.empty, self.full = [], []  # names of the images whose masks have no car, or nothing else
        self._open_files, self._csv = ExitStack(), None

    def on_predict_batch(self, names: Sequence[str], probs: Tensor) -> list[tuple[str, str]]:
        # One mask after the other: a batch of them at full size would take too much memory
        masks = (to_mask(prob[None], self.origin_img_size, self.threshold)[0] for prob in probs)
        return [(name, rle.encode(mask)) for name, mask in zip(names, masks, strict=True)]

    def on_batch_gathered(self, result: list[tuple[str, str]]) -> None:
        if self._csv is None:
            self._open()
        height, width = self.origin_img_size
        with write_errors(self.to_file):
            self._csv.writerows(result)
        self.empty += [name for name, runs in result if not runs]
        self.full += [name for name, runs in result if runs == f"1 {height * width}"]

    def close_saver(self) -> None:
        """Move the finished file into place, and warn about suspicious masks. Does nothing if there are no masks."""
        if self._csv is None:
            return
        self._open_files.close()
        for names, fault in ((self.empty, "without a car"), (self.full, "without background")):
            if names:
                print(f"Warning: {pluralize(len(names), 'mask')} {fault}: {first_few(names)}.")
        print(f"submission  {self.to_file}")

    def on_exception(self) -> None:
        with suppress(UserError):  # save_atomically deletes the unfinished file
            self._open_files.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)

    def _open(self) -> None:
        enter = self._open_files.enter_context
        enter(lock(self.to_file.parent))
        file = enter(save_atomically(self.to_file))
        # Without a name and a time in the archive, the same masks give the same bytes
        archive = gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0)
        text = enter(io.TextIOWrapper(archive, encoding="utf-8", newline=""))  # closes the archive too
        self._csv = csv.writer(text, lineterminator="\n")
        self._csv.writerow(["img", "rle_mask"])
