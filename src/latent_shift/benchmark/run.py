"""The measurement: which networks meet in which rounds, and what is written down."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from latent_shift.core.errors import InputError, LatentShiftError
from latent_shift.core.shapes import check_at_least
from latent_shift.models.presets import Preset
from latent_shift.ops.rates import copy_rate, matrix_rate, matrix_size
from latent_shift.pipelines import LatentShiftPipeline
from latent_shift.pipelines.loading import resolve_device, resolve_dtype

from .clip import build_pipeline, summarise_clips, time_clip
from .machine import describe_machine
from .memory import peak_memory
from .networks import (
    MODELS,
    SHARES,
    Denoiser,
    build_denoiser,
    count,
    example_inputs,
    find_benchmark_preset,
    training_step,
)
from .operations import measure_operations, measure_shift
from .profiling import profile_forward
from .timing import choose_memory_format, compare, fit_line, spread, take_turns, timed

Progress = Callable[[str, int, int | None], None]
"""Called with what is done, how much of it, and how much there is."""

FLOOR = "unet2d"
"""Every other network is measured in turns with it."""

_GROUPS = (
    ("latent_shift", "latent_shift_off", "unet2d_compiled"),
    ("latent_vdm",),
    ("unet3d",),
    ("unet_motion",),
)
"""Networks that are measured in the same rounds, with `FLOOR`. So at most two sets of weights are there at once."""
_SAME_FORMAT = ("latent_shift_off", "unet2d_compiled")
"""Networks that keep the memory format of the one whose weights they use."""
_SWEPT = ("latent_shift", "latent_vdm")
_TRAINED = ("latent_shift", "latent_shift_off", "latent_vdm", FLOOR)


@dataclass(frozen=True)
class BenchmarkOptions:
    """What is measured, and how often.

    Attributes:
        models: which of `MODELS`; "unet2d" always is, and "latent_shift" where it is asked for with its shift off.
        rounds: timed forwards of each network.
        train_rounds: timed training steps (forward and backward) of the video networks and the plain one; 0 for none.
        compile: whether to measure "unet2d_compiled".
        steps: denoising steps of a whole clip; the paper's are 100.
        clip_steps: how many of them are run; all on a GPU and two elsewhere where None.
        clip_rounds: timed clips of each network; 0 for none.
        memory: whether to measure peak memory, in a process for each network.
        sweep_rounds: timed forwards of each number of frames; 0 for none.
        sweep_frames: numbers of frames.
        op_rounds: timed calls of the shift alone, and with norm and SiLU; 0 for none.
        profile: whether to say where the time of a forward goes, of the video networks and the plain one.
    """

    models: tuple[str, ...] = tuple(MODELS)
    rounds: int = 7
    train_rounds: int = 0
    compile: bool = True
    steps: int = 100
    clip_steps: int | None = None
    clip_rounds: int = 3
    memory: bool = True
    sweep_rounds: int = 3
    sweep_frames: tuple[int, ...] = (4, 8, 16, 32, 64, 128)
    op_rounds: int = 7
    profile: bool = True

    def __post_init__(self) -> None:
        """Raises `InputError` for a value out of range."""
        for name in self.models:
            if name not in MODELS:
                raise InputError("models", name, f"be among {', '.join(MODELS)}")
        for name, least in (
            ("rounds", 1),
            ("train_rounds", 0),
            ("steps", 1),
            ("clip_rounds", 0),
            ("sweep_rounds", 0),
            ("op_rounds", 0),
        ):
            check_at_least(name, getattr(self, name), least)
        if len(set(self.sweep_frames)) < 2 or min(self.sweep_frames) < 1:
            raise InputError("sweep_frames", self.sweep_frames, "be two numbers of frames or more")
        if self.clip_steps is not None and not 1 <= self.clip_steps <= self.steps:
            raise InputError("clip_steps", self.clip_steps, f"be between 1 and steps, {self.steps}")

    def measures(self, name: str) -> bool:
        """Whether a network is to be measured."""
        if name == "unet2d_compiled" and not self.compile:
            return False
        wanted = {FLOOR, *self.models}
        return name in wanted | {SHARES[other] for other in wanted & {"latent_shift_off"}}


@dataclass
class _Run:
    """One measurement under way."""

    preset: Preset
    device: torch.device
    dtype: torch.dtype
    options: BenchmarkOptions
    clip_steps: int
    pipeline: LatentShiftPipeline | None
    formats: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    training: dict[str, dict[str, Any]] = field(default_factory=dict)
    clips: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    frames: dict[str, dict[str, Any]] = field(default_factory=dict)
    profiles: dict[str, dict[str, float]] = field(default_factory=dict)

    def forward(self, denoiser: Denoiser, num_frames: int | None = None) -> Callable[[], Any]:
        """A job: one forward."""
        inputs = example_inputs(self.preset, self.device, self.dtype, num_frames)
        return torch.inference_mode()(partial(denoiser, *inputs))

    def build(self, name: str, shared: Denoiser | None = None) -> Denoiser:
        """A network that is warm and has its faster memory format."""
        denoiser = build_denoiser(name, self.preset, self.device, self.dtype, shared)
        job = self.forward(denoiser)
        self.facts[name] = {}
        if name in _SAME_FORMAT:
            first = timed(job, self.device)()
            if name == "unet2d_compiled":
                self.facts[name]["compile_seconds"] = first
            job()
            self.formats[name] = self.formats[SHARES[name]]
        else:
            self.formats[name] = choose_memory_format(denoiser, job, self.device)
        return denoiser

    def measure(self, names: list[str], floor: Denoiser) -> None:
        """Forwards, clips and numbers of frames of a group, in turns with the floor."""
        denoisers = {FLOOR: floor}
        for name in names:
            try:
                denoisers[name] = self.build(name, denoisers.get(SHARES.get(name, "")))
            except RuntimeError as error:
                if name != "unet2d_compiled":
                    raise
                lines = str(error).strip().splitlines() or [type(error).__name__]
                self.facts[name] = missing(f"torch.compile failed: {lines[0]}")
        seconds = take_turns(
            {name: timed(self.forward(denoiser), self.device) for name, denoiser in denoisers.items()},
            self.options.rounds,
        )
        for name, own in seconds.items():
            self.seconds.setdefault(name, []).extend(own)
            self.facts.setdefault(name, {})["ratio"] = compare(own, seconds[FLOOR], "ratio_to_unet2d")
        if "latent_shift_off" in seconds:
            ratio = compare(seconds["latent_shift"], seconds["latent_shift_off"], "ratio_to_latent_shift_off")
            self.facts["latent_shift"]["ratio"] |= ratio
        if self.options.profile:
            for name in denoisers.keys() & {*_SWEPT, FLOOR} - self.profiles.keys():
                self.profiles[name] = profile_forward(self.forward(denoisers[name]), self.device)
        if self.options.train_rounds:
            self._train({name: one for name, one in denoisers.items() if name in _TRAINED})
        if self.pipeline is not None:
            clips = {name: one for name, one in denoisers.items() if name != "latent_shift_off"}
            self._measure_clips(self.pipeline, clips)
        if self.options.sweep_rounds:
            for name in denoisers.keys() & set(_SWEPT):
                self._sweep(name, denoisers[name])

    def _train(self, denoisers: dict[str, Denoiser]) -> None:
        inputs = example_inputs(self.preset, self.device, self.dtype)
        jobs = {name: partial(training_step, denoiser, inputs) for name, denoiser in denoisers.items()}
        for job in jobs.values():
            job()  # to warm up
        rounds = self.options.train_rounds
        seconds = take_turns({name: timed(job, self.device) for name, job in jobs.items()}, rounds)
        for name, own in seconds.items():
            ratio = compare(own, seconds[FLOOR], "ratio_to_unet2d")
            self.training.setdefault(name, {**spread("seconds", own), **ratio, "rounds": own})

    def _measure_clips(self, pipeline: LatentShiftPipeline, denoisers: dict[str, Denoiser]) -> None:
        for denoiser in denoisers.values():
            time_clip(pipeline, denoiser, 1)  # to warm up
        jobs = {name: partial(time_clip, pipeline, one, self.clip_steps) for name, one in denoisers.items()}
        for name, clips in take_turns(jobs, self.options.clip_rounds).items():
            self.clips.setdefault(name, []).extend(clips)

    def _sweep(self, name: str, denoiser: Denoiser) -> None:
        jobs = {str(frames): self.forward(denoiser, frames) for frames in self.options.sweep_frames}
        for job in jobs.values():
            job()
        seconds = take_turns(
            {frames: timed(job, self.device) for frames, job in jobs.items()}, self.options.sweep_rounds
        )
        summary = {int(frames): spread("seconds", rounds) for frames, rounds in seconds.items()}
        fit = fit_line({frames: one["seconds"] for frames, one in summary.items()})
        self.frames[name] = {**{str(frames): one for frames, one in summary.items()}, "linear_fit": fit}


def benchmark(
    preset: str = "paper",
    options: BenchmarkOptions | None = None,
    device: str = "auto",
    dtype: str = "bf16",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measures size and speed of the video networks and their rivals, with random weights.

    Args:
        preset: "paper", "small" or "tiny".
        options: what is measured, and how often.
        device: as in `load_pipeline`.
        dtype: as in `load_pipeline`; of all networks.
        progress: told what is done.

    Returns:
        What was measured on what, and how: `forward`, `training`, `clip` and `frames` by network; `profile`, shares of
        a forward by kind of work; `ops`, by operation, backend and level; `shift`, what it adds to a forward; `rates`,
        what the device does at most; `protocol`.

    Raises:
        InputError: a `ValueError`, for an unknown preset, device or dtype.
    """
    options, show = options or BenchmarkOptions(), progress or (lambda *_: None)
    found, target, network_dtype = find_benchmark_preset(preset), resolve_device(device), resolve_dtype(dtype, device)
    dtype_name = str(network_dtype).removeprefix("torch.")
    machine = describe_machine(target)
    rates = _rates(target, network_dtype)
    clip_steps = options.clip_steps or (options.steps if target.type == "cuda" else min(2, options.steps))
    groups = [[name for name in group if options.measures(name)] for group in _GROUPS]
    groups = [group for group in groups if group] or [[]]

    pipeline = build_pipeline(found, target, network_dtype) if options.clip_rounds else None
    run = _Run(found, target, network_dtype, options, clip_steps, pipeline)
    floor = run.build(FLOOR)
    for done, group in enumerate(groups):
        show("groups of networks", done, len(groups))
        run.measure(group, floor)
        _free(target)
    del floor, run.pipeline, pipeline
    _free(target)

    rates = {name: max(rate, rates[name]) for name, rate in _rates(target, network_dtype).items()}
    shift_format = run.formats.get("latent_shift", run.formats[FLOOR])
    ops = (
        measure_operations(found, target, network_dtype, shift_format, options.op_rounds, rates["copy_bytes_per_s"])
        if options.op_rounds
        else []
    )
    shift = measure_shift(found, target, network_dtype, shift_format, options.op_rounds) if options.op_rounds else None

    forward: dict[str, Any] = {}
    for done, name in enumerate(MODELS):
        show("size and memory", done, len(MODELS))
        facts = run.facts.get(name) or missing("not asked for")
        if name not in run.seconds:
            forward[name] = facts
            continue
        ratio = facts.pop("ratio")
        peak = None
        if options.memory and name != "unet2d_compiled":
            try:
                peak = peak_memory(name, preset, str(target), dtype_name, run.formats[name])
            except LatentShiftError as error:  # no reason to lose what was measured before
                facts["peak_memory_reason"] = str(error)
        size = count(name, found)
        forward[name] = {
            **spread("seconds", run.seconds[name]),
            **ratio,
            **size,
            "floor_seconds": size["flops"] / rates["matrix_flop_per_s"],
            "peak_memory_bytes": peak,
            "memory_format": run.formats[name],
            **facts,
            "rounds": run.seconds[name],
        }
    clips = {name: summarise_clips(rounds, clip_steps, options.steps) for name, rounds in run.clips.items()}
    return {
        **machine,
        "dtype": dtype_name,
        "preset": preset,
        "options": {
            **asdict(options),
            "models": list(options.models),
            "clip_steps": clip_steps,
            "sweep_frames": list(options.sweep_frames),
        },
        "protocol": _protocol(found, options, clip_steps, matrix_size(target)),
        "rates": rates,
        "forward": forward,
        "training": run.training,
        "clip": clips,
        "frames": run.frames,
        "profile": {name: run.profiles[name] for name in MODELS if name in run.profiles},
        "ops": ops,
        "shift": shift,
    }


