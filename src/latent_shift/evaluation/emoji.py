"""`latent-shift evaluate emoji`: does the default model draw what the sentence says, and move as that thing moves?

Who is asked for is in `subjects`. Every clip is made once, with a seed of its own, and kept as a lossless file in a
folder that is named by model and settings; a second run takes what is there. The scores are computed from the files.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from latent_shift import __version__
from latent_shift.core.errors import InputError
from latent_shift.core.shapes import check_at_least
from latent_shift.data.heldout import load_heldout
from latent_shift.data.records import CaptionedVideoFolder
from latent_shift.media import Frames, read_video
from latent_shift.metrics import loop_closes
from latent_shift.ops import Boundary
from latent_shift.pipelines import LatentShiftPipeline, find_scheduler, load_pipeline, make_scheduler
from latent_shift.pipelines.inputs import check_guidance
from latent_shift.pipelines.loading import model_folder

from .judge import EmojiJudge
from .samples import Progress, SampleStore, hash_folder, sample_settings
from .subjects import SETS, Subject, emoji_subjects, open_emoji

_PSNR_EVERY = 6
"""The autoencoder is measured on every sixth frame of the held-out families' clips."""

Row = Literal["model", "loop", "shift_off", "base"]
_BOUNDARIES: dict[Row, Boundary | Literal["default"] | None] = {
    "model": "default",
    "loop": "circular",
    "shift_off": None,
    "base": None,
}


_FLOORS: tuple[Row, ...] = ("base", "shift_off")


@dataclass(frozen=True)
class EvaluationOptions:
    """How the clips are made.

    Attributes:
        scheduler: a key of `SCHEDULERS`; "dpm++", or what a distilled model was trained for, where None.
        steps: denoising steps; the scheduler's usual number where None.
        fast: the model as `load_pipeline` distils it.
        guidance_scale: the model's own where None.
        motion_guidance: the model's own where None.
        guidance_interval: the model's own where None.
        noise_correlation: of the first step's noise; the model's own where None.
        seed: all clips' seeds follow from it.
        labels: how many training labels.
        limit: at most so many clips of each set; for trials, and said in the result.
        sets: which of `SETS`.
        loop: also make every clip as a loop, for `seam`.
        floors: also make the clips of the video model with its shift off.
        batch_size: clips made at once; changes them only within rounding.
    """

    scheduler: str | None = None
    steps: int | None = None
    fast: bool = False
    guidance_scale: float | None = None
    motion_guidance: float | None = None
    guidance_interval: tuple[float, float] | None = None
    noise_correlation: float | None = None
    seed: int = 0
    labels: int = 100
    limit: int | None = None
    sets: tuple[str, ...] = SETS
    loop: bool = False
    floors: bool = True
    batch_size: int = 1

    def __post_init__(self) -> None:
        """Raises `InputError` for a value out of range."""
        for name in ("steps", "limit", "labels", "batch_size"):
            check_at_least(name, 1 if getattr(self, name) is None else getattr(self, name), 1)
        find_scheduler(self.scheduler, self.fast)
        check_guidance(self.guidance_scale, self.motion_guidance, self.guidance_interval)
        if self.noise_correlation is not None and not 0 <= self.noise_correlation < 1:
            raise InputError("noise_correlation", self.noise_correlation, "be in [0, 1)")
        for name in self.sets:
            if name not in SETS:
                raise InputError("sets", name, f"be among {', '.join(SETS)}")


