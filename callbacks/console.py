"""The table of epochs that a training prints."""

from torch.utils.data import DataLoader
from tqdm import tqdm

from nn.callback import Callback
from nn.classifier import CarvanaClassifier


class ConsoleCallback(Callback):
    """Prints a table of the epochs, within 80 columns. Pass it after the model saver: a line then means "saved".

    The time left is that of the remaining epochs at the speed of the latest one.
    """

    def on_train_begin(self, classifier: CarvanaClassifier, valid_loader: DataLoader) -> None:
        if classifier.epoch < classifier.epochs:
            indent = " " * len(epoch_of(classifier, classifier.epochs))
            print(f"{indent}       loss            Dice\n{indent}   train   valid   train   valid  images/s  time left")

    def on_epoch_end(self, classifier: CarvanaClassifier, epoch: int, metrics: dict[str, float]) -> None:
        values = [metrics[f"{part}_{name}"] for name in ("loss", "dice") for part in ("train", "valid")]
        numbers = "".join(f" {value:7.4f}" for value in values) + f"{metrics['train_images_per_second']:10.1f}"
        seconds_left = (classifier.epochs - epoch) * metrics["seconds"]
        hours, minutes = divmod(round(seconds_left / 60), 60)
        left = f"{hours} h {minutes:02}" if hours else f"{minutes} min"
        best = "  <- best" if metrics is classifier.best else ""
        tqdm.write(f"{epoch_of(classifier, epoch)}{numbers}{left:>11}{best}")


def epoch_of(classifier: CarvanaClassifier, epoch: int) -> str:
    return f"epoch {epoch:{len(str(classifier.epochs))}}/{classifier.epochs}"
