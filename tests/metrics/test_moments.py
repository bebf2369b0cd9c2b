from __future__ import annotations

import io

import numpy as np
import pytest

from latent_shift.core.errors import InputError
from latent_shift.metrics import Moments

RNG = np.random.default_rng(1)
ROWS = RNG.normal(size=(101, 5)) * [1, 10, 0.1, 3, 1] + 1e6  # a mean that is large beside the spread


def moments(*parts: np.ndarray) -> Moments:
    result = Moments(5)
    for part in parts:
        result.update(part)
    return result


def check(result: Moments, rows: np.ndarray = ROWS) -> None:
    assert result.count == len(rows)
    np.testing.assert_allclose(result.mean, rows.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(result.covariance, np.cov(rows, rowvar=False), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("cuts", [[], [1], [50], [1, 2, 3, 100], [0, 0, 101]])
def test_batches_give_what_numpy_gives_for_all_rows(cuts: list[int]) -> None:
    check(moments(*np.split(ROWS, cuts)))


def test_parts_of_several_processes_merge_to_the_whole() -> None:
    parts = [moments(part) for part in np.split(ROWS, [7, 7, 60])]  # one process had nothing
    whole = Moments(5)
    for part in parts:
        whole.merge(part)
    check(whole)
    assert parts[0].count == 7


def test_the_state_goes_through_a_file_and_goes_on() -> None:
    file = io.BytesIO()
    np.savez(file, **moments(ROWS[:40]).state())
    file.seek(0)
    again = Moments.from_state(dict(np.load(file)))
    again.update(ROWS[40:])
    check(again)


def test_the_state_is_a_copy() -> None:
    running = moments(ROWS[:40])
    state = running.state()
    running.update(ROWS[40:])
    check(Moments.from_state(state), ROWS[:40])


def test_float32_rows_are_summed_in_float64() -> None:
    rows = (RNG.normal(size=(3000, 2)) + 1000).astype(np.float32)
    result = Moments(2)
    result.update(rows)
    np.testing.assert_allclose(result.covariance, np.cov(rows.astype(np.float64), rowvar=False), rtol=1e-10)


def test_wrong_rows_are_refused_and_change_nothing() -> None:
    result = moments(ROWS)
    with pytest.raises(InputError, match=r"rows must have the shape \(rows, 5\)"):
        result.update(ROWS[:, :4])
    with pytest.raises(InputError, match="rows must be finite"):
        result.update(np.full((2, 5), np.nan))
    with pytest.raises(InputError, match="other must have the dimension 5, got 4"):
        result.merge(Moments(4))
    with pytest.raises(InputError, match="count must be at least 2"):
        _ = moments(ROWS[:1]).covariance
    with pytest.raises(InputError, match="state must have"):
        Moments.from_state({"count": 2, "mean": np.zeros(3), "scatter": np.zeros((2, 2))})
    with pytest.raises(InputError, match="dimension must be at least 1"):
        Moments(0)
    check(result)