def evaluate_emoji(
    model: str = "emoji",
    data: str | Path = "data/emoji",
    output: str | Path = "runs/evaluation",
    options: EvaluationOptions | None = None,
    base: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Makes what is missing of the clips, and scores them.

    Args:
        model: a name or folder, as `load_pipeline` takes it.
        data: the folder that `latent-shift data emoji` made.
        output: where clips and real features are kept; several models can share it.
        options: see `EvaluationOptions`.
        base: folder of the text-to-image base, for its floor; without it that row is left out.
        device: as `load_pipeline`.
        dtype: as `load_pipeline`.
        progress: told how far each part is.

    Returns:
        For each set the scores of the model, of its `ceiling` (real clips through the autoencoder) and `floor` rows,
        as `docs/default_model.md` shows them, and the settings. `match` and `seam` are shares in [0, 1], `motion` holds
        medians, all rounded to 4 digits. The ceiling's `seam` is the share of the real clips themselves.

    Raises:
        InputError: the folder is no emoji folder of this version, or an option is wrong: `base`, too, where the model
            is to be fast, because the base is not.
    """
    options = options or EvaluationOptions()
    report = progress or (lambda _what, _done, _total: None)
    folder = open_emoji(data)
    subjects = {
        name: chosen[: options.limit]
        for name, chosen in emoji_subjects(folder, options.labels, options.seed).items()
        if name in options.sets
    }
    pipeline = load_pipeline(model, device, dtype, options.fast)
    if pipeline.is_fast and base is not None:
        raise InputError("base", base, "be left out where the model is fast")
    scheduler, usual_steps = find_scheduler(options.scheduler, pipeline.is_fast)
    steps = options.steps or pipeline.config.distilled_steps or usual_steps
    options = dataclasses.replace(options, scheduler=scheduler, steps=steps, fast=pipeline.is_fast)

    def prepare(loaded: LatentShiftPipeline) -> LatentShiftPipeline:
        loaded.scheduler = make_scheduler(scheduler, loaded.scheduler.config)
        loaded.set_progress_bar_config(disable=True)
        return loaded

    prepare(pipeline)
    judge = EmojiJudge(folder, Path(output), pipeline.device, report)

    rows: dict[Row, LatentShiftPipeline] = {"model": pipeline}
    if options.loop:
        rows["loop"] = pipeline
    if options.floors:
        rows["shift_off"] = pipeline
    if base is not None:
        rows["base"] = prepare(load_pipeline(base, device, dtype))
    hashes = {source: hash_folder(model_folder(source)) for source in (model, base) if source is not None}
    store = {
        row: _store(Path(output), row, hashes[base if row == "base" and base else model], rows[row], options)
        for row in rows
    }
    requests = {name: [subject.request(name) for subject in chosen] for name, chosen in subjects.items()}
    everyone = [request for chosen in requests.values() for request in chosen]
    seconds = {row: clips.make_missing(everyone, f"clips: {row}", report) for row, clips in store.items()}

    def clips_of(row: Row, name: str) -> Iterable[Frames]:
        return (read_video(store[row].path(request)).frames for request in requests[name])

    result: dict[str, Any] = {
        "settings": {
            "model": Path(model).name,
            "model_sha256": hashes[model],
            "latent_shift": __version__,
            "torch": torch.__version__,
            "device": str(pipeline.device),
            "dtype": str(pipeline.unet.dtype).removeprefix("torch."),
            "heldout": load_heldout().name,
            "fast": options.fast,
            "scheduler": options.scheduler,
            "steps": options.steps,
            "guidance_scale": store["model"].settings["guidance_scale"],
            "motion_guidance": store["model"].settings["motion_guidance"],
            "guidance_interval": store["model"].settings.get("guidance_interval", [0.0, 1.0]),
            "noise_correlation": store["model"].settings["noise_correlation"],
            "seed": options.seed,
            "limit": options.limit,
        },
    }
    for name, chosen in subjects.items():
        report(f"scoring {name}", 0, None)
        scores = _score(judge, name, chosen, clips_of("model", name))
        if "loop" in store:
            loops = list(clips_of("loop", name))
            scores["seam"] = _share(loop_closes(clip) for clip in loops)
            scores["loop"] = _score(judge, name, chosen, loops)
        through = (reconstruct(pipeline, folder.read(subject.record).frames) for subject in chosen)
        scores["ceiling"] = _score(judge, name, chosen, through)
        scores["ceiling"]["seam"] = _share(loop_closes(folder.read(subject.record).frames) for subject in chosen)
        scores["floor"] = {row: _score(judge, name, chosen, clips_of(row, name)) for row in _FLOORS if row in store}
        result[name] = scores
    result["autoencoder"] = autoencoder_psnr(pipeline, folder)
    if seconds["model"]:  # none where all clips were there
        result["settings"]["seconds_per_clip"] = round(statistics.median(seconds["model"]), 2)
    return result


def _store(
    output: Path, row: Row, weights: str, pipeline: LatentShiftPipeline, options: EvaluationOptions
) -> SampleStore:
    """The clips of one row; rows that have the same clips share them."""
    settings = sample_settings(
        pipeline,
        weights,
        frames=1 if row == "base" else pipeline.config.default_frames,
        boundary=_BOUNDARIES[row],
        steps=options.steps or 1,
        guidance_scale=options.guidance_scale,
        motion_guidance=options.motion_guidance,
        guidance_interval=options.guidance_interval,
        noise_correlation=options.noise_correlation,
        scheduler=options.scheduler or "",
    )
    return SampleStore(output, pipeline, settings, options.batch_size)


def _score(judge: EmojiJudge, name: str, subjects: Sequence[Subject], clips: Iterable[Frames]) -> dict[str, Any]:
    """Match and motion of one set, each clip against its subject."""
    judged = [judge.judge(subject, clip) for subject, clip in zip(subjects, clips, strict=True)]
    match = {"top1": _share(one.top1 for one in judged), "top5": _share(one.top5 for one in judged)}
    if name == "pairs":
        match["tone"] = _share(one.tone for one in judged)
    motion = {"r2": _median(one.r2 for one in judged), "ratio": _median(one.ratio for one in judged)}
    return {"clips": len(subjects), "match": match, "motion": motion}


@torch.no_grad()
def reconstruct(pipeline: LatentShiftPipeline, frames: Frames, chunk: int = 8) -> Frames:
    """Frames through the autoencoder, from the mean of its posterior."""
    vae, parts = pipeline.vae, []
    for start in range(0, len(frames), chunk):
        part = torch.from_numpy(np.ascontiguousarray(frames[start : start + chunk])).permute(0, 3, 1, 2)
        pictures = (part.float() / 127.5 - 1).to(pipeline.device, vae.dtype)
        decoded = vae.decode(vae.encode(pictures).latent_dist.mean).sample.float()
        parts.append(((decoded / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu())
    return torch.cat(parts).numpy()


def autoencoder_psnr(pipeline: LatentShiftPipeline, folder: CaptionedVideoFolder) -> dict[str, Any]:
    """Mean PSNR in dB over frames of the held-out families: unseen, but for one still a family."""
    families, values = load_heldout().families, []
    for record in folder:
        if record.metadata["kind"] == "clip" and record.metadata["family"] in families:
            frames = folder.read(record.index).frames[::_PSNR_EVERY]
            error = np.square(reconstruct(pipeline, frames).astype(np.float64) - frames).mean(axis=(1, 2, 3))
            values += (10 * np.log10(255**2 / np.maximum(error, 1e-10))).tolist()
    return {"frames": len(values), "psnr_db": round(float(np.mean(values)), 2) if values else None}


def _share(hits: Iterable[bool]) -> float | None:
    values = list(hits)
    return round(sum(values) / len(values), 4) if values else None


def _median(found: Iterable[float | None]) -> float | None:
    values = [value for value in found if value is not None]
    return round(statistics.median(values), 4) if values else None
