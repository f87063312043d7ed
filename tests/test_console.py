"""The table of epochs that a training prints."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from callbacks.console import ConsoleCallback
from nn.classifier import CarvanaClassifier
from test_classifier import Tiny, random_pairs


def test_a_training_prints_a_line_per_epoch_under_its_heading(tmp_path, capsys):
    classifier, loader = CarvanaClassifier(Tiny(), 3), DataLoader(random_pairs(8), batch_size=2)
    classifier.net.output_size = (8, 12)
    run = SimpleNamespace(folder=tmp_path / "model_1", logs_dir=tmp_path / "logs", name="1")
    optimizer = torch.optim.SGD(classifier.net.parameters(), lr=0.5)
    classifier.train(loader, loader, optimizer, callbacks=[ConsoleCallback(0, run)])
    lines = capsys.readouterr().out.splitlines()
    _, names, first, second, _, _, summary, *paths = lines
    assert first.startswith("epoch 1/3 ") and second.startswith("epoch 2/3 ")
    shown = dict(zip(names.split(), second.split()[2:], strict=False))  # of Dice, the second of two of a name
    assert shown["valid"] == f"{classifier.metrics[1]['valid_dice']:.4f}"
    assert [line.index(" min") + len(" min") for line in (first, second)] == [len(names)] * 2
    assert names.rindex("valid") + len("valid") == second.index(shown["valid"]) + len(shown["valid"])
    assert summary == f"Validation Dice {classifier.best['valid_dice']:.4f} in epoch 3, at 8x12 pixels"
    assert [line.split()[-1] for line in paths] == [
        str(tmp_path / path) for path in ("model_1/best.pt", "logs/tb_logs/1", "logs/tb_viz/1")
    ]


@pytest.mark.parametrize(
    ("epoch", "half_size_epochs", "minutes"), [(4, 0, 6.6), (4, 4, 18.6), (4, 6, 14.6), (10, 6, 0), (9, 12, 1.1)]
)
def test_the_time_left_counts_epochs_at_half_size_as_a_third(epoch, half_size_epochs, minutes):
    """Of the 66 seconds of an epoch, 60 are of the training and 6 of the validation."""
    console = ConsoleCallback(half_size_epochs, SimpleNamespace())
    console.valid_images = 12
    metrics = {"epoch": epoch, "valid_images_per_second": 2.0, "seconds": 66.0}
    assert console.minutes_left(CarvanaClassifier(Tiny(), 10), metrics) == pytest.approx(minutes)
