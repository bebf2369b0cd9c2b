"""Clips that a model makes to be measured: each once, with a seed of its own, and kept as a lossless file."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from latent_shift.core.files import sha256_file, write_json
from latent_shift.media import Frames, to_uint8, write_video
from latent_shift.ops import Boundary
from latent_shift.pipelines import LatentShiftPipeline
from latent_shift.pipelines.generation import check_finite

_VERSION = 3
"""Of the arithmetic of sampling: another one where a solver changes, so that kept clips are made again."""

Progress = Callable[[str, int, int | None], None]
"""Called with what is done, how much of it, and how much there is."""


@dataclass(frozen=True)
class SampleRequest:
    """One clip that is asked for.

    Attributes:
        file_name: of the clip, below the folder of its store; ends in `.webp`.
        prompt: the sentence.
        seed: of its noise.
    """

    file_name: str
    prompt: str
    seed: int


class SampleStore:
    """The clips of one model, in a folder that is named by everything they depend on besides prompt and seed."""

    def __init__(
        self, output: Path, pipeline: LatentShiftPipeline, settings: Mapping[str, Any], batch_size: int = 1
    ) -> None:
        """Makes nothing yet.

        Args:
            output: the folder of all stores.
            pipeline: makes the clips.
            settings: what clips depend on (`sample_settings`); of these `frames`, `steps`, `guidance_scale`,
                `motion_guidance`, `guidance_interval`, `noise_correlation` and `boundary` are given to the pipeline.
            batch_size: clips made at once; changes them only within rounding.
        """
        self.settings = dict(settings)
        self._pipeline, self._batch_size = pipeline, batch_size
        name = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:12]
        self.folder = output / f"clips-{name}"

    def path(self, request: SampleRequest) -> Path:
        """Where the clip is, once it is made."""
        return self.folder / request.file_name

    def make_missing(self, requests: Sequence[SampleRequest], what: str, report: Progress) -> list[float]:
        """Makes the clips that are not there; gives the seconds of each that was made.

        Raises:
            DataError: the model gave numbers that are not finite; no clip is written of them.
        """
        write_json(self.folder / "settings.json", self.settings)
        missing = [request for request in requests if not self.path(request).is_file()]
        seconds: list[float] = []
        for start in range(0, len(missing), self._batch_size):
            report(what, len(requests) - len(missing) + start, len(requests))
            batch = missing[start : start + self._batch_size]
            started = time.perf_counter()
            clips = self._make(batch)
            seconds += [(time.perf_counter() - started) / len(batch)] * len(batch)
            for request, clip in zip(batch, clips, strict=True):
                facts = {"prompt": request.prompt, "seed": str(request.seed)}
                write_video(self.path(request), clip, self._pipeline.config.fps, facts, lossless=True)
        report(what, len(requests), len(requests))
        return seconds

    def _make(self, requests: Sequence[SampleRequest]) -> Frames:
        output: Any = self._pipeline(
            [request.prompt for request in requests],
            num_frames=self.settings["frames"],
            num_inference_steps=self.settings["steps"],
            guidance_scale=self.settings["guidance_scale"],
            motion_guidance=self.settings["motion_guidance"],
            guidance_interval=self.settings.get("guidance_interval", (0.0, 1.0)),
            noise_correlation=self.settings["noise_correlation"],
            boundary=self.settings["boundary"],
            generator=[torch.Generator().manual_seed(request.seed) for request in requests],
            output_type="np",
        )
        frames = np.asarray(output.frames)
        for request, clip in zip(requests, frames, strict=True):
            check_finite(clip, self._pipeline, request.prompt, request.seed)
        return to_uint8(frames)


def sample_settings(
    pipeline: LatentShiftPipeline,
    weights: str,
    frames: int,
    boundary: Boundary | Literal["default"] | None,
    steps: int,
    guidance_scale: float | None = None,
    motion_guidance: float | None = None,
    guidance_interval: Sequence[float] | None = None,
    noise_correlation: float | None = None,
    scheduler: str = "dpm++",
) -> dict[str, Any]:
    """What clips depend on besides prompt and seed, for a `SampleStore`.

    Args:
        pipeline: makes the clips.
        weights: `hash_folder` of its model.
        frames: of a clip.
        boundary: as the pipeline takes it.
        steps: denoising steps.
        guidance_scale: the model's own where None.
        motion_guidance: the model's own where None.
        guidance_interval: the model's own where None.
        noise_correlation: the model's own where None.
        scheduler: a key of `SCHEDULERS`, which the pipeline has.
    """
    config, correlation = pipeline.config, pipeline.noise_correlation
    edges = pipeline.unet.default_boundary if boundary == "default" else boundary
    seam = config.default_seam_frames if edges == "circular" else None
    scale = config.default_guidance_scale if guidance_scale is None else guidance_scale
    interval = tuple(pipeline.guidance_interval if guidance_interval is None else guidance_interval)
    newer = {} if seam is None else {"seam_frames": seam}  # clips of models without one keep their names
    newer |= {"guidance_interval": list(interval)} if scale > 1 and interval != (0, 1) else {}
    return newer | {
        "frames": frames,
        "boundary": edges,
        "model": weights,
        "fast": pipeline.is_fast,
        "scheduler": scheduler,
        "steps": steps,
        "guidance_scale": scale,
        "motion_guidance": config.default_motion_guidance if motion_guidance is None else motion_guidance,
        "noise_correlation": correlation if noise_correlation is None else noise_correlation,
        "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
        "version": _VERSION,
    }


def hash_folder(folder: Path) -> str:
    """A SHA-256 of the names and contents of all files below a folder, links followed: which weights made a clip."""
    walked = os.walk(folder, followlinks=True)  # `rglob` passes over folders that are links
    files = sorted(Path(place) / name for place, _, names in walked for name in names)
    lines = [f"{path.relative_to(folder).as_posix()} {sha256_file(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
