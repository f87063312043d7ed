"""Makes sure that the images and masks are there, and splits them so that a car is on one side only."""

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from data.download import SLUG, TEST_COUNT, download, is_there, sign_in
from data.layout import CarvanaLayout, Layout, stem_of
from data.masks import Survey
from data.reader import Reader, get_header
from data.sample import draw_sample
from helpers import Progress, first_few, format_size, pluralize
from runtime import distributed
from runtime.errors import UserError, require
from runtime.files import lock, make_writable


class DatasetFetcher:
    """Gets a data set and splits it. Every problem with it raises UserError. After get_train_files it has

    split: a DataFrame with the columns car (also of groups), image and part ("train" or "valid")
    image_size: (height, width) of the first image
    reader: reads the images and masks
    """

    def __init__(self, layout: Layout, known_reader: Reader | None = None):
        self.layout, self.known_reader = layout, known_reader
        self.image_size: tuple[int, int] | None = None
        self._refusal = ""  # why Kaggle would refuse the submission

    def download_dataset(self, test_images: bool = True) -> None:
        """Unpack, download or draw what is missing. All processes must call it."""
        with distributed.local_main_process_first():
            if self.layout.drawn:
                _draw(self.layout.input_dir)
            elif self.layout.has_test_images:
                _download(self.layout, test_images)

    def get_train_files(self, sample_size: float | None = None, validation_size: float = 0.2, seed: int = 0,
                        split: dict[str, list[str]] | pd.DataFrame | None = None) -> tuple[list[Path], ...]:
        """-> X_train, y_train, X_valid, y_valid: paths of images and of their masks.

        sample_size: fraction of the cars to use; None: all. validation_size: fraction of these to validate on.
        seed: of both draws, without replacement. split: the columns of a saved split, to use instead.
        """
        _raise_first(self.layout.faults())
        images, masks = self.layout.images(), self.layout.masks()
        self.split = self._draw_split(sample_size, validation_size, seed) if split is None else pd.DataFrame(split)
        stems = self.split["image"].map(lambda name: stem_of(Path(name)))
        missing = [stem for stem in stems if stem not in images]
        require(not missing, f"{pluralize(len(missing), 'image')} of the run to resume not found in "
                f"{self.layout.folder('train')}: {first_few(missing)}. Put them back.")
        survey = distributed.broadcast(lambda: self.survey({images[stem]: masks[stem] for stem in stems}))
        if problems := [*survey.problems.values()]:
            raise UserError(problems[0] + " --check-data lists all problems." * (len(problems) > 1))
        self.reader = survey.reader

        self.split["image"] = [images[stem].name for stem in stems]
        parts = [stems[self.split["part"] == part] for part in ("train", "valid")]
        X_train, X_valid = ([images[stem] for stem in part] for part in parts)
        y_train, y_valid = ([masks[stem][0] for stem in part] for part in parts)
        self.image_size = get_header(images[min(stems, default=min(images))]).size
        distributed.require_same(X_train + X_valid)
        count, processes = len(X_train), distributed.WORLD_SIZE
        require(not count or count >= processes, f"{pluralize(count, 'image')} to train on is too few for "
                f"{processes} processes. Pass --nproc_per_node={count} or less to torchrun.")
        return X_train, y_train, X_valid, y_valid

    def get_unseen_files(self, seen: Collection[str]) -> tuple[list[Path], list[Path]]:
        """-> X, y: paths of the images and masks of all cars of which `seen` has neither the name nor any image."""
        rows = [(car, path.name, "valid") for car, paths in sorted(self.layout.groups().items())
                if {car, *(each.name for each in paths)}.isdisjoint(seen) for path in paths]
        _, _, X, y = self.get_train_files(split=pd.DataFrame(rows, columns=["car", "image", "part"]))
        if left_out := len(self.layout.images()) - len(rows):
            print(f"left out    {pluralize(left_out, 'image')} of cars or groups that a model was trained on, judging "
                  "by their names")
        return X, y

    def survey(self, pairs: Mapping[Path, Sequence[Path]], check: bool = False) -> Survey:
        return Survey(pairs, self.known_reader, kaggle=self.layout.unit == "car", check=check)

    def _draw_split(self, sample_size: float | None, validation_size: float, seed: int) -> pd.DataFrame:
        groups = self.layout.groups()
        cars = _sample(groups, sample_size, seed)
        require(len(cars) >= 2, f"--sample-size {sample_size} of {pluralize(len(groups), self.layout.unit)} is too "
                "few: at least 2 are needed. Raise it.")
        count = min(max(1, round(validation_size * len(cars))), len(cars) - 1)
        parts = zip(("train", "valid"), _divide(cars, test_size=count, random_state=seed), strict=True)
        rows = [(car, path.name, part) for part, drawn in parts for car in sorted(drawn) for path in groups[car]]
        return pd.DataFrame(rows, columns=["car", "image", "part"])

    def get_test_files(self, sample_size: float | None = None, seed: int = 0, predict: bool = True) -> list[Path]:
        """-> paths of the test images, sorted by name: all, or a fraction of the cars; none without `predict`.

        After get_train_files, raises UserError if one is not of image_size.
        """
        if not (predict and self.layout.has_test_images):
            return []
        _raise_first(self.layout.faults("test"))
        groups = self.layout.groups("test")
        paths = sorted(path for car in _sample(groups, sample_size, seed) for path in groups[car])
        if not self.layout.drawn and len(paths) != TEST_COUNT:
            self._refusal = (f"Kaggle will refuse this submission: it has {pluralize(len(paths), 'mask')}, not "
                             f"{TEST_COUNT:,}.")
            print(f"Warning: {self._refusal}")
        if self.image_size:
            for path in Progress(paths, "checking sizes", unit="image"):
                check_test_size(path, self.image_size)
        distributed.require_same(paths)
        return paths

    @property
    def groups(self) -> dict[str, str] | None:
        """The group of each of your own images by file name. None for cars."""
        return None if self.layout.unit == "car" else self.split.set_index("image")["car"].to_dict()

    def describe(self, test_count: int) -> str:
        train, valid = (self.split["car"][self.split["part"] == part] for part in ("train", "valid"))
        trained, validated = pluralize(len(train), "image"), f"{len(valid):,}"
        if self.layout.unit != "image":
            trained += f" of {pluralize(train.nunique(), self.layout.unit)}"
            validated += f" of {valid.nunique():,}"
        test = f"; {test_count:,} to predict" if test_count else ""
        return (f"{trained} to train on, {validated} to validate on{test}\n"
                f"            in {self.layout.folder('train')}, masks in {self.layout.folder('train_masks')}")

    def next_step(self, submission: Path, best: Path = Path(), worst_image: str = "", *predict_options: str) -> str:
        """A line that says how to upload the submission, or how to cut out the worst of your own images."""
        if self._refusal:
            return f"no upload   {self._refusal}"
        if self.layout.drawn:
            return f"the cars    {self.layout.input_dir}, drawn; README.md explains how to train on Kaggle's images"
        if self.layout.has_test_images:
            return f"upload it   kaggle competitions submit -c {SLUG} -f {shlex.quote(str(submission))} -m U-Net"
        command = ["python", "predict.py", self.layout.folder("train") / worst_image, "--model", best, *predict_options]
        return f"cut it out  {shlex.join(map(str, command))}"


