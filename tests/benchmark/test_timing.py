from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from latent_shift.benchmark import operations, timing
from latent_shift.benchmark.clip import summarise_clips
from latent_shift.benchmark.networks import build_denoiser
from latent_shift.benchmark.timing import compare, fit_line, spread, take_turns, timed
from latent_shift.models.presets import PRESETS
from latent_shift.ops import rates


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


def test_rates_are_of_what_is_computed_and_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product of n x n matrices is n^3 times a multiply and an add; a copy reads and writes."""
    results: list[torch.Tensor] = []

    def twice_a_second(job: Callable[[], torch.Tensor]) -> float:
        results.append(job())
        return 2.0

    monkeypatch.setattr(rates, "_times_a_second", twice_a_second)
    monkeypatch.setitem(rates._MATRIX_SIZES, "cpu", 64)
    cpu = torch.device("cpu")
    assert rates.matrix_rate(cpu, torch.float32) == 2 * 2 * 64**3
    assert rates.copy_rate(cpu) == 2 * 2 * results[1].numel() * results[1].element_size() == 2**30
    assert results[0].shape == (64, 64)


@pytest.mark.parametrize("fast", ["contiguous", "channels_last"])
def test_the_faster_memory_format_is_chosen(fast: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(timing, "clock", lambda _device: now[0])
    cpu = torch.device("cpu")
    denoiser = build_denoiser("unet2d", PRESETS["tiny"], cpu, torch.float32)
    weight = denoiser.network.conv_in.weight

    def job() -> None:
        laid_out = "channels_last" if weight.is_contiguous(memory_format=torch.channels_last) else "contiguous"
        now[0] += 1.0 if laid_out == fast else 2.0

    assert timing.choose_memory_format(denoiser, job, cpu) == fast
    assert weight.is_contiguous(memory_format=torch.channels_last) == (fast == "channels_last")


def test_seconds_of_an_operation_are_those_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten that are timed together, each of which takes a second here, and half more with the shift."""
    now = [0.0]

    def compute(x: torch.Tensor, *_: Any, **options: Any) -> torch.Tensor:
        now[0] += 1.0 if options.get("boundary", "zero") is None else 1.5
        return x

    monkeypatch.setattr(timing, "clock", lambda _device: now[0])
    monkeypatch.setattr(operations, "temporal_shift_folded", compute)
    monkeypatch.setattr(operations, "shift_group_norm_silu", compute)
    arguments = (PRESETS["tiny"], torch.device("cpu"), torch.float32, "contiguous", 2)
    assert {row["seconds"] for row in operations.measure_operations(*arguments, 1e9)} == {1.5}
    added = operations.measure_shift(*arguments)
    assert (added["blocks"], added["seconds"]) == (14, pytest.approx(14 * 0.5))


def test_what_is_estimated_has_a_name_that_says_so() -> None:
    rounds = [{"text": 1.0, "denoising": 4.0, "decoding": 2.0, "total": 7.0}]
    summary = summarise_clips(rounds, 2, 100)
    assert summary["total_seconds"] == 7.0
    assert summary["seconds_per_step"] == 2.0
    assert (summary["steps_measured"], summary["steps"]) == (2, 100)
    assert summary["estimated_total_seconds"] == pytest.approx(1 + 100 * 2 + 2)
    assert summarise_clips(rounds, 2, 2)["estimated_total_seconds"] is None
