"""The entry of a ResNet block's residual branch as one operation: temporal shift, GroupNorm, SiLU.

Latent-Shift, arXiv:2304.08477, Sec. 3.3, Fig. 3d. The norm sees shifted features, so the statistics of a group are over
channels of neighbouring frames.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from typing import Literal, NamedTuple, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from latent_shift.core.errors import InputError

from ._eager import group_norm_silu
from .temporal_shift import Boundary, check_folded, temporal_shift_folded

Backend = Literal["auto", "eager", "triton"]
"""Who computes it: PyTorch's own operations, or one Triton kernel on a GPU; "auto" is the faster one of the device."""

BACKEND_VARIABLE = "LATENT_SHIFT_BACKEND"
"""The environment variable that chooses the backend of all calls which name none."""


class Choice(NamedTuple):
    """A backend, and why it is used."""

    backend: Literal["eager", "triton"]
    reason: str


def shift_group_norm_silu(
    x: Float[Tensor, "batch_frames channels height width"],
    weight: Float[Tensor, " channels"],
    bias: Float[Tensor, " channels"],
    num_groups: int,
    eps: float = 1e-5,
    num_frames: int = 1,
    fold: int = 3,
    boundary: Boundary | None = "zero",
    backend: Backend | None = None,
) -> Float[Tensor, "batch_frames channels height width"]:
    """`silu(group_norm(temporal_shift_folded(x)))`, differentiable in `x`, `weight` and `bias`.

    The "eager" backend runs these three operations of PyTorch, bit for bit. "triton" reads `x` and writes the result,
    each once from and to the GPU's memory; it sums in fp32, rounds once and is differentiable once. They agree within
    1e-5 in fp32 and within two units in the last place of fp16 and bf16 (at the scale of the largest value).

    Args:
        x: features of `batch * num_frames` pictures, frames fastest; fp32, fp16 or bf16, or what PyTorch's GroupNorm
            takes for "eager". The layout (contiguous or channels_last) is kept; others become one of these two.
        weight: GroupNorm's, one for each channel of the shifted features.
        bias: as `weight`.
        num_groups: of GroupNorm; divides the channels.
        eps: added to the variance.
        num_frames: frames in each clip.
        fold: as in `temporal_shift`.
        boundary: as in `temporal_shift`; None for no shift.
        backend: who computes it; None is what `LATENT_SHIFT_BACKEND` says, or "auto".

    Returns:
        A new tensor with the shape and dtype of `x` (under CUDA's autocast "eager" gives fp32, as GroupNorm does).

    Raises:
        InputError: a `ValueError`, for an argument out of range, or a backend that is unknown or cannot be used.
    """
    check_folded(x, num_frames, fold, "zero" if boundary is None else boundary)
    if num_groups < 1 or x.shape[1] % num_groups:
        raise InputError("num_groups", num_groups, f"divide the {x.shape[1]} channels")
    if _backend_name(x.device.type, x.dtype, backend) == "triton":
        step = 0 if boundary is None else 1
        arguments = (num_groups, eps, num_frames, x.shape[1] // fold * step, boundary == "circular")
        return cast("Tensor", torch.ops.latent_shift.shift_group_norm_silu(x, weight, bias, *arguments)[0])
    if boundary is not None:
        x = temporal_shift_folded(x, num_frames, fold, boundary)
    return group_norm_silu(x, weight, bias, num_groups, eps)


def choose_backend(
    device: torch.device | str, dtype: torch.dtype = torch.float32, backend: Backend | None = None
) -> Choice:
    """Which backend computes on a device, and why.

    Args:
        device: of the features.
        dtype: of the features; "triton" knows fp32, fp16 and bf16.
        backend: what is asked for. None is the environment variable `LATENT_SHIFT_BACKEND`, or "auto" where it is not
            set. "auto" is "triton" on a GPU where Triton is installed, else "eager".

    Raises:
        InputError: a `ValueError`, if the backend asked for is unknown or cannot be used.
    """
    named_by = "backend" if backend is not None else BACKEND_VARIABLE
    asked = backend if backend is not None else os.environ.get(BACKEND_VARIABLE) or "auto"
    if asked not in get_args(Backend):
        raise InputError(named_by, asked, f"be one of {', '.join(get_args(Backend))}")
    if asked == "eager":
        return Choice("eager", f"{named_by} says so")
    kind = torch.device(device).type
    if asked == "auto" and kind != "cuda":  # Triton's interpreter and the meta device have to be asked for
        return Choice("eager", f"Triton has no kernels for the device {kind}")
    obstacle = _triton_obstacle(kind, dtype)
    if asked == "auto":
        return Choice("eager", obstacle) if obstacle else Choice("triton", "one pass over the GPU's memory")
    if obstacle:
        raise InputError(named_by, asked, f"be eager or auto here ({obstacle})")
    return Choice("triton", f"{named_by} says so")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _backend_name(device_type: str, dtype: torch.dtype, backend: Backend | None) -> str:
    """The backend's name, once its operator is registered. A constant of compiled code."""
    name = choose_backend(device_type, dtype, backend).backend
    if name == "triton":
        importlib.import_module("latent_shift.ops._triton")
    return name


def _triton_obstacle(device_type: str, dtype: torch.dtype) -> str:
    """Why Triton cannot be used; empty where it can. The meta device only wants shapes."""
    if device_type not in ("cuda", "meta") and not (device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return f"Triton has no kernels for the device {device_type}"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the Triton kernel has no {str(dtype).removeprefix('torch.')}"
    return "" if _triton_is_installed() else "Triton is not installed"


@functools.cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
