"""Loading the parts of a model folder, with one clear error where a file is missing or damaged."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from latent_shift.core.errors import DataError, InputError, LatentShiftError
from latent_shift.core.files import holds_process
from latent_shift.models import LatentShiftUNet, LatentVDMUNet, VideoUNet

_LIBRARIES = {
    "diffusers": "diffusers",
    "latent_shift": "latent_shift",
    "transformers": "transformers",
    # What diffusers writes for a class that is part of one of its pipelines: LDM's text encoder.
    "latent_diffusion": "diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion",
}
"""What `model_index.json` may name, and the module that has its classes."""
DeviceMap = Literal["meta"] | None
"""Where networks are loaded or made, as in diffusers and transformers: in memory, or without any."""
_HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "force_download")


def resolve_folder(
    model: str | Path,
    parts: Iterable[str],
    variant: str | None,
    *,
    argument: str = "model",
    pickled: bool = False,
    **hub_options: Any,
) -> Path:
    """The folder `model`, or that of a model of the hub, where there is a network.

    Args:
        model: a folder, or a name of the hub.
        parts: the folders in it that are wanted of the hub.
        variant: the weights that are wanted: as in diffusers, those of files named `*.VARIANT.safetensors`.
        argument: what the caller calls `model`, for messages.
        pickled: whether `.bin` files are wanted where there are no others.
        **hub_options: of `huggingface_hub.snapshot_download`.

    Raises:
        InputError: there is no such model, or an option is not known.
    """
    for name in hub_options:
        if name not in _HUB_OPTIONS:
            raise InputError("argument", name, f"be a part or setting of the pipeline, or {', '.join(_HUB_OPTIONS)}")
    if Path(model).is_dir():
        return Path(model)
    if Path(model).suffix in (".ckpt", ".safetensors", ".pt", ".bin"):
        raise InputError(argument, str(model), "be there: no such file")
    try:
        folder = _download(str(model), parts, "safetensors", variant, hub_options)
        networks = [name for name in parts if (folder / name / "config.json").is_file()] if pickled else []
        bare = [name for name in networks if not any((folder / name).glob("*.safetensors"))]
        return _download(str(model), bare, "bin", variant, hub_options) if bare else folder
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        expected = f"be a folder, or a name of the hub that can be reached ({reason})"
        raise InputError(argument, str(model), expected) from error


def _download(
    model: str, parts: Iterable[str], ending: str, variant: str | None, hub_options: Mapping[str, Any]
) -> Path:
    """Parts of a model of the hub: of a network the weights of one variant, and no other things that lie there."""
    from huggingface_hub import snapshot_download

    weights = [f"*.{variant}.{ending}", f"*.{variant}-*.{ending}"] if variant else [f"*.{ending}"]
    wanted = [f"{part}/{name}" for part in parts for name in ("*.json", "*.txt", *weights)]
    return Path(
        snapshot_download(
            model,
            allow_patterns=["model_index.json", "fast/*", *wanted],
            ignore_patterns=None if variant else [f"*/*.*.{ending}"],
            **hub_options,
        )
    )


def check_replaceable(folder: Path, parts: Iterable[str], argument: str = "save_directory") -> None:
    """Raises `InputError` where a saved pipeline cannot go, or files would be lost that are not of one."""
    if not os.path.exists(folder):
        return
    if not folder.is_dir():
        raise InputError(argument, str(folder), "be a folder; it is a file")
    if holds_process(folder):
        raise InputError(argument, str(folder), "be another than the current folder and those above it")
    found = {path.name for path in folder.iterdir()}
    foreign = found - {"model_index.json", *parts} if "model_index.json" in found else found
    if foreign:
        expected = f"be new, empty or a saved pipeline; it holds {min(foreign)}"
        raise InputError(argument, str(folder), expected)


def text_encoders(parts: Iterable[str]) -> list[str]:
    """The names of a pipeline's text encoders among those of its parts: one, or SDXL's two."""
    return [name for name in ("text_encoder", "text_encoder_2") if name in parts]


def scale_factor(config: Mapping[str, Any]) -> int:
    """F of Sec. 3.1, pixels a latent pixel in each direction, of an autoencoder with this config."""
    # AutoencoderKL halves the size between its levels; PatchAutoencoderKL's two levels are 1/4 and 1/8.
    return 2 ** (len(config["block_out_channels"]) - 1) if "down_block_types" in config else 8


def read_index(folder: Path, argument: str = "model") -> dict[str, Any]:
    """What `model_index.json` of a pipeline folder holds.

    Raises:
        InputError: the folder is no pipeline; `argument` is its name in the message.
    """
    try:
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(argument, str(folder), "be a folder with a model_index.json") from error
    if not isinstance(index, dict):
        raise InputError(argument, str(folder), "have an object in its model_index.json")
    return index


def component_class(folder: Path, name: str, argument: str = "model") -> Any:
    """The class that `model_index.json` of a pipeline folder names for a part.

    Raises:
        InputError: the folder, `argument` in the message, is no pipeline, or it names a class that none of the known
            libraries has.
    """
    entry = read_index(folder, argument).get(name)
    if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
        raise InputError(argument, str(folder), f"have a model_index.json that names its {name}")
    library, class_name = entry
    module = _LIBRARIES.get(library)
    found = getattr(importlib.import_module(module), class_name, None) if module else None
    if found is None:
        expected = f"be a class of {', '.join(_LIBRARIES)}"
        raise InputError(f"{name} in {folder / 'model_index.json'}", f"{library}.{class_name}", expected)
    return found


def index_entry(part_class: type) -> list[str]:
    """How `model_index.json` lists a class: the library and the name. It names no module that a later move would break.

    A `LatentShiftUNet` is listed as diffusers' 2-D class, whose keys it has: anyone can load it as an image model.
    """
    if issubclass(part_class, LatentShiftUNet):
        return ["diffusers", "UNet2DConditionModel"]
    module, name = part_class.__module__, part_class.__name__
    full = (library for library, place in _LIBRARIES.items() if place == module)
    return [next(full, module.partition(".")[0]), name]


def load_component(
    loaded_class: Any,
    folder: Path,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    device_map: DeviceMap = None,
) -> Any:
    """A part of a pipeline from its folder: network, scheduler or tokenizer. Networks are strict: every key must fit.

    Args:
        loaded_class: a class of diffusers or transformers, or one of this package.
        folder: where it was saved.
        dtype: of a network; fp32 where None.
        variant: as in diffusers: the weights are in files named `*.VARIANT.safetensors`.
        device_map: "meta" for a network without memory: its files are checked, and what they hold is not kept.

    Raises:
        InputError: a key is missing, unexpected or has another shape, or a setting is not known (`check_settings`).
        DataError: a file is missing or damaged.
    """
    _check_files(loaded_class, folder)
    with damaged_files_named(folder):
        if issubclass(loaded_class, VideoUNet):
            check_settings(json.loads((folder / "config.json").read_text(encoding="utf-8")), str(folder))
        if not issubclass(loaded_class, torch.nn.Module):
            return loaded_class.from_pretrained(folder, local_files_only=True)
        _check_variant(folder, variant)
        component, report = loaded_class.from_pretrained(
            folder,
            output_loading_info=True,
            local_files_only=True,
            use_safetensors=True,
            variant=variant,
            device_map=device_map,
            **_text_encoder_options(loaded_class),
        )
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    # The pipeline has no use for what encoders make of their token features.
    wrong = {kind: [key for key in report.get(kind) or () if not str(key).startswith("pooler.")] for kind in kinds}
    for kind, keys in wrong.items():
        if keys:
            raise InputError(f"weights in {folder}", f"{kind.replace('_', ' ')} {keys[:3]}", "fit the network")
    # Not by an argument of `from_pretrained`, whose name depends on the library's version. And copied: in the file's
    # buffer tensors start at any address, and matrix products of such round otherwise than those of the saved network.
    for tensor in (*component.parameters(), *component.buffers()):
        kept = dtype or torch.float32 if tensor.is_floating_point() else tensor.dtype
        tensor.data = tensor.data.to(kept, copy=True)
    return component


def check_settings(config: Mapping[str, Any], place: str) -> None:
    """Raises `InputError` where a video U-Net was saved with a setting that this version would pass over in silence.

    Args:
        config: of a network; those of other classes are not looked at, since other libraries add settings of their own.
        place: where it is from, for the message.
    """
    own = {network.__name__: network for network in (LatentShiftUNet, LatentVDMUNet)}
    network: Any = own.get(str(config.get("_class_name")))
    if network is None:
        return
    known = network._get_init_keys(network)
    for key, value in config.items():
        if value and key not in known and not key.startswith("_"):
            raise InputError(f"{key} in the config of {place}", value, "be left out: this version has no such setting")


@contextlib.contextmanager
def damaged_files_named(folder: Path, *others: type[Exception]) -> Iterator[None]:
    """Turns what libraries raise on a missing or damaged file into one `DataError` that names it, or the folder.

    Args:
        folder: where the files are.
        others: what else the libraries in question raise then.
    """
    usual = (OSError, SafetensorError, ValueError, TypeError, RuntimeError, KeyError)
    kinds: tuple[type[Exception], ...] = (*usual, *others)
    try:
        yield
    except LatentShiftError:
        raise
    except kinds as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        # PyTorch's first line ends with a colon; what does not fit is the second.
        reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        raise DataError(f"{_damaged_file(folder) or folder} cannot be loaded: {reason}") from error


def weight_variants(folder: Path, endings: Iterable[str] = (".safetensors",)) -> set[str | None]:
    """Of which variants a network's folder has weights; None stands for files without one in their names."""
    places = (path.suffixes for path in folder.glob("*.*") if path.suffix in endings)
    return {parts[-2][1:].partition("-")[0] if len(parts) > 1 else None for parts in places}


