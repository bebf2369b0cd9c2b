"""A whole clip, from the sentence to the frames, by the pipeline that users run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import init_empty_weights

from latent_shift.models.presets import Preset
from latent_shift.pipelines import LatentShiftPipeline
from latent_shift.pipelines.loading import assemble_preset, lay_out_decoder

from .networks import Denoiser, fill_weights
from .timing import clock, spread

PROMPT = "a corgi walks over a beach at sunset"


def build_pipeline(preset: Preset, device: torch.device, dtype: torch.dtype) -> LatentShiftPipeline:
    """Text encoder and autoencoder with random weights; the U-Net has none, its place is for a `Denoiser`."""
    with init_empty_weights():  # buffers get their values
        parts = preset.build("cpu", dtype)
    for name in ("vae", "text_encoder"):
        fill_weights(parts[name], device)
        parts[name].to(device).requires_grad_(False)
    pipeline = assemble_preset(preset, parts)
    lay_out_decoder(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def time_clip(pipeline: LatentShiftPipeline, denoiser: Denoiser, steps: int) -> dict[str, float]:
    """Seconds of the parts of one clip of so many denoising steps, with guidance: text, denoising, decoding, total."""
    pipeline.register_modules(unet=denoiser)
    device, ends = denoiser.device, []

    def note(_pipeline: Any, _index: int, _timestep: Any, _tensors: dict[str, Any]) -> None:
        ends.append(clock(device))

    start = clock(device)
    positive, negative = pipeline.encode_prompt(PROMPT)
    encoded = clock(device)
    pipeline(
        prompt_embeds=positive,
        negative_prompt_embeds=negative,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
        callback_on_step_end=note,
    )
    end = clock(device)
    return {"text": encoded - start, "denoising": ends[-1] - encoded, "decoding": end - ends[-1], "total": end - start}


def summarise_clips(rounds: Sequence[dict[str, float]], steps_measured: int, steps: int) -> dict[str, Any]:
    """Medians of the rounds, and what a clip of `steps` steps takes, where only fewer were measured."""
    summary: dict[str, Any] = {"steps_measured": steps_measured}
    for part in ("text", "denoising", "decoding", "total"):
        summary |= spread(f"{part}_seconds", [seconds[part] for seconds in rounds])
    whole = [seconds["total"] + seconds["denoising"] * (steps / steps_measured - 1) for seconds in rounds]
    return {
        **summary,
        "seconds_per_step": summary["denoising_seconds"] / steps_measured,
        "steps": steps,
        "estimated_total_seconds": None if steps == steps_measured else statistics.median(whole),
    }
