"""The paper's claims, each as a difference of two systems over the same subjects, and whether it holds here."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from latent_shift.metrics import ClipKernelDistance, bootstrap_interval

from .subjects import SETS
from .systems import Measured

Statistic = Literal["top1", "top5", "tone", "r2", "ratio", "lite0-frames-kd", "lite0-clips-kd"]
Verdict = Literal["held", "not held", "undecided", "too few"]
Counts = npt.NDArray[np.int64]

STATISTICS: dict[Statistic, str] = {
    "top1": "top-1",
    "top5": "top-5",
    "tone": "tone right",
    "r2": "motion r2",
    "ratio": "motion ratio",
    "lite0-frames-kd": "kernel distance of frames",
    "lite0-clips-kd": "kernel distance of clips",
}
"""Shares and medians as `latent-shift evaluate emoji` has them; kernel distances as `latent-shift evaluate folder`."""
MIN_FAMILIES, MIN_ROUNDS = 20, 6
"""With fewer families of labels, which are what the bootstrap draws, or timed rounds, nothing is decided: of five
rounds, all may be of one sign by chance."""
_SHARES = ("top1", "top5", "tone")
_LESS_IS_BETTER = ("lite0-frames-kd", "lite0-clips-kd")


@dataclass(frozen=True)
class Claim:
    """The first system is better than the second, or, in other words, the second is no better than the first.

    Attributes:
        source: in the paper; empty where the paper does not say it, and it is asked all the same.
        text: in words.
        statistic: that tells.
        first: of `SYSTEMS`.
        second: of `SYSTEMS`.
        sets: of `SETS`; each is decided for itself.
        stated: whether the paper says so; else its numbers lean this way, and are close.
    """

    source: str
    text: str
    statistic: Statistic
    first: str
    second: str
    sets: tuple[str, ...] = ("training",)
    stated: bool = True


CLAIMS = (
    Claim(
        "Table 1, CLIPSIM",
        "Clips of Latent-Shift show what the sentence says more often than those of Latent-VDM.",
        "top5",
        "latent_shift",
        "latent_vdm",
        SETS,
    ),
    Claim(
        "Table 1, FID",
        "Frames of Latent-VDM are nearer to real ones than those of Latent-Shift.",
        "lite0-frames-kd",
        "latent_vdm",
        "latent_shift",
        SETS,
        stated=False,
    ),
    Claim(
        "Table 2, FVD",
        "Clips of Latent-VDM are nearer to real ones than those of Latent-Shift.",
        "lite0-clips-kd",
        "latent_vdm",
        "latent_shift",
        SETS,
        stated=False,
    ),
    Claim(
        "Table 5, CLIPSIM",
        "Images of the text-to-image base show what the sentence says more often than clips of Latent-Shift.",
        "top5",
        "base_image",
        "latent_shift",
    ),
    Claim(
        "Table 5, CLIPSIM",
        "Clips of Latent-Shift show what the sentence says more often than its images.",
        "top5",
        "latent_shift",
        "latent_shift_image",
    ),
    Claim(
        "Table 5, FID",
        "Frames of Latent-Shift's clips are nearer to real ones than images of the base.",
        "lite0-frames-kd",
        "latent_shift",
        "base_image",
        stated=False,
    ),
    Claim(
        "Table 5, FID",
        "Images of the base are nearer to real frames than images of Latent-Shift.",
        "lite0-frames-kd",
        "base_image",
        "latent_shift_image",
        stated=False,
    ),
    Claim(
        "Fig. 6",
        "Images of Latent-Shift show what the sentence says more often than those of Latent-VDM.",
        "top5",
        "latent_shift_image",
        "latent_vdm_image",
    ),
    Claim(
        "Fig. 6",
        "Removing the temporal attention of Latent-VDM does not help its images to show what the sentence says (gain: "
        "with it, less without).",
        "top5",
        "latent_vdm_image",
        "latent_vdm_off_image",
    ),
    Claim(
        "Fig. 6",
        "Images of Latent-Shift with the shift show what the sentence says more often than without it.",
        "top5",
        "latent_shift_image",
        "latent_shift_off_image",
    ),
    Claim(
        "Fig. 7",
        "Clips of Latent-Shift with the shift show what the sentence says more often than without it.",
        "top5",
        "latent_shift",
        "latent_shift_off",
    ),
    Claim(
        "Fig. 7",
        "The motion of Latent-Shift's clips is nearer to the real thing's with the shift than without it.",
        "r2",
        "latent_shift",
        "latent_shift_off",
    ),
    Claim(
        "",
        "The motion of Latent-Shift's clips is nearer to the real thing's than that of Latent-VDM's.",
        "r2",
        "latent_shift",
        "latent_vdm",
        SETS,
    ),
)
"""In the direction of the paper's numbers. Its Inception Score has no counterpart here."""


