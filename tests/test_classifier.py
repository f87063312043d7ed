import copy
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch.utils.data import DataLoader

from data.dataset import TrainImageDataset
from data.fetcher import DatasetFetcher
from data.layout import CarvanaLayout
from img.tta import merge_tta
from nn.callback import Callback
from nn.classifier import CarvanaClassifier
from nn.losses import SoftDiceLoss, binary_cross_entropy
from nn.optimizer import make_optimizer
from nn.unet import UNet1024
from nn.unet_origin import UNetOriginal
from runtime.errors import UserError
from runtime.machine import MODES, Machine, capture, choose_precision
from tiny import Pairs, SmallUNet, find_files


class Tiny(torch.nn.Module):
    """A net of one convolution, where the net is not the point."""

    in_shape = (3, 8, 12)

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x):
        return self.conv(x).squeeze(1)


def random_pairs(count):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 8, 12), dtype=torch.uint8, generator=generator)
    return Pairs(images, (images.float().mean(1) > 127).to(torch.uint8) * 255)


class Recorder(Callback):
    def __init__(self):
        self.calls = []

    def on_train_begin(self, classifier, valid_loader):
        self.calls.append("begin")

    def on_epoch_end(self, classifier, epoch, metrics):
        self.calls.append(epoch)

    def on_predict_batch(self, names, probs):
        self.calls.append((names, probs))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "size", "mask_size", "epochs", "precision"),
    [(UNet1024, 128, 128, 70, "float32"), (UNetOriginal, 220, 36, 40, None)],  # None: the one that is fast here
)
def test_each_net_overfits_one_batch(drawn, make, size, mask_size, epochs, precision):
    precision, _ = choose_precision(precision, torch.device("cpu"))
    X, y, *_ = DatasetFetcher(CarvanaLayout(drawn)).get_train_files()
    dataset = TrainImageDataset(X[:4], y[:4], (size, size), (mask_size, mask_size), soft_labels=False)
    loader = DataLoader(dataset, batch_size=4)
    torch.manual_seed(0)
    classifier = CarvanaClassifier(make((3, size, size)), epochs, Machine(precision=precision))
    before = classifier.validate(loader)["valid_dice"]
    optimizer = torch.optim.Adam(classifier.net.parameters(), lr=1e-3)
    classifier.train(loader, loader, optimizer)
    assert before < 0.5
    assert classifier.best["valid_dice"] > 0.97
    # What it learned in one precision it knows in the other
    other = torch.bfloat16 if precision == torch.float32 else torch.float32
    dice = [CarvanaClassifier(classifier.net, 1, Machine(precision=each)).validate(loader)["valid_dice"]
            for each in (precision, other)]
    assert dice[0] == classifier.metrics[-1]["valid_dice"] and dice[1] == pytest.approx(dice[0], abs=0.001)


def test_the_loss_is_cross_entropy_plus_soft_dice():
    logits, targets = torch.randn(2, 8, 12), torch.rand(2, 8, 12)
    expected = binary_cross_entropy(logits, targets) + SoftDiceLoss()(logits, targets)
    assert CarvanaClassifier(Tiny(), 1)._criterion(logits, targets) == expected


def test_means_weigh_every_image_once_whatever_the_batch_size():
    """7 images in batches of 3 leave a last batch of 1, which counts as one image."""
    pairs = random_pairs(7)
    metrics = [CarvanaClassifier(Tiny(), 1).validate(DataLoader(pairs, size)) for size in (3, 7)]
    for name in ("valid_loss", "valid_dice", "valid_pixel_accuracy"):
        assert metrics[0][name] == pytest.approx(metrics[1][name], abs=1e-6)
    net = Tiny().eval()
    images, masks = pairs.tensors
    with torch.no_grad():
        predictions = net(images / 255) > 0
    expected = [f1_score(t.flatten() > 0, p.flatten()) for t, p in zip(masks, predictions, strict=True)]
    assert metrics[0]["valid_dice"] == pytest.approx(np.mean(expected), abs=1e-6)
    weighted = [np.mean(expected[:3]), np.mean(expected[3:6]), expected[6]]
    assert np.mean(weighted) != pytest.approx(np.mean(expected), abs=1e-4)  # control: batches weighed alike


