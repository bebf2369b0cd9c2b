"""How much a score would vary from one draw of the sets to another of the same size."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from latent_shift.core.shapes import check_at_least

Interval = tuple[float, float]
Resampled = Callable[[int, int], None]
"""Called with how many resamples there were, and of how many."""

_Z_95 = 1.959964


def bootstrap_interval(
    score: float,
    resample: Callable[[np.random.Generator], float],
    resamples: int = 50,
    seed: int = 0,
    progress: Resampled | None = None,
) -> Interval:
    """The 95 % normal interval, score +- 1.96 s, where s is the standard deviation over bootstrap resamples.

    Source: Efron and Tibshirani (1993), Sec. 13.3. Only the spread of the resamples is used and not their place: a
    resample repeats samples, which moves Frechet distances up, so that a percentile interval could miss the score. A
    bias of the score itself is not in the interval: that of a Frechet distance of few rows, say.

    Args:
        score: of the sets themselves.
        resample: draws from the sets with replacement, with the generator it is given, and returns their score.
        resamples: how many.
        seed: resample n depends on (seed, n) alone.
        progress: told after each resample.

    Raises:
        InputError: there are fewer than 2 resamples.
    """
    check_at_least("resamples", resamples, 2)
    values = []
    for number in range(resamples):
        values.append(resample(np.random.default_rng([seed, number])))
        if progress:
            progress(number + 1, resamples)
    reach = _Z_95 * float(np.std(values, ddof=1))
    return score - reach, score + reach
