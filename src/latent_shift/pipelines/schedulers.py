"""Named samplers. Any other diffusers scheduler can be set on the pipeline, too."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import diffusers
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from latent_shift.core.errors import InputError

DEFAULT_STEPS = 15
"""Of the multistep solvers: measured (docs/performance.md, "Fewer steps"), and what DPM-Solver++ promises for guided
sampling (arXiv:2211.01095: 15 to 20)."""

SCHEDULERS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", DEFAULT_STEPS, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": ("UniPCMultistepScheduler", DEFAULT_STEPS, {}),
    "ddim": ("DDIMScheduler", 50, {"clip_sample": False, "set_alpha_to_one": True}),
    "euler": ("EulerDiscreteScheduler", 25, {}),
    "ddim-trailing": (
        "DDIMScheduler",
        4,
        {"clip_sample": False, "set_alpha_to_one": True, "timestep_spacing": "trailing"},
    ),
    "ddpm": ("DDPMScheduler", 100, {"clip_sample": False, "variance_type": "fixed_small"}),
}
"""Name: diffusers class, its usual number of steps, its settings. "ddpm" with 100 steps is the paper's (Table 6).
"ddim-trailing" with 4 is for distilled models (`training.distillation`): its steps start at the last of training."""

PAPER_NOISE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 8.5e-4,
    "beta_end": 1.2e-2,
    "prediction_type": "epsilon",
}
"""The paper's noise process (supplement A, Table 6: "quad" is diffusers' `scaled_linear`)."""


FAST_SCHEDULER = "ddim-trailing"
"""What a distilled model is sampled with."""


def find_scheduler(name: str | None, fast: bool, argument: str = "scheduler") -> tuple[str, int]:
    """A key of `SCHEDULERS` and its usual number of steps; that of the kind of model where no name is given.

    Raises:
        InputError: a `ValueError`, if the name is unknown, or not what a distilled (`fast`) model was trained for.
    """
    if name is None:
        name = FAST_SCHEDULER if fast else "dpm++"
    if name not in SCHEDULERS:
        raise InputError(argument, name, f"be one of {', '.join(SCHEDULERS)}")
    if fast and name != FAST_SCHEDULER:
        raise InputError(argument, name, f"be {FAST_SCHEDULER} where the model is fast: it was trained for no other")
    return name, SCHEDULERS[name][1]


def usual_steps(scheduler: SchedulerMixin) -> int:
    """The usual number of steps of a scheduler, by its class; `DEFAULT_STEPS` for those that have no name here."""
    kind = type(scheduler).__name__
    return next((steps for class_name, steps, _ in SCHEDULERS.values() if class_name == kind), DEFAULT_STEPS)


def set_timesteps(
    scheduler: Any,
    device: torch.device,
    num_inference_steps: int,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
) -> None:
    """Sets a scheduler's steps: so many of its own, or those that are given.

    Raises:
        InputError: both kinds are given, or one that the scheduler does not take.
    """
    given = {name: list(steps) for name, steps in (("timesteps", timesteps), ("sigmas", sigmas)) if steps is not None}
    if len(given) > 1:
        raise InputError("sigmas", sigmas, "be left out where timesteps are given")
    for name, steps in given.items():
        if name not in inspect.signature(scheduler.set_timesteps).parameters:
            raise InputError(name, steps, f"be left out: {type(scheduler).__name__} takes none")
    arguments: dict[str, Any] = given or {"num_inference_steps": num_inference_steps}
    scheduler.set_timesteps(**arguments, device=device)


def clean_latents(scheduler: Any, stepped: tuple[Tensor, ...]) -> Tensor:
    """What a step takes the finished latents to be.

    Args:
        scheduler: of diffusers; some return it, some of several steps remember it, and others remember the noise.
        stepped: what its `step` returned, as a tuple: the latents after the step, and perhaps this.

    Returns:
        The latents after the step where the scheduler does not say.
    """
    if len(stepped) > 1:
        return stepped[1]
    config = scheduler.config
    remembers = config.get("predict_x0") or config.get("algorithm_type") in ("dpmsolver++", "sde-dpmsolver++")
    clean: Tensor = scheduler.model_outputs[-1] if remembers else stepped[0]
    return clean


def make_scheduler(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    """A scheduler for a model trained with the noise schedule of `config`.

    Timesteps are spaced "linspace", which for DDPM equals guided-diffusion's respacing (the paper's DDPM-100), and
    "trailing" where the last training step is pure noise, so that sampling starts there (arXiv:2305.08891).

    Args:
        name: a key of `SCHEDULERS`.
        config: the config of the model's own scheduler.

    Raises:
        InputError: a `ValueError`, if the name is unknown.
    """
    find_scheduler(name, fast=False)
    class_name, _, options = SCHEDULERS[name]
    spacing = "trailing" if config.get("rescale_betas_zero_snr") else "linspace"
    kept = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "prediction_type", "trained_betas")
    noise = {key: config[key] for key in (*kept, "rescale_betas_zero_snr") if key in config}
    scheduler = getattr(diffusers, class_name).from_config({**noise, "timestep_spacing": spacing, **options})
    # For those who make another of its config: DDIM and DDPM would clip latents to [-1, 1] where it does not say.
    scheduler.register_to_config(clip_sample=False)
    return cast("SchedulerMixin", scheduler)
