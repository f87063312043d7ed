"""Cut the car out of your own photos with a trained model.

    python predict.py photo.jpg folder/ --model output/models/model_2026-11-23_16h05m09s/best.pt
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from PIL import Image, ImageOps
from torch import Tensor

from data.dataset import preprocess
from data.layout import MASK_FOLDERS, is_cutout, is_image, is_mask, print_ignored, stem_of
from data.masks import Survey
from data.reader import Reader, read, reading
from helpers import Progress, pluralize
from img.cutout import color_profile, cut_out, keep_largest
from img.transformer import decode_image, from_pillow, halve, resize_size, to_pillow, upsample
from nn.ensemble import Ensemble
from runtime import errors, files, machine
from runtime.run import eval_batch_size


@dataclass
class Options:
    """Cut the car out of photos: of each, write a mask (0 and 255) and the car alone, with a soft edge."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]  # images, and folders of images
    model: tuple[Path, ...] = ()  # checkpoints or folders of runs, to average; none: the latest run in output/models
    output_dir: Path = Path("cutouts")  # gets NAME_mask.png and NAME_cutout.png
    background: str | None = None  # a color (white, "#ff8800") or an image; None: transparent
    threshold: float | None = None  # a pixel is car where its probability is above this; None: the first model's
    tta: bool | None = None  # test-time augmentation, as main.py's --tta; None: as of the first model
    keep_largest: bool = False  # keep only the largest connected object of each image
    crop: bool = False  # crop NAME_cutout.png to the car, with a margin of 5%
    device: str | None = None  # cpu, cuda, mps, ...; None: an accelerator if there is one


class Segmenter:
    """Trained models that find the car in images. The probabilities of several models are averaged.

    models: checkpoints such as best.pt, or folders of runs. Raises UserError if one is not of this program.
    device: see `machine.choose_device`. threshold, tta: None: those of the first model.

    An image is the path of a file, its bytes, a Pillow image, or uint8 RGB: an array (H, W, 3) or a tensor (3, H, W).
    A method takes an image or a list of images, and returns one result or a list. Raises UserError for other objects.
    """

    def __init__(self, *models: str | Path, device: str | None = None, threshold: float | None = None,
                 tta: bool | None = None):
        errors.require(models, "Pass a model, such as output/models/model_<time>.")
        checkpoints = {path: files.load_checkpoint(path) for path in models}
        self.ensemble = Ensemble(checkpoints, machine.choose_machine(device, workers=0))
        path, first = next(iter(checkpoints.items()))
        with files.checkpoint_errors(path, first):
            hp, self.reader = first["hyperparameters"], Reader.from_state(first["reader"])
            self.threshold = hp["threshold"] if threshold is None else threshold
            self.tta = hp["tta"] if tta is None else tta
        errors.check_ranges(self, threshold="(0, 1)")

    def probs(self, images: Any) -> Any:
        """The probability of car at each pixel: (H, W) float32 on the CPU."""
        if not isinstance(images, list):
            return self.probs([images])[0]
        result, sizes = [], self.ensemble.sizes
        batch_size = eval_batch_size(max(size for size, *_ in sizes))
        for first in range(0, len(images), batch_size):
            batch = [self.load(image) for image in images[first : first + batch_size]]
            views = [torch.stack([self._preprocess(image, *each) for image in batch]) for each in sizes]
            probs = self.ensemble.predict_probs(views)
            result += [upsample(each[None], image.shape[1:])[0].cpu() for each, image in zip(probs, batch, strict=True)]
        return result

    def mask(self, images: Any) -> Any:
        """Whether a pixel is car: (H, W) bool on the CPU."""
        probs = self.probs(images)
        return [each > self.threshold for each in probs] if isinstance(probs, list) else probs > self.threshold

    def cut_out(self, images: Any, background: Image.Image | None = None, crop: bool = False) -> Any:
        """The car alone, see img/cutout.py: a Pillow image, with the color profile of a file."""
        if isinstance(images, list):
            return [self.cut_out(image, background, crop) for image in images]
        image = self.load(images)
        car = cut_out(image, self.probs(image), self.threshold, background, crop)
        car.info["icc_profile"] = color_profile(images)
        return car

    def load(self, image: Any) -> Tensor:
        """Decode an image, rotate it as its EXIF data say -> (3, H, W) uint8 on the CPU."""
        if isinstance(image, str | Path):
            return self.reader.image(Path(image))
        with reading("The image"):
            if isinstance(image, bytes):
                return decode_image(image, bits=self.reader.bits or 16)
            if isinstance(image, Image.Image) and image.mode[0] not in "IF":  # of unknown range
                image = from_pillow(ImageOps.exif_transpose(image).convert("RGB"))
        if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3:
            image = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        valid = isinstance(image, Tensor) and image.dtype == torch.uint8 and image.shape[:-2] == (3,) and image.numel()
        errors.require(valid, "An image must be a path, bytes, a Pillow image of 8 bits, or uint8 in RGB: an array "
                       "(height, width, 3) or a tensor (3, height, width).")
        return image.cpu()

    def _preprocess(self, image: Tensor, *sizes: Any) -> Tensor:
        image = image if self.tta else halve(image, resize_size(*sizes))  # as decode_image halves it
        return preprocess(image, *sizes, self.tta)


