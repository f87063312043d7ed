"""Reads every image and mask once, lists all problems together, and draws the outlines of some masks."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch.utils.data import DataLoader

from data.fetcher import DatasetFetcher, check_test_size
from data.masks import Survey
from data.reader import Reader, get_header
from helpers import Progress, first_few, pluralize
from img.transformer import resize, to_pillow
from runtime.errors import UserError
from runtime.files import save_atomically
from runtime.machine import count_cores

TILES, SIDE = 4, 320  # images per row and column of the picture; pixels of a tile's longer side


def check_data(ds_fetcher: DatasetFetcher, workers: int | None, picture: Path) -> None:
    """Print what is unusual, and save a picture. Raises UserError that lists every problem with the data set.

    workers: number of processes that read images; None: one per core, at most 32.
    """
    layout = ds_fetcher.layout
    problems = list(layout.faults(shown=None))
    images, masks, tests = layout.images(), layout.masks(), []
    if layout.has_test_images and layout.files("test"):
        problems += layout.faults("test", shown=None)
        tests = list(layout.images("test").values())

    survey = ds_fetcher.survey({path: masks[stem] for stem, path in images.items() if stem in masks}, check=True)
    paths = [*images.values(), *tests]
    workers = min(count_cores(), 32) if workers is None else workers
    mask_size = next((header.size for path, header in survey.headers.items() if path in paths), None)
    jobs = [(survey.reader, path, None if index < len(images) else mask_size) for index, path in enumerate(paths)]
    loader = DataLoader(jobs, batch_size=None, collate_fn=_read_image, num_workers=workers)
    for path, problem in zip(paths, Progress(loader, "checking", unit="image"), strict=True):
        if problem:
            survey.problems[path] = problem

    problems += survey.problems.values()
    print_unusual(survey)
    draw_masks(survey, picture)
    read_all = f"{pluralize(len(images), 'image')}, {pluralize(len(survey.pairs), 'mask')}"
    if layout.has_test_images:
        read_all += f", {pluralize(len(tests), 'test image')}"
    if problems:
        title = f"{pluralize(len(problems), 'problem')} in {layout.input_dir} ({read_all} read):"
        raise UserError("\n  ".join([title, *problems]))
    print(f"{read_all} read: no problems.")


def _read_image(job: tuple[Reader, Path, tuple[int, int] | None]) -> str:
    """A reader, an image, and the size that it must have or None -> what is wrong with it, or ""."""
    reader, path, size = job
    try:
        reader.image(path)
        if size is not None:
            check_test_size(path, get_header(path).size, size)
    except UserError as error:
        return str(error)
    return ""


def print_unusual(survey: Survey) -> None:
    """Print which masks are empty or full."""
    for what, full in (("without an object", False), ("with nothing else", True)):
        one_value = {path: stats for path, stats in survey.stats.items() if stats.has_one_value}
        names = [path.name for path, stats in one_value.items() if full == (stats.area > 0)]
        if names:
            print(f"note        {pluralize(len(names), 'mask')} {what}: {first_few(names)}")


def draw_masks(survey: Survey, picture: Path) -> None:
    """Save images with the outlines of their masks, the unusual ones first."""
    drawn = [pair for pair in survey.pairs if pair[1] in survey.stats and not survey.problems.keys() & set(pair)]
    median = np.median([survey.stats[mask].area for _, mask in drawn]) if drawn else 0

    def is_usual(pair: tuple[Path, Path]) -> tuple:
        stats = survey.stats[pair[1]]
        return stats.border <= 0.5 or stats.has_one_value, not stats.has_one_value, -abs(stats.area - median)

    sheet = Image.new("RGB", (TILES * SIDE, TILES * SIDE))
    for index, (image, mask) in enumerate(sorted(drawn, key=is_usual)[: TILES**2]):
        row, column = divmod(index, TILES)
        with suppress(UserError):  # of a file that is among the problems
            sheet.paste(_tile(survey.reader, image, mask), (column * SIDE, row * SIDE))
    if drawn:
        with save_atomically(picture) as file:
            sheet.save(file, "PNG")
        print(f"look at     {picture}: masks on their images, the unusual ones first")


def _tile(reader: Reader, image_path: Path, mask_path: Path) -> Image.Image:
    """An image with the outline of its mask, and its name. At most SIDE x SIDE pixels."""
    image, mask = reader.image(image_path), reader.mask(mask_path)
    size = [max(1, round(side * SIDE / max(image.shape))) for side in image.shape[1:]]
    image, outside = resize(image, size), (resize(mask, size) <= 127).float()  # (3, h, w), (1, h, w)
    outline = (F.max_pool2d(outside, 3, stride=1, padding=1) > outside)[0]
    image[:, outline] = torch.tensor([[255], [0], [255]], dtype=torch.uint8)  # magenta
    tile = to_pillow(image)
    ImageDraw.Draw(tile).text((4, 4), image_path.name, "yellow", stroke_width=2, stroke_fill="black")
    return tile
