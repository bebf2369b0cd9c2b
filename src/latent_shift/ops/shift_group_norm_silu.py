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

from . import _eager, _native
from .temporal_shift import Boundary, check_folded, temporal_shift_folded

Backend = Literal["auto", "eager", "native", "triton"]
"""Who computes it: PyTorch's own operations; C++, compiled here, for features in channels_last on a CPU; a Triton
kernel on a GPU. "auto" is the fastest one of the device."""

BACKEND_VARIABLE = "LATENT_SHIFT_BACKEND"
"""The environment variable that chooses the backend of all calls which name none."""


class Choice(NamedTuple):
    """A backend, and why it is used."""

    backend: Literal["eager", "native", "triton"]
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
    time_scale: Float[Tensor, "batch_frames channels"] | None = None,
    time_bias: Float[Tensor, "batch_frames channels"] | None = None,
    distance: int = 1,
) -> Float[Tensor, "batch_frames channels height width"]:
    """`silu(group_norm(temporal_shift_folded(x)))`, differentiable in all tensors.

    With `time_scale` and `time_bias` it is `silu(group_norm(temporal_shift_folded(x)) * (1 + time_scale) + time_bias)`.

    The "eager" backend runs these operations of PyTorch, bit for bit. The others read `x` and write the result, each
    once from and to memory; they sum in fp32, round once and are differentiable once. "native" takes features in
    channels_last and leaves others, and what `torch.compile` traces, to "eager", as all do inside `torch.func` and
    forward-mode differentiation. All agree within 1e-5 in fp32 and
    within two units in the last place of fp16 and bf16 (at the scale of the largest value).

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
        time_scale: of each picture, from its time embedding (`resnet_time_scale_shift = "scale_shift"` in diffusers).
        time_bias: as `time_scale`; both or none.
        distance: as in `temporal_shift`.

    Returns:
        A new tensor with the shape and dtype of `x` (under CUDA's autocast "eager" gives fp32, as GroupNorm does).

    Raises:
        InputError: a `ValueError`, for an argument out of range, or a backend that is unknown or cannot be used.
    """
    check_folded(x, num_frames, fold, "zero" if boundary is None else boundary, distance)
    _check_norm(x, num_groups, weight, bias)
    if (time_scale is None) != (time_bias is None):
        raise InputError(
            "time_bias", None if time_bias is None else "a tensor", "be given with time_scale, or not at all"
        )
    if time_scale is not None and time_bias is not None:
        for name, rows in (("time_scale", time_scale), ("time_bias", time_bias)):
            _check_tensor(name, rows, (x.shape[0], x.shape[1]), x)
    fused = _fused_backend(x, backend)
    if fused is not None:
        if time_scale is not None and time_bias is not None:
            scale = 1 + time_scale.float()
            weight, bias = weight * scale, bias * scale + time_bias
        k = 0 if boundary is None else x.shape[1] // fold
        arguments = (num_groups, eps, num_frames, k, distance, boundary == "circular", True, fused)
        return cast("Tensor", torch.ops.latent_shift.shift_group_norm_silu(x, weight, bias, *arguments)[0])
    if boundary is not None:
        x = temporal_shift_folded(x, num_frames, fold, boundary, distance)
    return _eager.group_norm_silu(x, weight, bias, num_groups, eps, time_scale, time_bias)


def group_norm(
    x: Float[Tensor, "pictures channels height width"],
    weight: Float[Tensor, " channels"],
    bias: Float[Tensor, " channels"],
    num_groups: int,
    eps: float = 1e-5,
    backend: Backend | None = None,
) -> Float[Tensor, "pictures channels height width"]:
    """PyTorch's GroupNorm, by the backends of `shift_group_norm_silu`; arguments and errors are those."""
    _check_norm(x, num_groups, weight, bias)
    name = _fused_backend(x, backend)
    if name is None:
        return _eager.group_norm(x, weight, bias, num_groups, eps)
    arguments = (num_groups, eps, 1, 0, 1, False, False, name)
    return cast("Tensor", torch.ops.latent_shift.shift_group_norm_silu(x, weight, bias, *arguments)[0])


