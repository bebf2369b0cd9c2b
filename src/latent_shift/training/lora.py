"""Low-rank finetuning of a U-Net by peft, in diffusers' format."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from safetensors import SafetensorError

from latent_shift.core.errors import DataError, InputError, MissingExtraError
from latent_shift.models import VideoUNet
from latent_shift.pipelines import LatentShiftPipeline
from latent_shift.pipelines.fast import read_lora

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


def load_lora(unet: VideoUNet, path: Path) -> None:
    """Sets the updates of `add_lora` to those of a file that `save_lora` wrote.

    Raises:
        DataError: the file is damaged.
        InputError: it is not there, or its updates are of other layers, or of another rank or alpha.
    """
    if not path.is_file():
        raise InputError("lora.init", str(path), "be a file that is there, or empty")
    try:
        updates, scale = read_lora(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{path} is no file of LoRA updates that can be read ({error})") from error
    found = {name.removeprefix("unet."): tensor for name, tensor in updates.items()}
    wanted, settings = _peft().get_peft_model_state_dict(unet), unet.peft_config["default"]
    shapes, expected = ({name: rows.shape for name, rows in part.items()} for part in (found, wanted))
    if (shapes, scale) != (expected, settings.lora_alpha / settings.r):
        raise InputError("lora.init", str(path), "have updates of the layers, the rank and the alpha of the recipe")
    _peft().set_peft_model_state_dict(unet, found)


def save_lora(unet: VideoUNet, folder: Path) -> None:
    """Writes the updates alone, in fp16, with their scale, as a file that diffusers' `load_lora_weights` reads."""
    settings = unet.peft_config["default"].to_dict()
    settings["target_modules"] = sorted(settings["target_modules"])  # a set: its order is chance
    updates = {name: tensor.half() for name, tensor in _peft().get_peft_model_state_dict(unet).items()}
    LatentShiftPipeline.save_lora_weights(folder, unet_lora_layers=updates, unet_lora_adapter_metadata=settings)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError("peft", "lora") from error
    module: ModuleType = peft
    return module
