"""`latent-shift evaluate msrvtt` and `ucf101`: the paper's automatic evaluations (Sec. 4.2, Tables 1 and 2).

What is asked for follows from the data and a seed; every clip is made once and kept as a lossless file, so that a run
goes on where it stopped, several processes or machines can share one, and other metrics can be computed later.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from latent_shift.core.errors import DataError, InputError
from latent_shift.core.files import read_json_object
from latent_shift.core.seeding import derive_seed, hash_fraction
from latent_shift.core.shapes import check_at_least
from latent_shift.data.sources import Source, msrvtt_captions, open_source, ucf101_classes, ucf101_sentences
from latent_shift.media import VideoInfo, open_video
from latent_shift.metrics.result import MetricResult
from latent_shift.metrics.score import METRICS, ScoreOptions, check_metrics
from latent_shift.pipelines import SCHEDULERS, load_pipeline, make_scheduler
from latent_shift.pipelines.loading import model_folder

from .clip_files import ClipFiles, list_clips
from .folder import ClipScorer, FolderOptions
from .samples import Progress, SampleRequest, SampleStore, hash_folder, sample_settings

MSRVTT_METRICS = ("fid", "fid-clip", "clipsim")
UCF101_METRICS = ("is", "fvd")
_IMAGE_FRAMES = 4
_PAPER_FRAMES = 16


@dataclass(frozen=True)
class Protocol:
    """What is asked for, and what it is compared with.

    Attributes:
        name: of the evaluation.
        requests: a clip each.
        real: files of real clips, those that are there; the requests do not depend on them.
        metrics: keys of `latent_shift.metrics.METRICS`, unless others are wanted.
        facts: what else each score is to say of its protocol.
    """

    name: str
    requests: list[SampleRequest]
    real: list[Path]
    metrics: tuple[str, ...]
    facts: dict[str, Any]


@dataclass(frozen=True)
class ProtocolOptions:
    """How clips are made and scored.

    Attributes:
        scheduler: a key of `SCHEDULERS`; the paper's is "ddpm".
        steps: denoising steps; the scheduler's usual number where None.
        guidance_scale: the model's own where None.
        batch_size: clips made at once.
        part: make only this share of the clips, (number, of how many), counted from 1, and score nothing.
        metrics: instead of the protocol's.
        resamples: of the bootstrap; 0 for no interval.
        frames: of a clip, the model's own where None; 1 for images, which are frozen videos (the paper's Table 5).
    """

    scheduler: str = "dpm++"
    steps: int | None = None
    guidance_scale: float | None = None
    batch_size: int = 1
    part: tuple[int, int] | None = None
    metrics: tuple[str, ...] | None = None
    resamples: int = ScoreOptions.resamples
    frames: int | None = None

    def __post_init__(self) -> None:
        """Raises `InputError` for a value out of range."""
        if self.scheduler not in SCHEDULERS:
            raise InputError("scheduler", self.scheduler, f"be one of {', '.join(SCHEDULERS)}")
        check_at_least("steps", 1 if self.steps is None else self.steps, 1)
        check_at_least("frames", 1 if self.frames is None else self.frames, 1)
        check_at_least("batch_size", self.batch_size, 1)
        ScoreOptions(resamples=self.resamples)
        if self.part is not None and not 1 <= self.part[0] <= self.part[1]:
            raise InputError("part", "{}/{}".format(*self.part), "be NUMBER/OF, the number from 1 to OF")


@dataclass(frozen=True)
class Evaluated:
    """What a run came to.

    Attributes:
        folder: where the clips are.
        settings: how they were made: model, scheduler, steps, guidance, ...
        made: clips that are there.
        wanted: clips that the protocol asks for; of anybody's clips, all.
        results: a score for each metric; none of a part.
    """

    folder: Path
    settings: dict[str, Any]
    made: int
    wanted: int
    results: list[MetricResult]


def msrvtt(data: str, captions: Literal["all", "one"] = "all", seed: int = 0) -> Protocol:
    """MSR-VTT's test split, zero-shot (Table 1): FID and CLIPSIM of frames.

    The paper does not say whose features its FID has (research since reads it both ways), so there are Inception's and
    CLIP's, named apart.

    Args:
        data: MSR-VTT's JSON or its folder, as `msrvtt:` sources take it.
        captions: "all" asks for a clip for every caption, 59,794 of the official test split, as the paper; "one" for
            one of each video, drawn with the seed: 2,990, as many later papers.
        seed: all clips' seeds follow from it, and which captions are drawn.

    Raises:
        InputError: it is no MSR-VTT, or has no test split.
        DataError: its JSON is damaged.
    """
    if captions not in ("all", "one"):
        raise InputError("captions", captions, "be all or one")
    source = _open(data, "msrvtt", "test")
    requests = []
    for name, sentences in msrvtt_captions(source.path, "test").items():
        chosen = range(len(sentences))
        if captions == "one" and sentences:
            drawn = int(hash_fraction("msrvtt", seed, name) * len(sentences))
            chosen = range(drawn, drawn + 1)
        requests += [_request("msrvtt", f"{name}/{number:02}.webp", sentences[number], seed) for number in chosen]
    if not requests:
        raise InputError("data", data, "have captions of the test split of msrvtt")
    facts = {"captions": captions, "missing_videos": len(source.dropped)}
    return Protocol("msrvtt", requests, [record.path for record in source], MSRVTT_METRICS, facts)


def ucf101(data: str, samples: int = 10_000, seed: int = 0) -> Protocol:
    """UCF-101 after finetuning (Table 2): Inception Score and FVD.

    Each clip is asked for by the sentence of its class (`ucf101_sentences`). Classes are as frequent as in the train
    split of the first fold, whose clips are the real ones (the footnote of Sec. 4.2).

    Args:
        data: UCF-101's folder, as `ucf101:` sources take it.
        samples: clips; the paper does not say how many it made. An Inception Score rises with their number.
        seed: all clips' seeds follow from it.

    Raises:
        InputError: it is no UCF-101, or has no list of the train split.
    """
    check_at_least("samples", samples, 1)
    source, sentences = _open(data, "ucf101", "train"), ucf101_sentences()
    classes = ucf101_classes(source.path, "train")
    if not classes:
        raise InputError("data", data, "have a list of the train split of ucf101")
    requests = [
        _request("ucf101", f"{label}/{number:04}.webp", sentences[label], seed)
        for label, count in _apportion(classes, samples).items()
        for number in range(count)
    ]
    facts = {"classes": len(classes), "missing_videos": len(source.dropped)}
    return Protocol("ucf101", requests, [record.path for record in source], UCF101_METRICS, facts)


def evaluate_protocol(
    protocol: Protocol,
    model: str,
    output: str | Path = "runs/evaluation",
    options: ProtocolOptions | None = None,
    weights: str | Path = "models/metrics",
    device: str = "auto",
    dtype: str = "auto",
    progress: Progress | None = None,
) -> Evaluated:
    """Makes what is missing of a protocol's clips and scores them.

    Args:
        protocol: see `msrvtt` and `ucf101`.
        model: a name or folder, as `load_pipeline` takes it.
        output: where clips are kept; models, protocols and processes can share it.
        options: see `ProtocolOptions`.
        weights: folder of the metrics' weight files.
        device: as `load_pipeline`; of the metrics' networks, too.
        dtype: as `load_pipeline`.
        progress: told how far each part is.

    Raises:
        InputError: the model, an option or a weight file is wrong or missing, which is said before a clip is made.
    """
    options = options or ProtocolOptions()
    report = progress or (lambda _what, _done, _total: None)
    pipeline = load_pipeline(model, device, dtype)
    pipeline.set_progress_bar_config(disable=True)
    frames = options.frames or pipeline.config.default_frames
    scorer = None
    if options.part is None:
        height, width = pipeline.resolve_size()
        if height != width:
            raise InputError("model", model, f"make square clips, as real ones are cropped; its are {width} x {height}")
        shape = frames, pipeline.config.fps, height
        scorer = _make_scorer(protocol, options.metrics, *shape, options.resamples, weights, device)
        real = {"real": len(protocol.real)} if protocol.real else {}
        scorer.check_counts(generated=len(protocol.requests), **real)
    pipeline.scheduler = make_scheduler(options.scheduler, pipeline.scheduler.config)
    settings = sample_settings(
        pipeline,
        hash_folder(model_folder(model)),
        frames=frames,
        boundary="default",
        steps=options.steps or SCHEDULERS[options.scheduler][1],
        guidance_scale=options.guidance_scale,
        scheduler=options.scheduler,
    )
    settings |= {"asked": protocol.name}
    store = SampleStore(Path(output), pipeline, settings, options.batch_size)
    if dtype == "auto":
        _refuse_other_dtype(store)
    number, parts = options.part or (1, 1)
    store.make_missing(protocol.requests[number - 1 :: parts], f"clips: {protocol.name}", report)
    paths = [store.path(request) for request in protocol.requests]
    made = sum(path.is_file() for path in paths)
    results: list[MetricResult] = []
    if scorer is not None:
        captions = {path: request.prompt for path, request in zip(paths, protocol.requests, strict=True)}
        clips = ClipFiles(str(store.folder), paths)
        facts = {"requests_sha256": _hash_requests(protocol.requests)}
        results = _score(scorer, protocol, clips, captions, facts, progress)
    return Evaluated(store.folder, store.settings, made, len(paths), results)


def score_protocol(
    protocol: Protocol,
    clips: str | Path,
    metrics: tuple[str, ...] | None = None,
    weights: str | Path = "models/metrics",
    device: str = "auto",
    progress: Progress | None = None,
    resamples: int = ScoreOptions.resamples,
) -> Evaluated:
    """Scores anybody's clips as a protocol scores those of a model.

    Size, rate and number of frames are those of the first clip that can be read, in the order of names; of longer clips
    16 frames are taken, as the paper has. What the clips were asked for is their makers' word.

    Args:
        protocol: see `msrvtt` and `ucf101`.
        clips: a folder of files, as `evaluate_folder` takes it; for `clipsim` with captions.
        metrics: instead of the protocol's.
        weights: folder of the metrics' weight files.
        device: of the metrics' networks; "auto", or a torch device.
        progress: told how far each part is.
        resamples: of the bootstrap; 0 for no interval.

    Raises:
        InputError: the folder, a metric or a weight file is wrong or missing, or there are too few clips.
        DataError: more than a tenth of the clips cannot be used.
    """
    paths = list_clips(clips, "clips")
    first, info = _first_readable(paths)
    if not info.duration_s:
        raise InputError("clips", str(clips), f"hold videos; {first} is a still image")
    shape = min(_PAPER_FRAMES, round(info.duration_s * info.fps)), info.fps, min(info.width, info.height)
    scorer = _make_scorer(protocol, metrics, *shape, resamples, weights, device)
    unasked = dataclasses.replace(protocol, facts={k: v for k, v in protocol.facts.items() if k != "captions"})
    results = _score(scorer, unasked, ClipFiles(str(clips), paths), None, {}, progress)
    return Evaluated(Path(clips), {}, len(paths), len(paths), results)


def _first_readable(paths: list[Path]) -> tuple[Path, VideoInfo]:
    """What the first file says that can be read; the others are left out, and named, where all are."""
    errors = []
    for path in paths:
        try:
            with open_video(path) as video:
                return path, video.info()
        except (DataError, InputError) as error:
            errors.append(error)
    raise DataError(f"none of {len(paths)} clips can be read: {errors[0]}")


def _make_scorer(
    protocol: Protocol,
    metrics: tuple[str, ...] | None,
    frames: int,
    fps: float,
    size: int,
    resamples: int,
    weights: str | Path,
    device: str,
) -> ClipScorer:
    names = metrics or protocol.metrics
    check_metrics(names, has_real=True)
    for name in names:
        if METRICS[name].needs_real and not protocol.real:
            raise InputError("data", f"no video of {protocol.name}", f"hold the real ones for the metric {name}")
    options = FolderOptions(
        metrics=names,
        frames=frames,
        fps=fps,
        size=size,
        image_frames=min(_IMAGE_FRAMES, frames),
        score=ScoreOptions(resamples=resamples),
    )
    return ClipScorer(options, weights, device, has_real=bool(protocol.real))


def _score(
    scorer: ClipScorer,
    protocol: Protocol,
    clips: ClipFiles,
    captions: dict[Path, str] | None,
    facts: dict[str, Any],
    progress: Progress | None,
) -> list[MetricResult]:
    real = ClipFiles(f"real {protocol.name}", protocol.real) if protocol.real else None
    scores = scorer.score(clips, real, captions, progress)
    facts = {"asked": protocol.name, **protocol.facts, **facts}
    return [dataclasses.replace(score, protocol=facts | score.protocol) for score in scores]


def _refuse_other_dtype(store: SampleStore) -> None:
    """Raises `InputError` where another machine made clips of this run in another arithmetic, and this one has none."""
    if store.folder.exists():
        return
    for file in sorted(store.folder.parent.glob("clips-*/settings.json")):
        other = read_json_object(file)
        if {**other, "dtype": None} == {**store.settings, "dtype": None}:
            expected = f"be {other['dtype']!r}, in which {file.parent} was made, or {store.settings['dtype']!r}"
            raise InputError("dtype", "auto", expected)


def _open(data: str, kind: str, split: str) -> Source:
    place = data.removeprefix(f"{kind}:")
    mark = "&" if "?" in place else "?"
    return open_source(f"{kind}:{place}{mark}split={split}", "data")


def _request(protocol: str, file_name: str, prompt: str, seed: int) -> SampleRequest:
    """A clip is named by its seed and its sentence: runs of several seeds share a folder, runs of others do not."""
    sentence = hashlib.sha256(prompt.encode()).hexdigest()[:8]
    stem, suffix = os.path.splitext(file_name)
    return SampleRequest(f"seed-{seed}/{stem}-{sentence}{suffix}", prompt, derive_seed(seed, protocol, file_name))


def _apportion(classes: Counter[str], samples: int) -> dict[str, int]:
    """So many samples of each class that they are as frequent as in `classes`, by largest remainders."""
    labels = sorted(classes)
    quotas = np.array([classes[label] for label in labels]) * samples / classes.total()
    counts = np.floor(quotas).astype(int)
    rest = np.argsort(counts - quotas, kind="stable")[: samples - counts.sum()]
    counts[rest] += 1
    return dict(zip(labels, counts.tolist(), strict=True))


def _hash_requests(requests: list[SampleRequest]) -> str:
    return hashlib.sha256("\n".join(map(repr, requests)).encode()).hexdigest()
