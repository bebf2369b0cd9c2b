"""The temporal shift (Latent-Shift, arXiv:2304.08477, Sec. 3.2, Eq. 3). It has no parameters and copies bits."""

from __future__ import annotations

from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from latent_shift.core.errors import InputError

from ._eager import shift_channels

Boundary = Literal["zero", "circular"]
"""What a frame without a neighbour sees: zeros (the paper), or the frame at the other end (a seamless loop)."""


def temporal_shift(
    x: Float[Tensor, "batch channels frames height width"],
    fold: int = 3,
    boundary: Boundary = "zero",
    distance: int = 1,
) -> Float[Tensor, "batch channels frames height width"]:
    """Moves the first fold of channels a frame forward and the last fold a frame backward (Eq. 3).

    With `k = channels // fold`:

        y[:, :k, t] = x[:, :k, t-1];  y[:, C-k:, t] = x[:, C-k:, t+1];  the channels between are unchanged.

    Where there is no such frame, `boundary="zero"` gives zeros and `"circular"` the frame at the other end. `distance`
    takes the place of 1 in `t-1` and `t+1`.
    Widths that `fold` does not divide keep the remainder in the middle (320 = 106 + 108 + 106 for fold 3).

    Args:
        x: features of any floating dtype on any device; strides (channels_last too) are kept.
        fold: into how many parts the channels are divided; two of them move. The paper's is 3.
        boundary: `"zero"` (the paper) or `"circular"`.
        distance: how many frames channels move; the paper's is 1. More reach further in networks of few blocks.

    Returns:
        A new tensor with the shape, dtype, device and strides of `x`.

    Raises:
        InputError: a `ValueError`, if `x` is not 5-D, `fold` is below 2, `boundary` is unknown, `distance` is below 1.

    Example:
        >>> import torch
        >>> temporal_shift(torch.arange(1.0, 7.0).reshape(1, 3, 2, 1, 1)).flatten().tolist()
        [0.0, 1.0, 3.0, 4.0, 6.0, 0.0]
    """
    if x.ndim != 5:
        raise InputError("x", tuple(x.shape), "have 5 axes (batch, channels, frames, height, width)")
    _check(fold, boundary, distance)
    return shift_channels(x, 1, 2, fold, boundary == "circular", distance)


def temporal_shift_folded(
    x: Float[Tensor, "batch_frames channels height width"],
    num_frames: int,
    fold: int = 3,
    boundary: Boundary = "zero",
    distance: int = 1,
) -> Float[Tensor, "batch_frames channels height width"]:
    """`temporal_shift` of features whose frames are folded into the batch axis, frames fastest (Eq. 3).

    Args:
        x: features of `batch * num_frames` pictures, as a 2-D network computes them; strides are kept.
        num_frames: frames in each clip. No value moves from one clip to another.
        fold: as in `temporal_shift`.
        boundary: as in `temporal_shift`.
        distance: as in `temporal_shift`.

    Raises:
        InputError: a `ValueError`, if `x` is not 4-D, its batch is no multiple of `num_frames`, `fold` is below 2,
            `boundary` is unknown or `distance` is below 1.
    """
    check_folded(x, num_frames, fold, boundary, distance)
    clips = x.view(x.shape[0] // num_frames, num_frames, *x.shape[1:])
    return shift_channels(clips, 2, 1, fold, boundary == "circular", distance).flatten(0, 1)


def check_folded(x: Tensor, num_frames: int, fold: int, boundary: str | None, distance: int) -> None:
    """Raises `InputError` for what `temporal_shift_folded` cannot take."""
    if x.ndim != 4:
        raise InputError("x", tuple(x.shape), "have 4 axes (batch * frames, channels, height, width)")
    if num_frames < 1 or x.shape[0] % num_frames:
        raise InputError("num_frames", num_frames, f"divide the folded batch of {x.shape[0]}")
    _check(fold, boundary, distance)


def _check(fold: int, boundary: str | None, distance: int) -> None:
    if fold < 2:
        raise InputError("fold", fold, "be at least 2")
    if boundary not in get_args(Boundary):
        raise InputError("boundary", boundary, f"be one of {', '.join(get_args(Boundary))}")
    if distance < 1:
        raise InputError("distance", distance, "be at least 1")
