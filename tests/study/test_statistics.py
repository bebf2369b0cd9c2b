"""`study/statistics.py` beside closed forms, brute force and published values."""

from __future__ import annotations

import itertools
import math

import pytest

from latent_shift.study.statistics import fleiss_kappa, sign_test, wilson_interval

# scipy 1.17.1, scipy.stats.binomtest(hits, total): proportion_ci(method="wilson") and pvalue
SCIPY = [
    (174, 300, (0.5234831499847111, 0.6344939746193615), 0.006560163284721936),
    (0, 10, (0.0, 0.27753279986288926), 0.001953125),
    (3, 4, (0.30064184258240184, 0.9544127391902995), 0.625),
    (50, 100, (0.4038315303659956, 0.5961684696340044), 1.0),
]


@pytest.mark.parametrize(("hits", "total", "interval", "p"), SCIPY)
def test_interval_and_sign_test_are_those_of_scipy(
    hits: int, total: int, interval: tuple[float, float], p: float
) -> None:
    assert wilson_interval(hits, total) == pytest.approx(interval, abs=1e-9)
    assert sign_test(hits, total - hits) == pytest.approx(p, rel=1e-9)
    low, high = wilson_interval(total - hits, total)
    assert (1 - high, 1 - low) == pytest.approx(interval, abs=1e-9)
    assert sign_test(total - hits, hits) == sign_test(hits, total - hits)


def test_the_wilson_ends_are_where_the_score_test_rejects() -> None:
    for hits in range(1, 20):
        for end in wilson_interval(hits, 20):
            assert abs(hits / 20 - end) / math.sqrt(end * (1 - end) / 20) == pytest.approx(1.959963985)


@pytest.mark.parametrize("total", range(1, 11))
def test_sign_test_counts_all_tosses_of_a_coin(total: int) -> None:
    for wins in range(total + 1):
        far = abs(wins - total / 2)
        tosses = [sum(toss) for toss in itertools.product((0, 1), repeat=total)]
        assert sign_test(wins, total - wins) == sum(abs(heads - total / 2) >= far for heads in tosses) / len(tosses)


def test_nothing_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0, 1)
    assert sign_test(0, 0) == 1
    assert sign_test(5000, 0) == 0.5**4999  # too small for a float: 0, and no error
    assert fleiss_kappa([]) is None
    assert fleiss_kappa([[1, 0], [0, 1]]) is None
    assert fleiss_kappa([[5, 0], [5, 0]]) is None


def test_kappa_of_the_textbook() -> None:
    """The worked example of the article on Fleiss' kappa in Wikipedia: 14 raters, 10 subjects, 5 categories."""
    table = [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
    assert fleiss_kappa(table) == pytest.approx(0.20993, abs=1e-5)


def test_kappa_at_its_ends() -> None:
    assert fleiss_kappa([[5, 0], [0, 5]]) == 1
    assert fleiss_kappa([[1, 1], [1, 1]]) == -1
    # Four raters, all splits of fair coins as often as they come: agreement is chance
    coins = [[heads, 4 - heads] for heads in range(5) for _ in range(math.comb(4, heads))]
    assert fleiss_kappa(coins) == pytest.approx(0, abs=1e-12)