def _rates(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What the device does at most, at this moment."""
    return {"matrix_flop_per_s": matrix_rate(device, dtype), "copy_bytes_per_s": copy_rate(device)}


def missing(reason: str) -> dict[str, Any]:
    """Stands for a network that was not measured."""
    return {"seconds": None, "ratio_to_unet2d": None, "reason": reason}


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _protocol(preset: Preset, options: BenchmarkOptions, clip_steps: int, rows: int) -> list[str]:
    """How it was measured, in sentences."""
    side = preset.unet["sample_size"]
    lines = [
        "Random weights, the same blocks and widths for all, inference mode, eager but where it says compiled.",
        f"A forward is one clip of {preset.num_frames} frames of {side} x {side} latents with {preset.max_tokens} text "
        "tokens, without guidance; the plain U-Net gets the frames as so many images.",
        "Each network has the faster of two memory formats (channels first or last), chosen in its warm-up.",
        f"{options.rounds} rounds; in a round each network of a group and the plain U-Net have one forward each, in an "
        "order that turns around with every round. Groups: Latent-Shift with its shift on and off and the compiled "
        "U-Net; Latent-VDM; UNet3DConditionModel; UNetMotionModel.",
        "Seconds are medians, with the least and the largest. A ratio is the median of the ratios within a round. The "
        "plain U-Net is in every group, so it has more rounds.",
        "FLOPs are those of matrix products and convolutions (torch.utils.flop_counter); multiply and add are two. The "
        f"floor of a forward is its FLOPs over the rate of products of {rows} x {rows} matrices in the same dtype, the "
        "best of six stretches before and after; convolutions by another algorithm (Winograd's) could go below.",
        "Peak memory: a fresh process builds the network and runs one forward; what torch allocates on CUDA, what the "
        "resident memory grows by on a CPU (Linux).",
    ]
    if options.train_rounds:
        lines.append(
            f"A training step is forward and backward of the same input, all weights and their gradients in the dtype "
            f"above, without optimiser or checkpointing; {options.train_rounds} rounds, in turns. All have the same "
            "attention kernel: on a CPU plain products."
        )
    if options.clip_rounds:
        measured = "all of them are run" if clip_steps == options.steps else f"{clip_steps} of them are run"
        lines.append(
            f"A clip is one sentence through text encoder, {options.steps} steps of DDPM with guidance "
            f"{preset.guidance_scale} (two forwards' work a step) and decoder, all in one dtype; {measured}, "
            f"{options.clip_rounds} times, in turns; estimated_total_seconds has the others at the same speed."
        )
    if options.profile:
        lines.append("Where the time goes: one forward under PyTorch's profiler; the operation's own time counts.")
    if options.op_rounds:
        lines.append(
            f"Operations alone: features of the first block of each level, {options.op_rounds} rounds in turns of ten "
            "calls each. The floor reads and writes them once, at the rate of copies of 256 MiB; what fits into a "
            "cache can go below. What the shifts add: the operation of every block with the shift less that without, "
            "as many rounds."
        )
    if options.sweep_rounds:
        lines.append(
            f"Frames: {options.sweep_rounds} rounds over all numbers of frames; the line is seconds = frames x the "
            "median of seconds / frames."
        )
    return lines
