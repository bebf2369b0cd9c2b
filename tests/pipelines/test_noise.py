from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EulerAncestralDiscreteScheduler,
    KDPM2AncestralDiscreteScheduler,
    LCMScheduler,
    SASolverScheduler,
    SchedulerMixin,
    TCDScheduler,
)

from latent_shift import LatentShiftPipeline
from latent_shift.ops import Boundary
from latent_shift.pipelines import make_scheduler
from latent_shift.pipelines import noise as noise_module
from latent_shift.pipelines.noise import FrameNoiseSteps, correlate_frames, scheduler_step


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


def make_steps(scheduler: DDPMScheduler, frames: int, boundary: Boundary = "zero") -> FrameNoiseSteps:
    scheduler.set_timesteps(10)
    return FrameNoiseSteps(scheduler, frames, 0.9, boundary)


@pytest.mark.parametrize("boundary", ["zero", "circular"])
def test_the_noise_of_a_step_follows_the_frames(boundary: Boundary) -> None:
    scheduler = DDPMScheduler(clip_sample=False)
    step, timestep = make_steps(scheduler, 6, boundary), scheduler.timesteps[3]
    prediction, latents = torch.randn(2, 4, 3, 6, 16, 16)

    def stepped(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return step(prediction, timestep, latents, generator=generator, return_dict=False)[0]

    drawn = torch.cat([stepped(seed) - stepped(seed + 100) for seed in range(8)])
    rows = drawn.transpose(1, 2).flatten(2).transpose(0, 1).flatten(1)
    covariance_of = np.cov(rows.numpy())
    expected = covariance(0.9, boundary, 6) * np.diag(covariance_of).mean()
    np.testing.assert_allclose(covariance_of / expected, 1, atol=0.06)


def test_a_step_without_noise_is_the_schedulers() -> None:
    scheduler = DDPMScheduler(clip_sample=False)
    step, last = make_steps(scheduler, 6), scheduler.timesteps[-1]
    prediction, latents = torch.randn(2, 1, 3, 6, 4, 4)
    expected = scheduler.step(prediction, last, latents, return_dict=False)
    for one, other in zip(step(prediction, last, latents, return_dict=False), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("options", "correlation", "eta", "frames", "follows"),
    [
        ({"clip_sample": False}, 0.5, 0.0, 4, True),
        ({"clip_sample": False}, 0.0, 0.0, 4, False),
        ({"clip_sample": False}, 0.5, 0.0, 1, False),
        ({"clip_sample": True}, 0.5, 0.0, 4, False),
        (None, 0.5, 0.0, 4, False),
        (None, 0.5, 0.3, 4, True),
        ("dpm++", 0.5, 0.3, 4, False),  # which has no eta
        ("ddpm", 0.5, 0.0, 4, True),
    ],
)
def test_a_pipeline_steps_so_where_the_scheduler_draws_noise(
    options: dict[str, bool] | str | None,
    correlation: float,
    eta: float,
    frames: int,
    follows: bool,
    pipeline: LatentShiftPipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[tuple[object, ...]] = []
    kept = FrameNoiseSteps
    monkeypatch.setattr(noise_module, "FrameNoiseSteps", lambda *args: made.append(args[1:]) or kept(*args))
    pipeline.unet.register_to_config(noise_correlation=correlation)
    if isinstance(options, str):
        pipeline.scheduler = make_scheduler(options, pipeline.scheduler.config)
    else:
        pipeline.scheduler = DDIMScheduler(clip_sample=False) if options is None else DDPMScheduler(**options)
    pipeline("a", num_frames=frames, num_inference_steps=2, eta=eta, boundary="circular", output_type="latent")
    assert made == ([(frames, correlation, "circular")] if follows else [])


STOCHASTIC: list[tuple[type[SchedulerMixin], dict[str, Any]]] = [
    (DDPMScheduler, {"clip_sample": False}),
    (EulerAncestralDiscreteScheduler, {}),
    (KDPM2AncestralDiscreteScheduler, {}),
    (LCMScheduler, {}),
    (SASolverScheduler, {}),
    (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    (DPMSolverSinglestepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    (TCDScheduler, {}),
]


@pytest.mark.parametrize(("kind", "options"), STOCHASTIC)
@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # of diffusers' KDPM2
def test_noise_follows_the_frames_whoever_draws_it(kind: Any, options: dict[str, Any]) -> None:
    """Of a model that predicts nothing, latents differ between two seeds by the noise of the steps."""
    scheduler = kind(**options)

    def sample(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        scheduler.set_timesteps(4)
        step = scheduler_step(scheduler, 0.5, 6, 0.9, "zero")
        latents = correlate_frames(torch.ones(8, 4, 6, 16, 16), 0.9, "zero")
        accepted = inspect.signature(scheduler.step).parameters
        given = {key: value for key, value in (("eta", 0.5), ("generator", generator)) if key in accepted}
        for timestep in scheduler.timesteps[:-1]:
            scaled = scheduler.scale_model_input(latents, timestep)
            latents, clean = step(torch.zeros_like(scaled), timestep, latents, **given, return_dict=False)[:2]
        return latents, clean

    (one, clean), (other, _) = sample(0), sample(1)
    assert clean.shape == one.shape
    rows = (one - other).transpose(1, 2).flatten(2).transpose(0, 1).flatten(1)
    neighbours = [float(np.corrcoef(rows[index], rows[index + 1])[0, 1]) for index in range(5)]
    np.testing.assert_allclose(neighbours, 0.9, atol=0.02)


def test_a_step_that_clips_by_thresholds_is_the_schedulers_own() -> None:
    scheduler = DDPMScheduler(clip_sample=False, thresholding=True)
    assert scheduler_step(scheduler, 0.0, 4, 0.5, "zero") == scheduler.step
