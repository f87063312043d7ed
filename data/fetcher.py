"""Finds the photos and masks, or has them fetched, pairs them by name, and splits them by car."""

import re
import shlex
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
from PIL import Image
from sklearn.model_selection import train_test_split

from data.dataset import check_pair, format_size, reading
from data.download import COMPETITION, COUNTS, SETTINGS, SLUG, download, find_credentials, find_zip, is_there, leftovers
from data.own import LAYOUT, compile_group, find_folders, group_of, image_of, is_called_mask, is_image, tell_left_aside
from data.sample import draw_sample
from helpers import Progress, first_few, pluralize
from img import transformer
from runtime.errors import UserError, require
from runtime.files import lock, make_writable

VIEWS = [f"{view:02d}" for view in range(1, 17)]  # each car was photographed from 16 sides
PHOTO = re.compile(r"(?P<car>.+)_(?P<view>\d\d)\.(jpe?g|png)", re.IGNORECASE)
MASK = re.compile(r"(?P<photo>.+_\d\d)_mask\.(gif|png|bmp|tiff?|jpe?g)", re.IGNORECASE)
NO_TEXT = ("Cc", "Cs", "Zl", "Zp")  # Unicode's control characters, bytes that are no text, and ends of lines
NAMES = {"photos": (PHOTO, "<car>_<01..16>.jpg"), "masks": (MASK, "<car>_<01..16>_mask.gif")}  # at Kaggle


