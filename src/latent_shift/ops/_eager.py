"""The eager references. Every other backend is tested against them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional


def shift_channels(x: Tensor, channel_axis: int, frame_axis: int, fold: int, circular: bool, distance: int) -> Tensor:
    """The shift of Eq. 3 along `frame_axis`, out of place, differentiable any number of times."""
    return _apply(x, channel_axis, frame_axis, x.shape[channel_axis] // fold, circular, distance)


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    time_scale: Tensor | None = None,
    time_bias: Tensor | None = None,
) -> Tensor:
    """GroupNorm, what the time embedding makes of it, SiLU; in place where no gradient needs what was there before.

    Bits are those of diffusers' modules.
    """
    x = group_norm(x, weight, bias, num_groups, eps)
    if time_scale is not None and time_bias is not None:
        x = x * (1 + time_scale[:, :, None, None]) + time_bias[:, :, None, None]
    return functional.silu(x, inplace=not x.requires_grad)


def group_norm(x: Tensor, weight: Tensor, bias: Tensor, num_groups: int, eps: float) -> Tensor:
    """PyTorch's GroupNorm, which in channels_last has no forward-mode derivative."""
    return functional.group_norm(x.contiguous() if is_transformed() else x, num_groups, weight, bias, eps)


def is_transformed() -> bool:
    """Whether `torch.func` or forward-mode differentiation is at work, where PyTorch's own operations alone will do.

    A function or operator without a forward-mode derivative passes there, and its derivative is taken to be zero.
    """
    if torch.compiler.is_compiling():
        return False
    # Neither question has a public form; `torch.func` and `torch.autograd` ask them so themselves.
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


class _Shift(torch.autograd.Function):
    """The shift is a permutation with zeros, so its adjoint is the shift with both directions swapped.

    Written as a function of its own since autograd through slice assignment copies the whole gradient per slice.
    """

    @staticmethod
    def forward(x: Tensor, channel_axis: int, frame_axis: int, k: int, circular: bool, step: int) -> Tensor:
        out = torch.empty_like(x)
        middle = x.shape[channel_axis] - 2 * k
        first, center, last = (0, k), (k, middle), (k + middle, k)
        out.narrow(channel_axis, *center).copy_(x.narrow(channel_axis, *center))
        for part, direction in ((first, step), (last, -step)):
            _move(out.narrow(channel_axis, *part), x.narrow(channel_axis, *part), frame_axis, direction, circular)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.arguments = inputs[1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        channel_axis, frame_axis, k, circular, step = ctx.arguments
        gradient = _apply(gradients[0], channel_axis, frame_axis, k, circular, -step)
        return gradient, None, None, None, None, None


def _apply(x: Tensor, *arguments: Any) -> Tensor:
    if is_transformed() or not (x.requires_grad and torch.is_grad_enabled()):
        # Of a small network's shift, PyTorch's own preparations for a gradient are more than half.
        return _Shift.forward(x, *arguments)
    result: Tensor = _Shift.apply(x, *arguments)  # type: ignore[no-untyped-call]
    return result


def _move(out: Tensor, x: Tensor, axis: int, step: int, circular: bool) -> None:
    """Writes `out[t] = x[t - step]` along `axis`."""
    frames = x.shape[axis]
    moved = abs(step) % max(frames, 1) if circular else min(abs(step), frames)
    kept = frames - moved
    source, target, hole = (0, moved, 0) if step > 0 else (moved, 0, kept)
    out.narrow(axis, target, kept).copy_(x.narrow(axis, source, kept))
    edge = out.narrow(axis, hole, moved)
    if circular:
        edge.copy_(x.narrow(axis, kept - hole, moved))
    else:
        edge.zero_()
