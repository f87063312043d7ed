"""Where the files of a data set are, which of them belong together, and what is wrong with their names."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Literal

from PIL import Image

from data.download import COMPETITION, SETTINGS, is_complete, is_there
from helpers import first_few, pluralize
from img.headers import FORMATS
from runtime.errors import UserError

CAR_STEM = re.compile(r".+_(0[1-9]|1[0-6])(_mask)?", re.IGNORECASE)  # Kaggle's: car and angle
ANGLES = {f"{angle:02d}" for angle in range(1, 17)}  # each car has an image from each
IMAGE_FOLDERS = ("train_hq", "train", "images", "imgs")  # of your own images
MASK_FOLDERS = ("train_masks", "masks")
MASK_STEM = re.compile(r"(.+?)(?:(_masks?)(_\d+)?)?", re.I | re.S)  # NAME, of a mask, its number if there are several
NOT_TEXT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # control characters, line ends, stray bytes

OWN_HINT = "For images of your own, pass --dataset own."

# Names (none: it is not a problem; None: there must be some), what they are of, what is wrong, what to do
Problem = tuple[list[str] | None, str, str, str]


def make_layout(dataset: Literal["carvana", "sample", "own"], input_dir: str | Path, hq_files: bool | None,
                group_regex: str | None) -> "Layout":
    """Return the layout of Kaggle's images, of a sample drawn in input_dir/sample, or of your own images."""
    if dataset == "own":
        return OwnLayout(input_dir, group_regex)
    if dataset == "sample":
        return CarvanaLayout(Path(input_dir) / "sample", drawn=True)
    return CarvanaLayout(input_dir, hq_files)


class Layout:
    """Pairs images with masks by name, and finds every problem with the names.

    A subclass defines, for the name "train", "train_masks" or "test",

    folder(name) -> its path
    kind(path, name) -> what a file in it is: "used", "misnamed", "ignored" (no image, or a cut-out), or "elsewhere"
    group_of(stem) -> the group of an image, from its name without extension, or ""
    group_problem() -> what is wrong with the groups
    """

    input_dir: Path
    unit: str  # what the split keeps together: "car", "group" or "image"
    naming: str  # the rule for file names
    mask_hint = ""
    has_test_images = False
    drawn = False  # by data/sample.py instead of Kaggle's

    def files(self, name: str) -> dict[str, list[Path]]:
        """kind -> files, sorted by name. Hidden ones, such as .DS_Store, are left out."""
        files = defaultdict(list)
        for path in sorted(self.folder(name).glob("[!.]*")):
            files["not text" if NOT_TEXT.search(path.name) else self.kind(path, name)].append(path)
        return files

    def images(self, name: str = "train") -> dict[str, Path]:
        return {stem_of(path): path for path in self.files(name)["used"]}

    def masks(self) -> dict[str, list[Path]]:
        """The masks by the stem of their image or, without one, by their own."""
        images, masks = self.images(), defaultdict(list)
        for path in self.files("train_masks")["used"]:
            stem = stem_of(path)
            masks[stem if stem in images else image_of(stem, images) or stem].append(path)
        return masks

    def groups(self, name: str = "train") -> dict[str, list[Path]]:
        groups = defaultdict(list)
        for stem, path in self.images(name).items():
            groups[self.group_of(stem)].append(path)
        groups.pop("", None)
        return groups

    def faults(self, part: Literal["train", "test"] = "train", shown: int | None = 3) -> Iterator[str]:
        """Print the files that are ignored, and yield a sentence for every problem, with `shown` names (None: all)."""
        if part == "test":
            problems = self._problems("test")
        else:
            problems = [*self._problems("train"), *self._problems("train_masks"), *self._pair_problems()]
        for names, noun, problem, remedy in problems:
            if names is None:
                yield f"There are no {noun}s {problem}. {remedy}"
            elif names:
                yield f"{pluralize(len(names), noun)} {problem}: {first_few(names, shown)}. {remedy}"

    def _problems(self, name: str) -> Iterator[Problem]:
        files, folder, noun = self.files(name), self.folder(name), "mask" if name == "train_masks" else "image"
        print_ignored(folder, files["ignored"])
        not_text = [repr(path.name) for path in files["not text"]]
        misnamed = [path.name for path in files["misnamed"]]
        stems = Counter(stem_of(path) for path in files["used"])
        twice = [path.name for path in files["used"] if stems[stem_of(path)] > 1 and noun == "image"]
        yield not_text, "file", f"in {folder} with a name that is not text", "Rename them."
        yield misnamed, noun, f"in {folder} with an unexpected name", f"{self.naming}. {OWN_HINT}"
        if not files["used"]:
            yield None, noun, f"in {folder} itself", f"{self.naming}."
        problem = f"in {folder} that differ only in extension or Unicode normalization"
        yield twice, noun, problem, "Keep one of each name."

    def _pair_problems(self) -> Iterator[Problem]:
        images, masks, groups = self.images(), self.masks(), list(self.groups())
        image_dir, mask_dir, hint = self.folder("train"), self.folder("train_masks"), self.mask_hint
        missing = [path.name for stem, path in images.items() if stem not in masks]
        orphans = [masks[stem][0].name for stem in sorted(masks.keys() - images.keys())]
        doubles = [f"{paths[0].name} and {paths[1].name}" for paths in masks.values()
                   if len({MASK_STEM.fullmatch(stem_of(path))[3] for path in paths}) < len(paths)]
        yield missing, "image", f"without a mask in {mask_dir}", f"Add the masks, or remove the images.{hint}"
        yield orphans, "mask", f"without an image in {image_dir}", f"Add the images, or remove the masks.{hint}"
        yield doubles, "image", f"with two masks in {mask_dir}", "Keep one of the two."
        yield self.group_problem()
        if len(groups) < 2:
            yield groups or None, self.unit, f"in {image_dir} (at least 2 are needed)", f"Add {self.unit}s."