def _draw(folder: Path) -> None:
    print("The images are drawn cars, not Kaggle's: enough to see everything work.")
    if folder.exists():
        return
    try:
        make_writable(folder.parent)
        with lock(folder.parent, wait=True):
            draw_sample(folder)
    except OSError as error:  # of a worker, so its traceback comes first
        raise UserError(f"Cannot draw {folder} ({str(error).strip().splitlines()[-1]}).") from error


def _download(layout: CarvanaLayout, test_images: bool) -> None:
    folder, names = layout.input_dir, layout.missing_files(test_images)
    if not names:
        return
    if not all((folder / f"{name}.zip").is_file() or is_there(folder / name) for name in names):
        require(sign_in(), layout.help_text(test_images))
    make_writable(folder)
    with lock(folder, wait=True):
        download(folder, names)


def _raise_first(faults: Iterable[str]) -> None:
    for fault in faults:
        raise UserError(fault)


def check_test_size(path: Path, mask_size: tuple[int, int]) -> None:
    """Raises UserError if the size of a test image is not that of the masks in a submission."""
    size = get_header(path).size
    require(size == mask_size, f"{path} is {format_size(size)} pixels, but the masks of a submission are "
            f"{format_size(mask_size)}, as the training images. Resize or remove it.")


def _sample(groups: Iterable[str], fraction: float | None, seed: int) -> list[str]:
    cars = sorted(groups)
    count = max(1, round((fraction or 1) * len(cars)))
    return cars if count == len(cars) else _divide(cars, train_size=count, random_state=seed)[0]


def _divide(cars: list[str], **options: int) -> list[list[str]]:
    from sklearn.model_selection import train_test_split  # importing it takes half a second

    return train_test_split(cars, **options)
