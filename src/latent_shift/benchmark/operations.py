"""The shift, and shift, GroupNorm and SiLU as one: alone, beside the time that a copy of the features takes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from latent_shift.models.presets import Preset
from latent_shift.models.resnet import ShiftResnetBlock2D
from latent_shift.ops import Boundary, choose_backend, shift_group_norm_silu, temporal_shift_folded

from .networks import build_denoiser, example_inputs
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
    groups, frames = preset.unet.get("norm_num_groups", 32), preset.num_frames
    for level, channels in enumerate(preset.unet["block_out_channels"]):
        side = preset.unet["sample_size"] >> level
        x, weight, bias = _features((frames, channels, side, side), device, dtype, memory_format)
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


def measure_shift(
    preset: Preset, device: torch.device, dtype: torch.dtype, memory_format: str, rounds: int
) -> dict[str, Any]:
    """What the shift adds to one forward: the operation of each ResNet block with it and without it, in turns.

    A whole forward with the shift on and off says the same, but its noise is larger than what is sought.

    Args:
        preset: whose U-Net.
        device: where.
        dtype: of the features.
        memory_format: of the features: "contiguous" or "channels_last".
        rounds: of all shapes.

    Returns:
        `blocks`, how many have a shift, and the seconds of them all with it less those without: `seconds` (median of
        the rounds) and `seconds_range`.
    """
    shapes = _block_inputs(preset)
    options = {"num_groups": preset.unet.get("norm_num_groups", 32), "num_frames": preset.num_frames}
    boundaries: dict[str, Boundary | None] = {"on": "zero", "off": None}
    jobs: dict[str, Callable[[], float]] = {}
    for shape in shapes:
        features = _features(shape, device, dtype, memory_format)
        for name, boundary in boundaries.items():
            call = partial(shift_group_norm_silu, *features, boundary=boundary, **options)
            jobs[f"{shape} {name}"] = timed(_repeated(call, device), device)
    with torch.inference_mode():
        for job in jobs.values():
            job()
        found = take_turns(jobs, rounds)
    added = [
        sum(times * (found[f"{shape} on"][n] - found[f"{shape} off"][n]) / _CALLS for shape, times in shapes.items())
        for n in range(rounds)
    ]
    return {"blocks": shapes.total(), **spread("seconds", added)}


def _features(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, memory_format: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Random features, and weight and bias of their norm."""
    layout = torch.channels_last if memory_format == "channels_last" else torch.contiguous_format
    x = torch.randn(shape, device=device).to(dtype).contiguous(memory_format=layout)
    weight = torch.ones(shape[1], device=device, dtype=dtype)
    return x, weight, torch.zeros_like(weight)


def _block_inputs(preset: Preset) -> Counter[tuple[int, ...]]:
    """How many ResNet blocks get features of each shape in a forward of one clip."""
    meta = torch.device("meta")
    denoiser = build_denoiser("latent_shift", preset, meta, torch.float32)
    shapes: Counter[tuple[int, ...]] = Counter()
    for module in denoiser.modules():
        if isinstance(module, ShiftResnetBlock2D):
            module.register_forward_pre_hook(lambda _, inputs: shapes.update([tuple(inputs[0].shape)]))
    with torch.inference_mode():
        denoiser(*example_inputs(preset, meta, torch.float32))
    return shapes


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
