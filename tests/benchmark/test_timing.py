from __future__ import annotations

import pytest
import torch

from latent_shift.benchmark.clip import summarise_clips
from latent_shift.benchmark.timing import compare, fit_line, spread, take_turns, timed


def test_every_second_round_goes_backwards() -> None:
    order: list[str] = []

    def job(name: str) -> int:
        order.append(name)
        return len(order)

    results = take_turns({name: lambda name=name: job(name) for name in "abc"}, 3)
    assert "".join(order) == "abccbaabc"
    assert results == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


def test_a_timed_job_runs_once() -> None:
    calls: list[int] = []
    assert timed(lambda: calls.append(1), torch.device("cpu"))() >= 0
    assert calls == [1]


def test_a_ratio_is_the_median_within_rounds() -> None:
    # The machine slowed down by ten in the last round: the ratio does not care.
    ratio = compare([2.0, 2.2, 20.0], [1.0, 1.0, 10.0], "ratio")
    assert ratio == {"ratio": 2.0, "ratio_range": [2.0, 2.2]}
    assert spread("seconds", [3.0, 1.0, 2.0]) == {"seconds": 2.0, "seconds_range": [1.0, 3.0]}


def test_the_line_goes_through_the_origin() -> None:
    assert fit_line({4: 2.0, 8: 4.0, 16: 8.0}) == {"seconds_per_frame": 0.5, "max_relative_deviation": 0.0}
    assert fit_line({4: 2.0, 8: 4.0, 16: 12.0})["max_relative_deviation"] == pytest.approx(0.5)


def test_what_is_estimated_has_a_name_that_says_so() -> None:
    rounds = [{"text": 1.0, "denoising": 4.0, "decoding": 2.0, "total": 7.0}]
    summary = summarise_clips(rounds, 2, 100)
    assert summary["total_seconds"] == 7.0
    assert summary["seconds_per_step"] == 2.0
    assert (summary["steps_measured"], summary["steps"]) == (2, 100)
    assert summary["estimated_total_seconds"] == pytest.approx(1 + 100 * 2 + 2)
    assert summarise_clips(rounds, 2, 2)["estimated_total_seconds"] is None
