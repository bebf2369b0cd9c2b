"""What a run will need, before it starts: memory and arithmetic, counted on networks without memory ("meta")."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

from latent_shift.core.errors import InputError
from latent_shift.core.files import read_json_object
from latent_shift.ops.rates import matrix_rate
from latent_shift.pipelines.loading import model_folder, resolve_device

from .config import Recipe
from .lora import add_lora
from .networks import DTYPES, UNETS, make_network

_GIB = 2**30
_AUTOENCODER_FACTOR = 8


@dataclass(frozen=True)
class Estimate:
    """Needs of one process; the frozen autoencoder and text encoder come on top.

    Attributes:
        parameters: of the U-Net.
        trained_parameters: those of them that learn.
        weights_gib: weights of the U-Net and of their running average, GiB.
        gradients_gib: gradients, GiB.
        optimizer_gib: the optimiser's state, GiB.
        activations_gib: what the backward pass keeps of one micro-batch, GiB, with attention as plain matrix
            products (fused attention keeps less); not known with gradient checkpointing.
        step_tflop: floating-point operations of one optimiser step of this process, 10^12, forward and backward.
        matrix_tflop_per_s: what this device does in matrix products of the recipe's precision, measured now.
        step_seconds_at_least: the quotient. A run takes longer: norms and attention move memory, and data are drawn.
    """

    parameters: int
    trained_parameters: int
    weights_gib: float
    gradients_gib: float
    optimizer_gib: float
    activations_gib: float | None
    step_tflop: float
    matrix_tflop_per_s: float
    step_seconds_at_least: float


def estimate_run(recipe: Recipe, processes: int = 1) -> Estimate:
    """Counts what one of `processes` needs for the largest step of an image or a video run.

    Raises:
        InputError: the recipe's `model.init` is not there, or its stage is the autoencoder's.
    """
    if recipe.stage == "autoencoder":
        raise InputError("stage", recipe.stage, "be image or video for an estimate")
    dtype, device = DTYPES[recipe.precision], resolve_device(recipe.device)
    config = None
    if recipe.model.init:
        config = read_json_object(Path(model_folder(recipe.model.init)) / "unet" / "config.json")
    with torch.device("meta"):
        unet = make_network(UNETS[recipe.model.video], recipe.model.arguments, config)
    if recipe.lora.rank:
        add_lora(unet, recipe.lora)
        unet.to("meta")
    total = sum(parameter.numel() for parameter in unet.parameters())
    trained = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    share = recipe.batch_size // processes
    rows = min(recipe.micro_batch_size or share, share)
    activations, flop = _count(unet.to(dtype).train(), recipe, rows)
    rate = matrix_rate(device, dtype)
    step_flop = flop * share / rows
    return Estimate(
        parameters=total,
        trained_parameters=trained,
        weights_gib=round(4 * (total + trained) / _GIB, 3),
        gradients_gib=round(4 * trained / _GIB, 3),
        optimizer_gib=round((2 if recipe.optimizer.name == "adamw8bit" else 8) * trained / _GIB, 3),
        activations_gib=None if recipe.gradient_checkpointing else round(activations / _GIB, 3),
        step_tflop=round(step_flop / 1e12, 6),
        matrix_tflop_per_s=round(rate / 1e12, 3),
        step_seconds_at_least=round(step_flop / rate, 3),
    )


def _count(unet: nn.Module, recipe: Recipe, rows: int) -> tuple[int, float]:
    """Bytes that the backward pass keeps, and operations of forward and backward, of `rows` rows."""
    config: Any = unet.config
    side = recipe.data.size // _AUTOENCODER_FACTOR
    frames = recipe.data.num_frames if recipe.stage == "video" else 1
    dtype = next(unet.parameters()).dtype
    sample = torch.zeros(rows, config.in_channels, frames, side, side, dtype=dtype, device="meta")
    text = torch.zeros(rows, recipe.model.max_tokens, config.cross_attention_dim, dtype=dtype, device="meta")
    steps = torch.zeros(rows, dtype=torch.int64, device="meta")
    weights = {_storage(parameter) for parameter in unet.parameters()}
    kept: dict[Any, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage not in weights:
            kept[storage] = tensor
        return tensor

    boundary = "zero" if recipe.stage == "video" else None
    with FlopCounterMode(display=False) as counter:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            prediction: Tensor = unet(sample, steps, text, boundary=boundary, return_dict=False)[0]
        size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
        prediction.sum().backward()  # type: ignore[no-untyped-call]
    return size, float(counter.get_total_flops())


def _storage(tensor: Tensor) -> Any:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
