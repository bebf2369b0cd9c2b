"""From features to scores with intervals: one name for each pair of a statistic and a network.

===========================  =====================================================================================
name                         what it is
===========================  =====================================================================================
`fid`, `fid-legacy`          Frechet distance of Inception features of frames
`kid`, `kid-legacy`          the unbiased kernel distance of the same
`fid-clip`, `kid-clip`       the same of CLIP's features of frames
`fvd`, `kvd`                 Frechet and kernel distance of I3D features of clips
`is`                         Inception Score of C3D's classes
`clipsim`                    cosine of CLIP's features of frames and sentence
`lite0-frames-kd`, `-fd`     kernel and Frechet distance of EfficientNet-Lite0's features of frames: no published KID
                             or FID
`lite0-clips-kd`, `-fd`      the same of clips: no published KVD or FVD
`frame-difference`           mean change from frame to frame, in [0, 255]
`flicker`                    mean distance of a frame from the middle of its neighbours, in [0, 255]
`loop-seam`                  share of clips whose last frame leads to the first
===========================  =====================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from latent_shift.core.errors import InputError
from latent_shift.core.shapes import check_at_least

from .bootstrap import Resampled, bootstrap_interval
from .extractors import FeatureInfo
from .frechet import check_enough, moments_distance
from .kernel import ClipKernelDistance
from .moments import Moments
from .result import MetricResult
from .scores import clip_similarities, inception_score
from .stream import FeatureRows

_KERNEL_ROWS = 5000
"""A kernel distance compares at most so many rows of a set: it takes their square in time and memory."""
_MOMENT_ROWS = 4096

Statistic = Literal["frechet", "kernel", "inception_score", "similarity", "mean"]


class Metric(NamedTuple):
    """What a metric is made of; of `mean`, which of the numbers."""

    statistic: Statistic
    features: str
    column: int = 0

    @property
    def needs_real(self) -> bool:
        """Whether it compares two sets."""
        return self.statistic in ("frechet", "kernel")


METRICS = {
    "fid": Metric("frechet", "inception"),
    "fid-legacy": Metric("frechet", "inception-legacy"),
    "fid-clip": Metric("frechet", "clip"),
    "kid": Metric("kernel", "inception"),
    "kid-legacy": Metric("kernel", "inception-legacy"),
    "kid-clip": Metric("kernel", "clip"),
    "fvd": Metric("frechet", "i3d"),
    "kvd": Metric("kernel", "i3d"),
    "is": Metric("inception_score", "c3d"),
    "clipsim": Metric("similarity", "clip"),
    "lite0-frames-kd": Metric("kernel", "lite0-frames"),
    "lite0-frames-fd": Metric("frechet", "lite0-frames"),
    "lite0-clips-kd": Metric("kernel", "lite0-clips"),
    "lite0-clips-fd": Metric("frechet", "lite0-clips"),
    "frame-difference": Metric("mean", "motion", 0),
    "flicker": Metric("mean", "motion", 1),
    "loop-seam": Metric("mean", "motion", 2),
}


@dataclass(frozen=True)
class ScoreOptions:
    """How features become a score.

    Attributes:
        splits: of the Inception Score; more than one are drawn with `seed`.
        resamples: of the bootstrap; 0 for no interval.
        seed: of splits, resamples, and of the clips that a kernel distance of a large set compares.
    """

    splits: int = 1
    resamples: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises `InputError` for a value out of range."""
        check_at_least("splits", self.splits, 1)
        if self.resamples != 0:
            check_at_least("resamples", self.resamples, 2)


def check_metrics(names: tuple[str, ...], *, has_real: bool) -> None:
    """Raises `InputError` for an unknown metric, or one that needs real clips where there are none."""
    for name in names:
        if name not in METRICS:
            raise InputError("metric", name, f"be one of {', '.join(METRICS)}")
        if METRICS[name].needs_real and not has_real:
            raise InputError("real", None, f"be given for the metric {name}")


