"""What all who make clips for people share: the facts that are kept with a clip, and its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latent_shift import __version__
from latent_shift.core.errors import DataError

from .latent_shift import LatentShiftPipeline


def clip_settings(
    pipeline: LatentShiftPipeline,
    model: str,
    scheduler: str,
    prompt: str,
    negative_prompt: str,
    seed: int,
    steps: int,
    boundary: str | None,
    num_frames: int,
    *,
    guidance_scale: float | None = None,
    motion_guidance: float | None = None,
    guidance_interval: Sequence[float] | None = None,
    noise_correlation: float | None = None,
) -> dict[str, Any]:
    """The facts that make a clip again; files carry them as text.

    Args:
        pipeline: what made it.
        model: name or folder of the model; no path of this machine is kept.
        scheduler: a key of `SCHEDULERS`.
        prompt: the sentence.
        negative_prompt: what guidance led away from.
        seed: of its generator.
        steps: denoising steps.
        boundary: as the pipeline was given it.
        num_frames: of the clip made.
        guidance_scale: None stands for the model's.
        motion_guidance: as `guidance_scale`.
        guidance_interval: as `guidance_scale`.
        noise_correlation: as `guidance_scale`.
    """
    config = pipeline.config
    return {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "seed": seed,
        "model": Path(model).absolute().name,
        "fast": pipeline.is_fast,
        "scheduler": scheduler,
        "steps": steps,
        "guidance_scale": config.default_guidance_scale if guidance_scale is None else guidance_scale,
        "motion_guidance": config.default_motion_guidance if motion_guidance is None else motion_guidance,
        "guidance_interval": tuple(pipeline.guidance_interval if guidance_interval is None else guidance_interval),
        "noise_correlation": pipeline.noise_correlation if noise_correlation is None else noise_correlation,
        "loop": num_frames > 1 and "circular" in (boundary, pipeline.unet.default_boundary),
        "version": f"latent-shift {__version__}",
    }


def check_finite(frames: npt.NDArray[np.float32], pipeline: LatentShiftPipeline, prompt: str, seed: int) -> None:
    """Raises `DataError` for a clip `(frames, height, width, 3)` of NaN or infinity, which as bytes would be black."""
    if not np.isfinite(frames).all():
        dtype = str(pipeline.unet.dtype).removeprefix("torch.")
        what = f"the clip of {prompt!r}, seed {seed}, is not of finite numbers in {dtype}"
        raise DataError(f"{what}; fp32 has more range")
