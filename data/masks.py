"""What the values of a data set's masks mean: decided once for all of them, after a look at each."""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data.reader import Reader, check_pair, get_header, reading
from helpers import Progress, first_few, pluralize
from img.headers import SIDEWAYS
from img.mask import (
    KINDS,
    MaskValues,
    count_values,
    find_objects,
    has_classes,
    is_near,
    level_of,
    read_values,
    show,
    slack_of,
    unpack,
)
from img.transformer import load
from runtime.errors import UserError
from runtime.files import save_atomically
from runtime.machine import count_cores

VERSION = 1  # of what the notes hold
REMEDY = "Fix it, or pass the values of the object: --mask-values 1 3, or --mask-values nonzero for all but 0."

class Facts(NamedTuple):
    """What a mask is like.

    slack: by how many levels compression may have changed it. value: that of all its pixels, or None.
    top: the highest value, or the most frequent of the bright colors. counts: values and their numbers of pixels, the
    most frequent 20. is_class_map: see has_classes. area, border: the fraction of all pixels, and of those at the
    border, that is object.
    """

    kind: str
    slack: int
    value: float | None
    top: float
    counts: Sequence[Sequence[float]]
    is_class_map: bool
    area: float
    border: float

    def __str__(self) -> str:
        return first_few((f"{show(value, self.kind)} ({count:,} pixels)" for value, count in self.counts), 6)


def parse_values(texts: Sequence[str]) -> MaskValues:
    """What --mask-values says. Raises UserError."""
    if list(texts) == ["nonzero"]:
        return MaskValues("", (), soft=False)
    for kind, pattern in (("", r"\d+(\.\d+)?"), ("color", "#[0-9a-fA-F]{6}")):
        if texts and all(re.fullmatch(pattern, text) for text in texts):
            return MaskValues(kind, tuple(int(text[1:], 16) if kind else float(text) for text in texts), soft=False)
    raise UserError(f"--mask-values {' '.join(texts)} must be numbers, colors such as '#ff0000', or nonzero.")


def examine(path: Path, values: MaskValues | None) -> Facts:
    """Look at a mask. values: what masks mean, if that is known. Raises UserError if it cannot be read."""
    with reading(path):
        encoded = path.read_bytes()
        slack = slack_of(encoded)
        kind, pixels = read_values(load(encoded)[0], slack, None if values is None else values.kind)
    levels, (found, counts) = level_of(pixels, kind), count_values(pixels, kind)
    highest, value = levels.max().item(), None
    top = 255 if slack and highest >= 255 - slack else highest
    if kind == "color":
        top = next(color for color in found if level_of(color, kind) >= 0.9 * highest)
    if highest - levels.min() <= slack and (kind != "color" or slack or len(found) == 1):
        value = 0 if highest <= slack else top
    is_object = levels > highest / 2
    if values is not None and not values.soft:
        is_object = find_objects(pixels, kind, values.objects, slack) > 0
    border = np.concatenate([is_object[0], is_object[-1], is_object[:, 0], is_object[:, -1]])
    return Facts(kind, slack, value, top, list(zip(found, counts, strict=True))[:20],
                 value is None and has_classes(pixels, kind, top, slack), is_object.mean().item(), border.mean().item())


def highest_value(path: Path) -> float:
    """Of an image. Raises UserError."""
    with reading(path):
        return np.asarray(load(path.read_bytes())[0]).max().item()


def for_all(function: Callable[[Path], Any], paths: Sequence[Path], title: str) -> list[Any]:
    """function(path) for each, in threads; the sentence of its UserError in place of a result."""
    def attempt(path: Path) -> Any:
        try:
            return function(path)
        except UserError as error:
            return str(error)

    with ThreadPoolExecutor(count_cores()) as pool:
        return list(Progress(pool.map(attempt, paths), title, len(paths), unit="file"))


