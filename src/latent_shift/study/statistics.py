"""The statistics of paired preferences, exact and without a library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist


def wilson_interval(hits: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of a share `hits / total` (E. B. Wilson, 1927), without continuity correction.

    Returns:
        Its two ends in [0, 1]; (0, 1), which says nothing, for a total of 0.
    """
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = hits / total
    scale = 1 + z * z / total
    middle = (share + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    low = 0.0 if hits == 0 else middle - half
    high = 1.0 if hits == total else middle + half
    return low, high


def sign_test(wins: int, losses: int) -> float:
    """The exact two-sided sign test: how likely a fair coin gives a split at least as uneven. Ties are left out before.

    Returns:
        p in (0, 1]; 1 where there is nothing to compare.
    """
    total = wins + losses
    tail = sum(math.comb(total, count) for count in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / (1 << total))  # whole numbers, divided once: exact for any size


def fleiss_kappa(counts: Sequence[Sequence[int]]) -> float | None:
    """Fleiss' kappa (J. L. Fleiss, 1971): agreement of raters beyond chance.

    Args:
        counts: for each subject, how many raters chose each category; every subject has as many raters.

    Returns:
        At most 1, which is full agreement; 0 is what chance gives. None where it is not defined: no subjects, fewer
        than two raters, or one category alone was ever chosen.
    """
    raters = sum(counts[0]) if counts else 0
    if raters < 2:
        return None
    subjects = len(counts)
    observed = sum(sum(count * (count - 1) for count in row) for row in counts) / (subjects * raters * (raters - 1))
    shares = [sum(column) / (subjects * raters) for column in zip(*counts, strict=True)]
    expected = sum(share * share for share in shares)
    return None if max(shares) == 1 else (observed - expected) / (1 - expected)
