"""`latent-shift evaluate folder`: scores anybody's clips, against a folder of real ones where the metric needs some.

Files are decoded by a few threads while the networks compute, and only features are kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from latent_shift.core.errors import DataError, InputError
from latent_shift.core.seeding import derive_seed
from latent_shift.core.shapes import check_at_least
from latent_shift.metrics.clip_model import ClipViTB32
from latent_shift.metrics.extractors import load_extractor
from latent_shift.metrics.frechet import check_enough
from latent_shift.metrics.result import MetricResult
from latent_shift.metrics.score import METRICS, ScoreOptions, check_metrics, score_features
from latent_shift.metrics.stream import FeatureRows, FramesFor, extract_together
from latent_shift.pipelines.loading import resolve_device

from .clip_files import ClipFiles, ClipReader, ClipWindow, hash_files, list_clips, read_captions
from .samples import Progress

logger = logging.getLogger(__name__)

DEFAULT_METRICS = ("lite0-frames-kd", "lite0-clips-kd", "frame-difference", "flicker", "loop-seam")
"""What needs no download."""
_OF_IMAGES = DEFAULT_METRICS[:1]
_OF_WHOLE_FILES = "loop-seam"
"""A clip out of a longer file ends where the file does not."""


@dataclass(frozen=True)
class FolderOptions:
    """What is cut out of the files, and how it is scored.

    Attributes:
        metrics: keys of `latent_shift.metrics.METRICS`; None: those of `default_metrics` that the files suit.
        frames: of a clip.
        fps: frames a second of the clips; None takes neighbouring frames of each file, whatever its rate.
        size: height and width in pixels, to which frames are scaled and cropped when they are read; None: as they are.
        image_frames: so many evenly spaced frames of a clip go into scores of frames; `clipsim` takes all.
        limit: at most so many clips of each folder, drawn with the seed.
        batch_size: clips at once; changes scores only within rounding.
        threads: decode.
        score: from features to scores.
    """

    metrics: tuple[str, ...] | None = None
    frames: int = 16
    fps: float | None = None
    size: int | None = None
    image_frames: int = 1
    limit: int | None = None
    batch_size: int = 8
    threads: int = 2
    score: ScoreOptions = dataclasses.field(default_factory=ScoreOptions)

    def __post_init__(self) -> None:
        """Raises `InputError` for a value out of range."""
        for name in ("image_frames", "batch_size", "threads"):
            check_at_least(name, getattr(self, name), 1)
        check_at_least("limit", 1 if self.limit is None else self.limit, 1)
        _ = self.window  # which checks the rest
        if self.image_frames > self.frames:
            raise InputError("image_frames", self.image_frames, f"be at most frames, {self.frames}")

    @property
    def window(self) -> ClipWindow:
        """What is cut out of each file."""
        return ClipWindow(self.frames, self.fps, self.size, self.score.seed)


def default_metrics(frames: int, *, has_real: bool) -> tuple[str, ...]:
    """Those of `DEFAULT_METRICS` that can be computed.

    Args:
        frames: of a clip.
        has_real: whether there are real clips to compare with.

    Raises:
        InputError: none can.
    """
    suited = DEFAULT_METRICS if frames > 1 else _OF_IMAGES
    names = tuple(name for name in suited if has_real or not METRICS[name].needs_real)
    if not names:
        raise InputError("real", None, f"be given for {', '.join(suited)}, the only score of images by default")
    return names


def evaluate_folder(
    generated: str | Path,
    real: str | Path | None = None,
    options: FolderOptions | None = None,
    weights: str | Path = "models/metrics",
    device: str = "auto",
    progress: Progress | None = None,
) -> list[MetricResult]:
    """Scores a folder of clips.

    Args:
        generated: folder with videos, animated images, folders of PNG frames, or stills (with `frames=1`), however
            deep.
        real: the same, to compare with; None where no metric needs it.
        options: see `FolderOptions`.
        weights: folder of the weight files that a user has fetched.
        device: of the networks; "auto", or a torch device.
        progress: told how far each part is.

    Returns:
        A result for each metric, in the order of `options.metrics`.

    Raises:
        InputError: an option, a folder or a caption is missing or wrong, a weight file is missing, or there are too few
            clips for a metric, or none that is a whole file for `loop-seam`.
        DataError: more than a tenth of a folder cannot be used, or a weight file is damaged.
    """
    scorer = ClipScorer(options or FolderOptions(), weights, device, has_real=real is not None)
    sets = {
        name: ClipFiles(str(folder), list_clips(folder, name))
        for name, folder in (("generated", generated), ("real", real))
        if folder is not None
    }
    return scorer.score(sets["generated"], sets.get("real"), progress=progress)


class ClipScorer:
    """The networks of some metrics, loaded, and what they say of files."""

    def __init__(
        self, options: FolderOptions, weights: str | Path = "models/metrics", device: str = "auto", *, has_real: bool
    ) -> None:
        """Loads the networks.

        Args:
            options: see `FolderOptions`.
            weights: folder of the weight files that a user has fetched.
            device: of the networks; "auto", or a torch device.
            has_real: whether there will be real clips to compare with.

        Raises:
            InputError: a metric is unknown or needs real clips, or a weight file is missing.
            DataError: a weight file is damaged.
        """
        self._options = options
        self._metrics = options.metrics or default_metrics(options.frames, has_real=has_real)
        check_metrics(self._metrics, has_real=has_real)
        self._networks = _networks(self._metrics, options, Path(weights), resolve_device(device))

    def check_counts(self, **counts: int) -> None:
        """Refuses too few clips before anything has worked for nothing.

        Args:
            **counts: how many clips each set has, `generated` and `real`.

        Raises:
            InputError: too few for a metric.
        """
        for metric in self._metrics:
            info = self._networks[_pass_of(metric)].extractor.info
            for name, count in counts.items():
                if METRICS[metric].statistic == "frechet":
                    check_enough(name, count, info.dimension)

    def score(
        self,
        generated: ClipFiles,
        real: ClipFiles | None = None,
        captions: Mapping[Path, str] | None = None,
        progress: Progress | None = None,
    ) -> list[MetricResult]:
        """Scores files of clips.

        Args:
            generated: what is scored.
            real: what it is compared with.
            captions: a sentence for each generated file, for `clipsim`; None looks for them, see `read_captions`.
            progress: told how far each part is.

        Returns:
            A result for each metric, in the order of the options.

        Raises:
            InputError: a caption is missing, there are too few clips for a metric, or `loop-seam` was asked for and no
                clip is a whole file.
            DataError: more than a tenth of the files cannot be used.
        """
        options, networks = self._options, self._networks
        sets = {"generated": generated} | ({} if real is None else {"real": real})
        files = {name: clips._replace(paths=_limited(clips.paths, options)) for name, clips in sets.items()}
        self.check_counts(**{name: len(clips.paths) for name, clips in files.items()})
        if "clipsim" in self._metrics and captions is None:
            captions = read_captions(generated.place, files["generated"].paths)
        features: dict[str, dict[str, FeatureRows]] = {}
        ahead = options.batch_size + options.threads
        readers = {
            name: ClipReader(name, clips, options.window, options.threads, ahead, progress)
            for name, clips in files.items()
        }
        for name, reader in readers.items():
            features[name] = extract_together(networks, reader, options.batch_size)
        used = {name: reader.used for name, reader in readers.items()}
        facts = _clip_facts(options, readers, sum(len(clips.paths) for clips in files.values()))
        texts, sentences = None, []
        if captions is not None and "clipsim" in self._metrics:
            clip = networks["clipsim"].extractor
            assert isinstance(clip, ClipViTB32)
            unknown = [path for path in used["generated"] if path not in captions]
            if unknown:
                raise DataError(f"{unknown[0]} is damaged: its caption cannot be read, though its first frames can")
            sentences = [captions[path] for path in used["generated"]]
            texts = clip.texts(sentences).numpy()

        results = []
        for metric in self._metrics:
            if progress:
                progress(f"score: {metric}", 0, options.score.resamples or None)
            key = _pass_of(metric)
            own: dict[str, object] = {}
            rows = {name: found[key] for name, found in features.items()}
            if metric == "clipsim":
                rows.pop("real", None)
                own = {"captions_sha256": _hash_sentences(sentences)}
            if metric == _OF_WHOLE_FILES:
                own = {"parts_of_files": {name: reader.whole.count(False) for name, reader in readers.items()}}
                rows = {name: one[np.array(readers[name].whole, dtype=bool)] for name, one in rows.items()}
                if not self._can_close(len(rows["generated"]), readers["generated"]):
                    continue
            result = score_features(
                metric,
                networks[key].extractor.info,
                rows["generated"],
                rows["real"] if len(rows.get("real", ())) else None,
                texts if metric == "clipsim" else None,
                options.score,
                partial(progress, f"score: {metric}") if progress else None,
            )
            results.append(dataclasses.replace(result, protocol=facts | own | result.protocol))
        return results

    def _can_close(self, whole: int, reader: ClipReader) -> bool:
        """Whether there are whole files for `loop-seam`; says how many are none."""
        parts = len(reader.used) - whole
        if not whole and self._options.metrics is not None:
            expected = f"be as many as the files have for the metric {_OF_WHOLE_FILES}: all {parts} of them are longer"
            raise InputError("frames", self._options.frames, expected)
        if parts:
            what = f"{parts} of {parts + whole} files are longer than {self._options.frames} frames"
            logger.warning("not in %s: %s, and a part of a loop does not close", _OF_WHOLE_FILES, what)
        return whole > 0


def _networks(
    metrics: tuple[str, ...], options: FolderOptions, weights: Path, device: torch.device
) -> dict[str, FramesFor]:
    """The networks that the metrics need, each loaded once, by the name of their pass over the clips."""
    loaded = {
        name: load_extractor(name, weights, device)
        for name in dict.fromkeys(METRICS[metric].features for metric in metrics)
    }
    passes = {}
    for metric in metrics:
        extractor = loaded[METRICS[metric].features]
        extractor.info.check_frames(options.frames)
        images = extractor.info.unit == "frame" and metric != "clipsim"
        passes[_pass_of(metric)] = FramesFor(extractor, options.image_frames if images else None)
    return passes


def _pass_of(metric: str) -> str:
    """`clipsim` takes all frames, other scores of frames only some of them."""
    return metric if metric == "clipsim" else METRICS[metric].features


def _hash_sentences(sentences: list[str]) -> str:
    """Names a set of sentences, whatever the files are called that show them."""
    return hashlib.sha256(json.dumps(sorted(sentences)).encode()).hexdigest()[:12]


def _limited(paths: list[Path], options: FolderOptions) -> list[Path]:
    if options.limit is None or len(paths) <= options.limit:
        return paths
    rng = np.random.default_rng(derive_seed(options.score.seed, "limit"))
    chosen: npt.NDArray[np.int64] = np.sort(rng.permutation(len(paths))[: options.limit])
    return [paths[index] for index in chosen]


def _clip_facts(options: FolderOptions, readers: Mapping[str, ClipReader], files: int) -> dict[str, object]:
    facts: dict[str, object] = {
        "frames": options.frames,
        "fps": options.fps or "of each file",
        "sizes": {name: dict(sorted(reader.sizes.items())) for name, reader in readers.items()},
        "left_out": files - sum(len(reader.used) for reader in readers.values()),
    }
    if "real" in readers:
        facts["real_files"] = hash_files(readers["real"].used)
    return facts
