"""With the shift off the pipeline is diffusers' text-to-image pipeline of LDM, from which the paper starts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, LDMTextToImagePipeline, UNet2DConditionModel

from latent_shift.pipelines import LatentShiftPipeline, load_preset

PROMPTS = ["a painting of a squirrel", "a red heart"]


@pytest.fixture(scope="module")
def ours() -> LatentShiftPipeline:
    pipeline = load_preset("tiny", "cpu", "fp32", seed=1)
    pipeline.set_progress_bar_config(disable=True)
    # The scheduler and the clipping that diffusers' own tests of that pipeline have.
    pipeline.scheduler = DDIMScheduler(
        beta_start=8.5e-4, beta_end=1.2e-2, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
    )
    return pipeline


@pytest.fixture(scope="module")
def theirs(ours: LatentShiftPipeline) -> LDMTextToImagePipeline:
    unet = UNet2DConditionModel.from_config(
        {key: value for key, value in ours.unet.config.items() if not key.startswith(("shift_", "noise_", "_"))}
    )
    unet.load_state_dict(ours.unet.state_dict(), strict=True)
    vae = AutoencoderKL.from_config(ours.vae.config)
    vae.load_state_dict(ours.vae.state_dict(), strict=True)
    pipeline = LDMTextToImagePipeline(vae, ours.text_encoder, ours.tokenizer, unet.eval(), ours.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("guidance_scale", [1.0, 6.0])
def test_the_images_are_those_of_diffusers(
    ours: LatentShiftPipeline, theirs: LDMTextToImagePipeline, guidance_scale: float
) -> None:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": guidance_scale, "output_type": "np"}
    expected = theirs(PROMPTS, height=64, width=64, latents=latents, **options).images
    images = ours(PROMPTS, num_frames=1, latents=latents[:, :, None], boundary=None, **options).frames
    np.testing.assert_allclose(np.asarray(images)[:, 0], expected, atol=1e-5)
    assert np.ptp(expected) > 0.05  # and it is no grey picture
    shifted = ours(PROMPTS, num_frames=1, latents=latents[:, :, None], boundary="zero", **options).frames
    assert np.abs(np.asarray(shifted)[:, 0] - expected).max() > 1e-3


def test_frames_without_the_shift_are_such_images(ours: LatentShiftPipeline, theirs: LDMTextToImagePipeline) -> None:
    latents = torch.randn(1, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 7.5, "output_type": "np"}
    frames = np.asarray(ours(PROMPTS[0], num_frames=3, latents=latents, boundary=None, **options).frames)[0]
    for index in range(3):
        images = theirs(PROMPTS[0], height=64, width=64, latents=latents[:, :, index], **options).images
        np.testing.assert_allclose(frames[index], images[0], atol=1e-4)  # another batch shape rounds otherwise
