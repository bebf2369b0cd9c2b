"""Noise of clips: how much neighbouring frames have in common."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, cast

import torch
from diffusers import SchedulerMixin
from jaxtyping import Float
from torch import Tensor

from latent_shift.ops import Boundary

from .schedulers import clean_latents

_DRAW = {
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "SASolverScheduler",
}
"""Schedulers that always draw noise, by name, since importing them all takes long. Others do with `eta` (DDIM, TCD), or
by a stochastic algorithm (`sde-dpmsolver++`)."""


def correlate_frames(
    noise: Float[Tensor, "batch channels frames height width"], correlation: float, boundary: Boundary
) -> Float[Tensor, "batch channels frames height width"]:
    """Independent noise becomes noise of the same variance whose frames follow a first-order autoregression.

    Frames t and s correlate by `correlation ** |t - s|` ("progressive noise", arXiv:2305.10474, Sec. 4.2); in a loop
    the way round the other end counts too. Slow changes then have more noise than fast ones, as they have more of a
    video's variance: all rates of change emerge at about the same time of sampling.

    Args:
        noise: independent noise of unit variance.
        correlation: of neighbouring frames, in [0, 1); 0 is the paper, and returns `noise` itself.
        boundary: `"circular"` for a loop.
    """
    frames = noise.shape[2]
    if not correlation or frames == 1:
        return noise
    return _mix(_factor(frames, correlation, boundary), noise)


class FrameNoiseSteps:
    """Steps of a scheduler that draws noise of its own, for a model whose frames share noise.

    A step is linear in latents, prediction and noise. So it is done where the frames' noise is independent, as the
    scheduler draws it, and its outcome brought back: its noise then follows the frames as that of training does.
    """

    def __init__(self, scheduler: Any, frames: int, correlation: float, boundary: Boundary) -> None:
        """Args: as of `correlate_frames`; the scheduler must not clip what it predicts."""
        factor = _factor(frames, correlation, boundary)
        self._scheduler, self._factor, self._inverse = scheduler, factor, torch.linalg.inv(factor)

    def __call__(self, prediction: Tensor, timestep: Tensor, latents: Tensor, **options: Any) -> tuple[Tensor, ...]:
        """As the scheduler's `step`; what it takes the finished latents to be comes with them."""
        if self._factor.device != latents.device or self._factor.dtype != latents.dtype:  # once: a copy to a GPU waits
            self._factor, self._inverse = self._factor.to(latents), self._inverse.to(latents)
        apart, before = (_mix(self._inverse, clips) for clips in (prediction, latents))
        stepped = self._scheduler.step(apart, timestep, before, **options)
        if len(stepped) == 1:
            stepped = (*stepped, clean_latents(self._scheduler, stepped))
        return tuple(_mix(self._factor, clips) for clips in stepped)


def scheduler_step(
    scheduler: SchedulerMixin, eta: float, frames: int, correlation: float, boundary: Boundary
) -> Callable[..., tuple[Tensor, ...]]:
    """A scheduler's `step`; of one that draws noise and clips nothing, with noise that follows the frames.

    Args:
        scheduler: any of diffusers.
        eta: above 0, the schedulers that have it (DDIM, TCD) draw noise, too.
        frames: of a clip.
        correlation: of neighbouring frames' noise in training; with 0 it is the scheduler's own `step`.
        boundary: as `correlate_frames`.
    """
    has_eta = "eta" in inspect.signature(scheduler.step).parameters
    is_stochastic = str(scheduler.config.get("algorithm_type")).startswith("sde")
    always = any(kind.__name__ in _DRAW for kind in type(scheduler).__mro__)
    draws = always or is_stochastic or (eta > 0 and has_eta)
    clips = scheduler.config.get("clip_sample") or scheduler.config.get("thresholding")
    if not draws or clips or not correlation or frames == 1:
        return cast("Callable[..., tuple[Tensor, ...]]", scheduler.step)
    return FrameNoiseSteps(scheduler, frames, correlation, boundary)


def _factor(frames: int, correlation: float, boundary: Boundary) -> Float[Tensor, "frames frames"]:
    """The triangular matrix that makes independent noise of the frames follow them."""
    index = torch.arange(frames, dtype=torch.float64)
    distance = (index[:, None] - index).abs()
    covariance = correlation**distance
    if boundary == "circular":
        covariance = (covariance + correlation ** (frames - distance)) / (1 + correlation**frames)
    factor: Tensor = torch.linalg.cholesky(covariance)
    return factor


def _mix(factor: Float[Tensor, "frames frames"], clips: Tensor) -> Tensor:
    """Frames of clips `(batch, channels, frames, height, width)` as sums of each other."""
    factor = factor.to(clips)
    # One clip after the other: how matrix products round depends on their size, so on the other clips.
    return torch.stack([torch.einsum("ts,cshw->cthw", factor, clip) for clip in clips])
