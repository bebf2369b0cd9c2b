"""What the image and the video stage learn from: clips and stills, cached or decoded as they come, and their noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from latent_shift.core.errors import DataError, InputError
from latent_shift.core.seeding import derive_seed
from latent_shift.data.cache import ClipCache
from latent_shift.data.clips import Clip, ClipLoader
from latent_shift.data.config import ClipConfig
from latent_shift.data.order import SampleOrder
from latent_shift.data.records import CaptionedVideo
from latent_shift.data.sources import Selection
from latent_shift.ops import Boundary
from latent_shift.pipelines.noise import correlate_frames

from .config import Recipe
from .shares import Group
from .sources import balance_groups, is_still

Kind = Literal["still", "frame", "clip"]
"""A still picture, a single frame of a clip, a clip."""


@dataclass(frozen=True)
class Batch:
    """Rows of what one optimiser step learns from; encoded before (`moments`, `text`) or not (`frames`, `captions`)."""

    moments: Float[Tensor, "rows moments frames height width"] | None
    """Mean and log-variance of the autoencoder's posterior, in this order along the second axis."""
    frames: UInt8[Tensor, "rows frames size size 3"] | None
    """RGB pictures."""
    text: Float[Tensor, "rows tokens text_width"] | None
    """Text features, the empty caption's where the caption is dropped."""
    captions: list[str] | None
    """Sentences, empty where the caption is dropped."""
    text_noise: Float[Tensor, "rows tokens text_width"] | None
    """What is added to the text features, in units of each caption's own root mean square."""
    posterior_noise: Float[Tensor, "rows channels frames height width"]
    """What draws latents from the posterior: noise of unit variance."""
    noise: Float[Tensor, "rows channels frames height width"]
    """What the network is to find, of unit variance."""
    timesteps: Tensor
    """`(rows,)`, uniform in [0, T)."""
    boundary: Boundary | None
    """What the shift does in this step; None in the image stage: the base model has no shift."""


@dataclass(frozen=True)
class Sample:
    """One row before it has noise: a part of the cache, or of the files."""

    content: np.ndarray
    """Moments `(frames, 2 * channels, height, width)` float16, or pictures `(frames, size, size, 3)` uint8."""
    caption: np.ndarray | str
    """Text features `(tokens, text_width)`, or a sentence."""


@runtime_checkable
class Samples(Protocol):
    """Records by kind and position of the stream."""

    @property
    def kinds(self) -> frozenset[str]:
        """Which of "stills" and "clips" there are."""

    def record(self, kind: Kind, position: int) -> CaptionedVideo:
        """The record at `position` of the endless stream of its kind."""

    def read(self, kind: Kind, position: int, dropped: bool, rng: np.random.Generator) -> Sample:
        """Its content, and one of its captions or, where it is dropped, the empty one."""

    @property
    def quarantined(self) -> Mapping[str, str]:
        """Files that could not be read so far, and why."""


class CachedSamples:
    """Clips that were encoded before."""

    def __init__(self, recipe: Recipe, records: Sequence[CaptionedVideo], cache: ClipCache, empty: np.ndarray) -> None:
        """Draws nothing yet.

        Args:
            recipe: the run's.
            records: what is in the cache.
            cache: their moments and text features.
            empty: text features of the empty caption.
        """
        self._records, self._cache, self._empty = records, cache, empty
        lengths = np.diff(cache.frame_offsets)
        self._indices: dict[str, list[int]] = {
            "stills": np.nonzero(lengths == 1)[0].tolist(),
            "clips": np.nonzero(lengths > 1)[0].tolist(),
        }
        groups = balance_groups(records, recipe.data.balance_by)
        self._orders = {
            name: SampleOrder([groups[index] for index in indices], derive_seed(recipe.seed, name))
            for name, indices in self._indices.items()
            if indices
        }
        self.kinds = frozenset(self._orders)
        self.quarantined: Mapping[str, str] = cache.bad

    def record(self, kind: Kind, position: int) -> CaptionedVideo:
        """See `Samples`."""
        return self._records[self._index(kind, position)]

    def read(self, kind: Kind, position: int, dropped: bool, rng: np.random.Generator) -> Sample:
        """See `Samples`."""
        index = self._index(kind, position)
        clip = self._cache.clip(index)
        if kind != "clip":
            clip = clip[[rng.integers(len(clip))]]
        form = _caption_form(rng, self._cache.num_captions(index))
        return Sample(clip, self._empty if dropped else self._cache.caption(index, form))

    def _index(self, kind: Kind, position: int) -> int:
        name = "stills" if kind == "still" else "clips"
        return self._indices[name][self._orders[name].record(position)]