def _check_norm(x: Tensor, num_groups: int, weight: Tensor, bias: Tensor) -> None:
    """Raises `InputError` for what would be read beyond its end: a compiled backend does not look."""
    channels = x.shape[1]
    if num_groups < 1 or channels % num_groups:
        raise InputError("num_groups", num_groups, f"divide the {channels} channels")
    for name, tensor in (("weight", weight), ("bias", bias)):
        _check_tensor(name, tensor, (channels,), x)


def _check_tensor(name: str, tensor: Tensor, shape: tuple[int, ...], x: Tensor) -> None:
    if tensor.shape != shape:
        raise InputError(name, tuple(tensor.shape), f"have the shape {shape}")
    if tensor.device != x.device:
        raise InputError(name, str(tensor.device), f"be on the device of the features, {x.device}")


def _fused_backend(x: Tensor, backend: Backend | None) -> str | None:
    """Who computes these features at once; None for PyTorch's operations."""
    name = _backend_name(x.device.type, x.dtype, backend)
    if _eager.is_transformed():
        return None
    return name if name == "triton" or (name == "native" and _takes(x)) else None


def _takes(x: Tensor) -> bool:
    """Whether "native" computes these features: not those that are in both layouts."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return last and not torch.compiler.is_compiling()


def choose_backend(
    device: torch.device | str, dtype: torch.dtype = torch.float32, backend: Backend | None = None
) -> Choice:
    """Which backend computes on a device, and why.

    Args:
        device: of the features.
        dtype: of the features; "triton" knows fp32, fp16 and bf16, "native" fp32 and bf16.
        backend: what is asked for. None is the environment variable `LATENT_SHIFT_BACKEND`, or "auto" where it is not
            set. "auto" is "triton" on a GPU where Triton is installed, "native" on a CPU with a compiler, else "eager".

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
    # Triton's interpreter and the meta device have to be asked for.
    name = asked if asked != "auto" else {"cuda": "triton", "cpu": "native"}.get(kind)
    if name is None:
        return Choice("eager", f"there is no other for the device {kind}")
    obstacle = _triton_obstacle(kind, dtype) if name == "triton" else _native_obstacle(kind, dtype)
    if obstacle and asked == "auto":
        return Choice("eager", obstacle)
    if obstacle:
        raise InputError(named_by, asked, f"be eager or auto here ({obstacle})")
    fused = cast("Literal['native', 'triton']", name)
    return Choice(fused, "one pass over the features" if asked == "auto" else f"{named_by} says so")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _backend_name(device_type: str, dtype: torch.dtype, backend: Backend | None) -> str:
    """The backend's name, once its operator is registered. A constant of compiled code."""
    name = choose_backend(device_type, dtype, backend).backend
    if name != "eager":
        importlib.import_module("latent_shift.ops._fused")
        importlib.import_module(f"latent_shift.ops._{name}")
    return name


def _triton_obstacle(device_type: str, dtype: torch.dtype) -> str:
    """Why Triton cannot be used; empty where it can. The meta device only wants shapes."""
    if device_type not in ("cuda", "meta") and not (device_type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"):
        return f"Triton has no kernels for the device {device_type}"
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"the Triton kernel has no {str(dtype).removeprefix('torch.')}"
    if not _triton_is_installed():
        return "Triton is not installed"
    return _gpu_obstacle() if device_type == "cuda" else ""


def _gpu_obstacle() -> str:
    """Why kernels cannot be compiled or run on this machine's GPU; empty where they can."""
    obstacle: str = importlib.import_module("latent_shift.ops._triton").obstacle()
    return obstacle


def _native_obstacle(device_type: str, dtype: torch.dtype) -> str:
    """Why the C++ cannot be used; empty where it can."""
    if device_type not in ("cpu", "meta"):
        return f"the C++ is for CPUs, not for the device {device_type}"
    if dtype not in _native.DTYPES:
        return f"the C++ has no {str(dtype).removeprefix('torch.')}"
    return _native.obstacle()


@functools.cache
def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
