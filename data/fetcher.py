"""Makes sure that the images and masks are there, and splits them so that a car is on one side only."""

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from sklearn.model_selection import train_test_split

from data.credentials import find_credentials
from data.dataset import check_pair, get_image_size
from data.download import COUNTS, SLUG, download, find_zip, is_there
from data.layout import CarvanaLayout, Layout
from data.sample import draw_sample
from helpers import Progress, first_few, format_size, pluralize
from runtime import distributed
from runtime.errors import UserError, require
from runtime.files import lock, make_writable

WAITING = "Another process is working in {}. Waiting for it."


class DatasetFetcher:
    """Gets a data set and splits it. Every problem with it raises UserError. After get_train_files it has

    split: a DataFrame with the columns car (or group), image and part ("train" or "valid")
    image_size: (height, width) of the first training image
    """

    def __init__(self, layout: Layout):
        self.layout = layout
        self.split: pd.DataFrame | None = None
        self.image_size: tuple[int, int] | None = None
        self._refusal = ""  # why Kaggle would refuse the submission

    def download_dataset(self, test_images: bool = True) -> None:
        """Unpack, download or draw what is missing. All processes must call it."""
        with distributed.local_main_process_first():
            if self.layout.drawn:
                _draw(self.layout)
            elif self.layout.missing_files(test_images):
                _download(self.layout, test_images)

    def get_train_files(
        self,
        sample_size: float | None = None,
        validation_size: float = 0.2,
        seed: int = 0,
        split: dict[str, list[str]] | None = None,
    ) -> tuple[list[Path], ...]:
        """-> X_train, y_train, X_valid, y_valid: paths of images and of their masks.

        sample_size: fraction of the cars to use; None: all. validation_size: fraction of these to validate on.
        seed: of both draws, without replacement. split: the columns of a saved split, to use instead.
        """
        self.layout.print_ignored("train", "train_masks")
        _raise_first(self.layout.faults())
        images = self.layout.images()
        masks = {stem: paths[0] for stem, paths in self.layout.masks().items()}
        if split is None:
            rows = self._draw_split(sample_size, validation_size, seed)
        else:
            rows = self._resume_split(split, images)
        for _, stem, _ in Progress(rows, "checking sizes", unit="image"):
            check_pair(images[stem], get_image_size(images[stem]), masks[stem], get_image_size(masks[stem]))

        rows_of_files = [(car, images[stem].name, part) for car, stem, part in rows]
        self.split = pd.DataFrame(rows_of_files, columns=["car", "image", "part"])
        train, valid = ([stem for _, stem, its in rows if its == part] for part in ("train", "valid"))
        self.image_size = get_image_size(images[train[0]])
        _require_same(images[stem] for stem in train + valid)
        require(
            len(train) >= distributed.WORLD_SIZE,
            f"{pluralize(len(train), 'image')} to train on is too few for {distributed.WORLD_SIZE} processes. Pass "
            f"--nproc_per_node={len(train)} or less to torchrun.",
        )
        return tuple([files[stem] for stem in part] for part in (train, valid) for files in (images, masks))

    def _resume_split(self, split: dict[str, list[str]], images: dict[str, Path]) -> list[tuple[str, str, str]]:
        """-> car, stem and part of each image."""
        stems = [Path(name).stem for name in split["image"]]
        missing = [stem for stem in stems if stem not in images]
        require(
            not missing,
            f"{pluralize(len(missing), 'image')} of the run to resume not found in {self.layout.folder('train')}: "
            f"{first_few(missing)}. Put them back.",
        )
        return list(zip(split["car"], stems, split["part"], strict=True))

    def _draw_split(self, sample_size: float | None, validation_size: float, seed: int) -> list[tuple[str, str, str]]:
        groups = self.layout.groups()
        cars = _sample(sorted(groups), sample_size, seed)
        require(
            len(cars) >= 2,
            f"--sample-size {sample_size} of {pluralize(len(groups), self.layout.unit)} is too few: at least 2 are "
            "needed. Raise it.",
        )
        count = min(max(1, round(validation_size * len(cars))), len(cars) - 1)
        train, valid = train_test_split(cars, test_size=count, random_state=seed)
        parts = [("train", car) for car in sorted(train)] + [("valid", car) for car in sorted(valid)]
        return [(car, path.stem, part) for part, car in parts for path in groups[car]]

    def get_test_files(self, sample_size: float | None = None, seed: int = 0, predict: bool = True) -> list[Path]:
        """-> paths of the test images, sorted by name: all, or a fraction of the cars; none without `predict`.

        After get_train_files, raises UserError if one is not of image_size.
        """
        layout = self.layout
        if not (predict and layout.has_test_images):
            return []
        layout.print_ignored("test")
        _raise_first(layout.faults("test"))
        groups = layout.groups("test")
        cars = _sample(sorted(groups), sample_size, seed)
        paths = sorted((path for car in cars for path in groups[car]), key=lambda path: path.name)
        count = COUNTS["test"]
        if not layout.drawn and len(paths) != count:
            masks = pluralize(len(paths), "mask")
            self._refusal = f"Kaggle will refuse this submission: it has {masks}, not {count:,}."
            print(f"Warning: {self._refusal}")
        if self.image_size:
            for path in Progress(paths, "checking sizes", unit="image"):
                check_test_size(path, get_image_size(path), self.image_size)
        _require_same(paths)
        return paths

    @property
    def groups(self) -> dict[str, str] | None:
        """The group of each of your own images by file name. None for cars."""
        if self.layout.unit == "car":
            return None
        return dict(zip(self.split["image"], self.split["car"], strict=True))

    def describe(self, test_count: int) -> str:
        """How many images are used, and where they are."""
        counts = self.split.groupby("part")["car"].agg(["size", "nunique"])
        (train, cars), (valid, valid_cars) = counts.loc[["train", "valid"]].values.tolist()
        split = f"{pluralize(train, 'image')} to train on, {valid:,} to validate on"
        if self.layout.unit != "image":
            cars = pluralize(cars, self.layout.unit)
            split = f"{pluralize(train, 'image')} of {cars} to train on, {valid:,} of {valid_cars:,} to validate on"
        test = f"; {test_count:,} to predict" if test_count else ""
        images, masks = self.layout.folder("train"), self.layout.folder("train_masks")
        return f"{split}{test}\n            in {images}, masks in {masks}"

    def next_step(self, submission: Path, best: Path, worst_image: str, *predict_options: str) -> str:
        """A line that says how to upload the submission, or how to cut out an image of your own.

        best: a checkpoint; worst_image: the name of the image to cut out; predict_options: of predict.py.
        """
        if self._refusal:
            return f"no upload   {self._refusal}"
        if self.layout.drawn:
            return f"the cars    {self.layout.input_dir}, drawn; README.md explains how to train on Kaggle's images"
        if self.layout.has_test_images:
            return f"upload it   kaggle competitions submit -c {SLUG} -f {shlex.quote(str(submission))} -m U-Net"
        image = str(self.layout.folder("train") / worst_image)
        command = shlex.join(["python", "predict.py", image, "--model", str(best), *predict_options])
        return f"cut it out  {command}"


