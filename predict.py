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

from data.dataset import preprocess
from data.layout import IMAGE_FOLDERS, MASK_FOLDERS, is_image, is_mask, print_ignored
from data.reader import Reader, check_pair, read
from helpers import Progress, pluralize
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


def cut_out(image: Tensor, probs: Tensor, threshold: float, background: Image.Image | None = None) -> Image.Image:
    """Cut out the car of an image (3, H, W) uint8, probs (H, W) -> RGBA, or RGB on a background of any size."""
    # It fades out over this range of probabilities, which is centered on the threshold and within [0, 1]
    width = min(0.5, 2 * threshold, 2 * (1 - threshold))
    alpha = ((probs - threshold) / width + 0.5).clamp(0, 1) * 255
    alpha, car = Image.fromarray(alpha.round().byte().numpy()), to_pillow(image)
    if background is None:
        car.putalpha(alpha)
        return car
    return Image.composite(car, ImageOps.fit(background, car.size), alpha)


def find_images(paths: tuple[Path, ...]) -> list[Path]:
    """Return the images among `paths` and those in folders among them that are not masks, sorted by path."""
    errors.require(len(paths) > 0, "Pass images or folders of them: python predict.py photo.jpg folder/")
    images = {}
    for path in paths:
        found = [path]
        if path.is_dir():
            shown = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
            print_ignored(path, [each.name for each in shown if not is_image(each)])
            found = [each for each in shown if is_image(each) and not is_mask(each)]
            errors.require(len(found) > 0, f"{path} contains no image, such as a .jpg or .png file.")
        for image in found:
            other = images.setdefault(image.stem, image)
            errors.require(other == image, f"{other} and {image} would both become {image.stem}_mask.png. "
                           "Rename one of them.")
    return sorted(images.values())


def mask_folders(image: Path) -> list[Path]:
    """Return the folders where the mask of an image may be: its own, and those where main.py looks."""
    folder = image.resolve().parent
    root = folder.parent if folder.name in IMAGE_FOLDERS else folder
    return [folder, *(root / name for name in MASK_FOLDERS)]


def find_mask(image: Path) -> Path | None:
    """Return the mask of NAME.jpg: NAME_mask.png (or .gif, ...), or NAME.png in a separate folder of masks."""
    stem = image.stem.lower()
    for folder in mask_folders(image):
        names = [f"{stem}_mask"] if folder == image.resolve().parent else [f"{stem}_mask", stem]
        for path in sorted(folder.glob(f"{escape(image.stem)}*")):
            if path.stem.lower() in names and is_image(path):
                return path
    return None


def compare(mask: Tensor, image: Path, reader: Reader, scores: list[float]) -> str:
    """Add the Dice of a predicted mask (H, W) to `scores`, if the image has a mask -> a text to print."""
    path = find_mask(image)
    if path is None:
        return ""
    try:
        truth = reader.mask(path) > 127  # (1, H, W)
        check_pair(image, mask.shape, path, truth.shape[1:])
    except errors.UserError as error:
        return f", no Dice: {error}"
    scores.append(dice_per_image(mask[None], truth).item())
    return f", Dice {scores[-1]:.4f} with {path.name}"


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
    unreadable, scores = 0, []
    for path in Progress(images, "cut out", unit="img"):
        try:
            image = finder.reader.image(path)
        except errors.UserError as error:
            unreadable += 1
            Progress.write(str(error))
            continue
        probs = finder(image)
        mask = probs > finder.threshold
        save(Image.fromarray(mask.byte().numpy() * 255), options.output_dir / f"{path.stem}_mask.png")
        save(cut_out(image, probs, finder.threshold, background), options.output_dir / f"{path.stem}_cutout.png")
        found = f"{path}: car is {mask.float().mean():.1%} of the image"
        found = found if mask.any() else f"Warning: {path}: no car was found"
        Progress.write(found + compare(mask, path, finder.reader, scores))
    mean = f"; mean Dice of {len(scores)}: {sum(scores) / len(scores):.6f}" if scores else ""
    print(f"{pluralize(len(images) - unreadable, 'image')} cut out, in {options.output_dir}{mean}")
    errors.require(unreadable == 0, f"{unreadable} of {len(images)} images could not be read (see above).")


if __name__ == "__main__":
    with errors.friendly_errors():
        main(tyro.cli(Options))
