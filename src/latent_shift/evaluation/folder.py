"""`latent-shift evaluate folder`: scores anybody's clips, against a folder of real ones where the metric needs some.

Files are decoded by a few threads while the networks compute, and only features are kept. Of a file that is longer than
a clip, a window at a random moment is taken, which depends on the seed and on the file's name alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from latent_shift.core.errors import DataError, InputError
from latent_shift.core.seeding import derive_seed, hash_fraction
from latent_shift.core.shapes import check_at_least
from latent_shift.data.identity import file_key
from latent_shift.data.sources import is_media, open_source
from latent_shift.media import Frames, open_video, read_video
from latent_shift.metrics.clip_model import ClipViTB32
from latent_shift.metrics.extractors import load_extractor
from latent_shift.metrics.frechet import check_enough
from latent_shift.metrics.result import MetricResult
from latent_shift.metrics.score import METRICS, ScoreOptions, check_metrics, score_features
from latent_shift.metrics.stream import FeatureRows, FramesFor, extract_together
from latent_shift.pipelines.loading import resolve_device

from .samples import Progress

logger = logging.getLogger(__name__)

DEFAULT_METRICS = ("lite0-frames-kd", "lite0-clips-kd", "frame-difference", "flicker", "loop-seam")
"""What needs no download."""
_OF_IMAGES = DEFAULT_METRICS[:1]

_MAX_BAD_SHARE = 0.1
_SHOWN_REASONS = 3
_ROUNDING_S = 1e-3
"""A file may be so much shorter than a clip: containers round times."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class FolderOptions:
    """What is cut out of the files, and how it is scored.

    Attributes:
        metrics: keys of `latent_shift.metrics.METRICS`.
        frames: of a clip.
        fps: frames a second of the clips; None takes neighbouring frames of each file, whatever its rate.
        size: height and width in pixels, to which frames are scaled and cropped when they are read; None: as they are.
        image_frames: so many evenly spaced frames of a clip go into scores of frames; `clipsim` takes all.
        limit: at most so many clips of each folder, drawn with the seed.
        batch_size: clips at once; changes scores only within rounding.
        threads: decode.
        score: from features to scores.
    """

    metrics: tuple[str, ...] = DEFAULT_METRICS
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
        for name in ("frames", "image_frames", "batch_size", "threads"):
            check_at_least(name, getattr(self, name), 1)
        for name in ("size", "limit"):
            check_at_least(name, 1 if getattr(self, name) is None else getattr(self, name), 1)
        if self.fps is not None and not 0.01 <= self.fps <= 1000:
            raise InputError("fps", self.fps, "be from 0.01 to 1000 frames a second")
        if self.image_frames > self.frames:
            raise InputError("image_frames", self.image_frames, f"be at most frames, {self.frames}")


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
            clips for a metric.
        DataError: more than a tenth of a folder cannot be used, or a weight file is damaged.
    """
    scorer = ClipScorer(options or FolderOptions(), weights, device, has_real=real is not None)
    sets = {
        name: ClipFiles(str(folder), list_clips(folder, name))
        for name, folder in (("generated", generated), ("real", real))
        if folder is not None
    }
    return scorer.score(sets["generated"], sets.get("real"), progress=progress)


class ClipFiles(NamedTuple):
    """Clips that are scored together: what messages call them, and their files."""

    place: str
    paths: list[Path]


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
        check_metrics(options.metrics, has_real=has_real)
        self._options = options
        self._networks = _networks(options, Path(weights), resolve_device(device))

    def check_counts(self, **counts: int) -> None:
        """Refuses too few clips before anything has worked for nothing.

        Args:
            **counts: how many clips each set has, `generated` and `real`.

        Raises:
            InputError: too few for a metric.
        """
        for metric in self._options.metrics:
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
            InputError: a caption is missing, or there are too few clips for a metric.
            DataError: more than a tenth of the files cannot be used.
        """
        options, networks = self._options, self._networks
        sets = {"generated": generated} | ({} if real is None else {"real": real})
        files = {name: _limited(clips.paths, options) for name, clips in sets.items()}
        self.check_counts(**{name: len(paths) for name, paths in files.items()})
        if "clipsim" in options.metrics and captions is None:
            captions = read_captions(generated.place, files["generated"])
        features: dict[str, dict[str, FeatureRows]] = {}
        readers = {name: _ClipReader(name, sets[name].place, paths, options, progress) for name, paths in files.items()}
        for name, reader in readers.items():
            features[name] = extract_together(networks, reader, options.batch_size)
        used = {name: reader.used for name, reader in readers.items()}
        facts = _clip_facts(options, files, readers)
        texts = None
        if captions is not None and "clipsim" in options.metrics:
            clip = networks["clipsim"].extractor
            assert isinstance(clip, ClipViTB32)
            unknown = [path for path in used["generated"] if path not in captions]
            if unknown:
                raise DataError(f"{unknown[0]} is damaged: its caption cannot be read, though its first frames can")
            texts = clip.texts([captions[path] for path in used["generated"]]).numpy()

        results = []
        for metric in options.metrics:
            if progress:
                progress(f"score: {metric}", 0, None)
            key = _pass_of(metric)
            result = score_features(
                metric,
                networks[key].extractor.info,
                features["generated"][key],
                features["real"][key] if "real" in features and metric != "clipsim" else None,
                texts if metric == "clipsim" else None,
                options.score,
            )
            results.append(dataclasses.replace(result, protocol=facts | result.protocol))
        return results


