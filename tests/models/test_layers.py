"""Covers `models.layers`: what is computed with less traffic is what diffusers and PyTorch compute."""

import pytest
import torch
from diffusers.models.attention import FeedForward
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from latent_shift.models import layers
from latent_shift.models.layers import LeanFeedForward, LeanTransformer2DModel, convolve, use_lean_layers

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
    """How often a convolution was computed as a product."""
    calls = []
    by_product = layers._convolve_by_product
    monkeypatch.setattr(layers, "_convolve_by_product", lambda *args: calls.append(1) or by_product(*args))
    return calls


@torch.no_grad()
@pytest.mark.parametrize(("channels", "side"), [(6, 4), (6, 1), (1280, 8), (1280, 5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("window_elements", [2**23, 1])
def test_a_convolution_of_few_pixels_is_a_product(channels, side, bias, window_elements, products, monkeypatch):
    monkeypatch.setattr(layers, "_WINDOW_ELEMENTS", window_elements)
    layer, x = make_convolution(channels, bias=bias), make_features(channels, side)
    product = convolve(layer, x)
    assert products == [1]
    expected = nn.functional.conv2d(
        x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double(), padding=1
    )
    assert product.is_contiguous(memory_format=CHANNELS_LAST)
    assert product.dtype == torch.bfloat16
    torch.testing.assert_close(product.double(), expected, rtol=2**-8, atol=2**-8)


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
        (make_convolution(kernel_size=1, padding=0), make_features()),
        (make_convolution(padding_mode="circular"), make_features()),
    ],
)
def test_other_convolutions_are_the_module(layer, x, products):
    torch.testing.assert_close(convolve(layer, x), layer(x), rtol=0, atol=0)
    assert not products


def test_gradients_hooks_and_other_modules_go_through_the_module(products):
    layer, x = make_convolution(), make_features()
    convolve(layer, x)  # gradients are wanted
    with torch.no_grad():
        called = []
        layer.register_forward_hook(lambda *_: called.append(1))
        convolve(layer, x)
        assert called == [1]
        convolve(nn.Identity(), x)
    assert not products


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("part_rows", [14, 5, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_feed_forward_in_parts_is_that_of_diffusers(bias, part_rows, dtype, monkeypatch):
    monkeypatch.setattr(layers, "_HIDDEN_ELEMENTS", 447)  # one less than there are
    monkeypatch.setattr(layers, "_PART_ROWS", part_rows)
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
