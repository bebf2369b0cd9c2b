"""Which noise process a run trains with: what its recipe says, and for the rest that of the model it starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from diffusers import DDPMScheduler

from latent_shift.core.config import parse_config
from latent_shift.core.errors import InputError
from latent_shift.core.files import read_json_object
from latent_shift.pipelines.loading import model_folder

from .config import DiffusionConfig, Recipe

_PROCESS = {
    "num_train_timesteps": "num_train_timesteps",
    "beta_start": "beta_start",
    "beta_end": "beta_end",
    "beta_schedule": "beta_schedule",
    "prediction_type": "prediction_type",
    "zero_terminal_snr": "rescale_betas_zero_snr",
}
"""Field of `DiffusionConfig`: its name in a scheduler of diffusers."""


def resolve_noise(recipe: Recipe) -> tuple[Recipe, list[str]]:
    """The recipe with every field of its noise process decided, and a sentence for each in which it leaves its model.

    A field that the recipe gives is as it says, also where `model.init` was trained otherwise: then the sentences say
    so. A field that it does not give is that of `model.init`; without one, the paper's.

    Raises:
        InputError: there is no such model, its process is none that this trainer has, the recipe's and the model's
            fields contradict each other, or a distillation is given another process than its teacher's.
        DataError: the configuration of the model's scheduler is missing or damaged.
    """
    if recipe.stage == "autoencoder" or not recipe.model.init:
        return recipe, []
    init, given = recipe.model.init, recipe.diffusion
    own = _process_of(init)
    changed = [name for name in own if name in given.model_fields_set and getattr(given, name) != own[name]]
    if changed and recipe.distillation.steps:
        expected = f"be left out, or {own[changed[0]]!r}: a distillation has the noise process of its teacher"
        raise InputError(f"diffusion.{changed[0]}", getattr(given, changed[0]), expected)
    inherited = {name: value for name, value in own.items() if name not in given.model_fields_set}
    if inherited.get("zero_terminal_snr") and given.prediction_type != "v_prediction" and "prediction_type" in changed:
        expected = f"be v_prediction, or diffusion.zero_terminal_snr be given as false: {init} has zero terminal SNR"
        raise InputError("diffusion.prediction_type", given.prediction_type, expected)
    tree = {**recipe.model_dump(exclude_unset=True), "diffusion": {**given.model_dump(), **inherited}}
    resolved = parse_config(Recipe, tree)
    notes = [
        f"diffusion.{name} = {getattr(given, name)!r} changes the noise process: {init} was trained with {own[name]!r}"
        for name in changed
    ]
    return resolved, notes


def _process_of(init: str) -> dict[str, Any]:
    """The fields of `_PROCESS` that a model was trained with."""
    saved = read_json_object(Path(model_folder(init, "model.init")) / "scheduler" / "scheduler_config.json")
    config = DDPMScheduler.from_config({**saved, "clip_sample": False}).config
    own = {name: config[key] for name, key in _PROCESS.items()}
    for name in ("beta_schedule", "prediction_type"):
        known = get_args(DiffusionConfig.model_fields[name].annotation)
        if own[name] not in known:
            raise InputError("model.init", init, f"be trained with a {name} of {', '.join(known)}, not {own[name]}")
    if config.get("trained_betas") is not None:
        raise InputError("model.init", init, "have a noise schedule with a name, not betas of its own (trained_betas)")
    return own
