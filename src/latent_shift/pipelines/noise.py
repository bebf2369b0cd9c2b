"""Noise of clips: how much neighbouring frames have in common."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from latent_shift.ops import Boundary


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
    index = torch.arange(frames, dtype=torch.float64)
    distance = (index[:, None] - index).abs()
    covariance = correlation**distance
    if boundary == "circular":
        covariance = (covariance + correlation ** (frames - distance)) / (1 + correlation**frames)
    factor = torch.linalg.cholesky(covariance).to(noise)
    # One clip after the other: how matrix products round depends on their size, so on the other clips.
    return torch.stack([torch.einsum("ts,cshw->cthw", factor, clip) for clip in noise])