class LiveSamples:
    """Clips that are decoded when they are needed, each time at another moment.

    A distillation learns from captions alone: it has pictures of no size then, and no file is opened.
    """

    def __init__(self, recipe: Recipe, source: Selection) -> None:
        """Args: recipe: the run's. source: the records that it may see."""
        self._captions_alone = recipe.distillation.steps > 0
        still = np.fromiter(map(is_still, source), dtype=bool)
        stills, clips = (Selection(source, np.flatnonzero(still == kind)) for kind in (True, False))
        options = recipe.data.model_dump(include=set(ClipConfig.model_fields))
        one_frame = ClipConfig(**{**options, "num_frames": 1})
        wanted = one_frame if recipe.stage == "image" else ClipConfig(**options)
        self._loaders: dict[str, ClipLoader] = {
            name: loader(
                records,
                config,
                seed=derive_seed(recipe.seed, name),
                groups=balance_groups(records, recipe.data.balance_by) if recipe.data.balance_by else None,
            )
            for name, records, config, loader in (
                ("stills", stills, one_frame, ClipLoader),
                ("clips", clips, wanted, _MovingClips),
            )
            if records
        }
        self.kinds = frozenset(self._loaders)

    def record(self, kind: Kind, position: int) -> CaptionedVideo:
        """See `Samples`; where one was found to be bad, what took its place."""
        return self._loader(kind).record(position)

    def read(self, kind: Kind, position: int, dropped: bool, rng: np.random.Generator) -> Sample:
        """See `Samples`."""
        loader = self._loader(kind)
        if self._captions_alone:
            record, frames = loader.record(position), np.zeros((loader.config.num_frames, 0, 0, 3), np.uint8)
        else:
            clip = loader[position]
            record, frames = clip.record, clip.frames
        form = _caption_form(rng, len(record.captions))
        return Sample(frames, "" if dropped else record.captions[form])

    @property
    def quarantined(self) -> Mapping[str, str]:
        """See `Samples`."""
        return {bad.file: bad.reason for loader in self._loaders.values() for bad in loader.bad.values()}

    def _loader(self, kind: Kind) -> ClipLoader:
        return self._loaders["stills" if kind == "still" else "clips"]


class _MovingClips(ClipLoader):
    def read(self, record: CaptionedVideo, position: int) -> Clip:
        clip = super().read(record, position)
        if len(clip.frames) < self.config.num_frames:
            raise DataError(f"{record.path} is a single image")
        return clip


