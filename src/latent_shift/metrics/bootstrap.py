"""How far a score may be off because the sets are finite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from latent_shift.core.shapes import check_at_least

Interval = tuple[float, float]

_Z_95 = 1.959964


def bootstrap_interval(
    score: float,
    resample: Callable[[np.random.Generator], float],
    resamples: int = 50,
    seed: int = 0,
) -> Interval:
    """The 95 % normal interval, score +- 1.96 s, where s is the standard deviation over bootstrap resamples.

    Source: Efron and Tibshirani (1993), Sec. 13.3. Only the spread of the resamples is used and not their place: a
    resample repeats samples, which moves Frechet distances up, so that a percentile interval could miss the score.

    Args:
        score: of the sets themselves.
        resample: draws from the sets with replacement, with the generator it is given, and returns their score.
        resamples: how many.
        seed: resample n depends on (seed, n) alone.

    Raises:
        InputError: there are fewer than 2 resamples.
    """
    check_at_least("resamples", resamples, 2)
    values = [resample(np.random.default_rng([seed, number])) for number in range(resamples)]
    reach = _Z_95 * float(np.std(values, ddof=1))
    return score - reach, score + reach
