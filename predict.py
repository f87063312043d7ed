"""Cut the car out of your own photos with a trained model.

    python predict.py photo.jpg folder/ --model output/models/model_2026-11-23_16h05m09s/best.pt

or from Python: CarFinder("best.pt")(photo) -> the probability of car at each pixel.
"""

import io
import sys
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
import tyro
from PIL import Image, ImageColor, ImageOps
from torch import Tensor
from tqdm import tqdm

import helpers
from data.dataset import check_pair, preprocess, read, resize_size
from data.own import MASK_FOLDERS, PHOTO_FOLDERS, image_of, is_called_mask, is_image, tell_left_aside
from img.transformer import decode_image, decode_mask, downsample, to_pillow
from nn.classifier import CarvanaClassifier
from nn.metrics import dice_per_image
from nn.unet import NETS
from runtime import errors, files, machine
from runtime.run import saved_runs

SOFT = 0.5  # of probability: where a cut-out goes from nothing to all, with the threshold in the middle


@dataclass
class Options:
    """Cut the car out of photos, of any size: of each a mask (0 and 255), and the car alone, with a soft edge."""

    photos: Annotated[tuple[Path, ...], tyro.conf.Positional]  # photos, and folders of photos
    model: Path | None = None  # best.pt of a run; None takes that of the run in output/models that began last
    output_dir: Path = Path("cutouts")  # gets NAME_mask.png and NAME_cutout.png
    background: str | None = None  # a color (white, "#ff8800"), or a photo, behind the car; None is transparent
    threshold: float | None = None  # a pixel is car where its probability is above this; None is the model's own
    tta: bool | None = None  # predict each photo twice, as main.py's --tta; None is as the model was trained for
    device: str | None = None  # cpu, cuda, mps, ...; None takes the accelerator that is there


class CarFinder:
    """A trained model: called with a photo (3, H, W) uint8 RGB, it gives the probability of car, (H, W) float32.

    model: a checkpoint, such as best.pt, or the folder of a run. It knows its net, sizes, padding and threshold, and
        whether it sees photos twice.
    device: see machine.choose_device. Raises UserError where it is no checkpoint.
    """

    def __init__(self, model: str | Path, device: str | None = None):
        checkpoint = files.load_checkpoint(find_model(Path(model)))
        try:
            net = NETS[checkpoint["net_name"]](tuple(checkpoint["in_shape"]))
            net.load_state_dict(checkpoint["net"])
            self.trained_with = checkpoint["hyperparameters"]
            self.padding, self.tta = self.trained_with["padding"], self.trained_with["tta"]
            self.threshold = self.trained_with["threshold"]
            errors.check_ranges(self, threshold="(0, 1)")
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {error!s:.200}"
            raise errors.UserError(f"{model} is no model of this program ({reason}).") from error
        chosen = machine.choose_machine(device, None, 0)
        self.classifier = CarvanaClassifier(net, 1, chosen.device, chosen.precision)

    def __call__(self, photo: Tensor) -> Tensor:
        errors.require(
            getattr(photo, "dtype", None) == torch.uint8 and photo.ndim == 3 and len(photo) == 3,
            "A photo must be a tensor (3, height, width) of uint8, as img.transformer.decode_image makes it of bytes.",
        )
        net, photo = self.classifier.net, photo.cpu()
        sizes = net.in_shape[1:], net.output_size, self.padding
        images = preprocess(downsample(photo, resize_size(*sizes)), *sizes, photo if self.tta else None)
        probs = self.classifier.predict_probs(images[None]).cpu()
        return F.interpolate(probs[None], photo.shape[1:], mode="bilinear", align_corners=False)[0, 0]


def cut_out(photo: Tensor, probs: Tensor, threshold: float, background: Image.Image | None = None) -> Image.Image:
    """photo (3, H, W) uint8, probs (H, W) -> the car alone, RGBA, or RGB in front of a background of any size."""
    soft = min(SOFT, 2 * threshold, 2 * (1 - threshold))  # so that it ends inside 0 and 1
    alpha = Image.fromarray((((probs - threshold) / soft + 0.5).clamp(0, 1) * 255).round().byte().numpy())
    car = to_pillow(photo)
    if background is None:
        car.putalpha(alpha)
        return car
    return Image.composite(car, ImageOps.fit(background, car.size), alpha)


def find_photos(paths: tuple[Path, ...]) -> list[Path]:
    """The photos among these paths and in these folders, sorted; what a folder holds beside photos is left aside."""
    errors.require(len(paths) > 0, "Name the photos, or a folder of them: python predict.py photo.jpg folder/")
    photos = {}
    for path in paths:
        errors.require(path.exists(), f"{path} is not there.")
        found = [path]
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
            others = [file.name for file in files if not is_image(file)]
            if others:
                tell_left_aside(path, "photos", others)
            found = [file for file in files if is_image(file) and not file.stem.endswith("_cutout")]
            found = [file for file in found if not is_called_mask(file)]
        errors.require(len(found) > 0, f"{path} holds no photo, such as a .jpg or .png.")
        for file in found:
            other = photos.setdefault(file.stem, file)
            both = f"{other} and {file} would both become {file.stem}_mask.png: predict them one after the other"
            errors.require(other.resolve() == file.resolve(), f"{both}, with another --output-dir.")
    return sorted(photos.values())


