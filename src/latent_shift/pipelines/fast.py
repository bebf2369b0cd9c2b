"""Fewer steps: a small difference, kept beside a model, that makes it draw in a few steps without guidance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from latent_shift.core.errors import DataError, InputError

from .components import damaged_files_named
from .latent_shift import LatentShiftPipeline
from .schedulers import FAST_SCHEDULER, SCHEDULERS, make_scheduler

FAST_FOLDER = "fast"
"""Its folder in that of the model: a LoRA, as diffusers' `load_lora_weights` reads it."""


def make_fast(pipeline: LatentShiftPipeline, folder: Path, argument: str = "fast") -> None:
    """Merges the distilled difference of a model into its U-Net, and samples it as it was trained to be.

    Args:
        pipeline: the model, as it was loaded.
        folder: where it was loaded from.
        argument: what asks for it, for messages.

    Raises:
        InputError: the model has none, or is fast already.
        DataError: it is damaged, or of another network.
    """
    if pipeline.is_fast:
        raise InputError(argument, True, "be left out: the model is distilled to few steps already")
    path = folder / FAST_FOLDER / "pytorch_lora_weights.safetensors"
    if not path.is_file():
        raise InputError(argument, True, f"be for a model with a distilled difference ({FAST_FOLDER}/{path.name})")
    with damaged_files_named(path.parent):
        merge_lora(pipeline.unet, path)
    pipeline.register_to_config(default_guidance_scale=1.0, distilled_steps=SCHEDULERS[FAST_SCHEDULER][1])
    pipeline.scheduler = make_scheduler(FAST_SCHEDULER, pipeline.scheduler.config)


@torch.no_grad()
def merge_lora(unet: torch.nn.Module, path: Path) -> None:
    """Adds low-rank updates to the weights of linear and convolutional layers, without peft.

    Args:
        unet: the network.
        path: what `DiffusionPipeline.save_lora_weights` wrote, with one rank and one scale for all layers.

    Raises:
        DataError: a layer is not there or has another shape.
    """
    tensors, scale = read_lora(path)
    layers = sorted({name.removeprefix("unet.").rsplit(".lora_", 1)[0] for name in tensors})
    for layer in layers:
        down, up = (tensors[f"unet.{layer}.lora_{part}.weight"] for part in "AB")
        try:
            weight: Any = unet.get_submodule(layer).weight
            change = (up.flatten(1) @ down.flatten(1)).view(weight.shape)
        except (AttributeError, RuntimeError) as error:
            raise DataError(f"{path} does not fit the network: {layer} ({error})") from error
        weight.copy_(weight.float() + scale * change.to(weight.device))  # rounded once


def read_lora(path: Path) -> tuple[dict[str, torch.Tensor], float]:
    """Low-rank updates by name, in fp32, and the scale of them all: alpha / rank, 1 where the file names no alpha."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no mapping)
        settings = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    ranks = [len(tensor) for name, tensor in tensors.items() if ".lora_A." in name]
    return tensors, settings.get("unet.lora_alpha", ranks[0]) / ranks[0] if ranks else 1.0