def remembered(function: Callable[[Path], Any], what: str, paths: Sequence[Path], notes: Path | None) -> list[Any]:
    """for_all(), without files for which `notes` has the result. what: names the function, with its arguments."""
    known, keys = {}, {}
    if notes is not None and notes.exists():
        with suppress(ValueError):
            known = json.loads(notes.read_text())
    for path in paths:
        file = path.stat()
        keys[path] = f"{VERSION} {what} {path} {file.st_size} {file.st_mtime_ns}"
    new = [path for path in paths if keys[path] not in known]
    results = for_all(function, new, "reading masks")
    known |= {keys[path]: result for path, result in zip(new, results, strict=True)}
    if notes is not None and new:
        with save_atomically(notes) as file:
            file.write(json.dumps(known).encode())
    return [known[keys[path]] for path in paths]


def decide(facts: Sequence[Facts]) -> MaskValues | str:
    """What the values mean in most masks, or why that is not known."""
    several = [each for each in facts if each.value is None]
    if not several:
        values = first_few(sorted({show(each.value, each.kind) for each in facts}))
        return f"No mask has both object and background, only one value each ({values}). {REMEDY}"
    kind, _ = Counter(each.kind for each in several).most_common(1)[0]
    tops = Counter(each.top for each in several if each.kind == kind)
    return MaskValues(kind, (max(tops, key=lambda top: (tops[top], top)),))


def problem_of(path: Path, facts: Facts, values: MaskValues) -> str:
    """Why a mask does not fit the others, or ""."""
    reason, of_object = "", [show(value, values.kind) for value in values.objects]
    if not values.soft:
        if facts.kind == "color" and values.kind == "" and values.objects:
            reason = "has colors"
    elif facts.value == 0:
        return ""
    elif facts.kind != values.kind:
        reason = f"has {KINDS[facts.kind]}, but most masks have {KINDS[values.kind]}"
    elif facts.is_class_map:
        reason = "is a class map or has instance ids"
    elif not is_object_value(facts, values):
        reason = f"has no pixel of {of_object[0]}, the object in most masks"
    return reason and f"{path} {reason}: its values are {facts}. {REMEDY}"


def is_object_value(facts: Facts, values: MaskValues) -> bool:
    """Whether the highest value of a mask can be that of the object."""
    top, of_object = (level_of(value, values.kind) for value in (facts.top, values.objects[0]))
    same_color = values.kind != "color" or abs(unpack(facts.top) - unpack(values.objects[0])).max() <= 20
    return same_color and is_near(top, of_object, facts.slack, exact=values.kind == "index")


class MaskOptions(NamedTuple):
    """mask_values: the values of the object, such as ("1", "3"), ("#ff0000",) or ("nonzero",). None: decide.

    rotate_masks: rotate masks without EXIF data as their images? None: if they fit only so.
    notes: a file for what was found out about each mask. saved: Reader.state() of the run to resume.
    """

    mask_values: Sequence[str] | None = None
    rotate_masks: bool | None = None
    notes: Path | None = None
    saved: dict | None = None

    def known(self) -> MaskValues | None:
        """What the masks mean, as far as that was said or decided before."""
        if self.saved:
            return Reader.from_state(self.saved).values
        return parse_values(self.mask_values) if self.mask_values else None


