"""Optimizer, learning rate and EMA, each against arithmetic in the test or another class of torch's."""

import math

import numpy as np
import pytest
import torch

from nn.optimizer import ModelEma, make_optimizer, make_scheduler
from nn.unet_origin import ConvBnRelu


def net_of_two():
    torch.manual_seed(0)
    return torch.nn.Sequential(ConvBnRelu(3, 4), torch.nn.Conv2d(4, 1, 1))


@pytest.mark.parametrize("name", ["SGD", "RMSprop", "AdamW"])
def test_every_weight_is_optimized_once_and_only_kernels_decay(name):
    net = net_of_two()
    optimizer = make_optimizer(net, name, 0.1, momentum=0.9, weight_decay=0.5)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    assert type(optimizer).__name__ == name
    assert len(params) == len(list(net.parameters())) and set(params) == set(net.parameters())
    decay = {id(param): group["weight_decay"] for group in optimizer.param_groups for param in group["params"]}
    names = {each: decay[id(param)] for each, param in net.named_parameters()}
    assert names == {"0.conv.weight": 0.5, "0.bn.weight": 0, "0.bn.bias": 0, "1.weight": 0.5, "1.bias": 0}


def test_adamw_decays_kernels_only():
    """With gradients of 0, a step does nothing but decay."""
    net = net_of_two()
    optimizer = make_optimizer(net, "AdamW", 0.1, weight_decay=0.5)
    before = {name: param.detach().clone() for name, param in net.named_parameters()}
    for param in net.parameters():
        param.grad = torch.zeros_like(param)
    optimizer.step()
    for name, param in net.named_parameters():
        torch.testing.assert_close(param.detach(), before[name] * (1 - 0.1 * 0.5 if param.ndim > 1 else 1))
    assert before["0.bn.weight"].eq(1).all() and net[0].bn.weight.eq(1).all()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fused_sgd_takes_the_steps_of_plain_sgd(momentum):
    """Gradient plus L2 penalty of kernels, with momentum, written out in float64."""
    net = net_of_two()
    optimizer = make_optimizer(net, "SGD", 0.1, momentum, weight_decay=0.5)
    expected = {name: param.detach().double().clone() for name, param in net.named_parameters()}
    speed = dict.fromkeys(expected, 0)
    for _ in range(3):
        for name, param in net.named_parameters():
            param.grad = torch.randn_like(param)
            decay = 0.5 * expected[name] if param.ndim > 1 else 0
            speed[name] = momentum * speed[name] + param.grad.double() + decay
            expected[name] = expected[name] - 0.1 * speed[name]
        optimizer.step()
    assert all(group["fused"] for group in optimizer.param_groups)
    for name, param in net.named_parameters():
        torch.testing.assert_close(param.detach().double(), expected[name], rtol=1e-5, atol=1e-6)


def rates(name, epochs, warmup_epochs=0.0, steps_per_epoch=1, done=0):
    """The learning rate at each step after `done` epochs, and after the last step."""
    optimizer = torch.optim.SGD(net_of_two().parameters(), lr=0.4)
    for group in optimizer.param_groups if done else ():  # as a checkpoint has them
        group |= {"initial_lr": 0.4, "max_lr": 0.4, "min_lr": 0.4 / 25e4}
        group["initial_lr"] = 0.4 / 25 if name == "one_cycle" else 0.4
    scheduler, seen = make_scheduler(optimizer, name, epochs, warmup_epochs, steps_per_epoch, done), []
    for _ in range((epochs - done) * steps_per_epoch):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen, optimizer.param_groups[0]["lr"]


def test_cosine_is_torchs_own_and_ends_at_0():
    optimizer = torch.optim.SGD(net_of_two().parameters(), lr=0.4)
    twin, expected = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20), []
    for _ in range(20):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        twin.step()
    seen, after = rates("cosine", 20)
    assert seen == pytest.approx(expected) and after == pytest.approx(0, abs=1e-12)


def test_warmup_is_linear():
    for name in ("constant", "cosine"):
        seen, _ = rates(name, 20, warmup_epochs=4)
        assert seen[:5] == pytest.approx([0.08, 0.16, 0.24, 0.32, 0.4])
    assert rates("constant", 20, warmup_epochs=4)[0][4:] == [0.4] * 16
    assert seen[4:] == pytest.approx([0.2 * (1 + math.cos(math.pi * step / 16)) for step in range(16)])
    assert rates("constant", 20) == ([0.4] * 20, 0.4)
    assert rates("cosine", 4, warmup_epochs=9)[0] == pytest.approx([0.04, 0.08, 0.12, 0.16])  # longer than the training


def test_one_cycle_rises_for_less_than_a_third_and_falls_to_almost_0():
    seen, _ = rates("one_cycle", 101)
    assert (seen[0], max(seen), seen[-1]) == pytest.approx((0.4 / 25, 0.4, 0.4 / 25e4), rel=0.001)
    peak = int(np.argmax(seen))
    assert 28 <= peak <= 31 and np.all(np.diff(seen[: peak + 1]) > 0) and np.all(np.diff(seen[peak:]) < 0)


@pytest.mark.parametrize("name", ["constant", "cosine", "one_cycle"])
def test_rates_count_steps_in_epochs_and_continue_after_the_finished_ones(name):
    warmup = 0 if name == "one_cycle" else 1.5
    whole, after = rates(name, 8, warmup, steps_per_epoch=5)
    assert (whole, after) == rates(name, 40, warmup * 5)  # 40 epochs of one step
    assert rates(name, 8, warmup, 5, done=3) == (pytest.approx(whole[15:]), pytest.approx(after))
    assert len(set(whole[15:])) > 1 or name == "constant"  # control


def test_ema_is_that_of_the_formula_for_weights_and_statistics():
    net = net_of_two()
    ema, expected = ModelEma(net, decay=0.5), {n: v.double() for n, v in net.state_dict().items()}
    for step in range(12):
        with torch.no_grad():
            for param in net.parameters():
                param.add_(torch.randn_like(param))
            net[0].bn.running_mean.add_(1)
            net[0].bn.num_batches_tracked.add_(1)
        ema.update()
        decay = min(0.5, (1 + step) / (10 + step))
        for name, value in net.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    state = ema.net.state_dict()
    assert state.keys() == net.state_dict().keys()
    expected["0.bn.num_batches_tracked"] = 0  # which nothing reads
    for name, value in state.items():
        torch.testing.assert_close(value.double(), torch.as_tensor(expected[name]).double(), rtol=1e-5, atol=1e-6)
    assert not torch.equal(state["1.weight"], net[1].weight)  # control
    assert net[0].bn.running_mean.eq(12).all() and (state["0.bn.running_mean"] < 12).all()
    assert ema.updates == 12 and decay == 0.5 != (1 + step) / (10 + step)


def test_ema_soon_forgets_the_initial_weights():
    net = net_of_two()
    torch.nn.init.constant_(net[1].weight, 1000)
    ema = ModelEma(net, decay=0.999)
    torch.nn.init.zeros_(net[1].weight)
    for _ in range(100):
        ema.update()
    assert ema.net[1].weight.max() < 1  # a decay of 0.999 from the first step on would leave 900


def test_ema_with_decay_0_is_the_net_itself():
    net = net_of_two()
    ema = ModelEma(net, decay=0.0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    ema.update()
    assert ema.net is net and ema.updates == 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert ModelEma(net, decay=0.5).net is not net  # control
