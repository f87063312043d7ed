"""Reads every image and mask once, and lists all problems together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from data.dataset import check_pair, read
from data.fetcher import DatasetFetcher, check_test_size
from helpers import Progress, pluralize
from img import transformer
from runtime.errors import UserError
from runtime.machine import count_cores


def check_data(ds_fetcher: DatasetFetcher, workers: int | None) -> None:
    """Print a warning about each unusual mask. Raises UserError that lists every problem with the data set.

    workers: number of processes that read; None: one per core, at most 32.
    """
    layout, sizes, warnings = ds_fetcher.layout, [], []
    problems = list(layout.faults(shown=None))
    images, masks, tests = layout.images(), layout.masks(), []
    if layout.has_test_images and layout.files("test"):
        problems += layout.faults("test", shown=None)
        tests = list(layout.images("test").values())

    pairs = [(path, masks.get(stem, [None])[0]) for stem, path in images.items()]
    files = pairs + [(path, None) for path in tests]
    workers = min(count_cores(), 32) if workers is None else workers
    loader = DataLoader(files, batch_size=None, collate_fn=_read_pair, num_workers=workers)
    for size, new_problems, new_warnings in Progress(loader, "checking", unit="image"):
        sizes.append(size)
        problems += new_problems
        warnings += new_warnings
    mask_size = next(filter(None, sizes[: len(pairs)]), None)
    for path, size in zip(tests, sizes[len(pairs) :], strict=True):
        if size and mask_size:
            _attempt(problems, check_test_size, path, size, mask_size)

    for warning in warnings:
        print(f"Warning: {warning}")
    read_all = f"{pluralize(len(images), 'image')}, {pluralize(len(images.keys() & masks.keys()), 'mask')}"
    if layout.has_test_images:
        read_all += f", {pluralize(len(tests), 'test image')}"
    if problems:
        title = f"{pluralize(len(problems), 'problem')} in {layout.input_dir} ({read_all} read):"
        raise UserError("\n  ".join([title, *problems]))
    print(f"{read_all} read: no problems.")


def _attempt(problems: list[str], check: Callable, *arguments: object) -> Any:
    """Return check(*arguments), or add the sentence of its UserError to `problems`."""
    try:
        return check(*arguments)
    except UserError as error:
        problems.append(str(error))


def _read_pair(paths: tuple[Path, Path | None]) -> tuple[tuple[int, int] | None, list[str], list[str]]:
    """Paths of an image and its mask -> (height, width) of the image or None if unreadable, problems, warnings."""
    (image_path, mask_path), problems = paths, []
    image = _attempt(problems, read, image_path, transformer.decode_image)  # (3, H, W)
    mask = _attempt(problems, read, mask_path, transformer.decode_mask) if mask_path else None  # (1, H, W)
    if image is not None and mask is not None:
        _attempt(problems, check_pair, image_path, image.shape[1:], mask_path, mask.shape[1:])
    size = None if image is None else image.shape[1:]
    return size, problems, [] if mask is None else _unusual(mask_path, mask)


def _unusual(path: Path, mask: Tensor) -> list[str]:
    """mask: (1, H, W) uint8 -> at most one sentence that says what is unusual about it."""
    counts = torch.bincount(mask.flatten(), minlength=256)  # pixels per value
    values = counts.nonzero().flatten().tolist()
    gray, car = (counts[low:high].sum().item() / mask.numel() for low, high in ((26, 230), (128, 256)))
    if gray > 0.05:
        return [f"{path} is gray (neither car nor background) in {gray:.0%} of its pixels."]
    if len(values) == 1:
        return [f"{path} is {'all car' if values[0] else 'all background'}."]
    if car > 0.9:
        return [f"{path} is car in {car:.0%} of its pixels."]
    if values == [0, 1, 255]:
        return [f"{path} has the values 0, 1 and 255, and only 255 is car. If 1 is car, set the others to 0."]
    return []
