"""Named samplers. Any other diffusers scheduler can be set on the pipeline, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers import SchedulerMixin

from latent_shift.core.errors import InputError

SCHEDULERS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "dpm++": ("DPMSolverMultistepScheduler", 25, {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": ("UniPCMultistepScheduler", 25, {}),
    "ddim": ("DDIMScheduler", 50, {"clip_sample": False, "set_alpha_to_one": True}),
    "euler": ("EulerDiscreteScheduler", 25, {}),
    "ddpm": ("DDPMScheduler", 100, {"clip_sample": False, "variance_type": "fixed_small"}),
}
"""Name: diffusers class, its usual number of steps, its settings. "ddpm" with 100 steps is the paper's (Table 6)."""

PAPER_NOISE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 8.5e-4,
    "beta_end": 1.2e-2,
    "prediction_type": "epsilon",
}
"""The paper's noise process (supplement A, Table 6: "quad" is diffusers' `scaled_linear`)."""


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
    if name not in SCHEDULERS:
        raise InputError("scheduler", name, f"be one of {', '.join(SCHEDULERS)}")
    class_name, _, options = SCHEDULERS[name]
    spacing = "trailing" if config.get("rescale_betas_zero_snr") else "linspace"
    kept = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "prediction_type", "trained_betas")
    noise = {key: config[key] for key in (*kept, "rescale_betas_zero_snr") if key in config}
    return getattr(diffusers, class_name).from_config({**noise, "timestep_spacing": spacing, **options})