def test_a_pixel_is_car_above_the_threshold_and_its_label_from_one_half():
    images = torch.full((1, 3, 8, 12), 255, dtype=torch.uint8)
    masks = torch.full((1, 8, 12), 102, dtype=torch.uint8)  # 40 % car
    masks[:, :4] = 153  # 60 % car
    scores = []
    for probability, threshold in ((0.6, 0.5), (0.6, 0.7), (0.4, 0.3)):
        classifier = CarvanaClassifier(Tiny(), 1, threshold=threshold)
        torch.nn.init.zeros_(classifier.net.conv.weight)
        torch.nn.init.constant_(classifier.net.conv.bias, np.log(probability / (1 - probability)))
        scores.append(classifier.validate(DataLoader(Pairs(images, masks)))["valid_dice"])
    assert scores == [pytest.approx(2 / 3), 0, pytest.approx(2 / 3)]  # all car, no car, all car; half of it is


def test_an_epoch_is_plain_gradient_descent():
    """The same steps written out, from the same start: gradients are not kept from one step to the next."""
    classifier, twin = CarvanaClassifier(Tiny(), 1), Tiny()
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (classifier.net, twin)]
    loader = DataLoader(random_pairs(6), batch_size=2)
    classifier.train(loader, loader, optimizers[0])
    for images, masks in loader:
        logits, targets = twin(images / 255), masks / 255
        loss = binary_cross_entropy(logits, targets) + SoftDiceLoss()(logits, targets)
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
    torch.testing.assert_close(classifier.net.conv.weight, twin.conv.weight)


