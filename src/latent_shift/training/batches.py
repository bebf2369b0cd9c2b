"""What the image and the video stage learn from: clips and stills, cached or decoded as they come, and their noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    """Clips that are decoded when they are needed, each time at another moment."""

    def __init__(self, recipe: Recipe, source: Selection) -> None:
        """Args: recipe: the run's. source: the records that it may see."""
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
        clip = self._loader(kind)[position]
        form = _caption_form(rng, len(clip.record.captions))
        return Sample(clip.frames, "" if dropped else clip.record.captions[form])

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
    step's kind (clips or stills, boundary) from (seed, step), so a resumed run draws what an uninterrupted one does.
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

    def size(self, step: int) -> int:
        """The recipe's batch size for clips, for stills or for single frames."""
        stills_of_a_video_run = self._recipe.stage == "video" and self._kind(step)[0] == "still"
        return self._recipe.image_batch_size if stills_of_a_video_run else self._recipe.batch_size

    @property
    def quarantined(self) -> Mapping[str, str]:
        """Files that could not be read so far, and why."""
        return self._samples.quarantined

    def names(self, step: int, rows: range) -> list[str]:
        """The files of the rows."""
        (kind, number), size = self._kind(step), self.size(step)
        return [str(self._samples.record(kind, number * size + row).path) for row in rows]

    def draw(self, step: int, rows: range | None = None) -> Batch:
        """Rows of the batch of a step; all of them where none are named.

        Raises:
            DataError: more of the source is bad than the recipe allows.
        """
        recipe, size = self._recipe, self.size(step)
        rows = rows or range(size)
        kind, number = self._kind(step)
        boundary: Boundary | None = None
        if recipe.stage == "video":
            rng = np.random.default_rng(derive_seed(recipe.seed, "boundary", kind, number))
            boundary = "circular" if rng.random() < recipe.diffusion.circular_share else "zero"
        samples: list[Sample] = []
        noises: list[tuple[Tensor, Tensor]] = []
        text_noises: list[Tensor] = []
        for position in range(number * size + rows.start, number * size + rows.stop):
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
        timesteps = self._timesteps(derive_seed(recipe.seed, kind, "timesteps", number), size)
        return Batch(
            **_stack(samples, self._text_shape[0]),
            text_noise=torch.stack(text_noises) if text_noises else None,
            posterior_noise=posterior_noise,
            noise=correlate_frames(noise, self._noise_correlation, boundary or "zero"),
            timesteps=timesteps[rows.start : rows.stop],
            boundary=boundary,
        )

    def _kind(self, step: int) -> tuple[Kind, int]:
        """What a step learns from, and how many steps of its kind came before."""
        recipe, kinds = self._recipe, self._samples.kinds
        share = recipe.diffusion.image_share if len(kinds) == 2 else float("stills" in kinds)
        # Steps on stills are spread evenly; each kind of step counts on its own, so that no sample is passed over.
        stills_before = math.floor(step * share)
        if math.floor((step + 1) * share) > stills_before:
            return "still", stills_before
        return "frame" if recipe.stage == "image" else "clip", step - stills_before

    def _timesteps(self, seed: int, size: int) -> Tensor:
        """In [0, T): uniform but for `timestep_shift`, and spread evenly over a batch (arXiv:2107.00630, App. I.1)."""
        options = self._recipe.diffusion
        spread = (np.random.default_rng(seed).random() + np.arange(size) / size) % 1
        shifted = options.timestep_shift * spread / (1 + (options.timestep_shift - 1) * spread)
        return torch.from_numpy((shifted * options.num_train_timesteps).astype(np.int64))


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
