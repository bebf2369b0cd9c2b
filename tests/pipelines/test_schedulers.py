"""Covers `latent_shift.pipelines.schedulers`; the paper's DDPM against guided-diffusion's respacing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, HeunDiscreteScheduler

from latent_shift import LatentShiftPipeline
from latent_shift.core.errors import InputError
from latent_shift.pipelines import SCHEDULERS, make_scheduler
from latent_shift.pipelines.components import load_component
from latent_shift.pipelines.loading import model_folder
from latent_shift.pipelines.schedulers import PAPER_NOISE, usual_steps

PAPER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 8.5e-4,
    "beta_end": 1.2e-2,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}
ZERO_SNR = {**PAPER, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def space_timesteps(num_timesteps: int, count: int) -> list[int]:
    """The rule of guided-diffusion for one section: equal fractional strides from first to last, each rounded."""
    stride = 1.0 if count <= 1 else (num_timesteps - 1) / (count - 1)
    position, taken = 0.0, []
    for _ in range(count):
        taken.append(round(position))
        position += stride
    return taken


@pytest.mark.parametrize("count", [1, 2, 3, 25, 50, 100, 250, 1000])
def test_ddpm_takes_the_timesteps_of_guided_diffusion(count: int) -> None:
    scheduler = make_scheduler("ddpm", PAPER)
    scheduler.set_timesteps(count)
    assert scheduler.timesteps.tolist() == space_timesteps(1000, count)[::-1]


def test_ddpm_100_is_the_papers() -> None:
    assert SCHEDULERS["ddpm"][:2] == ("DDPMScheduler", 100)
    config = make_scheduler("ddpm", PAPER).config
    options = {**PAPER, "clip_sample": False, "variance_type": "fixed_small", "timestep_spacing": "linspace"}
    assert {key: config[key] for key in options} == options


@torch.no_grad()
def test_ddpm_sampling_is_that_of_guided_diffusion(pipeline: LatentShiftPipeline) -> None:
    """The whole loop, guidance and respaced posterior included, written out."""
    count, scale, shape = 6, 3.0, (1, 4, 3, 2, 2)
    pipeline.scheduler = make_scheduler("ddpm", pipeline.scheduler.config)
    result = pipeline(
        "a red heart",
        negative_prompt="blue",
        num_inference_steps=count,
        guidance_scale=scale,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
    ).frames

    betas = np.linspace(8.5e-4**0.5, 1.2e-2**0.5, 1000) ** 2
    products = np.cumprod(1 - betas)
    taken = space_timesteps(1000, count)
    alphas_bar = products[taken]
    before = np.append(1.0, alphas_bar[:-1])
    betas = 1 - alphas_bar / before
    text, no_text = pipeline.encode_prompt("a red heart", "blue")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    for i in reversed(range(count)):
        eps, eps_without = (pipeline.unet(x, taken[i], words).sample for words in (text, no_text))
        eps = eps_without + scale * (eps - eps_without)
        start = (x - np.sqrt(1 - alphas_bar[i]) * eps) / np.sqrt(alphas_bar[i])
        mean = (
            betas[i] * np.sqrt(before[i]) / (1 - alphas_bar[i]) * start
            + (1 - before[i]) * np.sqrt(1 - betas[i]) / (1 - alphas_bar[i]) * x
        )
        variance = betas[i] * (1 - before[i]) / (1 - alphas_bar[i])
        x = mean + np.sqrt(variance) * torch.randn(shape, generator=generator) if i else mean
        x = x.float()
    torch.testing.assert_close(result, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_noise_of_training_is_kept(name: str) -> None:
    ours = make_scheduler(name, PAPER)
    assert type(ours).__name__ == SCHEDULERS[name][0]
    assert {key: ours.config[key] for key in PAPER} == PAPER
    betas = torch.linspace(8.5e-4**0.5, 1.2e-2**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(ours.betas.double(), betas, rtol=1e-4, atol=0)
    assert {key: ours.config[key] for key in SCHEDULERS[name][2]} == SCHEDULERS[name][2]
    own = make_scheduler(name, DDPMScheduler(trained_betas=[0.1, 0.2, 0.3], prediction_type="sample").config)
    assert own.config.trained_betas == [0.1, 0.2, 0.3]
    assert own.config.prediction_type == "sample"
    again = make_scheduler(name, own.config)
    assert dict(again.config) == dict(own.config)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_spacing_starts_where_training_ended(name: str) -> None:
    # Whatever spacing the model's own scheduler had.
    spacing = "trailing" if name == "ddim-trailing" else "linspace"
    for config in (PAPER, {**PAPER, "timestep_spacing": "leading", "steps_offset": 1}):
        assert make_scheduler(name, config).config.timestep_spacing == spacing
    scheduler = make_scheduler(name, ZERO_SNR)
    assert scheduler.config.timestep_spacing == "trailing"
    assert scheduler.config.rescale_betas_zero_snr
    assert scheduler.config.prediction_type == "v_prediction"
    scheduler.set_timesteps(10)
    assert int(scheduler.timesteps[0]) == 999
    assert scheduler.alphas_cumprod[-1] < 1e-6


@pytest.mark.parametrize("config", [PAPER, ZERO_SNR], ids=["the paper", "zero terminal SNR"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_samples(pipeline: LatentShiftPipeline, name: str, config: dict[str, Any]) -> None:
    pipeline.scheduler = make_scheduler(name, config)
    latents = [
        pipeline(prompt, num_inference_steps=4, generator=torch.Generator().manual_seed(0), output_type="latent").frames
        for prompt in ("a red heart", "a red heart", "blue hand")
    ]
    assert latents[0].isfinite().all()
    assert torch.equal(latents[0], latents[1])
    assert not torch.allclose(latents[0], latents[2], atol=1e-3)


@pytest.mark.parametrize("config", [PAPER, ZERO_SNR], ids=["the paper", "zero terminal SNR"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_data_of_which_the_best_prediction_is_known(name: str, config: dict[str, Any]) -> None:
    """Of normal data the best prediction is linear, so the width of what comes out is known: that of the data."""
    width = 0.5
    scheduler = make_scheduler(name, config)
    scheduler.set_timesteps(max(50, 2 * SCHEDULERS[name][1]))  # few steps are rough, whichever solver takes them
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4000, 1, generator=generator) * scheduler.init_noise_sigma
    sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().double().numpy()
    options = {"generator": generator} if name in ("ddpm", "ddim", "euler") else {}
    for timestep in scheduler.timesteps:
        alpha_bar = 1 / (1 + np.interp(float(timestep), np.arange(1000), sigmas) ** 2)
        seen = scheduler.scale_model_input(x, timestep)
        variance = alpha_bar * width**2 + 1 - alpha_bar
        start, noise = seen * alpha_bar**0.5 * width**2 / variance, seen * (1 - alpha_bar) ** 0.5 / variance
        is_noise = config["prediction_type"] == "epsilon"
        prediction = noise if is_noise else alpha_bar**0.5 * noise - (1 - alpha_bar) ** 0.5 * start
        x = scheduler.step(prediction, timestep, x, **options, return_dict=False)[0]
    assert x.std().item() == pytest.approx(width, rel=0.08)
    assert x.mean().item() == pytest.approx(0, abs=0.03)


def test_the_usual_steps_of_a_scheduler_are_those_of_its_class() -> None:
    for name, (_, steps, _) in SCHEDULERS.items():
        usual = usual_steps(make_scheduler(name, PAPER))
        assert usual == (50 if name == "ddim-trailing" else steps)  # the model says so where it is distilled
    assert usual_steps(HeunDiscreteScheduler()) == 15


def test_an_unknown_name() -> None:
    with pytest.raises(InputError, match=r"scheduler must be one of dpm\+\+, unipc, .*, ddpm, got 'magic'"):
        make_scheduler("magic", DDIMScheduler().config)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("other", [DDIMScheduler, DDPMScheduler])
def test_latents_are_not_clipped_by_schedulers_made_of_its_config(name: str, other: Any, tmp_path: Path) -> None:
    scheduler = make_scheduler(name, PAPER_NOISE)
    scheduler.save_pretrained(tmp_path)
    loaded = type(scheduler).from_pretrained(tmp_path)
    assert other.from_config(loaded.config).config.clip_sample is False
    shipped = load_component(DPMSolverMultistepScheduler, model_folder("emoji") / "scheduler")
    assert other.from_config(shipped.config).config.clip_sample is False