class DenoisingBatches:
    """Samples with their noise.

    A sample's caption, dropout, noise, timestep and phase follow from (seed, its position in the stream), and a
    step's kinds (clips, stills) and boundary from (seed, step), so a resumed run draws what an uninterrupted one does.
    """

    def __init__(
        self,
        recipe: Recipe,
        samples: Samples,
        latent_shape: tuple[int, int, int],
        text_shape: tuple[int, int],
        noise_correlation: float,
    ) -> None:
        """Draws nothing yet.

        Args:
            recipe: the run's.
            samples: what is drawn from.
            latent_shape: channels, height and width of a frame's latents.
            text_shape: caption length of the model, in tokens, and width of its text features.
            noise_correlation: of neighbouring frames' noise.

        Raises:
            InputError: a video stage has no clips.
        """
        if recipe.stage == "video" and "clips" not in samples.kinds:
            raise InputError("data.source", recipe.data.source, "have clips of more than one frame")
        self._recipe, self._samples = recipe, samples
        self._latent_shape, self._text_shape = latent_shape, text_shape
        self._noise_correlation = noise_correlation

    def groups(self, step: int) -> list[Group]:
        """Clips, stills or single frames; clips and then stills where the recipe joins them."""
        return [group for _, _, group in self._plan(step)]

    @property
    def quarantined(self) -> Mapping[str, str]:
        """Files that could not be read so far, and why."""
        return self._samples.quarantined

    def names(self, step: int, rows: range) -> list[str]:
        """The files of the rows."""
        kind, number, group = self._find(step, rows)
        return [str(self._samples.record(kind, position).path) for position in _positions(number, group, rows)]

    def draw(self, step: int, rows: range | None = None) -> Batch:
        """Rows of one group of a step's batch; all of the first where none are named.

        Raises:
            DataError: more of the source is bad than the recipe allows.
        """
        recipe, rows = self._recipe, rows or self.groups(step)[0].rows
        kind, number, group = self._find(step, rows)
        boundary: Boundary | None = None
        if recipe.stage == "video":
            rng = np.random.default_rng(derive_seed(recipe.seed, "boundary", kind, number))
            boundary = "circular" if rng.random() < recipe.diffusion.circular_share else "zero"
        samples: list[Sample] = []
        noises: list[tuple[Tensor, Tensor]] = []
        text_noises: list[Tensor] = []
        for position in _positions(number, group, rows):
            seed = derive_seed(recipe.seed, kind, position)
            rng = np.random.default_rng(seed)
            dropped = bool(rng.random() < recipe.diffusion.caption_dropout)
            sample = self._samples.read(kind, position, dropped, rng)
            if kind == "clip" and recipe.diffusion.random_phase:
                sample = Sample(np.roll(sample.content, int(rng.integers(len(sample.content))), axis=0), sample.caption)
            samples.append(sample)
            channels, height, width = self._latent_shape
            shape = (2, channels, len(sample.content), height, width)
            generator = torch.Generator().manual_seed(seed)
            noise, posterior_noise = torch.randn(shape, generator=generator)
            noises.append((noise, posterior_noise))
            if recipe.diffusion.text_noise:
                strength = recipe.diffusion.text_noise * torch.rand((), generator=generator)
                text_noises.append(strength * torch.randn(self._text_shape, generator=generator))
        noise, posterior_noise = (torch.stack(parts) for parts in zip(*noises, strict=True))
        timesteps = self._timesteps(derive_seed(recipe.seed, kind, "timesteps", number), len(group))
        return Batch(
            **_stack(samples, self._text_shape[0]),
            text_noise=torch.stack(text_noises) if text_noises else None,
            posterior_noise=posterior_noise,
            noise=correlate_frames(noise, self._noise_correlation, boundary or "zero"),
            timesteps=timesteps[rows.start - group.start : rows.stop - group.start],
            boundary=boundary,
        )

    def _plan(self, step: int) -> list[tuple[Kind, int, Group]]:
        """What a step learns from, how many groups of each kind came before, and its rows.

        Each kind counts on its own, so that no sample is passed over.
        """
        recipe, kinds = self._recipe, self._samples.kinds
        video, share = recipe.stage == "video", recipe.diffusion.image_share
        kind: Kind = "clip" if video else "frame"
        clips = Group(range(recipe.batch_size))
        stills = Group(range(recipe.image_batch_size), "image_batch_size") if video else clips
        if len(kinds) == 1:
            share = float("stills" in kinds)
        elif recipe.diffusion.joint_images:
            rows = range(len(clips.rows), len(clips.rows) + len(stills.rows))
            joined = replace(clips, weight=1 - share), replace(stills, rows=rows, weight=share)
            return [(kind, step, joined[0]), ("still", step, joined[1])]
        stills_before = math.floor(step * share)  # steps on stills are spread evenly
        if math.floor((step + 1) * share) > stills_before:
            return [("still", stills_before, stills)]
        return [(kind, step - stills_before, clips)]

    def _find(self, step: int, rows: range) -> tuple[Kind, int, range]:
        """What these rows are, their group's place among those of its kind, and all its rows."""
        ((kind, number, group),) = (entry for entry in self._plan(step) if rows.start in entry[2].rows)
        return kind, number, group.rows

    def _timesteps(self, seed: int, size: int) -> Tensor:
        """In [0, T): uniform but for `timestep_shift`, and spread evenly over a batch (arXiv:2107.00630, App. I.1)."""
        options = self._recipe.diffusion
        spread = (np.random.default_rng(seed).random() + np.arange(size) / size) % 1
        shifted = options.timestep_shift * spread / (1 + (options.timestep_shift - 1) * spread)
        return torch.from_numpy((shifted * options.num_train_timesteps).astype(np.int64))


def _positions(number: int, group: range, rows: range) -> range:
    """Of the rows of a group in the stream of their kind, after so many groups of its size."""
    first = number * len(group) - group.start
    return range(first + rows.start, first + rows.stop)


def _caption_form(rng: np.random.Generator, count: int) -> int:
    """Every second time the plain caption, else any of its forms."""
    return 0 if rng.random() < 0.5 else int(rng.integers(count))


def _stack(samples: Sequence[Sample], max_tokens: int) -> dict[str, Any]:
    """The fields of a `Batch` that come from samples."""
    content = torch.from_numpy(np.stack([sample.content for sample in samples]))
    encoded = content.dtype != torch.uint8
    made: dict[str, Any] = {"moments": None, "frames": None, "text": None, "captions": None}
    if encoded:
        rows = [np.asarray(sample.caption) for sample in samples]
        text = np.zeros((len(rows), max_tokens, rows[0].shape[1]), dtype=np.float32)
        for index, row in enumerate(rows):
            text[index, : len(row)] = row
        return made | {"moments": content.float().transpose(1, 2), "text": torch.from_numpy(text)}
    return made | {"frames": content, "captions": [str(sample.caption) for sample in samples]}