def without_pooling(encoder_class: Any) -> dict[str, bool]:
    """Arguments that leave out what some encoders make of their token features: nothing here has a use for it."""
    has_choice = "add_pooling_layer" in inspect.signature(encoder_class.__init__).parameters
    return {"add_pooling_layer": False} if has_choice else {}


def _text_encoder_options(loaded_class: Any) -> Mapping[str, Any]:
    if not issubclass(loaded_class, PreTrainedModel):
        return {}
    return {"ignore_mismatched_sizes": True, **without_pooling(loaded_class)}  # mismatches are in the report then


def _check_files(loaded_class: Any, folder: Path) -> None:
    """Raises `DataError` for a missing file in whose place a library would make something up."""
    config = {"PreTrainedTokenizerBase": "tokenizer_config.json", "SchedulerMixin": "scheduler_config.json"}
    bases = {base.__name__ for base in loaded_class.__mro__}
    needed = next((file for base, file in config.items() if base in bases), "config.json")
    vocabulary: dict[str, str] = dict(getattr(loaded_class, "vocab_files_names", {}))
    whole = vocabulary.pop("tokenizer_file", "tokenizer.json")
    missing = [name for name in (needed,) if not (folder / name).is_file()]
    if "PreTrainedTokenizerBase" in bases and not (folder / whole).is_file():
        parts = list(vocabulary.values())
        missing += [whole] if not parts else [name for name in parts if not (folder / name).is_file()][:1]
    if missing:
        raise DataError(f"{folder / missing[0]} is missing")


def _check_variant(folder: Path, variant: str | None) -> None:
    """Raises `DataError` where a network has weights, but of other variants than the one asked for."""
    found = weight_variants(folder)
    if found and variant not in found:
        others = ", ".join(f"variant={name!r}" for name in sorted(found, key=str))
        raise DataError(f"{folder} has no weights of variant={variant!r}; it has those of {others}")


def _damaged_file(folder: Path) -> Path | None:
    """The first file below `folder` that is no JSON or safetensors, though its name says so."""
    for path in sorted(folder.rglob("*")):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
        except (OSError, SafetensorError, ValueError):
            return path
    return None
