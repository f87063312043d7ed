"""Cut the car out of your own photos with a trained model.

    python predict.py photo.jpg folder/ --model output/models/model_2026-11-23_16h05m09s/best.pt
"""

from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Annotated

import torch
import tyro
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

import helpers
from data.dataset import check_pair, preprocess, read
from data.layout import IMAGE_FOLDERS, MASK_FOLDERS, is_image, is_mask, print_ignored
from img.transformer import decode_image, decode_mask, halve, resize_size, to_pillow, upsample
from nn.classifier import CarvanaClassifier
from nn.metrics import dice_per_image
from nn.unet import NETS
from runtime import errors, files, machine
from runtime.run import saved_runs

SOFT_EDGE = 0.5  # range of probabilities around the threshold in which a cut-out fades out


@dataclass
class Options:
    """Cut the car out of photos: of each, write a mask (0 and 255) and the car alone, with a soft edge."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional]  # images, and folders of images
    model: Path | None = None  # a checkpoint or the folder of a run; None: best.pt of the latest run in output/models
    output_dir: Path = Path("cutouts")  # gets NAME_mask.png and NAME_cutout.png
    background: str | None = None  # a color (white, "#ff8800") or an image; None: transparent
    threshold: float | None = None  # a pixel is car where its probability is above this; None: the model's
    tta: bool | None = None  # test-time augmentation, as main.py's --tta; None: as the model was trained
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
            hyperparameters = checkpoint["hyperparameters"]
            self.padding, self.tta = hyperparameters["padding"], hyperparameters["tta"]
            self.threshold = hyperparameters["threshold"]
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {error!s:.200}"
            raise errors.UserError(f"{model} is not a checkpoint of this program ({reason}).") from error
        self.classifier = CarvanaClassifier(net, 1, machine.choose_machine(device, workers=0))

    def __call__(self, image: Tensor) -> Tensor:
        errors.require(
            isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3,
            "The image must be a uint8 tensor (3, height, width). Read it with img.transformer.decode_image.",
        )
        sizes = self.classifier.net.in_shape[1:], self.classifier.net.output_size, self.padding
        image, size = image.cpu(), image.shape[1:]
        if not self.tta:  # as decode_image does for the data sets
            image = halve(image, resize_size(*sizes))
        probs = self.classifier.predict_probs(preprocess(image, *sizes, self.tta)[None])
        return upsample(probs, size)[0].cpu()


def cut_out(image: Tensor, probs: Tensor, threshold: float, background: Image.Image | None = None) -> Image.Image:
    """Cut out the car of an image (3, H, W) uint8, probs (H, W) -> RGBA, or RGB on a background of any size."""
    width = min(SOFT_EDGE, 2 * threshold, 2 * (1 - threshold))  # 0 and 1 must not be inside of the edge
    alpha = ((probs - threshold) / width + 0.5).clamp(0, 1) * 255
    alpha, car = Image.fromarray(alpha.round().byte().numpy()), to_pillow(image)
    if background is None:
        car.putalpha(alpha)
        return car
    return Image.composite(car, ImageOps.fit(background, car.size), alpha)


def find_images(paths: tuple[Path, ...]) -> list[Path]:
    """Return the images among `paths` and in folders among them, sorted by path."""
    errors.require(len(paths) > 0, "Pass images or folders of them: python predict.py photo.jpg folder/")
    images = {}
    for path in paths:
        found = images_in(path) if path.is_dir() else [path]
        errors.require(len(found) > 0, f"{path} contains no image, such as a .jpg or .png file.")
        for image in found:
            other = images.setdefault(image.stem, image)
            sentence = f"{other} and {image} would both become {image.stem}_mask.png. Rename one of them."
            errors.require(other == image, sentence)
    return sorted(images.values())


def images_in(folder: Path) -> list[Path]:
    """Return the images in a folder, except masks and cut-outs. Prints the names of other files."""
    found = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    print_ignored(folder, sorted(path.name for path in found if not is_image(path)))
    return [path for path in found if is_image(path) and not is_mask(path) and not path.stem.endswith("_cutout")]


def mask_folders(image: Path) -> list[Path]:
    """Return the folders that may have the mask of an image: its own, and those where main.py looks for masks."""
    folder = image.resolve().parent
    root = folder.parent if folder.name in IMAGE_FOLDERS else folder
    return [folder, *(root / name for name in MASK_FOLDERS)]


def find_mask(image: Path) -> Path | None:
    """Return the mask of NAME.jpg: NAME_mask.png (or .gif, ...), or NAME.png in a separate folder of masks."""
    for folder in mask_folders(image):
        names = {f"{image.stem}_mask".lower()}
        if folder != image.resolve().parent:
            names.add(image.stem.lower())
        found = [path for path in folder.glob(f"{escape(image.stem)}*") if path.stem.lower() in names]
        found = [path for path in found if is_image(path)]
        if found:
            return min(found)
    return None


def dice_of(mask: Tensor, image: Path) -> tuple[float | None, str]:
    """Return the Dice of a predicted mask (H, W) and that of the image, if there is one, and a text to print."""
    path = find_mask(image)
    if path is None:
        return None, ""
    try:
        truth = read(path, decode_mask) > 127  # (1, H, W)
        check_pair(image, mask.shape, path, truth.shape[1:])
    except errors.UserError as error:
        return None, f", no Dice: {error}"
    dice = dice_per_image(mask[None], truth).item()
    return dice, f", Dice {dice:.4f} with {path.name}"


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


def save(image: Image.Image, path: Path) -> None:
    with files.save_atomically(path) as file:
        image.save(file, "PNG")


def main(options: Options) -> None:
    errors.check_ranges(options, threshold="(0, 1)")
    images, background = find_images(options.images), load_background(options.background)
    errors.require(
        options.output_dir.resolve() not in {folder for image in images for folder in mask_folders(image)},
        f"--output-dir {options.output_dir} must not be a folder of the images or of their masks. Pass another one.",
    )
    model = find_model(options.model)
    finder = CarFinder(model, options.device)
    if options.threshold is not None:
        finder.threshold = options.threshold
    if options.tta is not None:
        finder.tta = options.tta
    files.make_writable(options.output_dir)
    print(f"{model}: {type(finder.classifier.net).__name__}, on {finder.classifier.device}")
    unreadable, scores = 0, []
    for path in helpers.Progress(images, "cut out", unit="img"):
        try:
            image = read(path, decode_image)
        except errors.UserError as error:
            unreadable += 1
            tqdm.write(str(error))
            continue
        probs = finder(image)
        mask = probs > finder.threshold
        save(Image.fromarray(mask.byte().numpy() * 255), options.output_dir / f"{path.stem}_mask.png")
        save(cut_out(image, probs, finder.threshold, background), options.output_dir / f"{path.stem}_cutout.png")
        dice, comparison = dice_of(mask, path)
        scores += [] if dice is None else [dice]
        found = f"{path}: car is {mask.float().mean():.1%} of the image"
        tqdm.write((found if mask.any() else f"Warning: {path}: no car was found") + comparison)
    mean = f"; mean Dice of {len(scores)}: {sum(scores) / len(scores):.6f}" if scores else ""
    print(f"{helpers.pluralize(len(images) - unreadable, 'image')} cut out, in {options.output_dir}{mean}")
    errors.require(unreadable == 0, f"{unreadable} of {len(images)} images could not be read (see above).")


if __name__ == "__main__":
    with errors.friendly_errors():
        main(tyro.cli(Options))