class Survey:
    """A look at the images and masks of a data set, to find out how they are read. It prints what it decides.

    pairs: image -> its masks. kaggle: the masks are Kaggle's, so that only headers are read, unless `check`.

    reader: reads the data set. problems: a sentence for each unusable file. facts: of each mask that was read.
    """

    def __init__(self, pairs: Mapping[Path, Sequence[Path]], options: MaskOptions = MaskOptions(),
                 kaggle: bool = False, check: bool = False):
        self.pairs = [(image, mask) for image, masks in pairs.items() for mask in masks]
        self.options, self.problems, self.facts = options._replace(notes=None) if check else options, {}, {}
        self.reader = Reader(parts={masks[0].name: [mask.name for mask in masks[1:]] for masks in pairs.values()})
        images = [image for image, masks in pairs.items() if len(masks) > 1]
        if images:
            print(f"merged      all masks of {pluralize(len(images), 'image')} each: {_first_names(images)}")
        self._read_headers(list(pairs))
        if check or not kaggle:
            self._read_masks(MaskValues() if kaggle else options.known())
        if not kaggle:
            print(f"masks       {self.reader.values}")
            self._read_deep_images(list(pairs))

    def _read_headers(self, images: list[Path]) -> None:
        """Compare sizes, and find the masks that need the EXIF rotation of their images."""
        paths = images + [mask for _, mask in self.pairs]
        headers = dict(zip(paths, for_all(get_header, paths, "checking sizes"), strict=True))
        self.problems |= {path: header for path, header in headers.items() if isinstance(header, str)}
        self.headers = {path: header for path, header in headers.items() if path not in self.problems}
        rotated, ambiguous = [], []
        for image, mask in self.pairs:
            if image not in self.headers or mask not in self.headers:
                continue
            (upright, orientation, *_), (size, own, *_) = self.headers[image], self.headers[mask]
            stored = upright[::-1] if orientation in SIDEWAYS else upright
            if orientation > 1 and own == 1 and size == stored:
                if self.options.rotate_masks or (self.options.rotate_masks is None and size != upright):
                    self.reader.rotations[mask.name] = orientation
                    size = upright
                    rotated.append(mask)
                elif self.options.rotate_masks is None:
                    ambiguous.append(mask)
            try:
                check_pair(image, upright, mask, size)
            except UserError as error:
                self.problems[mask] = str(error)
        if rotated:
            print(f"rotated     {pluralize(len(rotated), 'mask')}, as the EXIF data of the image say: "
                  f"{_first_names(rotated)}")
        if ambiguous:  # CVAT, Label Studio and labelme show images upright
            print(f"Warning: {pluralize(len(ambiguous), 'mask')} would fit with and without the EXIF rotation of the "
                  f"image, and is not rotated: {_first_names(ambiguous)}. Pass --rotate-masks False if right, or True.")

    def _read_masks(self, known: MaskValues | None) -> None:
        """Decide what the values mean, unless it is known, and find the masks that do not fit."""
        masks, wanted = [mask for _, mask in self.pairs], None if known is None or known.soft else known
        results = remembered(lambda path: examine(path, wanted), f"mask {wanted}", masks, self.options.notes)
        for path, result in zip(masks, results, strict=True):
            if isinstance(result, str):
                self.problems.setdefault(path, result)
            else:
                self.facts[path] = Facts(*result)
        if not self.facts:
            return
        values = known or decide(list(self.facts.values()))
        if isinstance(values, str):
            self.problems.setdefault(masks[0].parent, values)
            return
        self.reader.values = values
        for path, facts in self.facts.items():
            if problem := problem_of(path, facts, values):
                self.problems.setdefault(path, problem)
        if wanted and not any(facts.area for facts in self.facts.values()):
            self.problems[masks[0].parent] = (
                f"No mask has a pixel of --mask-values {' '.join(self.options.mask_values)}. "
                f"{masks[0]} has {next(iter(self.facts.values()))}.")
        inverted = [path for path, facts in self.facts.items() if facts.value is None and facts.border > 0.5]
        if inverted:
            print(f"Warning: {pluralize(len(inverted), 'mask')} with the object on most of the border: "
                  f"{_first_names(inverted)}. If it is the background, invert it.")

    def _read_deep_images(self, images: list[Path]) -> None:
        """Find out how many bits 16-bit images use, if their headers do not say it: from the highest value of all."""
        deep = [image for image in images if image in self.headers and self.headers[image].deep]
        unknown = [image for image in deep if self.headers[image].bits is None]
        if self.options.saved:
            self.reader.bits = self.options.saved["bits"]
        elif unknown:
            results = remembered(highest_value, "image", unknown, self.options.notes)
            self.problems |= {path: each for path, each in zip(unknown, results, strict=True) if isinstance(each, str)}
            highest = max([each for each in results if not isinstance(each, str)], default=0)
            self.reader.bits = next(bits for bits in (8, 10, 12, 14, 16) if highest < 2**bits)
        if unknown:
            print(f"images      {pluralize(len(unknown), '16-bit file')}, of which {self.reader.bits} bits are used")


def _first_names(paths: Sequence[Path]) -> str:
    return first_few(path.name for path in paths)
