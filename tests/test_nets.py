import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from nn.unet import NETS, UNet1024, UpsampleDecoder, make_net
from nn.unet_origin import ConvBnRelu, SizeError, StackDecoder, UNetOriginal, center_crop


def conv(inputs, outputs, side, bias=False):
    return inputs * outputs * side**2 + (outputs if bias else 0)


def conv_bn(inputs, outputs):
    return conv(inputs, outputs, 3) + 2 * outputs


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


def test_original_has_the_papers_parameters():
    down = [(3, 64), (64, 128), (128, 256), (256, 512), (512, 1024)]
    up = [(1024, 512), (512, 256), (256, 128), (128, 64)]
    expected = sum(conv_bn(i, o) + conv_bn(o, o) for i, o in down)
    expected += sum(conv(i, o, 2, bias=True) + conv_bn(i, o) + conv_bn(o, o) for i, o in up)
    expected += conv(64, 1, 1, bias=True)
    assert count(UNetOriginal()) == expected == 31_037_633


def test_unet1024_has_the_parameters_of_its_widths():
    widths = [3, 24, 64, 128, 256, 512, 768]
    down = list(pairwise(widths))
    up = [(768 + 768, 512), (512 + 512, 256), (256 + 256, 128), (128 + 128, 64), (64 + 64, 24), (24 + 24, 24)]
    expected = sum(conv_bn(i, o) + conv_bn(o, o) for i, o in down) + conv_bn(768, 768)
    expected += sum(conv_bn(i, o) + 2 * conv_bn(o, o) for i, o in up) + conv(24, 1, 1, bias=True)
    assert count(UNet1024()) == expected


def paper_output(length):
    """Figure 1's arithmetic, level by level; None where a pooling meets an odd size or nothing is left."""
    for _ in range(4):
        length -= 4
        if length <= 0 or length % 2:
            return None
        length //= 2
    length -= 4
    for _ in range(4):
        length = 2 * length - 4
    return length if length > 0 else None


@pytest.mark.parametrize("length", range(150, 620))
def test_original_takes_the_sizes_that_the_papers_arithmetic_takes(length):
    if paper_output(length) is None:
        with pytest.raises(SizeError, match=f"does not support images of {length}x572 "):
            UNetOriginal.check((length, 572))
    else:
        assert UNetOriginal.check((length, 572)) == (paper_output(length), 388)


def test_size_errors_name_the_two_nearest_sizes():
    nearest = r"\(height x width\).* 188, 204, 220, \.\.\. pixels.* sizes are 588x572 and 604x572\.$"
    with pytest.raises(SizeError, match=nearest) as refused:
        UNetOriginal.check((600, 572))
    assert refused.value.nearest == [(588, 572), (604, 572)]
    with pytest.raises(SizeError, match=r"128, 192, 256, \.\.\. pixels.* sizes are 960x128 and 1024x192\.$") as refused:
        UNet1024.check((1000, 100))
    assert refused.value.nearest == [(960, 128), (1024, 192)]


@pytest.mark.seconds
@pytest.mark.parametrize(("name", "size", "mask_size"), [
    ("UNetOriginal", (572, 588), (388, 404)),
    ("UNet1024", (1024, 1280), (1024, 1280)),
])
def test_a_net_is_made_by_its_name_and_size(name, size, mask_size):
    with torch.device("meta"):
        net = make_net(name, (3, *size))
        assert type(net) is NETS[name] and net.in_shape == (3, *size)
        assert net.output_size == NETS[name].check(size) == mask_size
        with pytest.raises(SizeError):
            make_net(name, (3, 1000, 1000))


@pytest.mark.seconds
@pytest.mark.parametrize(
    ("make", "in_shape"),
    [
        (UNetOriginal, (3, 188, 220)),
        (UNetOriginal, (1, 204, 188)),
        (UNet1024, (3, 128, 192)),
        (UNet1024, (4, 192, 128)),
    ],
)
def test_logits_have_the_nets_output_size_and_every_parameter_has_a_gradient(make, in_shape):
    torch.manual_seed(0)
    net = make(in_shape)
    logits = net(torch.rand(2, *in_shape))
    assert logits.shape == (2, *net.output_size)
    logits.square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.seconds
@pytest.mark.parametrize("make", [UNetOriginal, UNet1024])
def test_feature_maps_begin_with_unit_variance_all_the_way_down(make):
    """The paper, section 3; measured before each BatchNorm, which would hide it."""
    torch.manual_seed(0)
    net, variances = make((3, 188, 188) if make is UNetOriginal else (3, 128, 128)), []
    for module in net.modules():
        if isinstance(module, ConvBnRelu):
            module.conv.register_forward_hook(lambda _module, _inputs, maps: variances.append(maps.var().item()))
    net(torch.randn(4, *net.in_shape))
    # max pooling triples it, upsampling halves it; torch's default initialization would give a sixth everywhere
    assert all(0.2 < variance < 5 for variance in variances), variances
    assert 0.7 < torch.tensor(variances).log().mean().exp() < 1.5


