"""The Dice of a perfect net at each size: true masks, downsampled to the net's output and upsampled again.

    python benchmarks/resolution.py FOLDER    (of masks at their original size)

No net of a size can be expected to score more, as it never sees what downsampling loses.
"""

from dataclasses import dataclass
from pathlib import Path

import measure  # noqa: F401, adds the package to sys.path
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from data.dataset import preprocess
from data.reader import Reader
from img.transformer import resize, upsample
from img.tta import merge_tta
from nn.metrics import dice_per_image
from runtime.errors import friendly_errors


@dataclass
class Benchmark:
    """Prints the mean Dice at the masks' original size, with soft labels, hard labels, and TTA of soft labels."""

    masks: tyro.conf.Positional[Path]  # a folder of Kaggle's masks
    sizes: tuple[int, ...] = (128, 256, 388, 512, 1024)  # heights and widths of the net's output


def perfect_probs(mask: Tensor, size: int) -> dict[str, Tensor]:
    """What a net predicts that has learned its labels exactly: mask (1, H, W) uint8 -> (1, size, size) in [0, 1] each.

    TTA predicts at twice the size.
    """
    shape = size, size
    soft = resize(mask, shape) / 255
    views = preprocess(mask.expand(3, -1, -1), shape, shape, "reflect", tta=True)[:, 0] / 255
    return {"soft labels": soft, "hard labels": (soft > 0.5).float(), "soft, with TTA": merge_tta(views[None])}


def dice_of_labels(mask: Tensor, size: int) -> dict[str, float]:
    """The Dice of the labels of a mask (1, H, W) uint8 with the mask itself."""
    predictions = {name: upsample(probs, mask.shape[1:]) > 0.5 for name, probs in perfect_probs(mask, size).items()}
    return {name: dice_per_image(prediction, mask > 127).item() for name, prediction in predictions.items()}


def main(benchmark: Benchmark) -> None:
    reader, rows = Reader(), {size: [] for size in benchmark.sizes}
    for path in tqdm(sorted(benchmark.masks.glob("[!.]*")), unit="mask"):
        mask = reader.mask(path)
        for size, results in rows.items():
            results.append(dice_of_labels(mask, size))
    print(f"{len(results)} masks, the last one of {mask.shape[2]}x{mask.shape[1]} pixels\n")
    print(f"| output | {' | '.join(results[0])} |")
    print("| --- " * (len(results[0]) + 1) + "|")
    for size, results in rows.items():
        means = torch.tensor([[*each.values()] for each in results], dtype=torch.float64).mean(0).tolist()
        print(f"| {size}x{size} | {' | '.join(f'{mean:.4f}' for mean in means)} |")


if __name__ == "__main__":
    with friendly_errors():
        main(tyro.cli(Benchmark))