class CarvanaLayout(Layout):
    """Kaggle's folders: train/ or train_hq/, train_masks/, and test/ or test_hq/.

    hq_files: use train_hq/ and test_hq/? None: if they are there.
    """

    unit = "car"
    naming = "Images must be named <car>_<01..16>.jpg, and masks <car>_<01..16>_mask.gif"
    has_test_images = True

    def __init__(self, input_dir: str | Path, hq_files: bool | None = None, drawn: bool = False):
        self.input_dir, self.drawn = Path(input_dir), drawn
        self.suffixes = {None: ("_hq", ""), True: ("_hq",), False: ("",)}[hq_files]

    def names(self, name: str) -> list[str]:
        """The names that the folder may have, the preferred one first."""
        return [name] if name == "train_masks" else [name + suffix for suffix in self.suffixes]

    def find(self, name: str) -> str | None:
        """The name of the folder or, without one, of the zip."""
        folders = [each for each in self.names(name) if is_there(self.input_dir / each)]
        zips = [each for each in self.names(name) if (self.input_dir / f"{each}.zip").is_file()]
        return next(iter(folders + zips), None)

    def folder(self, name: str) -> Path:
        return self.input_dir / (self.find(name) or self.names(name)[-1])

    def kind(self, path: Path, name: str) -> str:
        if not is_image(path):
            return "ignored"
        found = CAR_STEM.fullmatch(path.stem)
        return "used" if found and bool(found[2]) == (name == "train_masks") else "misnamed"

    def group_of(self, stem: str) -> str:
        return stem.rpartition("_")[0]

    def group_problem(self) -> Problem:
        cars = {car: ANGLES - {path.stem[-2:] for path in paths} for car, paths in self.groups().items()}
        incomplete = [f"{car} lacks {', '.join(sorted(angles))}" for car, angles in cars.items() if angles]
        return (incomplete, "car", f"in {self.folder('train')} without all of the angles 01 to 16",
                f"Add the images and masks. {OWN_HINT}")

    def missing_files(self, test_images: bool) -> list[str]:
        """The folders that must be unpacked or downloaded, small files first, so that a refusal comes early."""
        train = self.folder("train").name
        test = self.find("test") or train.replace("train", "test")  # of the same quality
        names = ["train_masks", train, test][: 2 + test_images]
        return [name for name in names if not is_complete(self.input_dir / name)]

    def help_text(self, test_images: bool) -> str:
        missing = [name for name in ("train", "train_masks", "test")[: 2 + test_images] if not self.find(name)]
        folders = [" or ".join(f"{each}/" for each in reversed(self.names(name))) for name in missing]
        without = "; pass --no-predict to train only" if missing == ["test"] else ""
        return (f"There is no {' and no '.join(folders)} in {self.input_dir}/{without}. Three options:\n"
                f"  1. Download it (no valid credentials were found): accept the rules at {COMPETITION}/rules,\n"
                f"     create a token at {SETTINGS}, and set KAGGLE_API_TOKEN to it.\n"
                f"  2. Copy the zips from {COMPETITION}/data to {self.input_dir}/,\n"
                "     packed or unpacked, or pass the folder that has them: python main.py --input-dir FOLDER\n"
                "     (images and masks of your own: --dataset own).\n"
                "  3. Try it without Kaggle, on drawn cars: python main.py --dataset sample")


