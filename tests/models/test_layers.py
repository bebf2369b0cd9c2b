"""Covers `models.layers`: what is computed with less traffic is what diffusers and PyTorch compute."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from torch import nn

from latent_shift.core.errors import InputError
from latent_shift.models import layers
from latent_shift.models.layers import (
    LeanFeedForward,
    LeanTransformer2DModel,
    LeanUpsample2D,
    convolve,
    lay_out_for_cpu,
    set_memory_format,
    use_lean_layers,
)

CHANNELS_LAST = torch.channels_last


def make_convolution(channels=6, **options):
    torch.manual_seed(0)
    options = {"kernel_size": 3, "padding": 1, **options}
    return nn.Conv2d(channels, 5, **options).to(torch.bfloat16, memory_format=CHANNELS_LAST).requires_grad_(False)


def make_features(channels=6, side=4, batch=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, channels, side, side, generator=generator)
    return x.to(torch.bfloat16, memory_format=CHANNELS_LAST)


@pytest.fixture
def products(monkeypatch):
    """How often a 3x3 convolution was computed as a product."""
    calls = []
    apply = layers._ConvolutionByProduct.apply
    monkeypatch.setattr(layers._ConvolutionByProduct, "apply", lambda *args: calls.append(1) or apply(*args))
    return calls


def convolve_exactly(layer, x):
    bias = None if layer.bias is None else layer.bias.double()
    return nn.functional.conv2d(x.double(), layer.weight.double(), bias, padding=layer.padding)


@torch.no_grad()
@pytest.mark.parametrize(("channels", "side"), [(6, 4), (6, 1), (1280, 8), (1280, 5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("window_elements", [2**23, 1])
def test_a_convolution_of_few_pixels_is_a_product(channels, side, bias, window_elements, products, monkeypatch):
    monkeypatch.setattr(layers, "_WINDOW_ELEMENTS", window_elements)
    layer, x = make_convolution(channels, bias=bias), make_features(channels, side)
    product = convolve(layer, x)
    assert products == [1]
    assert product.is_contiguous(memory_format=CHANNELS_LAST)
    assert product.dtype == torch.bfloat16
    torch.testing.assert_close(product.double(), convolve_exactly(layer, x), rtol=2**-8, atol=2**-8)


@torch.no_grad()
def test_a_convolution_of_single_pixels_is_a_product(products):
    layer, x = make_convolution(kernel_size=1, padding=0), make_features(side=9)
    product = convolve(layer, x)
    assert product.is_contiguous(memory_format=CHANNELS_LAST)
    torch.testing.assert_close(product.double(), convolve_exactly(layer, x), rtol=2**-8, atol=2**-8)
    assert not products


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
def test_gradients_of_products(kernel_size, bias, autocast, products):
    layer = make_convolution(kernel_size=kernel_size, padding=kernel_size // 2, bias=bias).requires_grad_()
    x = make_features().requires_grad_()
    upstream = torch.randn(3, 5, 4, 4).bfloat16()
    inputs = [x, *layer.parameters()]
    exact = torch.autograd.grad(convolve_exactly(layer, x), inputs, upstream.double())
    if autocast:
        layer.float()
        inputs = [x, *layer.parameters()]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        product = convolve(layer, x)
    assert product.dtype == torch.bfloat16
    ours = torch.autograd.grad(product, inputs, upstream)
    assert products == [1] * (kernel_size == 3)
    for own, expected, one in zip(ours, exact, inputs, strict=True):
        assert own.dtype == one.dtype
        scale = expected.abs().max()
        torch.testing.assert_close(own.double() / scale, expected.double() / scale, rtol=0, atol=2**-6)


def test_frozen_weights_get_no_gradient(products):
    layer, x = make_convolution(), make_features().requires_grad_()
    convolve(layer, x).sum().backward()
    assert products == [1]
    assert x.grad is not None
    assert layer.weight.grad is None


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (make_convolution(), make_features(side=8)),  # many pixels for so few channels
        (make_convolution(1280), make_features(1280, side=9)),
        (make_convolution(), make_features().contiguous()),
        (make_convolution().to(memory_format=torch.contiguous_format), make_features()),
        (make_convolution().float(), make_features().float()),
        (make_convolution(stride=2), make_features()),
        (make_convolution(dilation=2), make_features()),
        (make_convolution(padding=0), make_features()),
        (make_convolution(kernel_size=1, padding=1), make_features()),
        (make_convolution(kernel_size=5, padding=2), make_features()),
        (make_convolution(padding_mode="circular"), make_features()),
    ],
)
def test_other_convolutions_are_the_module(layer, x, products):
    torch.testing.assert_close(convolve(layer, x), layer(x), rtol=0, atol=0)
    assert not products


def test_hooks_wide_layers_with_gradients_and_other_modules_go_through_the_module(products):
    convolve(make_convolution(1280), make_features(1280, side=8))
    layer, x = make_convolution(), make_features()
    called = []
    layer.register_forward_hook(lambda *_: called.append(1))
    convolve(layer, x)
    assert called == [1]
    convolve(nn.Identity(), x)
    assert not products


@torch.no_grad()
@pytest.mark.parametrize("batch", [2, 64])
@pytest.mark.parametrize(
    "options",
    [
        {"use_conv": True},
        {},
        {"use_conv_transpose": True},
        {"use_conv": True, "norm_type": "rms_norm", "eps": 1e-6, "elementwise_affine": True},
    ],
)
def test_an_upsampling_is_that_of_diffusers_in_its_layout(batch, options):
    torch.manual_seed(0)
    upsampling = Upsample2D(4, **options).to(memory_format=CHANNELS_LAST)
    x = torch.randn(batch, 4, 3, 3).to(memory_format=CHANNELS_LAST)
    expected = upsampling(x)
    sized = upsampling(x, (5, 5))
    upsampling.__class__ = LeanUpsample2D
    torch.testing.assert_close(upsampling(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(upsampling(x, (5, 5)), sized, rtol=0, atol=0)
    if options == {"use_conv": True}:
        assert upsampling(x).is_contiguous(memory_format=CHANNELS_LAST)


@pytest.fixture
def undoubled(monkeypatch):
    """How often an upsampling went without the large picture; also narrow ones of few pixels do."""
    calls = []
    compute = layers._convolve_doubled
    monkeypatch.setattr(layers, "_convolve_doubled", lambda *args: calls.append(1) or compute(*args))
    monkeypatch.setattr(layers, "_DOUBLED_CHANNELS", 6)
    monkeypatch.setattr(layers, "_DOUBLED_PIXELS", 3 * 2 * 5)
    return calls


def make_upsampling(**options):
    torch.manual_seed(0)
    upsampling = Upsample2D(6, use_conv=True, out_channels=4, **options)
    upsampling.__class__ = LeanUpsample2D
    return upsampling.to(torch.bfloat16, memory_format=CHANNELS_LAST).requires_grad_(False)


def upsample_exactly(upsampling, x):
    large = nn.functional.interpolate(x.double(), scale_factor=2.0, mode="nearest")
    return convolve_exactly(upsampling.conv, large)


@torch.no_grad()
@pytest.mark.parametrize("shape", [(2, 5), (5, 2), (4, 4), (9, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_wide_upsampling_never_makes_the_large_picture(shape, bias, undoubled):
    upsampling = make_upsampling(bias=bias)
    x = torch.randn(3, 6, *shape).to(torch.bfloat16, memory_format=CHANNELS_LAST)
    out = upsampling(x)
    assert undoubled == [1]
    assert out.is_contiguous(memory_format=CHANNELS_LAST)
    torch.testing.assert_close(out.double(), upsample_exactly(upsampling, x), rtol=2e-2, atol=2e-2)


def test_other_upsamplings_make_the_large_picture(undoubled):
    x = make_features()
    upsampling = make_upsampling()
    upsampling(x)  # gradients
    with torch.no_grad():
        upsampling(make_features(batch=1))  # few pixels
        upsampling(x.contiguous())
        make_upsampling(kernel_size=1, padding=0)(x)
        make_upsampling().float()(x.float())
        with torch.autocast("cpu", torch.bfloat16):
            upsampling(x)
        upsampling.conv.register_forward_hook(lambda *_: None)
        upsampling(x)
    assert undoubled == []


@pytest.mark.parametrize(
    ("backend", "channels", "dtype", "last"),
    [
        ("native", 32, torch.bfloat16, True),
        ("native", 32, torch.float32, False),
        ("eager", 32, torch.bfloat16, False),
        ("eager", 64, torch.bfloat16, True),
    ],
)
def test_a_network_is_laid_out_as_it_is_fastest(backend, channels, dtype, last, monkeypatch):
    monkeypatch.setattr(layers, "choose_backend", lambda *_: SimpleNamespace(backend=backend))
    network = nn.Conv2d(4, 4, 3)
    network.config = SimpleNamespace(block_out_channels=(channels, 128), norm_num_groups=8)
    lay_out_for_cpu(network, dtype)
    assert network.weight.is_contiguous(memory_format=CHANNELS_LAST) == last
    if backend == "native":  # asked for, it gets its layout
        monkeypatch.setenv("LATENT_SHIFT_BACKEND", "native")
        lay_out_for_cpu(network, dtype)
        assert network.weight.is_contiguous(memory_format=CHANNELS_LAST)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("part_rows", [14, 5, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_feed_forward_in_parts_is_that_of_diffusers(bias, part_rows, dtype, monkeypatch):
    monkeypatch.setattr(layers, "_HIDDEN_ELEMENTS", 447)  # one less than there are
    monkeypatch.setattr(layers, "_PART_ELEMENTS", 32 * part_rows)
    torch.manual_seed(0)
    plain = FeedForward(8, bias=bias).to(dtype)
    x = torch.randn(2, 7, 8).to(dtype)
    expected = plain(x)
    plain.__class__ = LeanFeedForward
    with torch.no_grad():
        lean = plain(x)
    tolerance = 1e-5 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(lean, expected.detach(), rtol=tolerance, atol=tolerance)
    assert plain(x).grad_fn is not None  # with gradients it is diffusers' own
    torch.testing.assert_close(plain(x), expected, rtol=0, atol=0)


@torch.no_grad()
@torch.no_grad()
def test_a_feed_forward_in_fp32_under_autocast_is_that_of_diffusers(monkeypatch):
    """As the previews of a training run draw."""
    monkeypatch.setattr(layers, "_HIDDEN_ELEMENTS", 0)
    torch.manual_seed(0)
    layer, x = FeedForward(8, activation_fn="geglu"), torch.randn(2, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        expected = layer(x)
        layer.__class__ = LeanFeedForward
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)


def test_a_feed_forward_that_was_changed_is_that_of_diffusers():
    torch.manual_seed(0)
    calls = []
    for change in (
        lambda block: block.net[0].register_forward_hook(lambda *_: calls.append(1)),
        lambda block: block.net[0].proj.register_forward_hook(lambda *_: calls.append(1)),
        lambda block: block.net[2].register_forward_hook(lambda *_: calls.append(1)),
    ):
        block = FeedForward(8)
        block.__class__ = LeanFeedForward
        change(block)
        calls.clear()
        block(torch.randn(1, 3, 8))
        assert calls == [1]
    gelu = FeedForward(8, activation_fn="gelu")
    x = torch.randn(1, 3, 8)
    expected = gelu(x)
    gelu.__class__ = LeanFeedForward
    torch.testing.assert_close(gelu(x), expected, rtol=0, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("linear", [False, True])
def test_a_spatial_transformer_keeps_the_layout(linear):
    torch.manual_seed(0)
    plain = Transformer2DModel(2, 4, in_channels=8, norm_num_groups=4, use_linear_projection=linear)
    x = torch.randn(2, 8, 4, 4).to(memory_format=CHANNELS_LAST)
    expected = plain(x, return_dict=False)[0]
    use_lean_layers(holder := nn.Sequential(plain))
    assert type(holder[0]) is LeanTransformer2DModel
    lean = plain(x, return_dict=False)[0]
    torch.testing.assert_close(lean, expected, rtol=1e-5, atol=1e-5)
    assert lean.is_contiguous(memory_format=CHANNELS_LAST) or linear
    contiguous = plain(x.contiguous(), return_dict=False)[0]
    assert contiguous.is_contiguous()
    torch.testing.assert_close(contiguous, expected, rtol=1e-5, atol=1e-5)


def test_a_memory_format_that_is_none_is_refused():
    with pytest.raises(InputError, match="memory format must be contiguous or channels_last, got 'channel_last'"):
        set_memory_format(nn.Conv2d(1, 1, 1), "channel_last")
