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
    classifier.train(loader, loader, optimizer, callbacks=[ConsoleCallback()])
    lines = capsys.readouterr().out.splitlines()
    _, names, first, second, _ = lines
    assert first.startswith("epoch 1/3 ") and second.startswith("epoch 2/3 ")
    shown = dict(zip(names.split(), second.split()[2:], strict=False))  # of Dice, the second of two of a name
    assert shown["valid"] == f"{classifier.metrics[1]['valid_dice']:.4f}"
    assert [line.index(" min") + len(" min") for line in (first, second)] == [len(names)] * 2
    assert names.rindex("valid") + len("valid") == second.index(shown["valid"]) + len(shown["valid"])


@pytest.mark.parametrize(("epoch", "seconds", "left"), [(4, 66.0, "7 min"), (4, 1200.0, "2 h 00"), (10, 66.0, "0 min")])
def test_the_time_left_is_that_of_the_epochs_to_come_at_the_speed_of_this_one(capsys, epoch, seconds, left):
    classifier, metrics = CarvanaClassifier(Tiny(), 10), {"seconds": seconds, "train_images_per_second": 9.0}
    metrics |= dict.fromkeys(("train_loss", "valid_loss", "train_dice", "valid_dice"), 0.5)
    classifier.metrics.append(metrics)
    ConsoleCallback().on_epoch_end(classifier, epoch, metrics)
    assert f" {left}  <- best" in capsys.readouterr().out