def score_features(
    metric: str,
    info: FeatureInfo,
    generated: FeatureRows,
    real: FeatureRows | None = None,
    texts: npt.NDArray[np.float32] | None = None,
    options: ScoreOptions | None = None,
    progress: Resampled | None = None,
) -> MetricResult:
    """A score and its interval, from the features of the network that the metric names.

    Args:
        metric: a key of `METRICS`.
        info: of the network.
        generated: `(clips, rows, dimension)`. Rows of a clip are not independent: the bootstrap draws clips.
        real: the same of the real clips, for distances; of other metrics they are scored for comparison.
        texts: `(clips, dimension)`, for `clipsim`.
        options: see `ScoreOptions`.
        progress: told after each resample how many there were, and of how many.

    Raises:
        InputError: the metric is unknown, something that it needs is missing, or there are too few clips.
    """
    options = options or ScoreOptions()
    check_metrics((metric,), has_real=real is not None)
    statistic = METRICS[metric].statistic
    if statistic == "frechet":
        assert real is not None
        scored = _frechet(real, generated)
    elif statistic == "kernel":
        assert real is not None
        scored = _kernel(real, generated, options.seed)
    elif statistic == "similarity":
        if texts is None:
            raise InputError("texts", None, "be given for the metric clipsim")
        scored = _similarity(generated, texts)
    else:
        scored = _alone(metric, generated, real, options)
    interval = None
    if options.resamples:
        interval = bootstrap_interval(scored.value, scored.resample, options.resamples, options.seed, progress)
    protocol: dict[str, Any] = {
        "generated_clips": len(generated),
        "real_clips": None if real is None else len(real),
        "rows_per_clip": generated.shape[1],
        **scored.protocol,
        "resamples": options.resamples,
        "seed": options.seed,
        "features": asdict(info),
    }
    return MetricResult(metric, scored.value, interval, scored.real_value, protocol)


class _Scored(NamedTuple):
    value: float
    resample: Callable[[np.random.Generator], float]
    protocol: dict[str, Any]
    real_value: float | None = None


def _frechet(real: FeatureRows, generated: FeatureRows) -> _Scored:
    sets = {"real": real, "generated": generated}
    for name, rows in sets.items():
        check_enough(name, len(rows), rows.shape[2])

    def resample(rng: np.random.Generator) -> float:
        return moments_distance(*(_moments(rows[_draw(rng, len(rows))]) for rows in sets.values()))

    per_dimension = {name: round(len(rows) / rows.shape[2], 2) for name, rows in sets.items()}
    value = moments_distance(_moments(real), _moments(generated))
    return _Scored(value, resample, {"clips_per_dimension": per_dimension})


def _moments(rows: FeatureRows) -> Moments:
    flat = rows.reshape(-1, rows.shape[2])
    moments = Moments(rows.shape[2])
    for start in range(0, len(flat), _MOMENT_ROWS):
        moments.update(flat[start : start + _MOMENT_ROWS])
    return moments


def _kernel(real: FeatureRows, generated: FeatureRows, seed: int) -> _Scored:
    """The unbiased distance, over pairs of rows of different clips: rows of one clip are alike, no sample of a set.

    All clips of at most `_KERNEL_ROWS` rows are compared; of larger sets, as many as have so many, drawn with `seed`.
    """
    rng = np.random.default_rng(seed)
    sets = []
    for name, rows in (("real", real), ("generated", generated)):
        most = max(2, _KERNEL_ROWS // rows.shape[1])
        if len(rows) < 2:
            raise InputError(name, len(rows), "have at least 2 clips")
        chosen = np.sort(rng.permutation(len(rows))[:most]) if len(rows) > most else np.arange(len(rows))
        sets.append(rows[chosen].astype(np.float64))
    distance = ClipKernelDistance(sets[0], sets[1])

    def resample(rng: np.random.Generator) -> float:
        return distance(*(np.bincount(_draw(rng, len(rows)), minlength=len(rows)) for rows in sets))

    return _Scored(distance(), resample, {"kernel": "(x.y / n + 1)^3", "compared_clips": [len(rows) for rows in sets]})


def _similarity(generated: FeatureRows, texts: npt.NDArray[np.float32]) -> _Scored:
    similarities = clip_similarities(generated, texts)
    return _Scored(
        float(similarities.mean()), lambda rng: float(similarities[_draw(rng, len(similarities))].mean()), {}
    )


def _alone(metric: str, generated: FeatureRows, real: FeatureRows | None, options: ScoreOptions) -> _Scored:
    """Scores of one set: the Inception Score, and means over clips."""
    kind, _, column = METRICS[metric]

    def score(rows: FeatureRows) -> float:
        if kind == "inception_score":
            return inception_score(rows[:, 0], options.splits, options.seed if options.splits > 1 else None).mean
        return float(rows[:, 0, column].astype(np.float64).mean())

    if not len(generated):
        raise InputError("generated", 0, "have at least 1 clip")
    return _Scored(
        score(generated),
        lambda rng: score(generated[_draw(rng, len(generated))]),
        {"splits": options.splits} if kind == "inception_score" else {},
        None if real is None else score(real),
    )


def _draw(rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    return rng.integers(0, count, count)