class OwnLayout(Layout):
    """Your own images and masks, of any names and sizes, without test images.

    group_regex: finds, in an image's name without extension, what all images of one object share: its first
        parentheses or else all of it. None: each image is its own group.
    """

    naming = ("Images must be in train/, images/ or imgs/ of --input-dir or directly in it; masks in train_masks/ or "
              "masks/ or, as NAME_mask.png, next to the images")
    mask_hint = " The mask of NAME.jpg is NAME_mask.png, or NAME.png in a separate folder."

    def __init__(self, input_dir: str | Path, group_regex: str | None = None):
        self.input_dir, self.unit = Path(input_dir), "image" if group_regex is None else "group"
        try:
            self.pattern = re.compile(".+" if group_regex is None else unicodedata.normalize("NFC", group_regex))
        except (re.error, OverflowError) as error:
            raise UserError(f"--group-regex {group_regex!r} is not a regular expression ({error}). Pass one such as "
                            "'(.+)_'.") from error
        self.image_dir = self._first_with_images(IMAGE_FOLDERS, self.input_dir)
        self.mask_dir = self._first_with_images(MASK_FOLDERS, self.image_dir)
        self.stems = {stem_of(path) for path in self.image_dir.glob("[!.]*") if is_image(path)}

    def _first_with_images(self, names: tuple[str, ...], default: Path) -> Path:
        folders = [self.input_dir / name for name in names]
        return next((folder for folder in folders if any(map(is_image, folder.glob("[!.]*")))), default)

    def folder(self, name: str) -> Path:
        return self.image_dir if name == "train" else self.mask_dir

    def kind(self, path: Path, name: str) -> str:
        together = self.image_dir == self.mask_dir
        if path == self.mask_dir or (together and is_mask(path, self.stems) != (name == "train_masks")):
            return "elsewhere"
        return "used" if is_image(path) and not is_cutout(path, self.stems) else "ignored"

    def group_of(self, stem: str) -> str:
        found = self.pattern.search(stem)
        return (found[min(self.pattern.groups, 1)] or "") if found else ""

    def group_problem(self) -> Problem:
        unfit = [path.name for stem, path in self.images().items() if not self.group_of(stem)]
        problem = f"in {self.image_dir} not matched by --group-regex {self.pattern.pattern!r}"
        return unfit, "image", problem, "Pass one that matches all names (without extension)."


def is_image(path: Path) -> bool:
    """Whether it is a file with the extension of a supported format."""
    image_format = Image.registered_extensions().get(path.suffix.lower())
    return image_format in FORMATS and path.is_file()


def stem_of(path: Path) -> str:
    """The name without its extension, in Unicode's NFC: some systems write an accented letter as two characters."""
    return unicodedata.normalize("NFC", path.stem)


def image_of(stem: str, images: Container[str]) -> str | None:
    """The stems of a mask that has another name than its image, and of all images -> that of its image.

    NAME_mask_1 is the second mask of NAME, unless there is an image NAME_1.
    """
    name, _, number = MASK_STEM.fullmatch(stem).groups("")
    return name if name in images and not (number and name + number in images) else None


def is_mask(path: Path, stems: Container[str]) -> bool:
    """Whether it is named NAME_mask, and NAME is in `stems`."""
    stem = stem_of(path)
    return MASK_STEM.fullmatch(stem)[2] is not None and image_of(stem, stems) is not None


def is_cutout(path: Path, stems: Container[str]) -> bool:
    """Whether predict.py has cut it out of an image in `stems`."""
    stem = stem_of(path)
    return stem.lower().endswith("_cutout") and stem[: -len("_cutout")] in stems


def print_ignored(folder: Path, paths: list[Path]) -> None:
    unsupported = {path.suffix[1:].upper() for path in paths} & {"HEIC", "HEIF", "AVIF"}
    remedy = f" ({min(unsupported)} is not supported: convert it to JPEG)" if unsupported else ""
    if paths:
        names = first_few(path.name for path in paths)
        print(f"ignored     {pluralize(len(paths), 'file')} in {folder}: {names}{remedy}")
