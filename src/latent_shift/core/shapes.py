"""The words that this project uses for what flows through it, and the checks that go with them.

=================  ====================================================================================
pixel video        `(batch, channels=3, frames, height, width)`, float in [-1, 1], unless said otherwise
frames array       `(frames, height, width, 3)`, uint8 in [0, 255]: what files hold (`media`)
latent video       `(batch, channels, frames, height / f, width / f)`, normalised, where f is the
                   autoencoder's factor
clip               the frames sampled from a video for the model
folded             `(batch * frames, channels, height, width)`, frames fastest: how the U-Net computes
fold               the number of channels moved one way by the temporal shift, `channels // fold`
forward shift      `y[t] = x[t - 1]`: a frame sees the previous one
backward shift     `y[t] = x[t + 1]`: a frame sees the next one
=================  ====================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from .errors import InputError


def check_at_least(argument: str, value: Any, minimum: int | float) -> None:
    """Raises `InputError` unless `value >= minimum`."""
    if not value >= minimum:
        raise InputError(argument, value, f"be at least {minimum}")


def check_number(argument: str, value: Any, minimum: float = -math.inf) -> None:
    """Raises `InputError` unless `value` is a finite number (`is_number`) of at least `minimum`."""
    if not is_number(value):
        raise InputError(argument, value, "be a number")
    check_at_least(argument, value, minimum)


def check_whole(argument: str, value: object, minimum: int = 1) -> None:
    """Raises `InputError` unless `value` is a whole number of at least `minimum`, of Python or NumPy."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(argument, value, "be a whole number")
    check_at_least(argument, int(value), minimum)


def check_divisible(argument: str, value: object, factor: int) -> None:
    """Raises `InputError` unless `value` is a positive multiple of `factor`."""
    if not isinstance(value, Integral) or value < 1 or value % factor:
        raise InputError(argument, value, f"be a positive multiple of {factor}")


def check_interval(argument: str, value: Sequence[float]) -> None:
    """Raises `InputError` unless it is where something starts and where it stops, in shares of the denoising steps."""
    shares = tuple(value) if hasattr(value, "__getitem__") else ()
    if len(shares) != 2 or not all(map(is_number, shares)) or not 0 <= shares[0] < shares[1] <= 1:
        raise InputError(argument, value, "be two shares of the steps, 0 <= start < stop <= 1")


def is_number(value: Any) -> bool:
    """Whether it counts as one finite number: of Python or NumPy, or a tensor of one; True and False are none."""
    try:
        return not isinstance(value, bool) and math.isfinite(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # what tensors and arrays raise for several numbers
        return False


def is_text(value: object) -> bool:
    """Whether it is a text that UTF-8 can hold: without half an emoji, or bytes of an argument in another encoding."""
    try:
        return isinstance(value, str) and value.encode() is not None
    except UnicodeEncodeError:
        return False
