"""Cut the car out of your own photos with a trained model.

    python predict.py photo.jpg folder/ --model output/models/model_2026-11-23_16h05m09s/best.pt
"""

import re
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from glob import escape
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from PIL import Image
from torch import Tensor

from data.dataset import preprocess
from data.layout import IMAGE_FOLDERS, MASK_FOLDERS, image_of, is_cutout, is_image, is_mask, print_ignored, stem_of
from data.masks import MaskOptions, Survey
from data.reader import Reader, read, reading
from helpers import Progress, first_few, pluralize
from img.cutout import cut_out, keep_largest, read_colors
from img.transformer import decode_image, halve, resize_size, to_pillow, upsample
from nn.classifier import CarvanaClassifier
from nn.metrics import dice_per_image
from nn.unet import NETS
from runtime import errors, files, machine
from runtime.run import saved_runs


@dataclass
class Options:
    """Cut the car out of photos: of each, write a mask (0 and 255) and the car alone, with a soft edge."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]  # images, and folders of images
    model: Path | None = None  # a checkpoint or the folder of a run; None: best.pt of the latest run in output/models
    output_dir: Path = Path("cutouts")  # gets NAME_mask.png and NAME_cutout.png
    background: str | None = None  # a color (white, "#ff8800") or an image; None: transparent
    threshold: float | None = None  # a pixel is car where its probability is above this; None: the model's
    tta: bool | None = None  # test-time augmentation, as main.py's --tta; None: as the model was trained
    keep_largest: bool = False  # keep only the largest connected object of each image
    crop: bool = False  # crop NAME_cutout.png to the car, with a margin of 5%
    mask_values: tuple[str, ...] | None = None  # of masks to compare with, as main.py's --mask-values
    rotate_masks: bool | None = None  # these masks, as main.py's --rotate-masks
    device: str | None = None  # cpu, cuda, mps, ...; None: an accelerator if there is one


class CarFinder:
    """A trained model. Called with an image (3, H, W) uint8 in RGB, it returns the probability of car, (H, W) float32.

    model: a checkpoint such as best.pt, or the folder of a run. Raises UserError if it is not one of this program.
    device: see `machine.choose_device`.
    """

    def __init__(self, model: str | Path, device: str | None = None):
        checkpoint = files.load_checkpoint(find_model(Path(model)))
        try:
            net = NETS[checkpoint["net_name"]](tuple(checkpoint["in_shape"]))
            net.load_state_dict(checkpoint["net"])
            hp = checkpoint["hyperparameters"]
            self.padding, self.tta, self.threshold = hp["padding"], hp["tta"], hp["threshold"]
            self.reader = Reader.from_state(checkpoint["reader"])
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {error!s:.200}"
            raise errors.UserError(f"{model} is not a checkpoint of this program ({reason}).") from error
        self.classifier = CarvanaClassifier(net, 1, machine.choose_machine(device, workers=0))

    def __call__(self, image: Tensor) -> Tensor:
        valid = isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3
        errors.require(valid, "The image must be a uint8 tensor (3, height, width). Read it with "
                       "img.transformer.decode_image.")
        sizes = self.classifier.net.in_shape[1:], self.classifier.net.output_size, self.padding
        view = image.cpu()
        if not self.tta:  # as decode_image does for the data sets
            view = halve(view, resize_size(*sizes))
        probs = self.classifier.predict_probs(preprocess(view, *sizes, self.tta)[None])
        return upsample(probs, image.shape[1:])[0].cpu()


def find_images(paths: tuple[Path, ...]) -> list[Path]:
    """Return the images among `paths` and those in folders among them (see `scan`), sorted by path."""
    errors.require(len(paths) > 0, "Pass images or folders of them: python predict.py photo.jpg folder/")
    images = {}
    for path in dict.fromkeys(paths):
        for image in scan(path) if path.is_dir() else [path]:
            other = images.setdefault(stem_of(image), image)
            errors.require(other == image, f"{other} and {image} would both become {image.stem}_mask.png. "
                           "Rename one of them.")
    return sorted(images.values())


def scan(folder: Path) -> list[Path]:
    """Return the images in a folder, but not NAME_mask and NAME_cutout of an image NAME. Print what is left out."""
    shown = sorted(each for each in folder.iterdir() if each.is_file() and not each.name.startswith("."))
    images = [each for each in shown if is_image(each)]
    errors.require(len(images) > 0, f"{folder} contains no image, such as a .jpg or .png file.")
    stems = {stem_of(each) for each in images}
    derived = [each for each in images if is_mask(each, stems) or is_cutout(each, stems)]
    print_ignored(folder, [each for each in shown if not is_image(each)], "not images")
    print_ignored(folder, derived, "masks and cut-outs")
    return [each for each in images if each not in derived]


def mask_folders(image: Path) -> list[Path]:
    """Return the folders where the mask of an image may be: its own, and those where main.py looks."""
    folder = image.resolve().parent
    root = folder.parent if folder.name in IMAGE_FOLDERS else folder
    return [folder, *(root / name for name in MASK_FOLDERS)]


def find_masks(image: Path) -> list[Path]:
    """Return the masks of NAME.jpg: NAME_mask.png (or .gif, ...) and NAME_mask_1, or NAME.png in a separate folder."""
    stem, its_folder = stem_of(image), image.resolve().parent
    start = escape(re.match("[ -~]*", stem)[0])  # ASCII characters have one encoding
    stems = {stem_of(each) for each in its_folder.glob(f"{start}*") if is_image(each)}
    for folder in mask_folders(image):
        found = [each for each in sorted(folder.glob(f"{start}*")) if is_image(each)
                 and (image_of(stem_of(each), stems) or [None])[0] == stem
                 and (folder != its_folder or is_mask(each, stems))]
        if found:
            return found
    return []


def survey_masks(images: list[Path], reader: Reader, options: Options) -> Survey:
    """Find out how the masks of images are read: as those that the model was trained on, unless options say it."""
    masks = {image: found for image in images if (found := find_masks(image))}
    saved = reader.state() if options.mask_values is None else None
    return Survey(masks, MaskOptions(options.mask_values, options.rotate_masks, saved=saved), kaggle=not masks)


def compare(mask: Tensor, image: Path, survey: Survey, scores: list[float]) -> str:
    """Add the Dice of a predicted mask (H, W) to `scores`, if the image has a mask -> a text to print."""
    masks = [each for path, each in survey.pairs if path == image]
    if not masks:
        return ""
    for path in (image, *masks, masks[0].parent):
        if path in survey.problems:
            return f", no Dice: {survey.problems[path]}"
    scores.append(dice_per_image(mask[None], survey.reader.mask(masks[0]) > 127).item())
    return f", Dice {scores[-1]:.4f} with {first_few(each.name for each in masks)}"


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


def find_model(model: Path | None) -> Path:
    """Return the checkpoint `model`, or best.pt if it is the folder of a run; None: that of the latest run."""
    if model is not None:
        return model / "best.pt" if model.is_dir() else model
    runs = saved_runs(Path("output"), holding="best.pt")
    errors.require(len(runs) > 0, "There is no model in output/models. Train one with main.py, or pass --model.")
    return runs[-1] / "best.pt"


def save(image: Image.Image, path: Path, **options: Any) -> None:
    with files.save_atomically(path) as file:
        image.save(file, "PNG", **options)


def process(path: Path, finder: CarFinder, options: Options, background: Image.Image | None, survey: Survey,
            scores: list[float]) -> str:
    """Write the mask and the cut-out of the image at `path`, and add its Dice to `scores` -> a text to print."""
    image = finder.reader.image(path)
    with reading(path):
        colors, profile = read_colors(path, image)
    probs = finder(image)
    if options.keep_largest:
        probs = keep_largest(probs, finder.threshold)
    mask = probs > finder.threshold
    save(Image.fromarray(mask.byte().numpy() * 255), options.output_dir / f"{path.stem}_mask.png")
    car = cut_out(colors, probs, finder.threshold, background, options.crop)
    save(car, options.output_dir / f"{path.stem}_cutout.png", icc_profile=profile)
    found = f"{path}: car is {mask.float().mean():.1%} of the image"
    found = found if mask.any() else f"Warning: {path}: no car was found"
    return found + compare(mask, path, survey, scores)


def main(options: Options) -> None:
    errors.check_ranges(options, threshold="(0, 1)")
    images, background = find_images(options.images), load_background(options.background)
    inputs = {folder for image in images for folder in mask_folders(image)}
    errors.require(options.output_dir.resolve() not in inputs, f"--output-dir {options.output_dir} must not be a "
                   "folder of the images or of their masks. Pass another one.")
    model = find_model(options.model)
    finder = CarFinder(model, options.device)
    if options.threshold is not None:
        finder.threshold = options.threshold
    if options.tta is not None:
        finder.tta = options.tta
    files.make_writable(options.output_dir)
    print(f"{model}: {type(finder.classifier.net).__name__}, on {finder.classifier.device}")
    survey, failed, scores = survey_masks(images, finder.reader, options), 0, []
    for path in Progress(images, "cut out", unit="img"):
        try:
            text = process(path, finder, options, background, survey, scores)
        except (errors.UserError, OSError) as error:
            if getattr(error.__cause__, "errno", 0) in (ENOSPC, EDQUOT) or not options.output_dir.is_dir():
                raise  # no image could be written
            failed, text = failed + 1, str(error)
        Progress.write(text)
    mean = f"; mean Dice of {len(scores)}: {sum(scores) / len(scores):.6f}" if scores else ""
    print(f"{pluralize(len(images) - failed, 'image')} cut out, in {options.output_dir}{mean}")
    errors.require(failed == 0, f"{failed} of {len(images)} images could not be cut out (see above).")


if __name__ == "__main__":
    with errors.friendly_errors():
        main(tyro.cli(Options))