def places_of_masks(photo: Path) -> list[Path]:
    """The photo's folder, and as main.py takes them, train_masks/ or masks/ beside train/, images/ or the photo."""
    folder = photo.resolve().parent
    beside = folder.parent if folder.name in PHOTO_FOLDERS else folder
    masks = [beside / name for name in MASK_FOLDERS]
    return [folder, folder.parent / f"{folder.name.removesuffix('_hq')}_masks", *masks]


def find_mask(photo: Path) -> Path | None:
    """NAME_mask.gif (or .png, ...) of a photo NAME.jpg; NAME.gif too, where masks have a folder."""
    for place in places_of_masks(photo):
        found = [path for path in place.glob(f"{escape(photo.stem)}*.*") if is_image(path)]
        found = [path for path in found if image_of(path, {photo.stem}) == photo.stem]
        if place == photo.resolve().parent:
            found = [path for path in found if path.stem != photo.stem]
        if found:
            return min(found)
    return None


def find_background(name: str | None) -> Image.Image | None:
    """The color or the photo of that name; what of it is transparent isn't."""
    if name is None:
        return None
    if Path(name).is_file():
        return to_pillow(read(Path(name), decode_image))
    try:
        color = ImageColor.getrgb(name)
        errors.require(len(color) == 3, f"--background {name} is transparent: leave out its last two digits.")
        return Image.new("RGB", (1, 1), color)
    except ValueError:
        raise errors.UserError(f"--background {name} is neither a photo nor a color that Pillow knows.") from None


def find_model(model: Path | None) -> Path:
    if model is not None:
        return model / "best.pt" if model.is_dir() else model
    runs = saved_runs(Path("output"), holding="best.pt")
    errors.require(len(runs) > 0, "There is no model in output/models yet: train one with main.py, or say --model.")
    return runs[-1] / "best.pt"


def save(image: Image.Image, path: Path) -> None:
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    with files.save_atomically(path) as file:
        file.write(encoded.getvalue())


def main(options: Options) -> None:
    errors.check_ranges(options, threshold="(0, 1)")
    photos, background = find_photos(options.photos), find_background(options.background)
    taken = {place for photo in photos for place in places_of_masks(photo)}
    errors.require(
        options.output_dir.resolve() not in taken,
        f"--output-dir {options.output_dir} can't be: photos or their masks are there. Name another folder.",
    )
    model = find_model(options.model)
    finder = CarFinder(model, options.device)
    threshold = finder.threshold if options.threshold is None else options.threshold
    if options.tta is not None:
        finder.tta = options.tta
    files.make_writable(options.output_dir)
    print(f"{model}: {type(finder.classifier.net).__name__}, on {finder.classifier.device}")
    broken, scores = [], []
    for path in helpers.Progress(photos, "cut out", unit="img"):
        found = find_mask(path)
        try:
            photo = read(path, decode_image)
        except errors.UserError as error:
            broken.append(path)
            tqdm.write(str(error))
            continue
        truth = None
        try:
            if found is not None:
                truth = read(found, decode_mask) > 127  # (1, H, W)
                check_pair(path, photo.shape[1:], found, truth.shape[1:])
        except errors.UserError as error:  # it can be cut out all the same
            truth = None
            tqdm.write(f"No Dice: {error}")
        probs = finder(photo)
        mask = probs > threshold
        save(Image.fromarray(mask.byte().numpy() * 255), options.output_dir / f"{path.stem}_mask.png")
        save(cut_out(photo, probs, threshold, background), options.output_dir / f"{path.stem}_cutout.png")
        told = f"{mask.float().mean():.1%} of it cut out" if mask.any() else "Look at this: nothing was found"
        if truth is not None:
            scores.append(dice_per_image(mask[None], truth).item())
            told += f", Dice {scores[-1]:.4f} with {found.name}"
        tqdm.write(f"{path}: {told}")
    done = len(photos) - len(broken)
    mean = f"; mean Dice of {len(scores)} {sum(scores) / len(scores):.6f}" if scores else ""
    print(f"{helpers.pluralize(done, 'photo')} cut out, in {options.output_dir}{mean}")
    if broken:
        sys.exit(f"predict.py: {len(broken)} of {len(photos)} could not be: {', '.join(map(str, broken[:5]))}")


if __name__ == "__main__":
    with errors.friendly_errors():
        main(tyro.cli(Options))
