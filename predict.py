"""Cut the car out of your own photos with a trained model.

    python predict.py photo.jpg folder/ --model output/models/model_2026-11-23_16h05m09s/best.pt
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from PIL import Image
from torch import Tensor

from data.dataset import preprocess
from data.layout import IMAGE_FOLDERS, MASK_FOLDERS, OwnLayout, is_cutout, is_image, is_mask, print_ignored, stem_of
from data.masks import MaskOptions, Survey
from data.reader import Reader, read
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
    mask_values: tuple[str, ...] | None = None  # of the masks to compare with; None: as the model's
    rotate_masks: bool | None = None  # rotate the masks to compare with, as main.py's --rotate-masks
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
            sentence = f"{model} is not a checkpoint of this program ({type(error).__name__}: {error!s:.200})."
            raise errors.UserError(sentence) from error
        self.classifier = CarvanaClassifier(net, 1, machine.choose_machine(device, workers=0))

    def __call__(self, image: Tensor) -> Tensor:
        valid = isinstance(image, Tensor) and image.dtype == torch.uint8 and image.shape[:-2] == (3,)
        errors.require(valid, "The image must be a uint8 tensor (3, height, width). Read it with "
                       "img.transformer.decode_image.")
        sizes = self.classifier.net.in_shape[1:], self.classifier.net.output_size, self.padding
        view = image.cpu() if self.tta else halve(image.cpu(), resize_size(*sizes))  # as decode_image halves it
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
    shown = [each for each in sorted(folder.glob("[!.]*")) if each.is_file()]
    images = [each for each in shown if is_image(each)]
    errors.require(len(images) > 0, f"{folder} contains no image, such as a .jpg or .png file.")
    stems = {stem_of(each) for each in images}
    used = [each for each in images if not (is_mask(each, stems) or is_cutout(each, stems))]
    print_ignored(folder, sorted(set(shown) - set(used)))
    return used


def mask_folders(folder: Path) -> list[Path]:
    """Return the folders that may have the masks of the images in `folder`: itself, and those where main.py looks."""
    folder = folder.resolve()
    root = folder.parent if folder.name in IMAGE_FOLDERS else folder
    return [folder, *(root / name for name in MASK_FOLDERS)]


def find_masks(folder: Path) -> dict[str, list[Path]]:
    """Return the masks of the images in a folder, by stem: NAME_mask.png of NAME.jpg or, elsewhere, NAME.png."""
    layout, masks = OwnLayout(folder), {}
    layout.image_dir = folder.resolve()
    for mask_dir in mask_folders(folder):
        layout.mask_dir = mask_dir
        masks = layout.masks() | masks
    return masks


def compare(mask: Tensor, image: Path, masks: list[Path], survey: Survey, scores: list[float]) -> str:
    """Add the Dice of a predicted mask (H, W) to `scores` -> a text to print."""
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


def process(path: Path, finder: CarFinder, options: Options, background: Image.Image | None) -> Tensor:
    """Write the mask and the cut-out of an image -> the mask (H, W) of bool."""
    image = finder.reader.image(path)
    probs = finder(image)
    if options.keep_largest:
        probs = keep_largest(probs, finder.threshold)
    mask = probs > finder.threshold
    colors, profile = read_colors(path, image)
    car = cut_out(colors, probs, finder.threshold, background, options.crop)
    for name, made, icc in (("mask", Image.fromarray(mask.byte().numpy() * 255), None), ("cutout", car, profile)):
        with files.save_atomically(options.output_dir / f"{path.stem}_{name}.png") as file:
            made.save(file, "PNG", icc_profile=icc)
    return mask


def main(options: Options) -> None:
    errors.check_ranges(options, threshold="(0, 1)")
    images, background = find_images(options.images), load_background(options.background)
    inputs = {folder for image in images for folder in mask_folders(image.parent)}
    errors.require(options.output_dir.resolve() not in inputs, f"--output-dir {options.output_dir} must not be a "
                   "folder of the images or of their masks. Pass another one.")
    model = find_model(options.model)
    finder = CarFinder(model, options.device)
    finder.threshold = options.threshold or finder.threshold
    if options.tta is not None:
        finder.tta = options.tta
    files.make_writable(options.output_dir)
    print(f"{model}: {type(finder.classifier.net).__name__}, on {finder.classifier.device}")
    by_folder = {folder: find_masks(folder) for folder in {image.parent for image in images}}
    masks = {image: by_folder[image.parent].get(stem_of(image), []) for image in images}
    survey = Survey(masks, MaskOptions(options.mask_values, options.rotate_masks, saved=finder.reader.state()))
    finder.reader.bits = survey.reader.bits  # those of the photos, if the model was trained on 8-bit images
    scores, failed = [], 0
    for path in Progress(images, "cut out", unit="img"):
        try:
            mask = process(path, finder, options, background)
            dice = compare(mask, path, masks[path], survey, scores) if masks[path] else ""
        except errors.UserError as error:
            files.make_writable(options.output_dir)  # ends the program if nothing can be written at all
            failed += 1
            Progress.write(str(error))
            continue
        found = f"{path}: car is {mask.float().mean():.1%} of the image"
        Progress.write((found if mask.any() else f"Warning: {path}: no car was found") + dice)
    mean = f"; mean Dice of {len(scores)}: {sum(scores) / len(scores):.6f}" if scores else ""
    print(f"{pluralize(len(images) - failed, 'image')} cut out, in {options.output_dir}{mean}")
    errors.require(failed == 0, f"{failed} of {len(images)} images could not be cut out (see above).")


if __name__ == "__main__":
    with errors.friendly_errors():
        main(tyro.cli(Options))