def _draw(layout: CarvanaLayout) -> None:
    folder = layout.input_dir
    print("The images are drawn cars, not Kaggle's: enough to see everything work.")
    make_writable(folder.parent)
    try:
        with lock(folder.parent, WAITING.format(folder.parent)):
            draw_sample(folder)
    except OSError as error:  # of a worker, so its traceback comes first
        raise UserError(f"Cannot draw {folder} ({str(error).strip().splitlines()[-1]}).") from error


def _download(layout: CarvanaLayout, test_images: bool) -> None:
    folder = layout.input_dir
    names = layout.missing_files(test_images)
    available = all(find_zip(folder, name) or is_there(folder / name) for name in names)
    require(available or find_credentials() is not None, layout.help_text(test_images))
    count = len(layout.images()) if is_there(layout.folder("train")) else COUNTS["train"]
    require(available or count == COUNTS["train"], f"{layout.folder('train')} has {count:,} images, not Kaggle's "
            f"{COUNTS['train']:,}, so nothing is downloaded for it. Pass --no-predict, or copy what is missing.")
    make_writable(folder)
    with lock(folder, WAITING.format(folder)):
        download(folder, layout.missing_files(test_images))  # another process may have downloaded them meanwhile


def _require_same(paths: Iterable[Path]) -> None:
    distributed.require_same("The images", ["/".join(path.parts[-2:]) for path in paths])


def _raise_first(faults: Iterable[str]) -> None:
    for fault in faults:
        raise UserError(fault)


def check_test_size(path: Path, size: Sequence[int], mask_size: Sequence[int]) -> None:
    """Raises UserError if the size of a test image is not that of the masks in a submission."""
    require(
        tuple(size) == tuple(mask_size),
        f"{path} is {format_size(size)} pixels, but the masks of a submission are {format_size(mask_size)}, as the "
        "training images. Resize or remove it.",
    )


def _sample(cars: list[str], fraction: float | None, seed: int) -> list[str]:
    count = len(cars) if fraction is None else max(1, round(fraction * len(cars)))
    return cars if count == len(cars) else train_test_split(cars, train_size=count, random_state=seed)[0]