class Estimate(NamedTuple):
    """A number and its 95 % interval."""

    value: float
    low: float
    high: float


class Comparison:
    """Statistics of the systems on one set, and of their differences.

    Intervals are of the bootstrap over families of labels ("woman running" and "man running" are one): a drawn family
    brings its subjects' real clips and, of every system, the clips of all sampling seeds. So two systems are compared
    on the same subjects, and what differs from subject to subject and is the same for both does not widen the interval
    of their difference. Kernel distances leave out pairs of a clip and its own real one (`ClipKernelDistance`, paired).

    Attributes:
        families: how many there are, which a `verdict` goes by.
    """

    def __init__(
        self,
        measured: Mapping[str, Measured],
        real: npt.NDArray[np.float16],
        families: Sequence[str] | None = None,
        resamples: int = 200,
        seed: int = 0,
    ) -> None:
        """Computes nothing yet.

        Args:
            measured: what each system measured, on the same subjects in the same order.
            real: features of the subjects' real clips `(subjects, frames, 1280)`.
            families: of the subjects; each subject is one of its own where None.
            resamples: of the bootstrap.
            seed: of the resamples.
        """
        names = [str(index) for index in range(len(real))] if families is None else families
        self._families = np.unique(np.asarray(names), return_inverse=True)[1]
        self.families = len(set(names))
        self._measured, self._real = measured, real.astype(np.float64)
        self._resamples, self._seed = resamples, seed
        self._statistics: dict[tuple[str, Statistic], Callable[[Counts], float]] = {}

    def score(self, system: str, statistic: Statistic) -> Estimate | None:
        """A system's statistic; None where it has none: an image has no distance of clips."""
        if statistic == "lite0-clips-kd" and self._measured[system].features.shape[2] == 1:
            return None
        value, low, high = self._estimate(self._statistic(system, statistic))
        if statistic in _SHARES:
            low, high = max(low, 0.0), min(high, 1.0)
        return Estimate(value, low, high)

    def gain(self, claim: Claim) -> Estimate:
        """By how much the first system of a claim is better than the second."""
        first, second = (self._statistic(system, claim.statistic) for system in (claim.first, claim.second))
        sign = -1 if claim.statistic in _LESS_IS_BETTER else 1
        return self._estimate(lambda counts: sign * (first(counts) - second(counts)))

    def _estimate(self, statistic: Callable[[Counts], float]) -> Estimate:
        def resample(rng: np.random.Generator) -> float:
            drawn = np.bincount(rng.integers(0, self.families, self.families), minlength=self.families)
            return statistic(drawn[self._families])

        value = statistic(np.ones(len(self._real), dtype=np.int64))
        return Estimate(value, *bootstrap_interval(value, resample, self._resamples, self._seed))

    def _statistic(self, system: str, name: Statistic) -> Callable[[Counts], float]:
        """A function of how often each subject is in the set."""
        key = (system, name)
        if key not in self._statistics:
            self._statistics[key] = self._make_statistic(self._measured[system], name)
        return self._statistics[key]

    def _make_statistic(self, measured: Measured, name: Statistic) -> Callable[[Counts], float]:
        if name in _LESS_IS_BETTER:
            rows = measured.features.astype(np.float64)
            if name == "lite0-clips-kd":
                distance = ClipKernelDistance(_clip_rows(self._real[:, None]), _clip_rows(rows), paired=True)
            else:
                distance = ClipKernelDistance(self._real, rows.reshape(len(rows), -1, rows.shape[-1]), paired=True)
            return distance
        values: npt.NDArray[np.float64] = getattr(measured, name)
        if name in ("r2", "ratio"):
            return lambda counts: float(np.nanmedian(np.repeat(values, counts, axis=0)))
        means = values.mean(axis=1)
        return lambda counts: float(counts @ means / counts.sum())


def verdict(gain: Estimate, count: int, least: int = MIN_FAMILIES) -> Verdict:
    """Held where the whole interval is above 0, not held where it is below; nothing is decided by less than `least`."""
    if count < least:
        return "too few"
    return "held" if gain.low > 0 else "not held" if gain.high < 0 else "undecided"


def applicable(systems: Collection[str]) -> list[Claim]:
    """The claims about these systems alone."""
    return [claim for claim in CLAIMS if claim.first in systems and claim.second in systems]


def _clip_rows(features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """As the extractor `lite0-clips`: mean over the frames, and mean change; `(..., frames, n)` to `(..., 2 n)`."""
    changes = np.abs(np.diff(features, axis=-2)).mean(axis=-2)
    rows: npt.NDArray[np.float64] = np.concatenate([features.mean(axis=-2), changes], axis=-1)
    return rows
