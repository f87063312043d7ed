"""Reads every image and mask once, lists all problems together, and draws the outlines of some masks."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from data.fetcher import DatasetFetcher, check_test_size
from data.masks import Survey, for_all
from data.reader import Reader
from helpers import first_few, pluralize
from img.transformer import resize, to_pillow
from runtime.errors import UserError
from runtime.files import save_atomically

TILES, SIDE = 4, 320  # images per row and column of the picture; pixels of a tile's longer side


def check_data(ds_fetcher: DatasetFetcher, picture: Path) -> None:
    """Print what is unusual, and save a picture. Raises UserError that lists every problem with the data set."""
    layout = ds_fetcher.layout
    problems = list(layout.faults(shown=None))
    images, masks, tests = layout.images(), layout.masks(), set()
    if layout.has_test_images and layout.files("test"):
        problems += layout.faults("test", shown=None)
        tests = set(layout.images("test").values())

    survey = ds_fetcher.survey({path: masks[stem] for stem, path in images.items() if stem in masks}, check=True)
    mask_size = next((header.size for path, header in survey.headers.items() if path in images.values()), None)

    def read_image(path: Path) -> None:
        survey.reader.image(path)
        if path in tests and mask_size is not None:
            check_test_size(path, mask_size)

    paths = [*images.values(), *sorted(tests)]
    faults = dict(zip(paths, for_all(read_image, paths), strict=True))
    survey.problems |= {path: fault for path, fault in faults.items() if fault}

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


def print_unusual(survey: Survey) -> None:
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
