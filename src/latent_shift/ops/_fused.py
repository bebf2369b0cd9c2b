"""`latent_shift::shift_group_norm_silu`: the operator behind the backends that compute all three at once.

The SiLU can be left out. A backend is a module with `lay_out`, `forward` and `backward`. `shift_group_norm_silu.py`
imports this one when such a backend is first chosen.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor


def _backend(name: str) -> Any:
    return importlib.import_module(f"._{name}", __package__)


@torch.library.custom_op(
    "latent_shift::shift_group_norm_silu",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, int num_groups, float eps, int num_frames, int k, int distance, "
    "bool circular, bool activate, str backend) -> (Tensor, Tensor, Tensor)",
)
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    num_frames: int,
    k: int,
    distance: int,
    circular: bool,
    activate: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _backend(backend)
    x = kernels.lay_out(x)
    outputs = _outputs(x, num_groups)
    if x.numel():
        kernels.forward(
            x, weight.contiguous(), bias.contiguous(), outputs, eps, num_frames, k, distance, circular, activate
        )
    return outputs


@_forward.register_fake
def _forward_shapes(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _outputs(_backend(arguments[-1]).lay_out(x), arguments[2])


def _outputs(x: Tensor, num_groups: int) -> tuple[Tensor, Tensor, Tensor]:
    means = x.new_empty(len(x), num_groups, dtype=torch.float32)
    return torch.empty_like(x), means, torch.empty_like(means)


@torch.library.custom_op(
    "latent_shift::shift_group_norm_silu_backward",
    mutates_args=(),
    schema="(Tensor upstream, Tensor x, Tensor weight, Tensor bias, Tensor means, Tensor rstds, int num_frames, int k, "
    "int distance, bool circular, bool activate, str backend) -> (Tensor, Tensor, Tensor)",
)
def _backward(
    upstream: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    means: Tensor,
    rstds: Tensor,
    num_frames: int,
    k: int,
    distance: int,
    circular: bool,
    activate: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _backend(backend)
    x = kernels.lay_out(x)
    gradient = torch.empty_like(x)
    weight_sums, bias_sums = x.new_zeros(2, *x.shape[:2], dtype=torch.float32)
    if x.numel():
        in_lines = torch.contiguous_format if x.is_contiguous() else torch.channels_last
        inputs = (upstream.contiguous(memory_format=in_lines), x, weight.contiguous(), bias.contiguous())
        outputs = (gradient, weight_sums, bias_sums)
        kernels.backward(*inputs, (means, rstds), outputs, num_frames, k, distance, circular, activate)
    return gradient, _gradient_like(weight, weight_sums), _gradient_like(bias, bias_sums)


def _gradient_like(affine: Tensor, sums: Tensor) -> Tensor:
    """Of each picture, or summed where pictures share weight and bias."""
    return (sums if affine.dim() == 2 else sums.sum(0)).to(affine.dtype, copy=True)


@_backward.register_fake
def _backward_shapes(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    _, x, weight, bias, *_, backend = arguments
    return torch.empty_like(_backend(backend).lay_out(x)), torch.empty_like(weight), torch.empty_like(bias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, _, _, *ctx.arguments = inputs
    ctx.save_for_backward(x, weight, bias, *output[1:])


def _differentiate(ctx: Any, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    arguments = (upstream, *ctx.saved_tensors, *ctx.arguments)
    return *torch.ops.latent_shift.shift_group_norm_silu_backward(*arguments), *(None,) * 8


_forward.register_autograd(_differentiate, setup_context=_save)