class DatasetFetcher:
    """The data set in a folder laid out as Kaggle's: train/ or train_hq/, train_masks/, test/ or test_hq/.

    input_dir: that folder.
    dataset: "carvana" works on what lies there; "sample" draws cars into input_dir/sample, once, and works on them;
        "own" works on photos of any names and sizes, and needs none to predict: data/own.py tells where they may lie.
    hq_files: take the photos of high quality (train_hq/, test_hq/) or not; None takes what is there, these first.
    group: of own photos, the pattern of what the names of one object's photos share; None: each shows another.
    split: after get_train_files, a row a photo with columns car, image and part ("train" or "valid"). The car of own
        photos is their group.
    """

    def __init__(
        self,
        input_dir: str | Path = "input",
        dataset: str = "carvana",
        hq_files: bool | None = None,
        group: str | None = None,
    ):
        kinds = ("carvana", "sample", "own")
        require(dataset in kinds, f"dataset {dataset} can't be: it must be carvana, sample or own.")
        require(dataset != "sample" or not hq_files, "The drawn sample has no train_hq/: leave --hq-files out.")
        require(dataset != "own" or hq_files is None, "--hq-files is for Kaggle's photos: leave it out.")
        require(
            dataset == "own" or group is None,
            f"--group-regex {group!r} is for photos of your own: say --dataset own too, or leave it out.",
        )
        self.dataset, self.group = dataset, compile_group(group)
        self.unit = "car" if dataset != "own" else "photo" if group is None else "group"  # which the split keeps whole
        self.input_dir = Path(input_dir) / "sample" if dataset == "sample" else Path(input_dir)
        self.suffixes = ("_hq", "") if hq_files is None else ("_hq",) if hq_files else ("",)
        self.split: pd.DataFrame | None = None
        self._unlike_kaggle = ""  # why Kaggle won't take a submission of these photos
        self._faults: list[str] | None = None  # gathers them while find_faults looks; else the first ends the program

    def download_dataset(self, test_images: bool = True) -> None:
        """Make sure that there is something to train on, and with test_images something to predict.

        What lies in input_dir is taken as it is, zips are unpacked, and the rest is fetched from Kaggle. Raises
        UserError that says the ways to get what is missing.
        """
        if self.dataset == "own":
            require(self.input_dir.is_dir(), f"There is no folder {self.input_dir}. {LAYOUT}.")
            print(f"Photos in {self._folder('train')}, masks in {self._folder('train_masks')}.")
            return
        folder = self.input_dir.parent if self.dataset == "sample" else self.input_dir
        waiting = f"Another process is at work in {folder}; waiting for it."
        if self.dataset == "sample":
            print("These are drawn cars, not Kaggle's photos: enough to see it all work.")
            make_writable(folder)
            try:
                with lock(folder, waiting) or nullcontext():
                    draw_sample(self.input_dir)
            except OSError as error:  # of a process that draws, with its traceback in front
                reason = str(error).strip().splitlines()[-1]
                raise UserError(f"{self.input_dir} can't be drawn ({reason}).") from error
            for name in ("train", "train_masks"):
                remedy = "remove that folder to have it drawn."
                require(self._folder(name) is not None, f"There is no {name}/ in {self.input_dir}/: {remedy}")
        elif names := self._missing_files(test_images):
            to_fetch = [name for name in names if not find_zip(folder, name) and not is_there(folder / name)]
            require(not to_fetch or find_credentials() is not None, self._help_text(test_images))
            train = self._folder("train")
            count = len(_visible(train)) if train else COUNTS["train"]
            require(
                count == COUNTS["train"] or not {"test", "test_hq"} & set(to_fetch),
                f"There is no {self._names('test')} in {self.input_dir}/, and Kaggle's isn't fetched for it: {train} "
                f"holds {count:,} files, not Kaggle's {COUNTS['train']:,} photos. Copy photos to predict there, or say "
                "--no-predict to train only.",
            )
            make_writable(folder)
            with lock(folder, waiting) or nullcontext():
                download(folder, self._missing_files(test_images))  # which another process may have done by now

    def _missing_files(self, test_images: bool) -> list[str]:
        """What is to be unpacked or fetched, such as train_hq; small ones first, so that a refusal comes early."""
        names, here = [], self.input_dir
        for table, *photos in (("metadata.csv", "train_masks", "train"), ("sample_submission.csv", "test")):
            folders = [self._kaggles_name(name) for name in photos]
            to_fetch = [name for name in folders if not is_there(here / name) and not find_zip(here, name)]
            by_hand = table != "metadata.csv" and find_zip(here, table)  # which nothing reads
            if to_fetch or by_hand:  # without photos of Kaggle's, its tables aren't needed
                names.append(table)
            names += folders
            if not test_images:
                break
        return [name for name in names if not is_there(here / name) or leftovers(here, name)]

    def _kaggles_name(self, name: str) -> str:
        """What that folder is called at Kaggle: as it is here, or as a zip is here, or of the quality asked for, which
        for test is that of train.
        """
        here = self._folder(name)
        if here or name == "train_masks":
            return name if here is None else here.name
        names = [name + suffix for suffix in self.suffixes]
        default = names[-1] if name == "train" else name + self._kaggles_name("train").removeprefix("train")
        return next((each for each in names if find_zip(self.input_dir, each)), default)

    def _is_here(self, name: str) -> bool:
        """As a folder or as a zip."""
        zips = (find_zip(self.input_dir, name + suffix) for suffix in ("", *self.suffixes))
        return self._folder(name) is not None or any(zips)

    def _help_text(self, test_images: bool) -> str:
        wanted = ("train", "train_masks", "test")[: 2 + test_images]
        missing = [self._names(name) for name in wanted if not self._is_here(name)]
        without = "; say --no-predict to train only" * (missing == [self._names("test")])
        bundle = self.input_dir / f"{SLUG}.zip"
        inside = f"Unpack {bundle} there: what is wanted are the zips inside it.\n" * bundle.exists()
        return (
            f"There is no {' and no '.join(missing)} in {self.input_dir}/{without}. {inside}Three ways on:\n"
            f"  1. Have it fetched: accept the rules at {COMPETITION}/rules, make a token\n"
            f"     at {SETTINGS}, and set KAGGLE_API_TOKEN to it (README.md knows other keys).\n"
            f"  2. Have it already? Copy it to {self.input_dir}/, as zips of {COMPETITION}/data\n"
            "     or unpacked, or name the folder: python main.py --input-dir FOLDER\n"
            "     (and for photos and masks of your own, which aren't Kaggle's: --dataset own)\n"
            "  3. Try it without Kaggle, on drawn cars: python main.py --dataset sample  (or: make demo)"
        )

    def find_faults(self) -> tuple[list[str], dict[Path, Path | None], list[Path]]:
        """What is wrong with the names of the files, a sentence each; each photo to train on with its mask, None where
        it has none; the photos to predict.
        """
        self._faults = faults = []
        photos, masks, cars = self._pairs()
        if len(cars) < 2:
            self._fault(f"{pluralize(len(cars), self.unit)} is too few: one must train and another validate.")
        tests = self._photos("test") if self._folder("test") else {}
        self._faults = None
        return faults, {photo: masks.get(photo) for photo in photos.values()}, sorted(tests.values())

    def get_train_files(
        self,
        sample_size: float | None = None,
        validation_size: float = 0.2,
        seed: int = 0,
        split: dict[str, list[str]] | None = None,
    ) -> tuple[list[Path], list[Path], list[Path], list[Path]]:
        """-> X_train, y_train, X_valid, y_valid: the paths of photos and masks, all views of a car on the same side.

        sample_size: share of the cars to work on, None for all; validation_size: share of those to validate on.
        Both are drawn without replacement, by `seed` alone. split: the columns of a split to use instead, of a run that
        goes on. Raises UserError where photos and masks don't fit together, and where a photo of the split is gone.
        """
        photos, masks, cars = self._pairs()
        if split is None:
            parts = self._draw_split(sorted(cars), sample_size, validation_size, seed)
            rows = [(car, photo.stem, part) for part in parts for car in parts[part] for photo in cars[car]]
        else:
            stems = [Path(image).stem for image in split["image"]]
            rows = list(zip(split["car"], stems, split["part"], strict=True))
        gone = {car if self.unit == "car" else stem: None for car, stem, _ in rows if stem not in photos}  # each once
        require(
            not gone,
            f"{pluralize(len(gone), 'car' if self.unit == 'car' else 'photo')} that the run was trained or validated on "
            f"can't be found in {self._folder('train')}: {self._some(gone)}. Put them back, or start another run.",
        )
        others = sorted(photos.keys() - {stem for _, stem, _ in rows})
        if split is not None and sample_size is None and others:
            came = f"{pluralize(len(others), 'photo')} in {self._folder('train')} came after the run began"
            names = self._some(photos[stem].name for stem in others)
            print(f"{came}, and stay out of it: {names}. Start another run to train on them.")
        self._check_sizes([photos[stem] for _, stem, _ in rows], masks)

        columns = ["car", "image", "part"]
        self.split = pd.DataFrame([(car, photos[stem].name, part) for car, stem, part in rows], columns=columns)
        X_train, X_valid = ([photos[stem] for _, stem, its in rows if its == part] for part in ("train", "valid"))
        return X_train, [masks[x] for x in X_train], X_valid, [masks[x] for x in X_valid]

    @property
    def groups(self) -> dict[str, str] | None:
        """After get_train_files, the group of each of one's own photos by its name; None where they are Kaggle's."""
        return dict(zip(self.split["image"], self.split["car"], strict=True)) if self.dataset == "own" else None

    def _draw_split(self, cars: list[str], sample_size: float | None, validation_size: float, seed: int) -> dict:
        chosen = _sample(cars, sample_size, seed)
        require(
            len(chosen) >= 2,
            f"{len(chosen)} of {pluralize(len(cars), self.unit)} in {self._folder('train')} is too few: one must train "
            f"and another validate. Add {self.unit}s, or raise --sample-size if you gave it.",
        )
        count = min(max(1, round(validation_size * len(chosen))), len(chosen) - 1)
        train, valid = train_test_split(chosen, test_size=count, random_state=seed)
        return {"train": sorted(train), "valid": sorted(valid)}

    def get_test_files(
        self, sample_size: float | None = None, seed: int = 0, origin_img_size: tuple[int, int] | None = None
    ) -> list[Path]:
        """-> the paths of the photos to predict, sorted by name; of a share of the cars if sample_size is given.

        Raises UserError where a photo is not of origin_img_size (height, width), at which the masks will be written.
        """
        if self._folder("test") is None:
            raise UserError(
                f"There is no {self._names('test')} in {self.input_dir}/, so nothing to predict: copy test.zip or "
                f"test_hq.zip of {COMPETITION} there, or say --no-predict to train only."
            )
        cars = _by_car(self._photos("test"))
        chosen = _sample(sorted(cars), sample_size, seed)
        paths = sorted((path for car in chosen for path in cars[car]), key=lambda path: path.name)
        self._compare_with_kaggle([path.name for path in paths])
        for path in _progress(paths) if origin_img_size else []:
            self.check_test_size(path, self.get_image_size(path), origin_img_size)
        return paths

    def _compare_with_kaggle(self, names: list[str]) -> None:
        """Tell where the photos to predict are not those of sample_submission.csv or, without it, are not as many."""
        table = self.input_dir / "sample_submission.csv"
        if self.dataset == "sample":
            return
        if not table.is_file():
            if len(names) != COUNTS["test"]:
                many = f"it has the masks of {pluralize(len(names), 'photo')}, and {COUNTS['test']:,} are wanted"
                self._unlike_kaggle = f"Kaggle will refuse this submission: {many}."
            return
        try:
            wanted = set(pd.read_csv(table, usecols=["img"], dtype=str, keep_default_na=False)["img"])
        except ValueError as error:  # no text, or no such column
            raise UserError(f"{table} has no column img: get it once more, or remove it.") from error
        missing, surplus = sorted(wanted - set(names)), sorted(set(names) - wanted)
        if missing or surplus:
            some = ", ".join([*missing, *surplus][:3])
            self._unlike_kaggle = (
                f"Kaggle will refuse this submission: of the {len(wanted):,} photos in {table}, {len(missing):,} are "
                f"not predicted, and {len(surplus):,} others are (the first of both: {some})."
            )
            print(self._unlike_kaggle)

    @staticmethod
    def check_test_size(path: Path, size: Sequence[int], wanted: Sequence[int]) -> None:
        """Raises UserError where a photo to predict is of another size (height, width) than those to train on."""
        require(
            tuple(size) == tuple(wanted),
            f"{path} is {format_size(size)} pixels, but the masks of a submission are written at {format_size(wanted)}, "
            "the size of the training photos; resize it or take it out.",
        )

    @staticmethod
    def get_image_size(path: str | Path) -> tuple[int, int]:
        """(height, width) of the image at `path`, turned upright, from its header alone."""
        with reading(path):
            return transformer.get_image_size(path)

    def describe(self, to_predict: int) -> str:
        """How many photos, of how many cars, train, validate, and are predicted, and where they are."""
        sizes = self.split.groupby("part")["car"].agg(["size", "nunique"])
        (train, its_cars), (valid, other_cars) = sizes.loc["train"], sizes.loc["valid"]
        of_cars, of_others = f" of {pluralize(its_cars, self.unit)}", f" of {other_cars}"
        if self.unit == "photo":
            of_cars = of_others = ""
        return (
            f"{pluralize(train, 'photo')}{of_cars} to train on, {valid:,}{of_others} to validate,\n"
            f"            {f'{to_predict:,} to predict, ' if to_predict else ''}in {self.input_dir}"
        )

    def next_step(self, made: Path, photo: str = "", *options: str) -> str:
        """The line that tells what to do with the submission; of own photos, how to cut out that one with the model.

        options: of predict.py, where the model's own aren't meant.
        """
        if self.dataset == "own":
            photo = str(self._folder("train") / photo)
            command = shlex.join(["python", "predict.py", photo, "--model", str(made), *options])
            return f"cut it out  {command}\n            (the worst photo; name others, or folders of them)"
        if self.dataset == "sample":
            return f"the cars    {self.input_dir}, drawn; README.md says how to train on Kaggle's photos"
        if self._unlike_kaggle:
            return f"no upload   {self._unlike_kaggle}"
        return f"upload it   kaggle competitions submit -c {SLUG} -f {shlex.quote(str(made))} -m U-Net"

    def _folder(self, name: str) -> Path | None:
        """The folder of that name, or of the other quality's, that has something in it. Of own photos, see data/own.py.
        """
        if self.dataset == "own":
            return dict(zip(("train", "train_masks"), find_folders(self.input_dir), strict=True)).get(name)
        suffixes = ("",) if name == "train_masks" else self.suffixes
        folders = [self.input_dir / (name + suffix) for suffix in suffixes]
        return next((folder for folder in folders if folder.is_dir() and _visible(folder)), None)

    def _names(self, name: str) -> str:
        """What a folder of that name is called here, for a sentence."""
        return " or ".join(f"{name}{suffix}/" for suffix in ([""] if name == "train_masks" else self.suffixes[::-1]))

    def _fault(self, sentence: str) -> None:
        if self._faults is None:
            raise UserError(sentence)
        self._faults.append(sentence)

    @property
    def _shown(self) -> int | None:
        """How many names a sentence has: the first few, and for find_faults all of them."""
        return 3 if self._faults is None else None

    def _some(self, names: Iterable[str]) -> str:
        return first_few(names, self._shown)

    def _pairs(self) -> tuple[dict[str, Path], dict[Path, Path], dict[str, list[Path]]]:
        """-> the photos to train on by their name without ending, the mask of each, and the photos of each car."""
        photos = self._photos("train")
        masks = self._masks(photos.values())
        if self.dataset == "own":
            return photos, masks, self._by_group(photos)
        cars = _by_car(photos)
        self._check_views(cars)
        return photos, masks, cars

    def _by_group(self, photos: dict[str, Path]) -> dict[str, list[Path]]:
        groups, unfit = defaultdict(list), []
        for stem, path in photos.items():
            group = group_of(stem, self.group)
            groups[group].append(path)
            unfit += [path.name] * (group is None)
        if unfit:
            self._fault(
                f"--group-regex {self.group.pattern!r} fits {len(photos) - len(unfit)} of the {len(photos)} photos in "
                f"{self._folder('train')}, but not {self._some(unfit)}: say one that fits on all names (without their "
                "ending), or rename or remove these."
            )
        groups.pop(None, None)
        return groups

    def _check_views(self, cars: dict[str, list[Path]]) -> None:
        found = {car: {path.stem[-2:] for path in paths} for car, paths in cars.items()}
        uneven = [
            f"{car} has {verb} {', '.join(sorted(views))}"
            for car, its in found.items()
            for verb, views in (("no", set(VIEWS) - its), ("also", its - set(VIEWS)))
            if views
        ]
        if uneven:
            self._fault(
                f"Each car in {self._folder('train')} must have the 16 views 01 to 16, but {self._some(uneven)}. "
                "Add what is missing, or take the car out, photos and masks; if they aren't Kaggle's, say "
                "--dataset own."
            )

    def _photos(self, name: str) -> dict[str, Path]:
        """The photos in that folder by their name without ending. Names what is not a photo."""
        folder = self._folder(name)
        paths = self._own_files("photos") if self.dataset == "own" else self._files(folder, "photos")
        times = Counter(path.stem for path in paths)
        twice = [path.name for path in paths if times[path.stem] > 1]
        if twice:
            self._fault(f"{folder} holds a photo twice, with two endings: {self._some(twice)}. Keep one of the two"
                        f"{', or call the other NAME_mask if it is a mask' * (self.dataset == 'own')}.")
        return {path.stem: path for path in paths}

    def _masks(self, photos: Iterable[Path]) -> dict[Path, Path]:
        """The mask of each photo, found by name."""
        folder = self._folder("train_masks")
        photos, masks = list(photos), defaultdict(list)
        stems = {photo.stem for photo in photos}
        for path in self._own_files("masks") if self.dataset == "own" else self._files(folder, "masks"):
            masks[image_of(path, stems)].append(path)
        without = [photo.name for photo in photos if photo.stem not in masks]
        alone = [masks[stem][0].name for stem in sorted(set(masks) - stems)]
        twice = [f"{a.name} and {b.name}" for a, b, *_ in (found for found in masks.values() if len(found) > 1)]
        write_errors = " The mask of NAME.jpg is NAME.png or NAME_mask.png." * (self.dataset == "own")
        for names, noun, fault, where, remedy in (
            (without, "photo", "without a mask in", folder, "Add the masks, or take the photos out"),
            (alone, "mask", "without a photo in", self._folder("train"), "Add the photos, or take the masks out"),
            (twice, "photo", "with two masks in", folder, "Keep one of the two"),
        ):
            if names:
                self._fault(f"{pluralize(len(names), noun)} {fault} {where}: {self._some(names)}. {remedy}.{write_errors}")
        return {photo: masks[photo.stem][0] for photo in photos if photo.stem in masks}

    def _check_sizes(self, photos: list[Path], masks: dict[Path, Path]) -> None:
        for photo in _progress(photos):
            check_pair(photo, self.get_image_size(photo), masks[photo], self.get_image_size(masks[photo]))

    def _files(self, folder: Path, what: str) -> list[Path]:
        """The files in `folder` named as Kaggle's; an image that isn't is a fault, any other stray file is told of."""
        paths, (pattern, example) = self._named(folder), NAMES[what]
        strays = [path for path in paths if not pattern.fullmatch(path.name)]
        images = [path.name for path in strays if path.suffix.lower() in Image.registered_extensions()]
        if images:
            self._fault(
                f"{pluralize(len(images), 'file')} in {folder} not named like {what}, {example}: {self._some(images)}. "
                "Rename them, or move them out; if they aren't Kaggle's, say --dataset own."
            )
        self._leave_aside(folder, what, [path.name for path in strays if path.name not in images])
        found = [path for path in paths if pattern.fullmatch(path.name)]
        if not found:
            self._fault(
                f"There are no {what} (named {example}) in {folder}; if they lie in a folder inside it, move them up."
            )
        return found

    def _own_files(self, what: str) -> list[Path]:
        """The images in the folder of the photos, or of the masks. Where they lie together, NAME_mask.* is a mask."""
        places = self._folder("train"), self._folder("train_masks")
        folder, together = places[what == "masks"], places[0] == places[1]
        paths = [path for path in self._named(folder) if path not in places]
        found = [path for path in paths if is_image(path)]
        if what == "photos" or not together:
            self._leave_aside(folder, what, [path.name for path in paths if not is_image(path)])
        if together:
            found = [path for path in found if is_called_mask(path) == (what == "masks")]
        if not found:
            self._fault(f"There are no {what} in {folder}. {LAYOUT}; not in folders inside these.")
        return found

    def _named(self, folder: Path) -> list[Path]:
        """What lies in `folder`, but for names that are no text, which are a fault."""
        paths = _visible(folder)
        no_text = [path for path in paths if any(unicodedata.category(each) in NO_TEXT for each in path.name)]
        if no_text:
            files, names = pluralize(len(no_text), "file"), self._some(ascii(path.name) for path in no_text)
            self._fault(f"{files} in {folder} with a name that can't be written: {names}. Rename them.")
        return [path for path in paths if path not in no_text]

    def _leave_aside(self, folder: Path, what: str, names: list[str]) -> None:
        if names:
            tell_left_aside(folder, what, names, self._shown)


def _visible(folder: Path) -> list[Path]:
    """What lies in `folder`, but for hidden files such as .DS_Store."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _progress(photos: list[Path]) -> Iterable[Path]:
    return Progress(photos, "checking sizes", unit="photo")


def _by_car(photos: dict[str, Path]) -> dict[str, list[Path]]:
    """car -> its photos, by view."""
    cars = defaultdict(list)
    for path in photos.values():
        cars[PHOTO.fullmatch(path.name)["car"]].append(path)
    return cars


def _sample(cars: list[str], share: float | None, seed: int) -> list[str]:
    count = len(cars) if share is None else max(1, round(share * len(cars)))
    if count == len(cars):
        return cars
    return train_test_split(cars, train_size=count, random_state=seed)[0]
