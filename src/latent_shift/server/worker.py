"""The engine of one machine: a thread for each device makes batches of clips that fit together."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Thread
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from latent_shift.core.errors import LatentShiftError
from latent_shift.core.files import atomic_path
from latent_shift.media import to_uint8, write_video
from latent_shift.pipelines import SCHEDULERS, LatentShiftPipeline, make_scheduler
from latent_shift.pipelines.generation import clip_settings
from latent_shift.pipelines.inputs import size_factor
from latent_shift.pipelines.schedulers import FAST_SCHEDULER

from .engine import VARIANTS, ClipRequest, Event, Failed, Finished, ModelFacts, Progress, Started

_log = logging.getLogger(__name__)
_PREVIEW_SECONDS = 0.3
_PREVIEW_SHARE = 0.1
_PREVIEW_SIDE = 256
_DECODED_FRAMES = 8


@dataclass
class _Work:
    job_id: str
    request: ClipRequest
    folder: Path
    cancelled: bool = False


class _NobodyWaits(Exception):
    """Raised between two steps, two parts of a clip or two files: who waited has cancelled, or the engine stops."""


class LocalEngine:
    """Makes clips in threads of this process, one for each pipeline.

    Args:
        name: of the model, as clients know it.
        pipelines: the same model, once on each device.
        max_batch: clips that are denoised together, if their sizes and settings are the same.
        scheduler: a key of `SCHEDULERS`, where a request names none.
    """

    def __init__(
        self, name: str, pipelines: Sequence[LatentShiftPipeline], max_batch: int = 4, scheduler: str = "dpm++"
    ) -> None:
        self.facts = _facts(name, pipelines[0], scheduler)
        self._max_batch = max_batch
        self._waiting: dict[str, _Work] = {}
        self._running: dict[str, _Work] = {}
        self._busy = 0
        self._stopping = False
        self._changed = Condition()
        self._report: Callable[[Event], None] = lambda _: None
        self._threads = [Thread(target=self._serve, args=[pipeline], daemon=True) for pipeline in pipelines]

    def start(self, report: Callable[[Event], None]) -> None:
        """See `Engine`."""
        self._report = report
        for thread in self._threads:
            thread.start()

    def submit(self, job_id: str, request: ClipRequest, folder: Path) -> None:
        """See `Engine`."""
        with self._changed:
            self._waiting[job_id] = _Work(job_id, request, folder)
            self._changed.notify()

    def cancel(self, job_id: str) -> None:
        """See `Engine`."""
        with self._changed:
            self._waiting.pop(job_id, None)
            if job_id in self._running:
                self._running[job_id].cancelled = True

    def stop(self) -> None:
        """See `Engine`."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def busy(self) -> int:
        """See `Engine`."""
        return self._busy

    def healthy(self) -> bool:
        """See `Engine`."""
        return all(thread.is_alive() for thread in self._threads)

    def _serve(self, pipeline: LatentShiftPipeline) -> None:
        pipeline.set_progress_bar_config(disable=True)
        while batch := self._take(self._max_batch):
            for work in batch:
                self._report(Started(work.job_id))
            self._make(pipeline, batch)
            with self._changed:
                self._busy -= 1
                for work in batch:
                    del self._running[work.job_id]

    def _take(self, most: int) -> list[_Work]:
        """The job that waits longest, and those that can be made with it; none when the engine stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            if self._stopping:
                return []
            shape = next(iter(self._waiting.values())).request.shape
            batch = [work for work in self._waiting.values() if work.request.shape == shape][:most]
            for work in batch:
                self._running[work.job_id] = self._waiting.pop(work.job_id)
            self._busy += 1
            return batch

    def _make(self, pipeline: LatentShiftPipeline, batch: list[_Work]) -> None:
        """Makes a batch. Where that fails, those that are left one by one: perhaps the memory was too small for all."""
        left = self._try(pipeline, batch)
        # Here no exception keeps the tensors of the failed batch alive.
        if left and pipeline.device.type == "cuda":
            torch.cuda.empty_cache()
        for work in left:
            if not work.cancelled:
                self._try(pipeline, [work])

    def _try(self, pipeline: LatentShiftPipeline, batch: list[_Work]) -> list[_Work]:
        """Makes a batch; gives the jobs that are worth another try, each alone."""
        undone = list(batch)
        try:
            for work, latents in _Batch(pipeline, batch, self._report, lambda: self._stopping).denoise():
                self._finish(pipeline, work, latents)
                undone.remove(work)
        except _NobodyWaits:
            return []
        except Exception as error:
            undone = [work for work in undone if not work.cancelled]
            if len(batch) > 1:
                return undone
            _log.exception("a clip could not be made")
            for work in undone:
                reason = str(error) if isinstance(error, LatentShiftError) else type(error).__name__
                self._report(Failed(work.job_id, f"the clip could not be made ({reason})"))
        return []

    def _finish(self, pipeline: LatentShiftPipeline, work: _Work, latents: Tensor) -> None:
        """Decodes a clip and writes its files; stops in between where it is cancelled."""

        def check() -> None:
            if work.cancelled or self._stopping:
                raise _NobodyWaits

        try:
            _write(pipeline, work, _decode(pipeline, latents, check), check)
        except _NobodyWaits:
            if self._stopping:
                raise
            return
        self._report(Finished(work.job_id))


class _Batch:
    """Clips that are denoised together. A cancelled one leaves the batch after the step."""

    def __init__(
        self,
        pipeline: LatentShiftPipeline,
        batch: Sequence[_Work],
        report: Callable[[Event], None],
        stopping: Callable[[], bool],
    ) -> None:
        self._pipeline = pipeline
        self._rows = list(batch)
        self._generators = [torch.Generator().manual_seed(work.request.seed) for work in batch]
        self._report = report
        self._stopping = stopping
        self._next_preview = 0.0

    def denoise(self) -> Iterator[tuple[_Work, Tensor]]:
        """Those that were not cancelled, each with its latents `(1, channels, frames, height / f, width / f)`."""
        request = self._rows[0].request
        self._pipeline.scheduler = make_scheduler(request.scheduler, self._pipeline.scheduler.config)
        made: Any = self._pipeline(
            [work.request.prompt for work in self._rows],
            negative_prompt=[work.request.negative_prompt for work in self._rows],
            num_frames=request.num_frames,
            height=request.height,
            width=request.width,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            generator=self._generators,
            boundary="circular" if request.loop else "default",
            output_type="latent",
            callback_on_step_end=self._on_step,
            callback_on_step_end_tensor_inputs=self._pipeline._callback_tensor_inputs,
        )
        return zip(self._rows, torch.split(made.frames, 1), strict=True)

    def _on_step(self, _pipeline: Any, index: int, _timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        kept = [row for row, work in enumerate(self._rows) if not work.cancelled]
        if self._stopping() or not kept:
            raise _NobodyWaits
        changed = {}
        if len(kept) < len(self._rows):
            changed = tensors = self._drop_others(kept, tensors)
        previews = self._previews(tensors["clean_latents"])
        for work, preview in zip(self._rows, previews, strict=True):
            self._report(Progress(work.job_id, index + 1, work.request.num_inference_steps, preview))
        return changed

    def _drop_others(self, kept: list[int], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Keeps some rows of all that the loop goes on with: tensors, generators, and what the solver remembers."""
        videos = len(self._rows), *tensors["latents"].shape[1:]

        def keep(value: Any) -> Any:
            if isinstance(value, list):
                return [keep(item) for item in value]
            return value[kept] if isinstance(value, Tensor) and value.shape == videos else value

        for name, value in vars(self._pipeline.scheduler).items():
            setattr(self._pipeline.scheduler, name, keep(value))
        self._rows[:] = [self._rows[row] for row in kept]
        self._generators[:] = [self._generators[row] for row in kept]
        return {name: tensor[kept] for name, tensor in tensors.items()}

    def _previews(self, clean: Tensor) -> list[bytes | None]:
        """A frame of each clip, not too often: what it costs stays below a tenth of the time."""
        started = time.monotonic()
        if started < self._next_preview:
            return [None] * len(clean)
        middle = clean.shape[2] // 2
        pictures = to_uint8(self._pipeline.decode_latents(clean[:, :, middle : middle + 1])[:, 0])
        encoded: list[bytes | None] = [_jpeg(picture) for picture in pictures]
        now = time.monotonic()
        self._next_preview = now + max(_PREVIEW_SECONDS, (now - started) / _PREVIEW_SHARE)
        return encoded


