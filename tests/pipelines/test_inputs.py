"""Covers `latent_shift.pipelines.inputs`: arguments of wrong types, and numbers that are none."""

from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latent_shift import LatentShiftPipeline
from latent_shift.core.errors import InputError
from latent_shift.pipelines.loading import pipeline_class_of

HEART = "a red heart"
NOT_FINITE = torch.tensor([0.0, -math.inf])


def run(pipeline: LatentShiftPipeline, **options: Any) -> Any:
    options = {"prompt": HEART, "num_inference_steps": 1, "output_type": "latent", **options}
    return pipeline(generator=options.pop("generator", torch.Generator().manual_seed(0)), **options).frames


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("guidance_scale", "7", "be a number, got '7'"),
        ("guidance_scale", True, "be a number, got True"),
        ("guidance_scale", 1j, "be a number, got 1j"),
        ("guidance_scale", [7.5], r"be a number, got \[7.5\]"),
        ("guidance_scale", 10**320, r"be a number, got 10{149} \.\.\. 0{150}$"),
        ("guidance_scale", torch.zeros(2), r"be a number, got tensor\(\[0., 0.\]\)"),
        ("motion_guidance", "1", r"be in \[0, 1\], got '1'"),
        ("motion_guidance", math.nan, r"be in \[0, 1\], got nan"),
        ("motion_guidance", False, r"be in \[0, 1\], got False"),
        ("guidance_interval", 0.5, "be two shares of the steps, .* got 0.5"),
        ("guidance_interval", ("0", "1"), r"be two shares of the steps, .* got \('0', '1'\)"),
        ("guidance_interval", {0.0, 1.0}, "be two shares of the steps, .* got {0.0, 1.0}"),
        ("noise_correlation", "0.5", r"be in \[0, 1\), got '0.5'"),
        ("eta", "0", "be a number, got '0'"),
        ("eta", None, "be a number, got None"),
        ("num_frames", "8", "be a whole number, got '8'"),
        ("num_frames", True, "be a whole number, got True"),
        ("num_inference_steps", "15", "be a whole number, got '15'"),
        ("num_inference_steps", True, "be a whole number, got True"),
        ("num_videos_per_prompt", None, "be a whole number, got None"),
        ("num_videos_per_prompt", True, "be a whole number, got True"),
        ("decode_chunk_size", 2.0, "be a whole number, got 2.0"),
        ("height", "16", "be a positive multiple of 16, got '16'"),
        ("width", np.array([16, 16]), r"be a positive multiple of 16, got array\(\[16, 16\]\)"),
        ("timesteps", 900, "be a list of numbers, got 900"),
        ("timesteps", "900", "be a list of numbers, got '900'"),
        ("sigmas", [], r"be a list of numbers, got \[\]"),
        ("sigmas", [1.0, math.nan], r"be a list of numbers, got \[1.0, nan\]"),
        (
            "latents",
            np.zeros((1, 4, 3, 2, 2)),
            r"be a torch.Tensor, got array\(\[{5}0., 0.\], \[0., 0.\]\], \[\[",
        ),
        ("latents", NOT_FINITE.expand(1, 4, 3, 2, 2), "be of finite numbers, got -inf"),
        ("latents", [[0.0]], r"be a torch.Tensor, got \[\[0.0\]\]"),
        ("prompt_embeds", np.zeros((1, 8, 12)), r"be a torch.Tensor, got array\("),
        ("prompt_embeds", torch.full((1, 8, 12), math.nan), "be of finite numbers, got nan"),
        ("negative_prompt_embeds", "red", "be a torch.Tensor, got 'red'"),
        ("negative_prompt_embeds", NOT_FINITE.expand(1, 8, 2), "be of finite numbers, got -inf"),
        ("generator", 3, "be a torch.Generator, or a list of them, got 3"),
        ("generator", np.random.default_rng(), "be a torch.Generator, or a list of them, got Generator"),
        ("boundary", torch.zeros(2), r"be default, zero, circular or None, got tensor\(\[0., 0.\]\)"),
        ("output_type", ["np"], r"be one of pil, np, pt, latent, got \['np'\]"),
        ("cross_attention_kwargs", 0.5, "be a dict, or None, got 0.5"),
        ("callback_on_step_end", 3, "be a function, got 3"),
        ("callback_on_step_end_tensor_inputs", None, "be among latents, .* got None"),
    ],
)
def test_a_wrong_type_is_one_line_that_names_it(
    pipeline: LatentShiftPipeline, name: str, value: Any, expected: str
) -> None:
    encoded: list[int] = []
    pipeline.text_encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    options = {"prompt": None} if name == "prompt_embeds" else {}
    with pytest.raises(InputError, match=f"^{name} must {expected}") as error:
        run(pipeline, **options, **{name: value})
    assert len(str(error.value)) < 400
    assert "\n" not in str(error.value)
    assert not encoded


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("pooled_prompt_embeds", np.zeros((1, 8)), r"be a torch.Tensor, got array\("),
        ("pooled_prompt_embeds", torch.zeros(8), r"have the shape \(prompts, width\), got \(8,\)"),
        ("negative_pooled_prompt_embeds", torch.full((1, 8), math.inf), "be of finite numbers, got inf"),
        ("guidance_scale", "7", "be a number, got '7'"),
    ],
)
def test_sdxl_checks_what_it_is_given_in_addition(sdxl: Path, name: str, value: Any, expected: str) -> None:
    loaded = pipeline_class_of(sdxl).from_pretrained(sdxl)
    with pytest.raises(InputError, match=f"^{name} must {expected}"):
        run(loaded, num_frames=1, **{name: value})


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize("number", [np.float32, np.float64, Decimal, torch.tensor])
def test_numbers_of_other_libraries_are_numbers(pipeline: LatentShiftPipeline, number: Any) -> None:
    expected = run(pipeline, guidance_scale=3.0, motion_guidance=0.5, eta=0.0)
    scale = float(number(3)) if number is Decimal else number(3)
    given = run(pipeline, guidance_scale=scale, motion_guidance=0.5, eta=number(0))
    assert torch.equal(given, expected)


@pytest.mark.usefixtures("as_users_run")
def test_numpys_whole_numbers_and_rows_count_too(pipeline: LatentShiftPipeline) -> None:
    expected = run(pipeline, num_frames=2, height=16, guidance_interval=(0.0, 0.5), num_inference_steps=2)
    shape = {"num_frames": np.int64(2), "height": np.int32(16), "num_videos_per_prompt": np.int64(1)}
    given = run(pipeline, **shape, guidance_interval=np.array([0.0, 0.5]), num_inference_steps=np.int64(2))
    assert torch.equal(given, expected)
    steps = {"num_inference_steps": None, "num_frames": 1}
    given = run(pipeline, **steps, timesteps=np.array([900, 20]))
    assert torch.equal(given, run(pipeline, **steps, timesteps=[900, 20]))


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize("steps", [np.array([900, 20]), torch.tensor([900, 20])])
def test_steps_are_given_once_in_any_form(pipeline: LatentShiftPipeline, steps: Any) -> None:
    expected = "num_inference_steps must be left out where timesteps are given, got 1"
    with pytest.raises(InputError, match=expected):
        run(pipeline, timesteps=steps)
