"""The optimiser and the learning rate's course."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from latent_shift.core.errors import MissingExtraError

from .config import OptimizerConfig

_CLASSES: dict[str, Any] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def optimizer_class(options: OptimizerConfig) -> Any:
    """The class that the recipe names.

    Raises:
        MissingExtraError: `adamw8bit`, and bitsandbytes is not installed.
    """
    if options.name != "adamw8bit":
        return _CLASSES[options.name]
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise MissingExtraError("bitsandbytes", "adam8bit") from error
    return AdamW8bit


def make_optimizer(parameters: Iterable[nn.Parameter], options: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimiser that the recipe names, at the peak learning rate.

    Raises:
        MissingExtraError: `adamw8bit`, and bitsandbytes is not installed.
    """
    arguments: dict[str, Any] = {
        "lr": options.learning_rate,
        "betas": options.betas,
        "weight_decay": options.weight_decay,
    }
    if options.name != "adamw8bit":
        arguments["fused"] = True
    optimizer: torch.optim.Optimizer = optimizer_class(options)(list(parameters), **arguments)
    return optimizer


def learning_rate(step: int, steps: int, options: OptimizerConfig) -> float:
    """The rate of optimiser step `step`, counted from 0, of `steps`: warm-up, the peak, and the fall to zero."""
    warmup = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    decay = 1.0
    if options.lr_scheduler != "constant" and options.decay_fraction:
        decay = min(1.0, (steps - step) / (options.decay_fraction * steps))
        if options.lr_scheduler == "cosine":
            decay = 0.5 - 0.5 * math.cos(math.pi * decay)
    return options.learning_rate * min(warmup, decay)
