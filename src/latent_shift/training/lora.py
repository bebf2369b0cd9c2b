"""Low-rank finetuning of a U-Net by peft, in diffusers' format."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor

from latent_shift.core.errors import InputError, MissingExtraError
from latent_shift.models import VideoUNet

from .config import LoraConfig


def add_lora(unet: VideoUNet, options: LoraConfig) -> None:
    """Freezes the network and adds low-rank updates that start from zero; they alone learn.

    Raises:
        InputError: no layer has such a name.
        MissingExtraError: peft is not installed.
    """
    unet.requires_grad_(False)
    settings = _peft().LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=list(options.target_modules))
    try:
        unet.add_adapter(settings)
    except ValueError as error:
        expected = "name layers of the U-Net (or ends of their names)"
        raise InputError("lora.target_modules", list(options.target_modules), expected) from error


def lora_weights(unet: VideoUNet) -> dict[str, Tensor]:
    """The updates alone, by the names that diffusers' `save_lora_weights` takes."""
    weights: dict[str, Tensor] = _peft().get_peft_model_state_dict(unet)
    return weights


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("peft", "lora") from error
    module: ModuleType = peft
    return module
