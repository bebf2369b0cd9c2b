"""Layers of diffusers, computed with less traffic: the same parameters, keys and results, and fewer copies.

A layer that somebody changed, hooks into or offloads runs as diffusers has it. `docs/performance.md` has what each is
worth.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import FeedForward
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

_PRODUCT_PIXELS = 64
_SMALL_PIXELS, _WIDE_CHANNELS = 16, 1280
_HIDDEN_ELEMENTS, _PART_ROWS = 2**23, 2048
_WINDOW_ELEMENTS = 2**23


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module is no more than what its class does: no adapter, no hook, no forward set by a library.

    Offloading libraries set `forward` on the instance, to bring the weights first.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) is kind and not any(hooks) and "forward" not in vars(module)


def set_memory_format(network: nn.Module, name: str) -> None:
    """Lays the kernels of convolutions out as "contiguous" or "channels_last"; activations follow them."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d} if name == "channels_last" else {}
    for weight in network.parameters():
        weight.data = weight.data.contiguous(memory_format=formats.get(weight.dim(), torch.contiguous_format))


def use_lean_layers(network: nn.Module) -> None:
    """Changes the class of each feed-forward and spatial transformer of diffusers to that of this module."""
    lean: dict[type[nn.Module], type[nn.Module]] = {
        FeedForward: LeanFeedForward,
        Transformer2DModel: LeanTransformer2DModel,
    }
    for module in network.modules():
        if type(module) in lean:
            module.__class__ = lean[type(module)]


class LeanTransformer2DModel(Transformer2DModel):  # type: ignore[misc]
    """A spatial transformer whose output keeps the layout of its input.

    Diffusers makes the output contiguous whatever the input was, so that a network in channels_last changes layout at
    each transformer, and back at the next convolution.
    """

    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        if not self.use_linear_projection and residual.is_contiguous(memory_format=torch.channels_last):
            pixels = hidden_states.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
            return cast("Tensor", self.proj_out(pixels) + residual)
        arguments = (hidden_states, residual, batch_size, height, width, inner_dim)
        return cast("Tensor", super()._get_output_for_continuous_inputs(*arguments))


class LeanFeedForward(FeedForward):  # type: ignore[misc]
    """A gated feed-forward that, without gradients on a CPU, never holds its wide hidden features at once.

    At the paper's size they are 84 MB a layer, which the C library takes from the system and gives back each time:
    touching new pages took longer than the products. Rows go through in parts that stay in the cache, in place.
    """

    def forward(
        self, hidden_states: Float[Tensor, "batch pixels channels"], *args: Any, **kwargs: Any
    ) -> Float[Tensor, "batch pixels channels"]:
        """As diffusers' feed-forward."""
        gated, dropout, narrow = self.net[0], self.net[1], self.net[-1]
        plain = len(self.net) == 3 and is_plain(gated, GEGLU) and is_plain(narrow, nn.Linear)
        idle = not torch.is_grad_enabled() and not (dropout.training and dropout.p)
        elements = hidden_states[..., 0].numel() * narrow.in_features
        large = hidden_states.device.type == "cpu" and elements > _HIDDEN_ELEMENTS
        if not (idle and plain and large and is_plain(gated.proj, nn.Linear)):
            return cast("Tensor", super().forward(hidden_states, *args, **kwargs))
        weights, biases = gated.proj.weight.chunk(2), (None, None)
        if gated.proj.bias is not None:
            biases = gated.proj.bias.chunk(2)
        rows = hidden_states.flatten(0, -2)
        out = rows.new_empty(len(rows), narrow.out_features)
        for part, place in zip(torch.split(rows, _PART_ROWS), torch.split(out, _PART_ROWS), strict=True):
            hidden, gate = (functional.linear(part, *layer) for layer in zip(weights, biases, strict=True))
            place.copy_(narrow(hidden.mul_(functional.gelu(gate))))
        return out.view(*hidden_states.shape[:-1], -1)


def convolve(
    layer: nn.Module, x: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch out_channels out_height out_width"]:
    """`layer(x)`; a 3x3 convolution of few pixels in channels_last, on a CPU and without gradients, as one product.

    oneDNN goes through such an image row by row, and each row, of 4 or 8 pixels, reads all weights again.
    """
    if isinstance(layer, nn.Conv2d) and _is_product(layer, x):
        return _convolve_by_product(x, layer.weight, layer.bias)
    return cast("Tensor", layer(x))


def _is_product(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether one product gives what the layer gives, sooner."""
    pixels = x.shape[-2] * x.shape[-1]
    few = pixels <= _SMALL_PIXELS or (pixels <= _PRODUCT_PIXELS and layer.in_channels >= _WIDE_CHANNELS)
    return (
        few
        and x.device.type == "cpu"
        and x.dtype == layer.weight.dtype == torch.bfloat16
        and not torch.is_grad_enabled()
        and is_plain(layer, nn.Conv2d)
        and (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (1, 1), (1, 1))
        and (layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), 1, "zeros")
        and all(one.is_contiguous(memory_format=torch.channels_last) for one in (x, layer.weight))
    )


def _convolve_by_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    batch, channels, height, width = x.shape
    padded = x.new_zeros(batch, height + 2, width + 2, channels)
    padded[:, 1:-1, 1:-1] = x.permute(0, 2, 3, 1)
    image, row, pixel, _ = padded.stride()
    # The three pixels under a row of the kernel lie side by side in memory, and so do the weights.
    windows = padded.as_strided((batch, height, width, 3, 3 * channels), (image, row, pixel, row, 1))
    kernel = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
    out = x.new_empty(batch, height * width, len(weight))
    images = max(1, _WINDOW_ELEMENTS // (9 * channels * height * width))
    for part, place in zip(torch.split(windows, images), torch.split(out, images), strict=True):
        place.view(-1, len(weight)).copy_(functional.linear(part.reshape(-1, 9 * channels), kernel, bias))
    return out.view(batch, height, width, -1).permute(0, 3, 1, 2)
