"""Seconds, measured in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import torch

from latent_shift.models.layers import set_memory_format

from .networks import Denoiser

Job = Callable[[], Any]
Result = TypeVar("Result")


def clock(device: torch.device) -> float:
    """Seconds of a monotonic clock, after everything that the device was asked for is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()


def take_turns(jobs: Mapping[str, Callable[[], Result]], rounds: int) -> dict[str, list[Result]]:
    """What each job gives in each round. Every second round goes backwards, so that no job is always the first."""
    results: dict[str, list[Result]] = {name: [] for name in jobs}
    for number in range(rounds):
        for name in list(jobs) if number % 2 == 0 else reversed(list(jobs)):
            results[name].append(jobs[name]())
    return results


def timed(job: Job, device: torch.device) -> Callable[[], float]:
    """The job as one that gives its seconds."""

    def run() -> float:
        start = clock(device)
        job()
        return clock(device) - start

    return run


def choose_memory_format(denoiser: Denoiser, job: Job, device: torch.device) -> str:
    """Lays the weights out in the format in which `job` is faster (the best of two, in turns, each after a warm-up)."""

    def run(name: str) -> float:
        set_memory_format(denoiser.network, name)
        job()
        return timed(job, device)()

    seconds = take_turns({name: partial(run, name) for name in ("contiguous", "channels_last")}, rounds=2)
    best = min(seconds, key=lambda name: min(seconds[name]))
    set_memory_format(denoiser.network, best)
    job()
    return best


def spread(name: str, values: Sequence[float]) -> dict[str, Any]:
    """Median, least and largest of some values."""
    return {name: statistics.median(values), f"{name}_range": [min(values), max(values)]}


def compare(own: Sequence[float], other: Sequence[float], name: str) -> dict[str, Any]:
    """Median, least and largest of the ratios, each within one round."""
    return spread(name, [one / two for one, two in zip(own, other, strict=True)])


def fit_line(seconds: Mapping[int, float]) -> dict[str, float]:
    """The line through the origin, seconds = frames x seconds_per_frame, and the largest distance from it, as a share.

    The slope is the median of seconds / frames: no length counts more than another.
    """
    slope = statistics.median(value / frames for frames, value in seconds.items())
    deviation = max(abs(value / (slope * frames) - 1) for frames, value in seconds.items())
    return {"seconds_per_frame": slope, "max_relative_deviation": deviation}
