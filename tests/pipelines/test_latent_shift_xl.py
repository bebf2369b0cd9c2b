"""Covers `latent_shift.pipelines.latent_shift_xl`: what differs from `LatentShiftPipeline`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from diffusers.callbacks import SDXLCFGCutoffCallback

from latent_shift.core.errors import InputError
from latent_shift.pipelines import LatentShiftXLPipeline

from .pretrained import SIZE

HEART, HAND = "a red heart", "a waving hand"


@pytest.fixture
def pipeline(sdxl: Path) -> LatentShiftXLPipeline:
    loaded = LatentShiftXLPipeline.from_pretrained(sdxl)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def run(pipeline: LatentShiftXLPipeline, prompt: Any = HEART, seeds: tuple[int, ...] = (0,), **options: Any) -> Any:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    options = {"num_frames": 2, "num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent", **options}
    return pipeline(prompt, generator=generators, **options).frames


@pytest.mark.parametrize("zeros", [True, False])
def test_an_empty_negative_prompt_is_a_missing_one(pipeline: LatentShiftXLPipeline, zeros: bool) -> None:
    pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    expected, blue = run(pipeline), run(pipeline, HAND, (1,), negative_prompt="blue")
    assert torch.equal(run(pipeline, negative_prompt=""), expected)
    mixed = run(pipeline, [HEART, HAND], (0, 1), negative_prompt=["", "blue"])
    torch.testing.assert_close(mixed, torch.cat([expected, blue]), rtol=0, atol=1e-4)
    pipeline.register_to_config(force_zeros_for_empty_prompt=not zeros)
    assert not torch.allclose(run(pipeline, negative_prompt=""), expected, atol=1e-3)


@pytest.mark.usefixtures("as_users_run")
def test_negative_prompts_are_one_or_one_for_each(pipeline: LatentShiftXLPipeline) -> None:
    expected = "negative_prompt must be a sentence, or a list with one for each of 2 prompts, got 1"
    with pytest.raises(InputError, match=expected):
        run(pipeline, [HEART, HAND], (0, 1), negative_prompt=["blue"])
    with pytest.raises(InputError, match=r"negative_prompt must be a sentence or a list of sentences, got \[\]"):
        run(pipeline, negative_prompt=[])


def test_without_guidance_negative_prompts_are_not_encoded(pipeline: LatentShiftXLPipeline) -> None:
    encoded: list[int] = []
    pipeline.text_encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    run(pipeline, guidance_scale=1.0, negative_prompt="blue")
    assert encoded == [1]


def test_an_autoencoder_of_fp16_is_one_after_decoding(pipeline: LatentShiftXLPipeline) -> None:
    torch.nn.Module.half(pipeline.vae)
    assert pipeline.vae.config.force_upcast
    seen: list[torch.dtype] = []
    pipeline.vae.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
    frames = pipeline.decode_latents(torch.randn(1, 4, 2, SIZE // 4, SIZE // 4))
    assert frames.shape == (1, 2, SIZE, SIZE, 3)
    assert (seen, pipeline.vae.dtype) == ([torch.float32], torch.float16)
    with pytest.raises(RuntimeError):
        pipeline.decode_latents(torch.randn(1, 3, 2, SIZE // 4, SIZE // 4))
    assert pipeline.vae.dtype == torch.float16


def test_weights_may_be_elsewhere_until_they_are_needed(pipeline: LatentShiftXLPipeline) -> None:
    expected = run(pipeline, output_type="pt")
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2, pipeline.unet):
        cpu_offload(part, torch.device("cpu"), offload_buffers=True)
    torch.testing.assert_close(run(pipeline, output_type="pt"), expected)


@pytest.mark.parametrize("scale", [5.0, 1.0])
def test_a_callback_may_drop_a_clip(pipeline: LatentShiftXLPipeline, scale: float) -> None:
    expected, generators = run(pipeline, HAND, (1,), guidance_scale=scale), [torch.Generator() for _ in range(2)]
    for seed, generator in enumerate(generators):
        generator.manual_seed(seed)

    def drop(_pipe: Any, _index: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        generators[:] = generators[-1:]
        return {name: tensor[-1:] for name, tensor in tensors.items()}

    names = [name for name in pipeline._callback_tensor_inputs if name != "clean_latents"]
    options = {"callback_on_step_end": drop, "callback_on_step_end_tensor_inputs": names, "guidance_scale": scale}
    options |= {"num_frames": 2, "num_inference_steps": 2, "output_type": "latent"}
    left = pipeline([HEART, HAND], generator=generators, **options).frames
    torch.testing.assert_close(left, expected, rtol=0, atol=1e-4)


def test_diffusers_callback_ends_guidance(pipeline: LatentShiftXLPipeline) -> None:
    rows: list[int] = []
    pipeline.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    run(pipeline, num_inference_steps=4, callback_on_step_end=SDXLCFGCutoffCallback(cutoff_step_ratio=0.25))
    assert rows == [2, 2, 1, 1]


def test_guidance_in_two_halves_tells_each_half_its_own_conditions(pipeline: LatentShiftXLPipeline) -> None:
    expected = run(pipeline, negative_prompt="blue")
    pipeline.guides_in_halves = True
    torch.testing.assert_close(run(pipeline, negative_prompt="blue"), expected, rtol=1e-4, atol=1e-4)
