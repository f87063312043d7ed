"""Reads every photo and mask once, and lists all that is wrong with them in one go."""

from collections.abc import Callable
from pathlib import Path

from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.dataset import check_pair, read
from data.fetcher import DatasetFetcher
from helpers import UserError, count_cores
from img import transformer


def check_data(ds_fetcher: DatasetFetcher, workers: int | None) -> None:
    """Print what is strange in the data set. Raises UserError that lists all that is wrong in it.

    workers: how many processes read; None takes one a core.
    """
    faults, pairs, tests = ds_fetcher.find_faults()
    files = _Files([*pairs.items(), *((photo, None) for photo in tests)])
    oddities, sizes = [], {}
    loader = DataLoader(files, batch_size=None, num_workers=count_cores() if workers is None else workers)
    for path, size, wrong, odd in tqdm(loader, desc="checking", unit="photo", disable=None, leave=False):
        sizes[path] = size
        faults += wrong
        oddities += odd
    wanted = next((sizes[path] for path in pairs if sizes[path]), None)
    faults += [
        f"{path} is {sizes[path]} pixels, but the masks of a submission are written at {wanted}, the size of the "
        "training photos; resize it or take it out."
        for path in tests
        if sizes[path] and wanted and sizes[path] != wanted
    ]
    cars = {path.stem.rpartition("_")[0] for path in pairs}
    if len(cars) < 2:
        faults.append(f"{len(cars)} car(s) is too few: one must train and another validate.")
    if not tests:
        oddities.append("there are no photos to predict, so say --no-predict to train only.")
    for sentence in oddities:
        print(f"Strange, but no fault: {sentence}")
    masks = sum(mask is not None for mask in pairs.values())
    read_all = f"{len(pairs)} photos, {masks} masks and {len(tests)} photos to predict, all read"
    if faults:
        count = f"{len(faults)} fault{'s' * (len(faults) > 1)}"
        raise UserError("\n  ".join([f"{count} in {ds_fetcher.input_dir} ({read_all}):", *faults]))
    print(f"{read_all}: no fault.")


class _Files(Dataset):
    """What is wrong with a photo and its mask.

    pairs: the path of each photo and that of its mask, or None.
    """

    def __init__(self, pairs: list[tuple[Path, Path | None]]):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Path, str | None, list[str], list[str]]:
        """-> the photo's path, its size as 1918x1280 or None if it can't be read, faults, and what is only strange."""
        photo_path, mask_path = self.pairs[index]
        faults, odd = [], []

        def attempt(check: Callable, *arguments: object) -> Tensor | None:
            try:
                return check(*arguments)
            except UserError as error:
                faults.append(str(error))
                return None

        photo = attempt(read, photo_path, transformer.decode_photo)  # (3, H, W)
        mask = attempt(read, mask_path, transformer.decode_mask) if mask_path else None  # (1, H, W)
        if photo is not None and mask is not None:
            attempt(check_pair, photo_path, photo, mask_path, mask)
        if mask is not None:
            between = ((mask > 25) & (mask < 230)).float().mean().item()
            if between > 0.05:
                odd.append(f"{mask_path} is grey, neither car nor background, in {100 * between:.0f} % of its pixels.")
            elif mask.min() == mask.max():
                odd.append(f"{mask_path} {'is all car' if mask.max() else 'holds no car'}.")
        size = None if photo is None else f"{photo.shape[2]}x{photo.shape[1]}"
        return photo_path, size, faults, odd
