"""What a device does at most, measured: the floors beside other measurements."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

_MATRIX_SIZES = {"cuda": 8192}
"""Rows, where a device needs larger ones than others to be busy."""
_COPIED_BYTES = 2**28
"""More than any cache holds."""
_STRETCHES, _STRETCH_SECONDS = 3, 0.2


def matrix_size(device: torch.device) -> int:
    """Rows of the square matrices of `matrix_rate`."""
    return _MATRIX_SIZES.get(device.type, 2048)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second in products of square matrices of `matrix_size` rows: the best of three."""
    size = matrix_size(device)
    matrix = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 * _times_a_second(lambda: matrix @ matrix)


def copy_rate(device: torch.device) -> float:
    """Bytes a second, read and written, in copies of 256 MiB: the best of three stretches."""
    source = torch.ones(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _COPIED_BYTES * _times_a_second(lambda: target.copy_(source))


def _times_a_second(job: Callable[[], Tensor]) -> float:
    best = 0.0
    _wait(job())
    for _ in range(_STRETCHES):
        started, count, last = time.perf_counter(), 0, None
        while time.perf_counter() - started < _STRETCH_SECONDS:
            last = job()
            if last.device.type != "cpu" and count % 8 == 7:  # work is queued there, and the clock would not see it
                _wait(last)
            count += 1
        assert last is not None
        _wait(last)
        best = max(best, count / (time.perf_counter() - started))
    return best


def _wait(result: Tensor) -> None:
    result.flatten()[0].item()
