"""The table of epochs that a training prints."""

import pytest
import torch
from torch.utils.data import DataLoader

from callbacks.console import ConsoleCallback
from nn.classifier import CarvanaClassifier
from test_classifier import Tiny, random_pairs


def test_a_training_prints_a_line_per_epoch_under_its_heading(capsys):
    classifier, loader = CarvanaClassifier(Tiny(), 3), DataLoader(random_pairs(8), batch_size=2)
    optimizer = torch.optim.SGD(classifier.net.parameters(), lr=0.5)
    classifier.train(loader, loader, optimizer, callbacks=[ConsoleCallback(0)])
    lines = capsys.readouterr().out.splitlines()
    _, names, first, second, _ = lines
    assert first.startswith("epoch 1/3 ") and second.startswith("epoch 2/3 ")
    shown = dict(zip(names.split(), second.split()[2:], strict=False))  # of Dice, the second of two of a name
    assert shown["valid"] == f"{classifier.metrics[1]['valid_dice']:.4f}"
    assert [line.index(" min") + len(" min") for line in (first, second)] == [len(names)] * 2
    assert names.rindex("valid") + len("valid") == second.index(shown["valid"]) + len(shown["valid"])


@pytest.mark.parametrize(
    ("epoch", "half_size_epochs", "minutes"), [(4, 0, 6.6), (4, 4, 18.6), (4, 6, 14.6), (10, 6, 0), (9, 12, 1.1)]
)
def test_the_time_left_counts_epochs_at_half_size_as_a_third(epoch, half_size_epochs, minutes):
    """Of the 66 seconds of an epoch, 60 are of the training and 6 of the validation."""
    console = ConsoleCallback(half_size_epochs)
    console.valid_images = 12
    metrics = {"epoch": epoch, "valid_images_per_second": 2.0, "seconds": 66.0}
    assert console.minutes_left(CarvanaClassifier(Tiny(), 10), metrics) == pytest.approx(minutes)