@pytest.mark.parametrize(("batch", "count", "at_once"), [(2, 3, 6), (2, 2, 4), (1, 7, 7), (3, 1, 3)])
def test_accumulated_batches_make_the_step_of_all_their_images(batch, count, at_once):
    """7 images: the last step has fewer of them, and its last batch too."""
    weights, steps = [], []
    for size, accumulate in ((batch, count), (at_once, 1), (batch, 1)):
        loader = DataLoader(random_pairs(7), size)
        classifier = CarvanaClassifier(Tiny(), 2, accumulate_steps=accumulate)
        optimizer = torch.optim.SGD(classifier.net.parameters(), lr=5)
        scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1)
        classifier.train(loader, loader, optimizer, scheduler)
        weights.append(classifier.net.conv.weight)
        steps.append(scheduler.last_epoch)
        assert classifier.steps_per_epoch(loader) == scheduler.last_epoch / 2
    torch.testing.assert_close(weights[0], weights[1])
    assert steps[0] == steps[1] == 2 * -(-7 // at_once)
    assert count == 1 or not torch.allclose(weights[0], weights[2])  # control: a step each batch


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fused", [False, True])
def test_the_gradient_norm_is_clipped(fused, precision):
    """SGD's step is learning rate times gradient, so its length tells the gradient's. float16 scales its loss."""
    lengths = []
    for grad_clip in (0, 0.01, 1000):
        classifier = CarvanaClassifier(Tiny(), 1, Machine(precision=precision), grad_clip=grad_clip)
        before = [param.detach().clone() for param in classifier.net.parameters()]
        loader = DataLoader(random_pairs(4), batch_size=4)
        classifier.train(loader, loader, torch.optim.SGD(classifier.net.parameters(), lr=0.5, fused=fused))
        steps = [(param - old).flatten() for param, old in zip(classifier.net.parameters(), before, strict=True)]
        lengths.append(torch.cat(steps).norm().item() / 0.5)
    assert lengths[1] == pytest.approx(0.01, rel=1e-3) and 0.1 < lengths[0] == pytest.approx(lengths[2])


def test_the_scheduler_is_stepped_after_every_optimizer_step():
    classifier, loader = CarvanaClassifier(Tiny(), 2), DataLoader(random_pairs(6), batch_size=2)
    optimizer = torch.optim.SGD(classifier.net.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    taken = []
    optimizer.register_step_pre_hook(lambda optimizer, *_: taken.append(optimizer.param_groups[0]["lr"]))
    classifier.train(loader, loader, optimizer, scheduler)
    assert taken == [0.5 ** (step + 1) for step in range(6)]
    assert [metrics["learning_rate"] for metrics in classifier.metrics] == [0.5, 0.5**4]  # at the epoch's first step
    assert optimizer.param_groups[0]["lr"] == 0.5**7


def test_the_ema_validates_predicts_and_is_saved(tmp_path):
    """And the latest ones train: the average follows them."""
    pairs = random_pairs(6)
    loader = DataLoader(pairs, batch_size=2)
    classifier, plain = CarvanaClassifier(Tiny(), 1, ema_decay=0.9), CarvanaClassifier(Tiny(), 1)
    for each in (classifier, plain):
        each.train(loader, loader, torch.optim.SGD(each.net.parameters(), lr=5))
    assert torch.equal(classifier.net.conv.weight, plain.net.conv.weight)
    assert classifier.metrics[0]["train_loss"] == plain.metrics[0]["train_loss"]
    net = Tiny()
    net.load_state_dict(classifier.state_dict()["net"])
    assert not torch.equal(net.conv.weight, plain.net.conv.weight)
    assert classifier.metrics[0]["valid_loss"] == CarvanaClassifier(net, 1).validate(loader)["valid_loss"]
    probs = classifier.predict_probs(pairs.tensors[0])
    assert torch.equal(probs, CarvanaClassifier(net, 1).predict_probs(pairs.tensors[0]))
    assert not torch.equal(probs, plain.predict_probs(pairs.tensors[0]))  # control

    torch.save({name: value for name, value in classifier.state_dict().items() if name not in classifier.RESUME_KEYS},
               tmp_path / "best.pt")
    for settings in ({}, {"ema_decay": 0.9}):  # who predicts need not know how it was trained
        other = CarvanaClassifier(Tiny(), 1, **settings)
        torch.nn.init.zeros_(other.net.conv.weight)
        other.restore_model(tmp_path / "best.pt")
        assert torch.equal(other.predict_probs(pairs.tensors[0]), probs)

    torch.save(classifier.state_dict(), tmp_path / "last.pt")
    torch.save(plain.state_dict(), tmp_path / "plain.pt")
    for settings, path in (({}, "last.pt"), ({"ema_decay": 0.9}, "plain.pt")):
        other = CarvanaClassifier(Tiny(), 1, **settings)
        with pytest.raises(UserError, match="must both have an EMA of the weights, or neither of them"):
            other.restore_model(tmp_path / path, torch.optim.SGD(other.net.parameters(), lr=5))


def test_the_ema_has_the_decay_that_was_asked_for_and_follows_every_step():
    loader = DataLoader(random_pairs(1))
    weights = {}
    for decay in (0.5, 0.9):
        classifier = CarvanaClassifier(Tiny(), 30, ema_decay=decay)
        start = classifier.net.conv.weight.detach().clone()
        optimizer = torch.optim.SGD(classifier.net.parameters(), lr=5)
        classifier.epochs = 1
        classifier.train(loader, loader, optimizer)
        one = 0.1 * start + 0.9 * classifier.net.conv.weight  # the first decay is (1 + 0) / (10 + 0)
        torch.testing.assert_close(classifier.eval_net.conv.weight, one)
        classifier.epochs = 30
        classifier.train(loader, loader, optimizer)
        weights[decay] = classifier.eval_net.conv.weight
    assert not torch.allclose(weights[0.5], weights[0.9])


def test_both_views_of_an_image_are_merged():
    images = random_pairs(6).tensors[0].unflatten(0, (3, 2))  # (3 photos, 2 views, 3, H, W)
    classifier, recorder = CarvanaClassifier(Tiny(), 1), Recorder()
    probs = classifier.predict_probs(images)
    each = torch.stack([classifier.predict_probs(images[:, view]) for view in (0, 1)], dim=1)
    assert not torch.allclose(each[:, 0], each[:, 1])
    torch.testing.assert_close(probs, merge_tta(each))
    classifier.predict(DataLoader(list(zip(images, "abc", strict=True)), 3), [recorder])
    assert torch.equal(recorder.calls[0][1], probs)


@pytest.mark.seconds
def test_a_compiled_net_learns_the_same_and_its_checkpoint_does_not_know(monkeypatch):
    """What torch.compile traces, without the C++ that it would write for it, which takes a minute."""
    graphs, states = [], []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    images = torch.randint(0, 256, (3, 3, 128, 128), dtype=torch.uint8)
    loader = DataLoader(Pairs(images, images[:, 0]), batch_size=2)
    for mode in ("eager", "compile"):
        torch.manual_seed(0)
        classifier = CarvanaClassifier(UNet1024((3, 128, 128)), epochs=1, machine=Machine(mode=mode))
        before = classifier.net.state_dict()["up1.convs.0.conv.weight"].clone()
        assert not graphs  # control: the eager net compiles nothing
        classifier.train(loader, loader, torch.optim.SGD(classifier.net.parameters(), lr=0.01))
        states.append(classifier.net.state_dict())
    assert len(graphs) == 1  # the full batch; the last batch and validation are eager
    assert states[0].keys() == states[1].keys()
    for plain, compiled in zip(*(state.values() for state in states), strict=True):
        torch.testing.assert_close(plain, compiled, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(before, states[0]["up1.convs.0.conv.weight"], atol=1e-4)  # control: it did learn


def test_prediction_uses_the_batch_norms_as_trained():
    net = UNetOriginal((3, 188, 188))
    classifier = CarvanaClassifier(net.train(), 1)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 188, 188), dtype=torch.uint8)
    together, alone = classifier.predict_probs(images), classifier.predict_probs(images[:1])
    torch.testing.assert_close(together[:1], alone)


def test_validation_neither_learns_nor_moves_the_batch_norms():
    classifier = CarvanaClassifier(UNet1024((3, 128, 128)), 1)
    pairs = Pairs(torch.zeros(2, 3, 128, 128, dtype=torch.uint8), torch.zeros(2, 128, 128, dtype=torch.uint8))
    before = {name: value.clone() for name, value in classifier.net.state_dict().items()}
    classifier.validate(DataLoader(pairs, 2))
    assert all(torch.equal(value, before[name]) for name, value in classifier.net.state_dict().items())
    assert all(parameter.grad is None for parameter in classifier.net.parameters())


def train(epochs_a_call, seed=0):
    classifier = CarvanaClassifier(Tiny(), sum(epochs_a_call), seed=seed)
    loader = DataLoader(random_pairs(8), batch_size=2, shuffle=True)
    optimizer = torch.optim.SGD(classifier.net.parameters(), lr=0.5, momentum=0.9)
    recorder = Recorder()
    for epochs in epochs_a_call:
        torch.rand(5)  # what was drawn before must not matter
        classifier.epochs = classifier.epoch + epochs
        classifier.train(loader, loader, optimizer, callbacks=[recorder])
    return classifier, recorder


def test_one_seed_is_one_training_whether_or_not_it_paused():
    straight, paused, other = train([3])[0], train([2, 1])[0], train([3], seed=1)[0]
    assert torch.equal(straight.net.conv.weight, paused.net.conv.weight)
    assert not torch.equal(straight.net.conv.weight, other.net.conv.weight)  # control


class RecordingSampler(torch.utils.data.SequentialSampler):
    def __init__(self, data):
        super().__init__(data)
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def test_the_sampler_gets_each_epoch_and_each_has_its_own_random_numbers():
    pairs = random_pairs(4)
    sampler, draws = RecordingSampler(pairs), []
    classifier = CarvanaClassifier(Tiny(), 3)
    validate = classifier.validate
    classifier.validate = lambda loader: (draws.append(torch.rand(1).item()), validate(loader))[1]
    loader = DataLoader(pairs, sampler=sampler)
    classifier.train(loader, DataLoader(pairs), torch.optim.SGD(classifier.net.parameters(), lr=0.1))
    assert sampler.epochs == [1, 2, 3] and len(set(draws)) == 3


def test_callbacks_are_called_in_order():
    classifier, recorder = train([2, 1])
    assert recorder.calls == ["begin", 1, 2, "begin", 3]
    assert [metrics["epoch"] for metrics in classifier.metrics] == [1, 2, 3]


def test_prediction_gives_every_name_its_own_probabilities():
    images, _ = random_pairs(5).tensors
    names = [f"{i}.jpg" for i in range(5)]
    loader = DataLoader(list(zip(images, names, strict=True)), batch_size=2)
    recorder, classifier = Recorder(), CarvanaClassifier(Tiny(), 1)
    classifier.predict(loader, callbacks=[recorder])
    assert [name for batch, _ in recorder.calls for name in batch] == names
    probs = torch.cat([probs for _, probs in recorder.calls])
    with torch.no_grad():
        torch.testing.assert_close(probs, classifier.net(images / 255).sigmoid())
    assert not probs.requires_grad


class Named(Pairs):
    """Pairs with the paths of their photos, as TrainImageDataset has them."""

    def __init__(self, count):
        super().__init__(*random_pairs(count).tensors)
        self.X = [f"train/{number}.jpg" for number in range(count)]


def broken_at(step, dataset, precision=torch.float32, **loading):
    """The sentence of a training of batches of 2 whose loss is not a number at that step."""
    classifier, count = CarvanaClassifier(Tiny(), 2, Machine(precision=precision)), 0

    def breaking(logits, targets, criterion=classifier._criterion):
        nonlocal count
        count += 1
        return criterion(logits, targets) * (float("nan") if count == step else 1)

    classifier._criterion = breaking
    loader = DataLoader(dataset, batch_size=2, **loading)
    with pytest.raises(FloatingPointError) as error:
        classifier.train(loader, loader, torch.optim.SGD(classifier.net.parameters(), lr=0.1))
    return str(error.value)


def test_a_loss_that_is_not_finite_stops_and_names_epoch_batch_and_images():
    assert broken_at(13, Named(30)) == (
        "The loss was not finite at batch 13 of train 1/2, images 24.jpg, 25.jpg, so training stopped."
    )
    assert "batch 2 of valid 1/2, images 2.jpg, 3.jpg, so" in broken_at(17, Named(30))
    assert "images" not in broken_at(13, random_pairs(30)) and "images" not in broken_at(13, Named(30), shuffle=True)


def test_the_images_named_are_those_of_the_shuffled_batch():
    data = Named(30)
    sampler = torch.utils.data.DistributedSampler(data, num_replicas=1, rank=0)
    sampler.set_epoch(1)
    order = list(sampler)
    assert f", images {order[4]}.jpg, {order[5]}.jpg," in broken_at(3, data, sampler=sampler)
    assert order[4:6] != [4, 5]  # control


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(104, "Connection reset by peer")])
@pytest.mark.parametrize("phase", ["train", "valid", "predict"])
def test_a_worker_that_ends_while_it_hands_a_batch_over_ends_the_pass(error, phase):
    """runtime/errors.py knows what to advise."""

    class Taking:
        batch_size, num_workers, sampler = 2, 3, range(4)
        dataset = range(4)

        def __len__(self):
            return 2

        def __iter__(self):
            raise error
            yield

    classifier = CarvanaClassifier(Tiny(), 1)
    classifier.optimizer = torch.optim.SGD(classifier.net.parameters(), lr=0.1)
    passes = {"train": classifier.train_epoch, "valid": classifier.validate, "predict": classifier.predict}
    with pytest.raises(type(error)):
        passes[phase](Taking())


