"""Layers of diffusers, computed with less traffic: the same parameters, keys and results, and fewer copies.

A layer that somebody changed, hooks into or offloads runs as diffusers has it. `docs/performance.md` has what each is
worth.
"""

from __future__ import annotations

import os
from typing import Any, cast

import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import FeedForward
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.upsampling import Upsample2D
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from latent_shift.core.errors import InputError
from latent_shift.ops import BACKEND_VARIABLE, choose_backend, group_norm

_WIDE_GROUP = 8
"""Channels."""

_PRODUCT_PIXELS = 64
_SMALL_PIXELS, _WIDE_CHANNELS = 16, 1280
_HIDDEN_ELEMENTS, _PART_ELEMENTS = 2**23, 2**21 + 2**19
_WINDOW_ELEMENTS = 2**23
_DOUBLED_CHANNELS, _DOUBLED_PIXELS = 640, 512


def is_plain(module: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether calling the module is no more than what its class does: no adapter, no hook, no forward set by a library.

    Offloading libraries set `forward` on the instance, to bring the weights first.
    """
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return type(module) is kind and not any(hooks) and "forward" not in vars(module)


def set_memory_format(network: nn.Module, name: str) -> None:
    """Lays the kernels of convolutions out as "contiguous" or "channels_last"; activations follow them.

    Raises:
        InputError: a `ValueError`, if `name` is neither.
    """
    if name not in ("contiguous", "channels_last"):
        raise InputError("memory format", name, "be contiguous or channels_last")
    formats = {4: torch.channels_last, 5: torch.channels_last_3d} if name == "channels_last" else {}
    for weight in network.parameters():
        weight.data = weight.data.contiguous(memory_format=formats.get(weight.dim(), torch.contiguous_format))


def lay_out_for_cpu(unet: nn.Module, dtype: torch.dtype) -> None:
    """Lays a U-Net out in channels_last where it computes faster so on a CPU: convolutions in bf16.

    Not where PyTorch's own GroupNorm has to do, and groups are narrow: it is slow then (docs/performance.md).
    """
    config: Any = unet.config
    wide = min(config.block_out_channels) >= _WIDE_GROUP * config.norm_num_groups
    if (dtype == torch.bfloat16 and wide) or takes_native(dtype):
        set_memory_format(unet, "channels_last")


def takes_native(dtype: torch.dtype) -> bool:
    """Whether `lay_out_for_cpu` gives "native" the layout that it needs: in bf16, in fp32 where it was asked for."""
    wanted = dtype == torch.bfloat16 or os.environ.get(BACKEND_VARIABLE) == "native"
    return wanted and choose_backend("cpu", dtype).backend == "native"


def use_lean_layers(network: nn.Module) -> None:
    """Changes the class of feed-forwards, spatial transformers and upsamplings of diffusers to those of this module."""
    lean: dict[type[nn.Module], type[nn.Module]] = {
        FeedForward: LeanFeedForward,
        Transformer2DModel: LeanTransformer2DModel,
        Upsample2D: LeanUpsample2D,
    }
    for module in network.modules():
        if type(module) in lean:
            module.__class__ = lean[type(module)]


class LeanTransformer2DModel(Transformer2DModel):  # type: ignore[misc]
    """A spatial transformer whose output keeps the layout of its input.

    Diffusers makes the output contiguous whatever the input was, so that a network in channels_last changes layout at
    each transformer, and back at the next convolution.
    """

    def _operate_on_continuous_inputs(self, hidden_states: Tensor) -> tuple[Tensor, int]:
        last = hidden_states.is_contiguous(memory_format=torch.channels_last)
        if self.use_linear_projection or not last or not is_plain(self.norm, nn.GroupNorm):
            return cast("tuple[Tensor, int]", super()._operate_on_continuous_inputs(hidden_states))
        norm = self.norm
        normal = group_norm(hidden_states, norm.weight, norm.bias, norm.num_groups, norm.eps)
        rows = convolve(self.proj_in, normal).flatten(2).transpose(1, 2)
        return rows, rows.shape[2]

    def _get_output_for_continuous_inputs(
        self, hidden_states: Tensor, residual: Tensor, batch_size: int, height: int, width: int, inner_dim: int
    ) -> Tensor:
        if not self.use_linear_projection and residual.is_contiguous(memory_format=torch.channels_last):
            pixels = hidden_states.reshape(batch_size, height, width, inner_dim).permute(0, 3, 1, 2)
            return convolve(self.proj_out, pixels) + residual
        arguments = (hidden_states, residual, batch_size, height, width, inner_dim)
        return cast("Tensor", super()._get_output_for_continuous_inputs(*arguments))


class LeanUpsample2D(Upsample2D):  # type: ignore[misc]
    """An upsampling that keeps the layout on a CPU; diffusers' makes batches of 64 and more contiguous, for CUDA.

    Wide ones, without gradients, never make the large picture before it is convolved: see `_convolve_doubled`.
    """

    def forward(
        self, hidden_states: Tensor, output_size: tuple[int, int] | None = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """As diffusers' upsampling."""
        doubled = output_size is None and self.norm is None and self.interpolate and not self.use_conv_transpose
        if not (doubled and self.use_conv and self.name == "conv" and hidden_states.device.type == "cpu"):
            return cast("Tensor", super().forward(hidden_states, output_size, *args, **kwargs))
        if _pays_undoubled(self.conv, hidden_states):
            return _convolve_doubled(self.conv, hidden_states)
        return convolve(self.conv, functional.interpolate(hidden_states, scale_factor=2.0, mode="nearest"))


class LeanFeedForward(FeedForward):  # type: ignore[misc]
    """A gated feed-forward that, without gradients on a CPU, never holds its wide hidden features at once.

    At the paper's size they are 84 MB a layer, which the C library takes from the system and gives back each time:
    touching new pages took longer than the products. Rows go through in parts that stay in the cache.
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
        casts = torch.is_autocast_enabled("cpu")  # which products into a given tensor would not follow
        if casts or not (idle and plain and large and is_plain(gated.proj, nn.Linear)):
            return cast("Tensor", super().forward(hidden_states, *args, **kwargs))
        weights, biases = gated.proj.weight.chunk(2), (None, None)
        if gated.proj.bias is not None:
            biases = gated.proj.bias.chunk(2)
        rows = hidden_states.flatten(0, -2)
        out = rows.new_empty(len(rows), narrow.out_features)
        count = max(1, _PART_ELEMENTS // narrow.in_features)
        for part, place in zip(torch.split(rows, count), torch.split(out, count), strict=True):
            hidden, gate = (functional.linear(part, *layer) for layer in zip(weights, biases, strict=True))
            hidden = hidden * functional.gelu(gate)
            if narrow.bias is None:
                torch.mm(hidden, narrow.weight.t(), out=place)
            else:
                torch.addmm(narrow.bias, hidden, narrow.weight.t(), out=place)
        return out.view(*hidden_states.shape[:-1], -1)


def convolve(
    layer: nn.Module, x: Float[Tensor, "batch channels height width"]
) -> Float[Tensor, "batch out_channels out_height out_width"]:
    """`layer(x)`; on a CPU, in bf16 and channels_last, what is faster as a product of matrices is computed as one.

    These are 1x1 convolutions, and 3x3 ones of few pixels: oneDNN goes through an image row by row, and each row, of 4
    or 8 pixels, reads all weights again.
    """
    if not isinstance(layer, nn.Conv2d) or not _may_be_product(layer, x):
        return cast("Tensor", layer(x))
    if layer.kernel_size == (1, 1) and layer.padding == (0, 0):
        return functional.linear(x.permute(0, 2, 3, 1), layer.weight.flatten(1), layer.bias).permute(0, 3, 1, 2)
    if layer.kernel_size == (3, 3) and layer.padding == (1, 1) and _has_few_pixels(layer, x):
        arguments = (one if one is None else one.to(torch.bfloat16) for one in (x, layer.weight, layer.bias))
        return cast("Tensor", _ConvolutionByProduct.apply(*arguments))  # type: ignore[no-untyped-call]
    return cast("Tensor", layer(x))


def _may_be_product(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether it is a convolution of all pixels and channels, in bf16 and channels_last, on a CPU, and not compiled."""
    if torch.compiler.is_compiling():
        return False
    autocast = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return (
        x.device.type == "cpu"
        and (autocast or x.dtype == layer.weight.dtype == torch.bfloat16)
        and is_plain(layer, nn.Conv2d)
        and (layer.stride, layer.dilation, layer.groups, layer.padding_mode) == ((1, 1), (1, 1), 1, "zeros")
        and all(one.is_contiguous(memory_format=torch.channels_last) for one in (x, layer.weight))
    )


def _has_few_pixels(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether a product is faster; with gradients the windows of wide layers cost more than they save."""
    pixels = x.shape[-2] * x.shape[-1]
    wide = layer.in_channels >= _WIDE_CHANNELS and not torch.is_grad_enabled()
    return pixels <= _SMALL_PIXELS or (pixels <= _PRODUCT_PIXELS and wide)


def _pays_undoubled(layer: nn.Module, x: Tensor) -> bool:
    """Whether `_convolve_doubled` is faster: where pixels are so many that adding up the weights does not count."""
    return (
        isinstance(layer, nn.Conv2d)
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and layer.in_channels >= _DOUBLED_CHANNELS
        and x[:, 0].numel() >= _DOUBLED_PIXELS
        and (layer.kernel_size, layer.padding) == ((3, 3), (1, 1))
        and _may_be_product(layer, x)
    )


def _convolve_doubled(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3x3 convolution of `x` with each pixel doubled in height and width (nearest), in 4/9 of the arithmetic.

    Each of the four pixels that one becomes sees 2x2 pixels of `x`, itself and its neighbours to one side; weights that
    fall on the same pixel are added.
    """
    batch, channels, height, width = x.shape
    kernel, padded = layer.weight.permute(0, 2, 3, 1), _pad(x)
    out = x.new_empty(batch, 2 * height, 2 * width, len(kernel))
    for row in range(2):
        rows = _add_doubled(kernel, row, 1)
        for column in range(2):
            four = _add_doubled(rows, column, 2)
            seen = padded[:, row : row + height + 1, column : column + width + 1]
            if height * width <= _PRODUCT_PIXELS:
                pixels = functional.linear(_rows(_windows(seen, 2)), four.flatten(1), layer.bias)
                pixels = pixels.view(batch, height, width, -1)
            else:
                pixels = functional.conv2d(seen.permute(0, 3, 1, 2), four.permute(0, 3, 1, 2), layer.bias)
                pixels = pixels.permute(0, 2, 3, 1)
            out[:, row::2, column::2] = pixels
    return out.permute(0, 3, 1, 2)


def _add_doubled(kernel: Tensor, second: int, axis: int) -> Tensor:
    """The three weights along `axis` as two: what the first or the second pixel of a doubled one sees together."""
    one, two, three = kernel.unbind(axis)
    return torch.stack((one + two, three) if second else (one, two + three), axis)


class _ConvolutionByProduct(torch.autograd.Function):
    """A 3x3 convolution in channels_last; windows are made again for the gradient."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        kernel = weight.permute(0, 2, 3, 1).flatten(1)
        out = x.new_empty(len(x), x.shape[2] * x.shape[3], len(weight))
        windows = _windows(_pad(x), 3)
        images = max(1, _WINDOW_ELEMENTS // windows[0].numel())
        for part, place in zip(torch.split(windows, images), torch.split(out, images), strict=True):
            place.view(-1, len(weight)).copy_(functional.linear(_rows(part), kernel, bias))
        return out.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        upstream = gradients[0].contiguous(memory_format=torch.channels_last)
        rows = upstream.permute(0, 2, 3, 1).flatten(0, 2)
        x_gradient = weight_gradient = bias_gradient = None
        if ctx.needs_input_grad[0]:
            kernel = weight.flip(2, 3).permute(1, 2, 3, 0).flatten(1)
            x_gradient = torch.mm(_rows(_windows(_pad(upstream), 3)), kernel.t())
            x_gradient = x_gradient.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            weight_gradient = torch.mm(rows.t(), _rows(_windows(_pad(x), 3)))
            weight_gradient = weight_gradient.view(len(weight), 3, 3, -1).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[2]:
            bias_gradient = rows.sum(0)
        return x_gradient, weight_gradient, bias_gradient


def _pad(x: Tensor) -> Tensor:
    """Pixels `(batch, height + 2, width + 2, channels)` with zeros around them."""
    batch, channels, height, width = x.shape
    padded = x.new_zeros(batch, height + 2, width + 2, channels)
    padded[:, 1:-1, 1:-1] = x.permute(0, 2, 3, 1)
    return padded


def _windows(pixels: Tensor, size: int) -> Tensor:
    """What a kernel of this size sees at each place of `(batch, height, width, channels)`, as a view.

    `(batch, places down, places across, size, size * channels)`: the pixels under a row of the kernel lie side by side
    in memory, and so do the weights.
    """
    batch, height, width, channels = pixels.shape
    image, row, pixel, _ = pixels.stride()
    shape = (batch, height - size + 1, width - size + 1, size, size * channels)
    return pixels.as_strided(shape, (image, row, pixel, row, 1), pixels.storage_offset())


def _rows(windows: Tensor) -> Tensor:
    return windows.reshape(-1, windows.shape[-2] * windows.shape[-1])