def find_images(paths: tuple[Path, ...]) -> list[Path]:
    """Return the images among `paths` and those in folders among them (see `scan`), sorted by path."""
    errors.require(paths, "Pass images or folders of them first: python predict.py photo.jpg folder/")
    images = {}
    for path in dict.fromkeys(paths):
        for image in scan(path) if path.is_dir() else [path]:
            other = images.setdefault(stem_of(image), image)
            errors.require(other == image, f"{other} and {image} would both become {image.stem}_mask.png. "
                           "Rename one of them.")
    return sorted(images.values())


def scan(folder: Path) -> list[Path]:
    """Return the images in a folder, but not NAME_mask and NAME_cutout of an image NAME. Print what is left out."""
    shown = [each for each in sorted(folder.glob("[!.]*")) if not each.is_dir()]
    images = [each for each in shown if is_image(each)]
    errors.require(images, f"{folder} contains no image, such as a .jpg or .png file.")
    stems = {stem_of(each) for each in images}
    used = [each for each in images if not (is_mask(each, stems) or is_cutout(each, stems))]
    print_ignored(folder, sorted(set(shown) - set(used)))
    return used


def load_background(name: str | None) -> Image.Image | None:
    """Return the image or the color of that name, without its transparency."""
    if name is None:
        return None
    if Path(name).is_file():
        return to_pillow(read(Path(name), decode_image))
    try:
        return Image.new("RGB", (1, 1), name)
    except ValueError:
        sentence = f'--background {name} must be an image or a color, such as white or "#ff8800".'
        raise errors.UserError(sentence) from None


def process(path: Path, segmenter: Segmenter, options: Options, background: Image.Image | None) -> Tensor:
    """Write the mask and the cut-out of an image -> the mask (H, W) of bool."""
    image = segmenter.load(path)
    probs = segmenter.probs(image)
    if options.keep_largest:
        probs = keep_largest(probs, segmenter.threshold)
    mask = probs > segmenter.threshold
    car = cut_out(image, probs, segmenter.threshold, background, options.crop)
    car.info["icc_profile"] = color_profile(path)
    for name, made in (("mask", Image.fromarray(mask.byte().numpy() * 255)), ("cutout", car)):
        with files.save_atomically(options.output_dir / f"{path.stem}_{name}.png") as file:
            made.save(file, "PNG")
    return mask


def main(options: Options) -> None:
    errors.check_ranges(options, threshold="(0, 1)")
    images, background = find_images(options.images), load_background(options.background)
    target = options.output_dir.resolve()
    errors.require(target not in {image.parent.resolve() for image in images} and target.name not in MASK_FOLDERS,
                   f"--output-dir {options.output_dir} must not be a folder of images or of masks. Pass another one.")
    models = options.model or files.saved_runs(Path("output"), holding="best.pt")[-1:]
    errors.require(models, "There is no model in output/models. Train one with main.py, or pass --model.")
    segmenter = Segmenter(*models, device=options.device, threshold=options.threshold, tta=options.tta)
    files.make_writable(options.output_dir)
    for model, classifier in zip(dict.fromkeys(models), segmenter.ensemble.nets, strict=True):
        print(f"{model}: {type(classifier.net).__name__}, on {classifier.device}")
    # How many bits of 16-bit images are used, unless the model was trained on some
    segmenter.reader.bits = Survey({image: () for image in images}, segmenter.reader).reader.bits
    failed = 0
    for path in Progress(images, "cut out", unit="img"):
        try:
            mask = process(path, segmenter, options, background)
        except errors.UserError as error:
            files.make_writable(options.output_dir)  # ends the program if nothing can be written at all
            failed += 1
            Progress.write(str(error))
            continue
        found = f"{path}: car is {mask.float().mean():.1%} of the image"
        Progress.write(found if mask.any() else f"Warning: {path}: no car was found")
    print(f"{pluralize(len(images) - failed, 'image')} cut out, in {options.output_dir}")
    errors.require(failed == 0, f"{failed} of {len(images)} images could not be cut out (see above).")


if __name__ == "__main__":
    with errors.friendly_errors():
        main(tyro.cli(Options))
