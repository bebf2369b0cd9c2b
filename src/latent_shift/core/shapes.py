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

from numbers import Integral

from .errors import InputError


def check_at_least(argument: str, value: int | float, minimum: int | float) -> None:
    """Raises `InputError` unless `value >= minimum`."""
    if not value >= minimum:
        raise InputError(argument, value, f"be at least {minimum}")


def check_whole(argument: str, value: object, minimum: int = 1) -> None:
    """Raises `InputError` unless `value` is a whole number of at least `minimum`."""
    if not isinstance(value, Integral):
        raise InputError(argument, value, "be a whole number")
    check_at_least(argument, int(value), minimum)


def check_divisible(argument: str, value: object, factor: int) -> None:
    """Raises `InputError` unless `value` is a positive multiple of `factor`."""
    if not isinstance(value, Integral) or value < 1 or value % factor:
        raise InputError(argument, value, f"be a positive multiple of {factor}")