def _jpeg(picture: npt.NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(picture)
    image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()


def _decode(pipeline: LatentShiftPipeline, latents: Tensor, check: Callable[[], None]) -> npt.NDArray[np.uint8]:
    """Frames `(frames, height, width, 3)` of one clip. `check` is called before each part of it."""
    parts = []
    for part in torch.split(latents, _DECODED_FRAMES, dim=2):
        check()
        frames = pipeline.decode_latents(part)[0]
        if not np.isfinite(frames).all():
            raise FloatingPointError("the model gave numbers that are not finite")
        parts.append(to_uint8(frames))
    return np.concatenate(parts)


def _write(
    pipeline: LatentShiftPipeline, work: _Work, frames: npt.NDArray[np.uint8], check: Callable[[], None]
) -> None:
    """Writes all `VARIANTS` or none. `check` is called before each, and at the end."""
    request = work.request
    boundary = "circular" if request.loop else "default"
    settings = clip_settings(
        pipeline,
        request.model,
        request.scheduler,
        request.prompt,
        request.negative_prompt,
        request.seed,
        request.num_inference_steps,
        boundary,
        request.num_frames,
        guidance_scale=request.guidance_scale,
    )
    metadata = {key: str(value) for key, value in settings.items()}
    with atomic_path(work.folder, durable=True) as folder:
        folder.mkdir()
        for variant, name in VARIANTS.items():
            check()
            shown = frames[:1] if variant == "thumbnail" else frames
            write_video(folder / name, shown, request.fps, metadata)
        check()


def _facts(name: str, pipeline: LatentShiftPipeline, scheduler: str) -> ModelFacts:
    height, width = pipeline.resolve_size()
    offered = [FAST_SCHEDULER] if pipeline.is_fast else SCHEDULERS
    return ModelFacts(
        name=name,
        num_frames=pipeline.config.default_frames,
        width=width,
        height=height,
        size_factor=size_factor(pipeline),
        guidance_scale=pipeline.config.default_guidance_scale,
        fps=pipeline.config.fps,
        schedulers={key: pipeline.config.distilled_steps or SCHEDULERS[key][1] for key in offered},
        scheduler=scheduler,
        max_steps=pipeline.scheduler.config.num_train_timesteps,
        loops=pipeline.unet.default_boundary == "circular",
    )
