"""What a recipe's names mean: networks, their arguments, and the arithmetic that they run in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from latent_shift.core.config import unknown_key
from latent_shift.core.errors import InputError
from latent_shift.core.files import read_json_object
from latent_shift.data.identity import file_key
from latent_shift.data.sources import files_below
from latent_shift.models import LatentShiftUNet, LatentVDMUNet, PatchAutoencoderKL
from latent_shift.pipelines.components import DeviceMap, load_component, read_index
from latent_shift.pipelines.loading import model_folder

from .config import ModelConfig

UNETS: dict[str, Any] = {"shift": LatentShiftUNet, "vdm": LatentVDMUNet}
AUTOENCODERS = (PatchAutoencoderKL, AutoencoderKL)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Arithmetic of a recipe's `precision`; the weights stay what they are."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def weights_digest(model: ModelConfig, parts_alone: bool = True) -> str | None:
    """SHA-256 of the names, sizes and samples of the bytes of what a run begins from or keeps frozen.

    Args:
        model: of a recipe.
        parts_alone: the weights and configurations of the parts that are loaded; else every weight below the folders,
            as in older checkpoints.

    Returns:
        None where one of its folders is not there any more.
    """
    digest = hashlib.sha256()
    for name in ("init", "autoencoder", "text_encoder"):
        source = getattr(model, name)
        if not source:
            continue
        try:
            folder = Path(source) if Path(source).is_dir() else model_folder(source)
        except InputError:
            return None
        files = _files_of_parts(folder, name) if parts_alone else files_below(folder)
        kinds = (".safetensors", ".json") if parts_alone else (".safetensors",)
        for file in sorted(file for file in files if file.suffix in kinds):
            digest.update(f"{name} {file.relative_to(folder).as_posix()} {file_key(file)}\n".encode())
    return digest.hexdigest()


def _files_of_parts(folder: Path, source: str) -> Iterator[Path]:
    """What is loaded of a folder that a recipe names as `init`, `autoencoder` or `text_encoder`."""
    parts = [folder]
    if source == "text_encoder":
        parts = [folder / "text_encoder", folder / "tokenizer"]
    elif source == "init" and (folder / "model_index.json").exists():
        parts = [folder / name for name in read_index(folder)]
    for part in parts:
        if part.is_dir():
            yield from part.iterdir()


def load_autoencoder(
    folder: Path, argument: str, kinds: tuple[Any, ...] = AUTOENCODERS, device_map: DeviceMap = None
) -> Any:
    """A trained autoencoder.

    Args:
        folder: where a run of the autoencoder stage, or a pipeline, has it.
        argument: what the recipe calls it, for messages.
        kinds: the classes that it may have.
        device_map: "meta" for a network without memory.

    Raises:
        InputError: there is none, or it has another class.
        DataError: it is damaged.
    """
    if not (folder / "config.json").is_file():
        raise InputError(argument, str(folder), "be the folder of a trained autoencoder (config.json)")
    names = {kind.__name__: kind for kind in kinds}
    name = read_json_object(folder / "config.json").get("_class_name")
    if name not in names:
        raise InputError(argument, str(folder), f"hold a network of the class {' or '.join(names)}, not {name}")
    return load_component(names[name], folder, device_map=device_map)


def make_network(
    network: Any,
    arguments: Mapping[str, Any],
    config: Mapping[str, Any] | None = None,
    device_map: DeviceMap = None,
) -> Any:
    """The network with these arguments, on top of those of `config`.

    Args:
        network: `PatchAutoencoderKL`, `LatentShiftUNet` or `LatentVDMUNet`.
        arguments: the recipe's `model.arguments`.
        config: of the network to start from; what the new one does not have is passed over.
        device_map: "meta" for a network without memory.

    Raises:
        InputError: an argument is unknown (with the nearest known one), or no network can be made with them.
    """
    known = sorted(network._get_init_keys(network) - {"self", "kwargs"})
    for key in arguments:
        if key not in known:
            raise unknown_key(f"model.arguments.{key}", known)
    try:
        with torch.device(device_map or "cpu"):
            if config is None:
                return network(**arguments)
            kept = {key: value for key, value in config.items() if key in (*known, "_use_default_values")}
            return network.from_config({**kept, **arguments})
    except InputError:
        raise
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError("model.arguments", dict(arguments), f"make a {network.__name__} ({reason})") from error