def test_restoring_loads_the_weights_and_refuses_other_checkpoints(tmp_path):
    classifier, _ = train([1])
    torch.save(classifier.state_dict(), tmp_path / "a.pt")
    other = CarvanaClassifier(Tiny(), 1)
    assert not torch.equal(other.net.conv.weight, classifier.net.conv.weight)
    other.restore_model(tmp_path / "a.pt")
    assert torch.equal(other.net.conv.weight, classifier.net.conv.weight)

    other_net = CarvanaClassifier(UNet1024((3, 128, 192)), 1)
    with pytest.raises(UserError, match=r"a\.pt is a checkpoint of Tiny at 8x12, but the net is UNet1024 at 128x192"):
        other_net.restore_model(tmp_path / "a.pt")
    (tmp_path / "half.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:500])
    torch.save({"net": 1}, tmp_path / "foreign.pt")
    weights = classifier.state_dict() | {"net": {"other.weight": torch.zeros(1)}}
    torch.save(weights, tmp_path / "other.pt")
    for name in ("half.pt", "foreign.pt", "other.pt"):
        with pytest.raises(UserError, match=f"{name} is (no|not a) checkpoint"):
            other.restore_model(tmp_path / name)


class Evil:
    def __reduce__(self):
        return print, ("code from a checkpoint ran",)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path, capsys):
    torch.save({"net": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil\.pt may contain code, so it was not loaded"):
        CarvanaClassifier(Tiny(), 1).restore_model(tmp_path / "evil.pt")
    assert "ran" not in capsys.readouterr().out
    torch.load(tmp_path / "evil.pt", weights_only=False)  # control
    assert "ran" in capsys.readouterr().out


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU here")


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_training_and_prediction_run_on_a_gpu(precision):
    classifier = CarvanaClassifier(UNet1024((3, 128, 128)), 2, Machine(torch.device("cuda"), precision))
    images = torch.randint(0, 256, (4, 3, 128, 128), dtype=torch.uint8)
    loader = DataLoader(Pairs(images, images[:, 0]), batch_size=2, pin_memory=True)
    classifier.train(loader, loader, torch.optim.RMSprop(classifier.net.parameters(), lr=2e-4))
    assert classifier.predict_probs(images).device.type == "cuda"


@pytest.fixture
def exact_convolutions():
    """The same kernels in graphs as without, and no TF32."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


def train_modes(drawn, device, precision, modes):
    """Train SmallUNet in each mode from the same weights -> the classifiers.

    5 images in batches of 2: the last batch is short. The first of two epochs has half the size.
    """
    X, y = find_files(drawn, [0])
    net, classifiers = SmallUNet((3, 32, 48)), []
    for mode in modes:
        dataset = TrainImageDataset(X[:5], y[:5], (32, 48), (32, 48), half_size_epochs=1)
        loader = DataLoader(dataset, batch_size=2, pin_memory=device.type == "cuda")
        classifier = CarvanaClassifier(copy.deepcopy(net), 2, Machine(device, precision, mode=mode))
        classifier.train(loader, loader, make_optimizer(classifier.net, "SGD", 0.05, momentum=0.9))
        classifiers.append(classifier)
    return classifiers


def test_only_full_training_batches_take_the_faster_way(drawn, monkeypatch):
    """And a faster way that computes the same trains the same, to the bit."""
    taken = []
    speed_up = lambda net, _: lambda images: taken.append(tuple(images.shape)) or net(images)  # noqa: E731
    monkeypatch.setitem(MODES, "CUDA graph", speed_up)
    torch.manual_seed(0)
    classifiers = train_modes(drawn, torch.device("cpu"), torch.float32, ["eager", "CUDA graph"])
    assert taken == [(2, 3, 16, 24)] * 2 + [(2, 3, 32, 48)] * 2
    eager, faster = (each.net.state_dict() for each in classifiers)
    assert all(torch.equal(faster[name], value) for name, value in eager.items())
    losses = [[metrics["valid_loss"] for metrics in classifier.metrics] for classifier in classifiers]
    assert losses[0] == losses[1] and losses[0][0] != losses[0][1]


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_training_with_cuda_graphs_equals_an_eager_one(drawn, precision, capsys, exact_convolutions):
    torch.manual_seed(0)
    eager, graphed = train_modes(drawn, torch.device("cuda"), precision, ["eager", "CUDA graph"])
    assert set(graphed.model.faster) == {(2, 3, 16, 24), (2, 3, 32, 48)}
    assert "Warning" not in capsys.readouterr().out and graphed.net not in graphed.model.faster.values()
    tolerance = 1e-4 if precision == torch.float32 else 2e-2
    for name, value in eager.net.state_dict().items():  # with the buffers of BatchNorms
        torch.testing.assert_close(graphed.net.state_dict()[name], value, rtol=tolerance, atol=tolerance, msg=name)
    for one, other in zip(eager.metrics, graphed.metrics, strict=True):
        assert other["train_loss"] == pytest.approx(one["train_loss"], rel=tolerance)
        assert other["valid_loss"] == pytest.approx(one["valid_loss"], rel=tolerance)
    assert eager.metrics[1]["train_loss"] != pytest.approx(eager.metrics[0]["train_loss"], rel=tolerance)  # control


@pytest.mark.cuda
@needs_gpu
def test_capturing_a_net_changes_nothing_in_it_and_its_graphs_compute_the_same(exact_convolutions):
    torch.manual_seed(0)
    net = SmallUNet((3, 32, 48)).cuda()
    before, twin = copy.deepcopy(net.state_dict()), copy.deepcopy(net)
    images, others = torch.rand(2, 2, 3, 32, 48, device="cuda")
    graphs = capture(net, images)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(param.grad is None for param in net.parameters())
    results = []
    for run, owner in ((graphs, net), (twin, twin)):
        logits = run(others)  # not the images of the capture
        logits.square().mean().backward()
        results.append([logits, *owner.state_dict().values(), *(param.grad for param in owner.parameters())])
    for graphed, eager in zip(*results, strict=True):
        torch.testing.assert_close(graphed, eager, rtol=1e-4, atol=1e-4)
    assert net.down1.convs[0].bn.num_batches_tracked == 1
