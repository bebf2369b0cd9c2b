"""Peak memory of one forward, in a fresh process, so that nothing that ran before is counted."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import torch

from latent_shift.core.errors import LatentShiftError
from latent_shift.models.layers import set_memory_format

from .networks import build_denoiser, example_inputs, find_benchmark_preset

_PROCESS = Path("/proc/self")


def peak_memory(model: str, preset: str, device: str, dtype: str, memory_format: str) -> int | None:
    """Bytes that building a network and one forward need at most, weights included.

    On CUDA what torch allocates; on a CPU what the resident memory of the process grows by, where the system is Linux.
    None elsewhere.

    Raises:
        LatentShiftError: the process failed or could not be started.
    """
    code = f"from {__name__} import _measure; _measure({[model, preset, device, dtype, memory_format]!r})"
    failed = f"The peak memory of {model} could not be measured"
    try:
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    except OSError as error:
        raise LatentShiftError(f"{failed}: no process could be started ({error.strerror})") from error
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise LatentShiftError(f"{failed}: {lines[-1]}")
    peak: int | None = json.loads(result.stdout.splitlines()[-1])
    return peak


def _measure(arguments: list[str]) -> None:
    """What the fresh process does: it prints the bytes."""
    model, preset_name, device_name, dtype_name, memory_format = arguments
    device, dtype = torch.device(device_name), getattr(torch, dtype_name)
    held = []
    # First the tiny twin: what the libraries load when they are first used is no network's.
    for preset in (find_benchmark_preset("tiny"), find_benchmark_preset(preset_name)):
        before = _restart_peak(device)
        held.append(build_denoiser(model, preset, device, dtype))
        set_memory_format(held[-1].network, memory_format)
        with torch.inference_mode():
            held[-1](*example_inputs(preset, device, dtype))
    peak = _memory(device, "VmHWM")
    sys.stdout.write(f"{json.dumps(None if before is None or peak is None else peak - before)}\n")


def _restart_peak(device: torch.device) -> int | None:
    """Lets the peak begin again from what is held now, and returns that."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _PROCESS.exists():
        (_PROCESS / "clear_refs").write_text("5", encoding="ascii")
    return _memory(device, "VmRSS")


def _memory(device: torch.device, field: str) -> int | None:
    """Bytes held (VmRSS) or the peak (VmHWM); None where neither is known."""
    if device.type == "cuda":
        both = {"VmRSS": torch.cuda.memory_allocated, "VmHWM": torch.cuda.max_memory_allocated}
        return int(both[field](device))
    # Not getrusage's ru_maxrss: it begins with the peak of the process that started this one.
    if device.type != "cpu" or not _PROCESS.exists():
        return None
    found = re.search(rf"{field}:\s*(\d+) kB", (_PROCESS / "status").read_text(encoding="ascii"))
    return int(found[1]) * 1024 if found else None
