"""Where the time of a forward goes, by the kind of work."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_KINDS = {
    "convolutions": ("conv",),
    "matrix products": ("addmm", "::mm", "bmm", "linear", "matmul"),
    "attention": ("attention",),
    "norms": ("norm",),
    "activations": ("silu", "gelu", "sigmoid"),
    "sums and products": ("::add", "::mul", "::sub", "::div", "::lerp"),
    "copies": ("copy", "::cat", "clone", "contiguous", "upsample", "::fill", "::zero", "::to", "Shift"),
}
"""Parts of operations' names, looked for in this order; what has none of them is "rest"."""


def profile_forward(job: Callable[[], Any], device: torch.device) -> dict[str, float]:
    """Shares of the time of one call, by kind of work, in [0, 1]; the largest first.

    Args:
        job: one forward, warm.
        device: whose time counts; on a CPU that of the thread that calls, in an operation itself and not in those that
            it calls.
    """
    on_cpu = device.type == "cpu"
    activities = [ProfilerActivity.CPU] + ([] if on_cpu else [ProfilerActivity.CUDA])
    with profile(activities=activities) as profiled:
        job()
    seconds: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages():
        # On a GPU an operation has the time of its kernels, which are listed by their own names once more.
        spent = event.self_cpu_time_total if on_cpu else event.self_device_time_total
        if event.key.startswith("ProfilerStep") or not spent or event.device_type.name != "CPU":
            continue
        kind = next((kind for kind, parts in _KINDS.items() if any(part in event.key for part in parts)), "rest")
        seconds[kind] += spent
    whole = sum(seconds.values())
    return {kind: spent / whole for kind, spent in sorted(seconds.items(), key=lambda item: -item[1])}
