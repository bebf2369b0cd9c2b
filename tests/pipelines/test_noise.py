from __future__ import annotations

import numpy as np
import pytest
import torch

from latent_shift.ops import Boundary
from latent_shift.pipelines.noise import correlate_frames


def covariance(correlation: float, boundary: Boundary, frames: int) -> np.ndarray:
    """Of what comes out, read off from what the basis vectors become."""
    basis = torch.eye(frames, dtype=torch.float64).reshape(frames, 1, frames, 1, 1)
    factor = correlate_frames(basis, correlation, boundary)[:, 0, :, 0, 0].T.numpy()
    return factor @ factor.T


@pytest.mark.parametrize("correlation", [0.3, 0.92])
def test_a_clip_is_an_autoregression(correlation: float) -> None:
    """e_t = r e_(t-1) + sqrt(1 - r^2) n_t has the precision matrix of a Markov chain: nothing off three diagonals."""
    made = covariance(correlation, "zero", 6)
    np.testing.assert_allclose(np.diag(made), 1)
    np.testing.assert_allclose(np.diag(made, 1), correlation)
    precision = np.linalg.inv(made)
    np.testing.assert_allclose(precision[np.abs(np.subtract.outer(range(6), range(6))) > 1], 0, atol=1e-9)


@pytest.mark.parametrize("frames", [1, 2, 7, 24])
@pytest.mark.parametrize("correlation", [0.3, 0.92])
def test_a_loop_is_one_around_the_circle(correlation: float, frames: int) -> None:
    """The same for all phases, with the spectrum 1 / |1 - r exp(i w)|^2 of the endless process at the loop's rates."""
    made = covariance(correlation, "circular", frames)
    np.testing.assert_allclose(made, np.roll(made, (1, 1), axis=(0, 1)), atol=1e-12)
    spectrum = 1 / np.abs(1 - correlation * np.exp(2j * np.pi * np.arange(frames) / frames)) ** 2
    np.testing.assert_allclose(np.fft.fft(made[0]).real, spectrum / spectrum.mean(), atol=1e-9)


def test_shape_and_dtype_are_kept_and_no_correlation_is_no_change() -> None:
    noise = torch.randn(2, 3, 5, 4, 2, dtype=torch.float16)
    assert correlate_frames(noise, 0.0, "circular") is noise
    made = correlate_frames(noise, 0.5, "zero")
    assert made.shape == noise.shape
    assert made.dtype == noise.dtype
    assert torch.equal(made[:, :, 0], noise[:, :, 0])