@pytest.mark.parametrize("net", [UNetOriginal((3, 188, 188)), UNet1024((3, 128, 128))])
def test_images_of_a_batch_do_not_leak_into_each_other(net):
    torch.manual_seed(0)
    net.eval()
    a, b = torch.rand(1, *net.in_shape), torch.rand(1, *net.in_shape)
    with torch.inference_mode():
        together, alone = net(torch.cat([a, b]))[:1], net(a)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        net.train()  # control: BatchNorm in train mode mixes them
        assert not torch.allclose(net(torch.cat([a, b]))[:1], alone, atol=1e-3)


@pytest.mark.parametrize("net", [UNetOriginal((3, 188, 220)), UNet1024((3, 128, 192))])
def test_left_and_right_are_symmetric(net):
    """With all kernels mirrored, a mirrored image has the mirrored mask: crops and poolings are centered."""
    torch.manual_seed(0)
    net.eval()
    mirrored = copy.deepcopy(net)
    for module in mirrored.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
            module.weight.data = module.weight.data.flip(-1)
    image = torch.randn(1, *net.in_shape)
    with torch.inference_mode():
        expected = net(image).flip(-1)
        torch.testing.assert_close(mirrored(image.flip(-1)), expected, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(net(image.flip(-1)), expected, rtol=1e-3, atol=1e-4)  # control


@pytest.mark.seconds
def test_the_receptive_field_of_an_output_pixel_is_centered_92_pixels_further():
    """The gradient of output pixel (i, j) reaches input pixels around (i + 92, j + 92), as reflect_pad takes it."""
    torch.manual_seed(0)
    net = UNetOriginal((3, 220, 220)).eval()
    image = torch.rand(1, 3, 220, 220, requires_grad=True)
    logits = net(image)  # (1, 36, 36)
    logits[0, 18, 18].backward()
    rows = image.grad[0].abs().sum((0, 2)).nonzero().flatten()
    assert abs((rows.min() + rows.max()).item() / 2 - (18 + 92)) <= 8  # poolings move the window by up to half a period
    assert rows.min() > 0 and rows.max() < 219


def test_center_crop_crops():
    x = torch.arange(30).reshape(1, 1, 5, 6)
    assert center_crop(x, (3, 2)).tolist() == [[[[8, 9], [14, 15], [20, 21]]]]


def is_channels_last(grad):
    return grad.is_contiguous(memory_format=torch.channels_last)


def feature_maps(*shape):
    return torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_() * 1


def test_the_gradient_of_a_crop_keeps_channels_last():
    """Any other memory format is copied, value by value, by the layers after it."""
    seen, x, trace = [], feature_maps(2, 8, 8, 8), feature_maps(2, 4, 22, 22)
    trace.register_hook(seen.append)
    decoder = StackDecoder(8, 4).to(memory_format=torch.channels_last)
    decoder(x, trace).square().mean().backward()
    assert len(seen) == 1 and seen[0].shape == trace.shape and is_channels_last(seen[0])


def test_the_gradient_of_an_upsampling_keeps_channels_last(monkeypatch):
    seen, x, trace, interpolate = [], feature_maps(2, 8, 8, 8), feature_maps(2, 4, 16, 16), F.interpolate

    def watched(*arguments, **options):
        result = interpolate(*arguments, **options)
        result.grad_fn.register_prehook(lambda grads: seen.append(grads[0]))
        return result

    monkeypatch.setattr(F, "interpolate", watched)
    decoder = UpsampleDecoder(8, 4, 6).to(memory_format=torch.channels_last)
    decoder(x, trace).square().mean().backward()
    assert len(seen) == 1 and seen[0].shape == (2, 8, 16, 16) and is_channels_last(seen[0])


class NoGradient(torch.autograd.Function):
    """torch's SyncBatchNorm for an empty batch: its input has no gradient, instead of a gradient of zeros."""

    @staticmethod
    def forward(context, x):
        return torch.empty_like(x)

    @staticmethod
    def backward(context, grad):
        return None


def test_a_process_without_images_can_train_a_step(monkeypatch):
    """As in the last step of an epoch on several GPUs."""
    monkeypatch.setattr(torch.nn.BatchNorm2d, "forward", lambda self, x: NoGradient.apply(x))
    net = UNet1024((3, 128, 128))
    net(torch.empty(0, 3, 128, 128)).sum().backward()
    assert net.head.weight.grad.eq(0).all()
