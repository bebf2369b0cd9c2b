"""What `latent-shift reproduce` compares: clips made once, judged once, and kept as numbers and features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from latent_shift.core.errors import InputError
from latent_shift.core.files import atomic_path
from latent_shift.core.shapes import check_at_least
from latent_shift.data.records import CaptionedVideoFolder
from latent_shift.media import Frames, read_video, resize_frames
from latent_shift.ops import Boundary
from latent_shift.pipelines import LatentShiftPipeline, load_pipeline
from latent_shift.pipelines.loading import model_folder
from latent_shift.pipelines.schedulers import DEFAULT_STEPS, make_scheduler

from .judge import EmojiJudge
from .samples import Progress, SampleStore, hash_folder, sample_settings
from .subjects import SETS, Subject, emoji_subjects


@dataclass(frozen=True)
class System:
    """One way to make clips: a row of the tables.

    Attributes:
        title: for readers.
        model: which: `latent_shift`, `latent_vdm`, or `base`, the text-to-image model that both were trained from,
            which draws with Latent-Shift's guidance and autoencoder.
        boundary: as the pipeline takes it; None leaves the shift, or the temporal attention, out.
        image: one frame, which counts as a frozen clip.
        sets: of `SETS`, those it is asked for.
        all_seeds: whether with every sampling seed, or with the first alone.
    """

    title: str
    model: str
    boundary: Boundary | Literal["default"] | None = "default"
    image: bool = False
    sets: tuple[str, ...] = ("training",)
    all_seeds: bool = True


SYSTEMS: dict[str, System] = {
    "latent_shift": System("Latent-Shift", "latent_shift", sets=SETS),
    "latent_vdm": System("Latent-VDM", "latent_vdm", sets=SETS),
    "latent_shift_off": System("Latent-Shift, shift off", "latent_shift", None, all_seeds=False),
    "base_image": System("text-to-image base", "base", None, image=True),
    "latent_shift_image": System("Latent-Shift, one frame", "latent_shift", image=True),
    "latent_shift_off_image": System("Latent-Shift, one frame, shift off", "latent_shift", None, image=True),
    "latent_vdm_image": System("Latent-VDM, one frame", "latent_vdm", image=True),
    "latent_vdm_off_image": System("Latent-VDM, one frame, attention off", "latent_vdm", None, image=True),
}


@dataclass(frozen=True)
class ReproduceOptions:
    """How much is made.

    Attributes:
        steps: denoising steps of the default solver.
        seeds: sampling seeds 0, 1, ... of every subject.
        labels: how many training labels.
        limit: at most so many subjects of each set; for trials, and said in the report.
        rounds: clips of each model that are timed.
        resamples: of the bootstrap.
        batch_size: clips made at once; changes them only within rounding.
    """

    steps: int = DEFAULT_STEPS
    seeds: int = 3
    labels: int = 100
    limit: int | None = None
    rounds: int = 7
    resamples: int = 200
    batch_size: int = 1

    def __post_init__(self) -> None:
        """Raises `InputError` for a value out of range."""
        for name in ("steps", "seeds", "labels", "rounds", "batch_size"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("resamples", self.resamples, 2)
        check_at_least("limit", 2 if self.limit is None else self.limit, 2)


@dataclass(frozen=True)
class Measured:
    """One system on one set; the numbers of `Judgement`, NaN where there is none.

    Attributes:
        top1: `(subjects, seeds)`, float64, as all but the features.
        top5: as above.
        tone: as above.
        r2: as above.
        ratio: as above.
        features: `(subjects, seeds, frames, 1280)`, float16.
    """

    top1: npt.NDArray[np.float64]
    top5: npt.NDArray[np.float64]
    tone: npt.NDArray[np.float64]
    r2: npt.NDArray[np.float64]
    ratio: npt.NDArray[np.float64]
    features: npt.NDArray[np.float16]


_NUMBERS = ("top1", "top5", "tone", "r2", "ratio")


class Samples:
    """The clips of all systems, and what they measured."""

    def __init__(
        self,
        systems: Mapping[str, System],
        models: Mapping[str, str],
        folder: CaptionedVideoFolder,
        output: Path,
        options: ReproduceOptions,
        device: str,
        dtype: str,
        progress: Progress,
    ) -> None:
        """Makes nothing yet.

        Args:
            systems: by name.
            models: name or folder of each; systems of a model that is not given are left out.
            folder: what `latent-shift data emoji` made.
            output: where clips, features and numbers are kept.
            options: see `ReproduceOptions`.
            device: as `load_pipeline`.
            dtype: as `load_pipeline`.
            progress: told how far each part is.

        Raises:
            InputError: a model is none, or a set has fewer than 2 subjects.
        """
        self.hashes = {name: hash_folder(model_folder(place)) for name, place in models.items()}
        self.systems = {name: system for name, system in systems.items() if system.model in models}
        self.load: Callable[[str], LatentShiftPipeline] = cache(self._load)
        self.folder = folder
        self._models, self._output, self._options = models, output, options
        self._device, self._dtype, self._progress = device, dtype, progress
        seeds = [emoji_subjects(folder, options.labels, seed) for seed in range(options.seeds)]
        self.subjects: dict[str, list[list[Subject]]] = {
            name: [subjects[name][: options.limit] for subjects in seeds] for name in SETS
        }
        """Of each set, for each seed."""
        self.families = {
            name: [str(folder[one.record].metadata["family"]) for one in first]
            for name, (first, *_) in self.subjects.items()
        }
        """Of the subjects of each set."""
        for name, (first, *_) in self.subjects.items():
            if len(first) < 2 and any(name in system.sets for system in self.systems.values()):
                raise InputError("data", str(folder.path), f"have at least 2 subjects in the set {name}")
        self.judge = cache(lambda: EmojiJudge(folder, output, self.load(next(iter(models))).device, progress))

    def measure(self, system: str, name: str) -> Measured:
        """What a system is worth on a set; of clips that are not there yet, makes and judges them first."""
        seeds = self.subjects[name] if self.systems[system].all_seeds else self.subjects[name][:1]
        columns = [self._column(system, name, seed, subjects) for seed, subjects in enumerate(seeds)]
        return Measured(**{key: np.stack([column[key] for column in columns], axis=1) for key in columns[0]})

    def real_features(self, name: str, size: int) -> npt.NDArray[np.float16]:
        """Of the subjects' real clips at `size` x `size`, as the models draw them; `(subjects, frames, 1280)`."""
        path = self._output / "measured" / f"real-{name}-{size}-{self._key(self.subjects[name][0])}.npy"
        if not path.is_file():
            clips = (self.folder.read(one.record).frames for one in self.subjects[name][0])
            rows = [self.judge().features(resize_frames(clip, size)) for clip in clips]
            with atomic_path(path) as temporary:
                np.save(temporary, np.stack(rows).astype(np.float16), allow_pickle=False)
        features: npt.NDArray[np.float16] = np.load(path, allow_pickle=False)
        return features

    def clip(self, system: str, name: str, number: int) -> Frames:
        """The clip of a set's subject, of the first seed; made where it is not there."""
        request = self.subjects[name][0][number].request(name)
        store = self._store(system)
        store.make_missing([request], self.systems[system].title, self._progress)
        return read_video(store.path(request)).frames

    def _column(self, system: str, name: str, seed: int, subjects: Sequence[Subject]) -> dict[str, npt.NDArray[Any]]:
        store = self._store(system)
        path = self._output / "measured" / f"{store.folder.name}-{name}-{seed}-{self._key(subjects)}.safetensors"
        if not path.is_file():
            requests = [subject.request(name) for subject in subjects]
            store.make_missing(requests, f"{self.systems[system].title}: {name}, seed {seed}", self._progress)
            judged = [
                self.judge().judge(subject, read_video(store.path(request)).frames)
                for subject, request in zip(subjects, requests, strict=True)
            ]
            numbers = {key: np.array([getattr(one, key) for one in judged], dtype=np.float64) for key in _NUMBERS}
            features = np.stack([one.features for one in judged]).astype(np.float16)
            with atomic_path(path) as temporary:
                save_file({"features": features, **numbers}, temporary)
        return load_file(path)

    def _key(self, subjects: Sequence[Subject]) -> str:
        """Names who was asked for, the real clips and the network that looked."""
        return hashlib.sha256(f"{self.judge().key} {subjects!r}".encode()).hexdigest()[:12]

    def _store(self, system: str) -> SampleStore:
        how = self.systems[system]
        pipeline, weights, guidance_scale = self.load(how.model), self.hashes[how.model], None
        if how.model == "base":
            weights = f"{weights} decoded by {self.hashes['latent_shift']}"
            guidance_scale = self.load("latent_shift").config.default_guidance_scale
        settings = sample_settings(
            pipeline,
            weights,
            frames=1 if how.image else pipeline.config.default_frames,
            boundary=how.boundary,
            steps=self._options.steps,
            guidance_scale=guidance_scale,
        )
        return SampleStore(self._output, pipeline, settings, self._options.batch_size)

    def _load(self, model: str) -> LatentShiftPipeline:
        """A model, with the solver that settings name."""
        pipeline = load_pipeline(self._models[model], self._device, self._dtype)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = make_scheduler("dpm++", pipeline.scheduler.config)
        return pipeline
