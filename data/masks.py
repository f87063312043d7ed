"""Decide once per data set what the values of its masks mean, after a look at each of them."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.reader import Reader, check_pair, get_header, reading
from helpers import Progress, first_few, pluralize
from img.headers import SIDEWAYS
from img.mask import (
    MaskValues,
    count_values,
    format_value,
    fraction_of_object,
    is_class_map,
    read_values,
    tolerance_of,
    value_of_object,
)
from img.transformer import load
from runtime.errors import UserError
from runtime.machine import count_cores

REMEDY = "Pass the values of the object, such as --mask-values 1 3, '#ff0000', or nonzero (all but 0)."


class MaskStats(NamedTuple):
    """What a mask is like.

    kind: see MaskValues. tolerance: by how many levels compression may have changed its values. highest: see
    value_of_object. has_one_value: in all pixels. is_class_map: see the function. counts: values and their numbers of
    pixels, the most frequent 20. area, border: the fraction of all pixels, and of those at the border, that is object.
    """

    kind: str
    tolerance: int
    highest: float
    has_one_value: bool
    is_class_map: bool
    counts: Sequence[Sequence[float]]
    area: float
    border: float

    def __str__(self) -> str:
        shown = (f"{format_value(value, self.kind)} ({pluralize(count, 'pixel')})" for value, count in self.counts)
        return first_few(shown, 6)


def parse_values(texts: Sequence[str]) -> MaskValues:
    """What --mask-values says. Raises UserError."""
    if list(texts) == ["nonzero"]:
        return MaskValues("nonzero", (), soft=False)
    for kind, pattern in (("", r"\d+(\.\d+)?"), ("color", "#[0-9a-fA-F]{6}")):
        if texts and all(re.fullmatch(pattern, text) for text in texts):
            return MaskValues(kind, tuple(int(text[1:], 16) if kind else float(text) for text in texts), soft=False)
    raise UserError(f"--mask-values {' '.join(texts)} must be numbers, colors such as '#ff0000', or nonzero.")


def known_reader(mask_values: Sequence[str] | None, saved: dict[str, Any] | None) -> Reader | None:
    """What need not be decided: --mask-values, or else what Reader.state() of another run has. None: nothing."""
    reader = Reader.from_state(saved) if saved else None
    return reader if mask_values is None else Reader(parse_values(mask_values), reader and reader.bits)


def examine(path: Path, wanted: MaskValues | None) -> MaskStats:
    """Look at a mask. wanted: what --mask-values says. Raises UserError if it cannot be read."""
    with reading(path):
        encoded = path.read_bytes()
        tolerance = tolerance_of(encoded)
        kind, pixels = read_values(load(encoded)[0], tolerance, wanted and wanted.kind)
    counts, has_one_value = count_values(pixels), pixels.max() - pixels.min() <= tolerance
    highest = value_of_object(counts, tolerance)
    is_object = pixels > highest / 2 if wanted is None else fraction_of_object(pixels, wanted, tolerance) > 127
    border = np.concatenate([is_object[0], is_object[-1], is_object[:, 0], is_object[:, -1]])
    return MaskStats(
        kind, tolerance, highest, bool(has_one_value),
        not has_one_value and is_class_map(pixels, kind, highest, tolerance), counts[:20],
        is_object.mean().item(), border.mean().item())


def highest_value(path: Path) -> float:
    """Return the highest value of a 16-bit image. Raises UserError."""
    with reading(path):
        return np.asarray(load(path.read_bytes())[0]).max().item()


def map_files(function: Callable[[Path], Any], paths: Sequence[Path]) -> tuple[dict[Path, Any], dict[Path, str]]:
    """Call function(path) for each, in threads -> the results, and the sentences of UserErrors, both by path."""
    def attempt(path: Path) -> Any:
        try:
            return function(path)
        except UserError as error:
            return error

    with ThreadPoolExecutor(count_cores()) as pool:
        results = Progress(pool.map(attempt, paths), "reading files", len(paths), unit="file")
        found = dict(zip(paths, results, strict=True))
    problems = {path: str(result) for path, result in found.items() if isinstance(result, UserError)}
    return {path: result for path, result in found.items() if path not in problems}, problems


def decide(stats: Sequence[MaskStats]) -> MaskValues | None:
    """What the values mean in most masks; None if none has both object and background."""
    several = [each for each in stats if not each.has_one_value]
    if not several:
        return None
    counts = Counter((each.kind, each.highest) for each in several)
    kind, highest = max(counts, key=lambda pair: (counts[pair], pair))
    return MaskValues(kind, (highest,))


def problem_of(path: Path, stats: MaskStats, values: MaskValues) -> str:
    """Why a mask does not fit the others, or ""."""
    is_binary = not stats.tolerance and len(stats.counts) <= 2
    problem = values.mismatch(stats.kind, stats.highest, stats.tolerance, exact=is_binary)
    if values.soft and stats.is_class_map and stats.kind == values.kind:
        return f"{path} is a class map, has instance ids, or is no mask: its values are {stats}. {REMEDY}"
    remedy = " Save it like the others, or pass --mask-values." if values.soft else ""
    return problem and f"{path} {problem}. Its values are {stats}.{remedy}"


class Survey:
    """Decides how the images and masks of a data set are read, and prints it.

    pairs: image -> its masks. known: what need not be decided.
    kaggle: the masks are Kaggle's, so that only headers are read, unless `check`.

    reader: reads the data set. problems, headers, stats: of each unusable file, readable file, readable mask.
    """

    def __init__(self, pairs: Mapping[Path, Sequence[Path]], known: Reader | None = None, kaggle: bool = False,
                 check: bool = False):
        self.images, self.stats = list(pairs), {}
        self.pairs = [(image, mask) for image, masks in pairs.items() for mask in masks]
        parts = {masks[0].name: [mask.name for mask in masks[1:]] for masks in pairs.values() if masks}
        self.reader = Reader(bits=known and known.bits, parts=parts)
        several = [path for path, masks in pairs.items() if len(masks) > 1]
        print_files("merged      the masks of {} with more than one: {}", several, "image")
        self._read_headers()
        if check or not kaggle:
            self._read_masks(MaskValues() if kaggle else known and known.values)
        if not kaggle:
            self._read_16_bit_images()

    def _read_headers(self) -> None:
        """Compare sizes, and find the masks that need the EXIF rotation of their images."""
        self.headers, self.problems = map_files(get_header, self.images + [mask for _, mask in self.pairs])
        rotated, ambiguous = [], []
        for image, mask in self.pairs:
            if not {image, mask} <= self.headers.keys():
                continue
            (upright, _, orientation, _), (size, _, own, _) = self.headers[image], self.headers[mask]
            stored = upright[::-1] if orientation in SIDEWAYS else upright
            if orientation > 1 and own == 1 and size == stored:
                if size == upright:
                    ambiguous.append(mask)
                else:
                    self.reader.rotations[mask.name], size = orientation, upright
                    rotated.append(mask)
            try:
                check_pair(image, upright, mask, size)
            except UserError as error:
                self.problems[mask] = str(error)
        print_files("rotated     {}, as the EXIF data of the image say: {}", rotated)
        # CVAT, Label Studio and labelme show images upright
        print_files("Warning: {} would fit with and without the EXIF rotation of the image; not rotated: {}. "
                    "If that is wrong, rotate them, or remove the EXIF data of their images.", ambiguous)

    def _read_masks(self, known: MaskValues | None) -> None:
        """Decide what the values mean, unless it is known, and find the masks that do not fit."""
        masks, wanted = [mask for _, mask in self.pairs], None if known is None or known.soft else known
        self.stats, problems = map_files(lambda path: examine(path, wanted), masks)
        self.problems = problems | self.problems
        found = list(self.stats.values())
        if not found:
            return
        values, folder = known or decide(found), masks[0].parent
        if values is None:
            examples = first_few(dict.fromkeys(map(str, found)))
            self.problems[folder] = (f"No mask has both object and background, only {examples}. "
                                     "Add one that has, or pass the value of the object: --mask-values.")
            return
        self.reader.values = values
        for path, stats in self.stats.items():
            if problem := problem_of(path, stats, values):
                self.problems.setdefault(path, problem)
        fit = {path: stats for path, stats in self.stats.items() if path not in self.problems}
        if fit:
            print(f"masks       {values}")
        if wanted and not any(stats.area for stats in found):
            self.problems[folder] = f"No mask has an object ({values}). The first one has {found[0]}. {REMEDY}"
        print_files("empty       {} with other values only: {}",
                    [path for path, each in fit.items() if wanted and each.area == 0 and each.highest > each.tolerance])
        inverted = [path for path, each in fit.items() if not each.has_one_value and each.border > 0.5]
        print_files("Warning: {} with the object on most of the border: {}. If that is the background, invert these "
                    "masks or, if it is so in all of them, pass --mask-values 0.", inverted)

    def _read_16_bit_images(self) -> None:
        """Find out how many bits 16-bit images use, from the highest value of all."""
        found = [image for image in self.images if image in self.headers and self.headers[image].is_16_bit]
        if found and self.reader.bits is None:
            highest, problems = map_files(highest_value, found)
            self.problems |= problems
            self.reader.bits = next(bits for bits in (8, 10, 12, 14, 16) if max(highest.values(), default=0) < 2**bits)
        print_files(f"images      {{}} of 16 bits, of which {self.reader.bits} are used: {{}}", found, "image")


def print_files(sentence: str, paths: Sequence[Path], noun: str = "mask") -> None:
    """Print a sentence with the number of these files and the first names, if there are any."""
    if paths:
        print(sentence.format(pluralize(len(paths), noun), first_few(path.name for path in paths)))
