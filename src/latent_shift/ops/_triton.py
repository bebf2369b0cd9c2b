"""Shift, GroupNorm and SiLU as one Triton kernel, and one more for the gradient.

A program computes one group of one picture: a few channels, all pixels. It reads each channel from the frame that the
shift takes it from, so nothing is moved first. Features are tiles of (channels, pixels) behind three strides, which is
all that contiguous and channels_last differ in. Sums are in fp32, in a fixed order: equal inputs give equal bits.

`_fused.py` calls `forward` and `backward`. Kernels carry no annotations: Triton's compiler looks annotations up, and
knows its own alone.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

logger = logging.getLogger(__name__)

_TILE = 4096
"""Elements that a program holds at a time; a group of more is a loop. fp32 tiles of this size stay in registers."""


@triton.jit
def _source(picture, channel, num_channels, num_frames, k, distance, circular: tl.constexpr):
    """For each channel: the picture that it comes from (Eq. 3), around the circle, and whether Eq. 3 has that frame."""
    step = tl.where(channel < k, -1, 0) + tl.where(channel >= num_channels - k, 1, 0)
    frame = picture % num_frames
    wanted = frame + step * distance
    around = (wanted % num_frames + num_frames) % num_frames
    exists = (wanted == around) | circular
    return (picture - frame + around).to(tl.int64), exists


@triton.jit
def _forward_kernel(
    x,
    weight,
    bias,
    y,
    means,
    rstds,
    stride_n,
    stride_c,
    stride_p,
    num_channels,
    num_pixels,
    num_groups,
    affine_stride,
    num_frames,
    k,
    distance,
    eps,
    circular: tl.constexpr,
    activate: tl.constexpr,
    group: tl.constexpr,
    block_c: tl.constexpr,
    block_p: tl.constexpr,
):
    """`y = silu(weight * (shift(x) - mean) * rstd + bias)`; means and rstds are `(pictures, groups)`."""
    picture, group_index = tl.program_id(0) // num_groups, tl.program_id(0) % num_groups
    in_group = tl.arange(0, block_c)
    channel = group_index * group + in_group
    known = in_group < group
    source, exists = _source(picture, channel, num_channels, num_frames, k, distance, circular)
    row = source * stride_n + channel * stride_c

    # Moments of the tiles, joined one by one (Chan et al.): one pass, and nothing cancels.
    mean, squares, count = 0.0, 0.0, 0.0
    for start in range(0, num_pixels, block_p):
        pixel = start + tl.arange(0, block_p)
        mask = known[:, None] & (pixel < num_pixels)[None, :]
        place = row[:, None] + pixel[None, :] * stride_p
        value = tl.load(x + place, mask=mask & exists[:, None], other=0.0).to(tl.float32)
        more = tl.cast(tl.minimum(num_pixels - start, block_p) * group, tl.float32)
        tile_mean = tl.sum(value) / more
        centered = tl.where(mask, value - tile_mean, 0.0)
        difference = tile_mean - mean
        total = count + more
        mean += difference * (more / total)
        squares += tl.sum(centered * centered) + difference * difference * (count * more / total)
        count = total
    rstd = 1.0 / tl.sqrt(squares / count + eps)
    tl.store(means + tl.program_id(0), mean)
    tl.store(rstds + tl.program_id(0), rstd)

    affine = picture * affine_stride + channel
    w = tl.load(weight + affine, mask=known, other=0.0).to(tl.float32)
    b = tl.load(bias + affine, mask=known, other=0.0).to(tl.float32)
    for start in range(0, num_pixels, block_p):
        pixel = start + tl.arange(0, block_p)
        mask = known[:, None] & (pixel < num_pixels)[None, :]
        place = row[:, None] + pixel[None, :] * stride_p
        value = tl.load(x + place, mask=mask & exists[:, None], other=0.0).to(tl.float32)
        z = (value - mean) * rstd * w[:, None] + b[:, None]
        target = picture.to(tl.int64) * stride_n + channel[:, None] * stride_c + pixel[None, :] * stride_p
        if activate:
            z = z * tl.sigmoid(z)
        tl.store(y + target, z.to(y.dtype.element_ty), mask=mask)


@triton.jit
def _tile_gradient(upstream, value, mean, rstd, w, b, mask, activate: tl.constexpr):
    """The normalised value, and the gradient at the input of SiLU: `dz = dy * s * (1 + z * (1 - s))`."""
    normal = (value - mean) * rstd
    if activate:
        z = normal * w[:, None] + b[:, None]
        gate = tl.sigmoid(z)
        upstream = upstream * gate * (1.0 + z * (1.0 - gate))
    return normal, tl.where(mask, upstream, 0.0)


@triton.jit
def _backward_kernel(
    upstream,
    x,
    weight,
    bias,
    means,
    rstds,
    gradient,
    weight_sums,
    bias_sums,
    stride_n,
    stride_c,
    stride_p,
    num_channels,
    num_pixels,
    num_groups,
    affine_stride,
    num_frames,
    k,
    distance,
    circular: tl.constexpr,
    activate: tl.constexpr,
    group: tl.constexpr,
    block_c: tl.constexpr,
    block_p: tl.constexpr,
):
    """The gradient of x, and for each picture and channel those of weight and bias.

    The shift is a permutation with holes. A channel's gradient goes where the channel came from; where it came from
    nowhere, the frame at the other end is the one that nobody reads, and gets the zero.
    """
    picture, group_index = tl.program_id(0) // num_groups, tl.program_id(0) % num_groups
    in_group = tl.arange(0, block_c)
    channel = group_index * group + in_group
    known = in_group < group
    source, exists = _source(picture, channel, num_channels, num_frames, k, distance, circular)
    row = source * stride_n + channel * stride_c
    own = picture.to(tl.int64) * stride_n + channel * stride_c
    mean, rstd = tl.load(means + tl.program_id(0)), tl.load(rstds + tl.program_id(0))
    affine = picture * affine_stride + channel
    w = tl.load(weight + affine, mask=known, other=0.0).to(tl.float32)
    b = tl.load(bias + affine, mask=known, other=0.0).to(tl.float32)

    weight_sum = tl.zeros([block_c], tl.float32)
    bias_sum = tl.zeros([block_c], tl.float32)
    for start in range(0, num_pixels, block_p):
        pixel = start + tl.arange(0, block_p)
        mask = known[:, None] & (pixel < num_pixels)[None, :]
        place = pixel[None, :] * stride_p
        value = tl.load(x + row[:, None] + place, mask=mask & exists[:, None], other=0.0).to(tl.float32)
        dy = tl.load(upstream + own[:, None] + place, mask=mask, other=0.0).to(tl.float32)
        normal, dz = _tile_gradient(dy, value, mean, rstd, w, b, mask, activate)
        weight_sum += tl.sum(dz * normal, axis=1)
        bias_sum += tl.sum(dz, axis=1)
    sums = picture.to(tl.int64) * num_channels + channel
    tl.store(weight_sums + sums, weight_sum, mask=known)
    tl.store(bias_sums + sums, bias_sum, mask=known)

    count = tl.cast(num_pixels * group, tl.float32)
    along_one = tl.sum(w * bias_sum) / count
    along_normal = tl.sum(w * weight_sum) / count
    for start in range(0, num_pixels, block_p):
        pixel = start + tl.arange(0, block_p)
        mask = known[:, None] & (pixel < num_pixels)[None, :]
        place = pixel[None, :] * stride_p
        value = tl.load(x + row[:, None] + place, mask=mask & exists[:, None], other=0.0).to(tl.float32)
        dy = tl.load(upstream + own[:, None] + place, mask=mask, other=0.0).to(tl.float32)
        normal, dz = _tile_gradient(dy, value, mean, rstd, w, b, mask, activate)
        dx = tl.where(exists[:, None], rstd * (w[:, None] * dz - along_one - normal * along_normal), 0.0)
        tl.store(gradient + row[:, None] + place, dx.to(gradient.dtype.element_ty), mask=mask)


def _sizes(x: Tensor, weight: Tensor, num_groups: int) -> tuple[tuple[int, ...], dict[str, int]]:
    """Strides and sizes of dense features, as both kernels take them, and those that are known when they compile."""
    pixels, group = x.shape[2] * x.shape[3], x.shape[1] // num_groups
    in_lines = x.is_contiguous()
    strides = (x.shape[1] * pixels, pixels if in_lines else 1, 1 if in_lines else x.shape[1])
    block_c = triton.next_power_of_2(group)
    block_p = min(triton.next_power_of_2(pixels), max(1, _TILE // block_c))
    numbers = {"group": group, "block_c": block_c, "block_p": block_p}
    warps = 8 if block_c * block_p > 2048 else 4
    affine_stride = x.shape[1] if weight.dim() == 2 else 0
    sizes = (*strides, x.shape[1], pixels, num_groups, affine_stride)
    return sizes, {**numbers, "num_warps": warps, "enable_fp_fusion": True}


@functools.cache
def obstacle() -> str:
    """Why kernels cannot run on the GPU; empty where they can. Compiles a small one, which needs a C compiler."""
    try:
        x, one = torch.zeros(1, 1, 1, 1, device="cuda"), torch.ones(1, device="cuda")
        moments = torch.empty(1, 1, device="cuda"), torch.empty(1, 1, device="cuda")
        forward(x, one, one, (torch.empty_like(x), *moments), 1e-5, 1, 0, 1, circular=False, activate=True)
        torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001  compilers and drivers raise what they like
        lines = str(error).strip().splitlines()
        reason = f"Triton failed: {lines[-1] if lines else type(error).__name__}"
        logger.warning("the GPU's own kernels cannot be used, PyTorch's are slower (%s)", reason)
        return reason
    return ""


def lay_out(x: Tensor) -> Tensor:
    """`x` itself where it is contiguous or channels_last; else a copy that is the one that it is nearer to."""
    if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
        return x
    last = x.stride(1) == 1 and x.shape[1] > 1
    return x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    outputs: tuple[Tensor, Tensor, Tensor],
    eps: float,
    num_frames: int,
    k: int,
    distance: int,
    circular: bool,
    activate: bool,
) -> None:
    """Fills `outputs`: the result, and mean and reciprocal deviation of each picture's groups."""
    num_groups = outputs[1].shape[1]
    sizes, numbers = _sizes(x, weight, num_groups)
    with _device_of(x):
        _forward_kernel[(len(x) * num_groups,)](
            x, weight, bias, *outputs, *sizes, num_frames, k, distance, eps, circular, activate, **numbers
        )


def backward(
    upstream: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    moments: tuple[Tensor, Tensor],
    outputs: tuple[Tensor, Tensor, Tensor],
    num_frames: int,
    k: int,
    distance: int,
    circular: bool,
    activate: bool,
) -> None:
    """Fills `outputs`: the gradient of `x`, and of weight and bias for each picture."""
    num_groups = moments[0].shape[1]
    sizes, numbers = _sizes(x, weight, num_groups)
    inputs = (upstream, x, weight, bias, *moments)
    with _device_of(x):
        _backward_kernel[(len(x) * num_groups,)](
            *inputs, *outputs, *sizes, num_frames, k, distance, circular, activate, **numbers
        )


def _device_of(x: Tensor) -> Any:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device if x.is_cuda else -1)
