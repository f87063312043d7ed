"""The table of epochs that a training prints."""

from torch.utils.data import DataLoader
from tqdm import tqdm

from nn.callback import Callback
from nn.classifier import CarvanaClassifier


class ConsoleCallback(Callback):
    """Prints a table of the epochs, within 80 columns. Pass it after the model saver: a line then means "saved"."""

    def __init__(self, half_size_epochs: int):
        self.half_size_epochs = half_size_epochs

    def on_train_begin(self, classifier: CarvanaClassifier, valid_loader: DataLoader) -> None:
        self.valid_images = len(valid_loader.dataset)
        if classifier.epoch < classifier.epochs:
            indent = " " * len(epoch_of(classifier, classifier.epochs))
            print(f"{indent}       loss            Dice\n{indent}   train   valid   train   valid  images/s  time left")

    def on_epoch_end(self, classifier: CarvanaClassifier, epoch: int, metrics: dict[str, float]) -> None:
        values = [metrics[f"{part}_{name}"] for name in ("loss", "dice") for part in ("train", "valid")]
        numbers = "".join(f" {value:7.4f}" for value in values) + f"{metrics['train_images_per_second']:10.1f}"
        hours, minutes = divmod(round(self.minutes_left(classifier, metrics)), 60)
        left = f"{hours} h {minutes:02}" if hours else f"{minutes} min"
        best = "  <- best" if metrics is classifier.best else ""
        tqdm.write(f"{epoch_of(classifier, epoch)}{numbers}{left:>11}{best}")

    def minutes_left(self, classifier: CarvanaClassifier, metrics: dict[str, float]) -> float:
        """At the speed of this epoch. One at half size takes a third of the time to train."""
        validating = self.valid_images / metrics["valid_images_per_second"]  # seconds
        training = metrics["seconds"] - validating
        left = classifier.epochs - metrics["epoch"]
        half = min(left, max(self.half_size_epochs - metrics["epoch"], 0))
        full = training * (3 if metrics["epoch"] <= self.half_size_epochs else 1)
        return (half * training + (left - half) * full + left * validating) / 60


def epoch_of(classifier: CarvanaClassifier, epoch: int) -> str:
    return f"epoch {epoch:{len(str(classifier.epochs))}}/{classifier.epochs}"
