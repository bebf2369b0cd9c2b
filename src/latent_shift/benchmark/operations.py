"""The shift, and shift, GroupNorm and SiLU as one: alone, beside the time that a copy of the features takes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from latent_shift.models.presets import Preset
from latent_shift.ops import choose_backend, shift_group_norm_silu, temporal_shift_folded

from .timing import spread, take_turns, timed

_CALLS = 10
"""So many calls are timed together: one is too short."""


def measure_operations(
    preset: Preset, device: torch.device, dtype: torch.dtype, memory_format: str, rounds: int, copy_rate: float
) -> list[dict[str, Any]]:
    """Seconds of one call on the features of each level of a U-Net, in inference mode, after a warm-up.

    Args:
        preset: whose widths, sizes and frames.
        device: where.
        dtype: of the features.
        memory_format: of the features: "contiguous" or "channels_last".
        rounds: of all, in turns.
        copy_rate: bytes a second (`ops.rates.copy_rate`), for the floor.

    Returns:
        For each operation, backend and level: `operation`, `backend`, `channels`, `side`, `bytes` (features read and
        written once), `seconds`, `seconds_range` and `floor_seconds`, what copying the features takes.
    """
    jobs: dict[str, Callable[[], Any]] = {}
    rows: dict[str, dict[str, Any]] = {}
    chosen = choose_backend(device, dtype).backend
    if chosen == "native" and memory_format != "channels_last":
        chosen = "eager"  # which is what computes it then
    layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
    groups, frames = preset.unet.get("norm_num_groups", 32), preset.num_frames
    for level, channels in enumerate(preset.unet["block_out_channels"]):
        side = preset.unet["sample_size"] >> level
        x = torch.randn(frames, channels, side, side, device=device).to(dtype).contiguous(memory_format=layout)
        weight = torch.ones(channels, device=device, dtype=dtype)
        bias = torch.zeros_like(weight)
        operations: list[tuple[str, str, Callable[[], Any]]] = [
            ("shift", "eager", partial(temporal_shift_folded, x, frames))
        ]
        operations += [
            (
                "shift, norm, SiLU",
                backend,
                partial(shift_group_norm_silu, x, weight, bias, groups, num_frames=frames, backend=backend),
            )
            for backend in dict.fromkeys(("eager", chosen))
        ]
        for operation, backend, call in operations:
            key = f"{operation} {backend} {level}"
            moved = 2 * x.numel() * x.element_size()
            rows[key] = {"operation": operation, "backend": backend, "channels": channels, "side": side}
            rows[key] |= {"bytes": moved, "floor_seconds": moved / copy_rate}
            jobs[key] = timed(_repeated(call, device), device)
    with torch.inference_mode():
        for job in jobs.values():
            job()
        found = take_turns(jobs, rounds)
    return [row | spread("seconds", [one / _CALLS for one in found[key]]) for key, row in rows.items()]


def _repeated(call: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """Some calls in a row; on a GPU as a graph, since launching each from Python takes longer than it runs."""
    if device.type != "cuda":
        return partial(_repeat, call)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode():
        call()
        torch.cuda.synchronize(device)
        with torch.cuda.graph(graph):
            _repeat(call)
    return graph.replay


def _repeat(call: Callable[[], Any]) -> None:
    for _ in range(_CALLS):
        call()
