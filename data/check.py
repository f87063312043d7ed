"""Reads every photo and mask once, and lists all that is wrong with them in one go."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from data.dataset import check_pair, read
from data.fetcher import DatasetFetcher
from helpers import Progress, pluralize
from img import transformer
from runtime.errors import UserError
from runtime.machine import count_cores


def check_data(ds_fetcher: DatasetFetcher, workers: int | None) -> None:
    """Print what is strange in the data set. Raises UserError that lists all that is wrong in it.

    workers: how many processes read; None takes one a core, and 32 at most.
    """
    faults, pairs, tests = ds_fetcher.find_faults()
    files = _Files([*pairs.items(), *((photo, None) for photo in tests)])
    oddities, sizes = [], {}
    loader = DataLoader(files, batch_size=None, num_workers=min(count_cores(), 32) if workers is None else workers)
    for path, size, wrong, odd in Progress(loader, "checking", unit="photo"):
        sizes[path] = size
        faults += wrong
        oddities += odd
    wanted = next((sizes[path] for path in pairs if sizes[path]), None)
    for path in tests:
        if sizes[path] and wanted:
            _attempt(faults, ds_fetcher.check_test_size, path, sizes[path], wanted)
    if not tests and ds_fetcher.dataset != "own":
        oddities.append("there are no photos to predict, so say --no-predict to train only.")
    for sentence in oddities:
        print(f"Strange, but no fault: {sentence}")
    masks = sum(mask is not None for mask in pairs.values())
    to_predict = "" if ds_fetcher.dataset == "own" else f" and {pluralize(len(tests), 'photo')} to predict"
    read_all = f"{pluralize(len(pairs), 'photo')}, {pluralize(masks, 'mask')}{to_predict}, all read"
    if faults:
        count = pluralize(len(faults), "fault")
        raise UserError("\n  ".join([f"{count} in {ds_fetcher.input_dir} ({read_all}):", *faults]))
    print(f"{read_all}: no fault.")


def _attempt(faults: list[str], check: Callable, *arguments: object) -> Any:
    """What the check returns; None where it raises a UserError, whose sentence is added to `faults`."""
    try:
        return check(*arguments)
    except UserError as error:
        faults.append(str(error))
        return None


class _Files(Dataset):
    """What is wrong with a photo and its mask.

    pairs: the path of each photo and that of its mask, or None.
    """

    def __init__(self, pairs: list[tuple[Path, Path | None]]):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Path, tuple[int, int] | None, list[str], list[str]]:
        """-> the photo's path, its (height, width) or None if it can't be read, faults, and what is only strange."""
        photo_path, mask_path = self.pairs[index]
        faults, odd = [], []
        photo = _attempt(faults, read, photo_path, transformer.decode_image)  # (3, H, W)
        mask = _attempt(faults, read, mask_path, transformer.decode_mask) if mask_path else None  # (1, H, W)
        if photo is not None and mask is not None:
            _attempt(faults, check_pair, photo_path, photo.shape[1:], mask_path, mask.shape[1:])
        if mask is not None:
            counts = torch.bincount(mask.flatten(), minlength=256)  # of the pixels, by their value
            values = counts.nonzero().flatten().tolist()
            between, car = (counts[a:b].sum().item() / mask.numel() for a, b in ((26, 230), (128, 256)))
            if between > 0.05:
                odd.append(f"{mask_path} is gray, neither car nor background, in {100 * between:.0f} % of its pixels.")
            elif len(values) == 1:
                odd.append(f"{mask_path} {'is all car' if values[0] else 'holds no car'}.")
            elif car > 0.9:
                odd.append(f"{mask_path} is car in {100 * car:.0f} % of its pixels.")
            elif values == [0, 1, 255]:
                odd.append(f"{mask_path} holds 0, 1 and 255, of which 255 is car. If 1 is, make the others 0.")
        return photo_path, None if photo is None else tuple(photo.shape[1:]), faults, odd
