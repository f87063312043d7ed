"""Reads every image and mask, lists all problems together, and draws the outlines of some masks."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from data.fetcher import DatasetFetcher, check_test_size
from data.masks import Survey, map_files, print_files
from data.reader import Reader
from helpers import pluralize
from img.transformer import resize, to_pillow
from runtime.errors import UserError
from runtime.files import save_atomically

TILES, SIDE = 4, 320  # images per row and column of the picture; pixels of a tile's longer side


def check_data(ds_fetcher: DatasetFetcher, picture: Path) -> None:
    """Print what is unusual, and save a picture. Raises UserError that lists every problem."""
    layout = ds_fetcher.layout
    problems = list(layout.faults(shown=None))
    images, masks, tests = layout.images(), layout.masks(), set()
    if layout.has_test_images and layout.files("test"):
        problems += layout.faults("test", shown=None)
        tests = set(layout.images("test").values())

    survey = ds_fetcher.survey({path: masks[stem] for stem, path in images.items() if stem in masks}, check=True)
    mask_size = next((header.size for header in survey.headers.values()), None)

    def read_image(path: Path) -> None:
        survey.reader.image(path)
        if path in tests and mask_size is not None:
            check_test_size(path, mask_size)

    paths = [*images.values(), *sorted(tests)]
    survey.problems |= map_files(read_image, paths)[1]
    problems += survey.problems.values()
    has_object = {path: stats.area > 0 for path, stats in survey.stats.items() if stats.has_one_value}
    print_files("note        {} without an object: {}", [path for path, has in has_object.items() if not has])
    print_files("note        {} without background: {}", [path for path, has in has_object.items() if has])
    draw_masks(survey, picture)
    read_all = f"{pluralize(len(images), 'image')}, {pluralize(len(survey.pairs), 'mask')}"
    if layout.has_test_images:
        read_all += f", {pluralize(len(tests), 'test image')}"
    if problems:
        title = f"{pluralize(len(problems), 'problem')} in {layout.input_dir} ({read_all} read):"
        raise UserError("\n  ".join([title, *problems]))
    print(f"{read_all} read: no problems.")


def draw_masks(survey: Survey, picture: Path) -> None:
    """Save images with the outlines of their masks and a dark background, the unusual ones first."""
    picture.unlink(missing_ok=True)
    drawn = [(image, mask) for image, mask in survey.pairs if mask.name in survey.reader.parts  # the first of several
             and mask in survey.stats and not survey.problems.keys() & {image, mask}]
    median = np.median([survey.stats[mask].area for _, mask in drawn]) if drawn else 0

    def sort_key(pair: tuple[Path, Path]) -> tuple:
        stats = survey.stats[pair[1]]
        return stats.border <= 0.5 or stats.has_one_value, not stats.has_one_value, -abs(stats.area - median)

    tiles = []
    for image, mask in sorted(drawn, key=sort_key)[: TILES**2]:
        with suppress(UserError):  # which is among the problems
            tiles.append(_tile(survey.reader, image, mask))
    if not tiles:
        return
    sheet = Image.new("RGB", (TILES * SIDE, TILES * SIDE))
    for index, tile in enumerate(tiles):
        sheet.paste(tile, (index % TILES * SIDE, index // TILES * SIDE))
    with save_atomically(picture) as file:
        sheet.save(file, "PNG")
    print(f"look at     {picture}: masks on their images, the unusual ones first")


def _tile(reader: Reader, image_path: Path, mask_path: Path) -> Image.Image:
    """An image with the outline of its mask, and its name. At most SIDE x SIDE pixels."""
    image, mask = reader.image(image_path), reader.mask(mask_path)
    size = [max(1, round(side * SIDE / max(image.shape))) for side in image.shape[1:]]
    image, outside = resize(image, size), (resize(mask, size) <= 127).float()  # (3, h, w), (1, h, w)
    image = torch.where(outside > 0, image // 2, image)
    outline = (F.max_pool2d(outside, 3, stride=1, padding=1) > outside)[0]
    image[:, outline] = torch.tensor([[255], [0], [255]], dtype=torch.uint8)  # magenta
    tile = to_pillow(image)
    ImageDraw.Draw(tile).text((4, 4), image_path.name, "yellow", stroke_width=2, stroke_fill="black")
    return tile