def list_clips(folder: str | Path, argument: str) -> list[Path]:
    """The videos, images, and folders of PNG frames with a `video.json` below a folder, in the order of their names.

    Raises:
        InputError: there is no such folder, or nothing of that in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(argument, str(folder), "be a folder that exists")
    as_folders = {path.parent for path in root.rglob("video.json")}
    files = (path for path in root.rglob("*") if is_media(path) and path.is_file() and path.parent not in as_folders)
    found = sorted(
        (path for path in (*as_folders, *files) if not _is_hidden(path.relative_to(root))),
        key=lambda path: path.relative_to(root).as_posix(),
    )
    if not found:
        raise InputError(argument, str(folder), "hold videos or images")
    return found


def _is_hidden(path: Path) -> bool:
    """Below a folder whose name starts with a dot: also what a write that was killed has left."""
    return any(part.startswith(".") for part in path.parts)


def read_captions(folder: str | Path, files: Sequence[Path]) -> dict[Path, str]:
    """The sentence of each file: as `data` reads captioned folders, or else the prompt that the file itself holds.

    A damaged file has none, and is no error here: whoever scores it leaves it out.

    Raises:
        InputError: a file has neither. Names it.
    """
    try:
        captions = {record.path.resolve(): record.caption for record in open_source(str(folder), "generated")}
    except InputError:  # no captioned folder
        captions = {}
    found: dict[Path, str] = {}
    for path in files:
        try:
            caption = captions.get(path.resolve()) or read_video(path).metadata.get("prompt")
        except DataError:
            continue
        if not caption:
            expected = (
                f"have a caption for each clip (metadata.jsonl, a .txt beside it, or a prompt in it); {path} has none"
            )
            raise InputError("generated", str(folder), expected)
        found[path] = caption
    return found


def read_window(path: Path, options: FolderOptions) -> Frames:
    """The frames of a file that are scored, `(frames, height, width, 3)`, uint8.

    Raises:
        InputError: nothing is there, or it may not be read.
        DataError: it is damaged, or shorter than a clip. Names the file.
    """
    with open_video(path) as video:
        if options.frames == 1 and video.is_still:
            return video.clip(0, 0, 1, options.size)
        if video.is_still:
            raise DataError(f"{path} is a still image, and clips have {options.frames} frames")
        rate = options.fps or video.info().fps
        window_s = options.frames / rate
        spare_s = video.duration_s - window_s
        if spare_s < -_ROUNDING_S:
            raise DataError(f"{path} lasts {video.duration_s:.2f} s, less than the clip's {window_s:.2f} s")
        moment = hash_fraction("window", options.score.seed, path.name)
        if options.fps:
            start_s = max(0.0, spare_s) * moment
        else:  # a clip starts with a frame, one of those that leave room for it
            start_s = int((int((spare_s + _ROUNDING_S) * rate) + 1) * moment) / rate
        return video.clip(start_s, min(window_s, video.duration_s - start_s), options.frames, options.size)


def read_ahead(read: Callable[[T], R], items: Iterable[T], threads: int, ahead: int) -> Iterator[Future[R]]:
    """Reads on threads while the caller computes; results come in the order of `items`.

    Args:
        read: is called with each item, on one of the threads.
        items: what to read.
        threads: how many.
        ahead: at most so many items are read before they are asked for.
    """
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(read, item))
                if len(waiting) > ahead:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()
        finally:
            for future in waiting:
                future.cancel()


class _ClipReader:
    """The clips of a folder, decoded ahead; counts what cannot be used, and stops where that is too much."""

    def __init__(
        self, name: str, place: str, paths: Sequence[Path], options: FolderOptions, progress: Progress | None
    ) -> None:
        self._name, self._place, self._paths, self._options = name, place, paths, options
        self._progress = progress
        self.used: list[Path] = []
        self.sizes: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Frames]:
        bad: list[str] = []
        options = self._options
        reads = read_ahead(
            lambda path: read_window(path, options), self._paths, options.threads, options.batch_size + options.threads
        )
        for done, (path, future) in enumerate(zip(self._paths, reads, strict=True)):
            if self._progress:
                self._progress(f"{self._name} clips", done, len(self._paths))
            try:
                clip = future.result()
            except (DataError, InputError) as error:
                logger.warning("left out: %s", error)
                bad.append(str(error))
                self._check(bad)
                continue
            self.used.append(path)
            self.sizes["{2}x{1}".format(*clip.shape)] += 1
            yield clip
        if self._progress:
            self._progress(f"{self._name} clips", len(self._paths), len(self._paths))

    def _check(self, bad: Sequence[str]) -> None:
        if len(bad) > _MAX_BAD_SHARE * len(self._paths):
            shown = "; ".join(bad[:_SHOWN_REASONS])
            count = f"{len(bad)} of {len(self._paths)} clips of {self._place} cannot be used"
            raise DataError(f"{count}, more than {_MAX_BAD_SHARE:.0%}: {shown}")


def _networks(options: FolderOptions, weights: Path, device: torch.device) -> dict[str, FramesFor]:
    """The networks that the metrics need, each loaded once, by the name of their pass over the clips."""
    loaded = {
        name: load_extractor(name, weights, device)
        for name in dict.fromkeys(METRICS[metric].features for metric in options.metrics)
    }
    passes = {}
    for metric in options.metrics:
        extractor = loaded[METRICS[metric].features]
        extractor.info.check_frames(options.frames)
        images = extractor.info.unit == "frame" and metric != "clipsim"
        passes[_pass_of(metric)] = FramesFor(extractor, options.image_frames if images else None)
    return passes


def _pass_of(metric: str) -> str:
    """`clipsim` takes all frames, other scores of frames only some of them."""
    return metric if metric == "clipsim" else METRICS[metric].features


def _limited(paths: list[Path], options: FolderOptions) -> list[Path]:
    if options.limit is None or len(paths) <= options.limit:
        return paths
    rng = np.random.default_rng(derive_seed(options.score.seed, "limit"))
    chosen: npt.NDArray[np.int64] = np.sort(rng.permutation(len(paths))[: options.limit])
    return [paths[index] for index in chosen]


def _clip_facts(
    options: FolderOptions, files: Mapping[str, Sequence[Path]], readers: Mapping[str, _ClipReader]
) -> dict[str, object]:
    facts: dict[str, object] = {
        "frames": options.frames,
        "fps": options.fps or "of each file",
        "sizes": {name: dict(sorted(reader.sizes.items())) for name, reader in readers.items()},
        "left_out": sum(len(files[name]) - len(reader.used) for name, reader in readers.items()),
    }
    if "real" in readers:
        facts["real_files"] = _hash_files(readers["real"].used)
    return facts


def _hash_files(paths: Sequence[Path]) -> str:
    """Names a set of files, wherever they are, by their names and samples of their bytes."""
    text = "\n".join(f"{path.name} {file_key(min(path.iterdir()) if path.is_dir() else path)}" for path in paths)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]
