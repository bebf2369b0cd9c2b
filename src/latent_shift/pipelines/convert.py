"""Pretrained text-to-image models become video models, and video models become text-to-image models again.

No key of the U-Net changes (`LatentShiftUNet` has those of diffusers' 2-D network), so conversion is a matter of
layout: where the parts lie, how old checkpoints name them, and which class the result is loaded with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from diffusers import UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from latent_shift.core.disk import clear_write_errors
from latent_shift.core.errors import InputError
from latent_shift.core.files import atomic_path, write_json
from latent_shift.models import LatentShiftUNet, LatentVDMUNet, TemporalAttention
from latent_shift.models.video_unet import check_option
from latent_shift.models.weights import load_exactly

from ._sources import FOLDERS, Part, Source, read_folder, read_single_file
from .components import check_replaceable, check_settings, index_entry, resolve_folder, without_pooling
from .latent_shift import LatentShiftPipeline
from .latent_shift_xl import LatentShiftXLPipeline
from .loading import MODELS, model_folder

_UNETS = {"shift": LatentShiftUNet, "vdm": LatentVDMUNet, "image": UNet2DConditionModel}


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        destination: the folder.
        pipeline: name of the class that it loads with.
        parameters: of each network.
        new_parameters: of the layers that the source does not have (Latent-VDM's temporal attention).
        left_out: what the source holds besides.
    """

    destination: str
    pipeline: str
    parameters: dict[str, int]
    new_parameters: int
    left_out: list[str]


def convert_model(
    source: str | Path,
    destination: str | Path,
    to: str,
    *,
    variant: str | None = None,
    tokenizer: str | None = None,
    prediction_type: str | None = None,
    seed: int = 0,
) -> Conversion:
    """Converts a model, network by network: at no time is more than one of them in memory.

    Args:
        source: a diffusers folder (LDM, Stable Diffusion 1.x, 2.x, XL, or a model of this package), the original
            single file of one of them, a name of `MODELS`, or a name of the hub.
        destination: a new folder, or a saved pipeline, which is replaced.
        to: "shift" for Latent-Shift, "vdm" for Latent-VDM (its temporal layers start as the identity), "image" for a
            pipeline that plain diffusers loads.
        variant: of a folder's weights, as in diffusers ("fp16").
        tokenizer: of a single file: folder or name of the hub.
        prediction_type: of a single file: "epsilon" or "v_prediction".
        seed: of the weights that the source does not have.

    Raises:
        InputError: a `ValueError`, if the source is none of these, a key or shape does not fit, or the destination
            holds other files.
        DataError: a file is damaged, or holds more than tensors; or the disk is full.
    """
    check_option("to", to, tuple(_UNETS))
    if not -(2**63) <= seed < 2**64:
        raise InputError("seed", seed, "be a whole number of 64 bits")
    given = _open(source, variant, tokenizer, prediction_type)
    _check_channels(given)
    layout = _image_layout(given) if to == "image" else _video_layout(given)
    check_replaceable(Path(destination), layout.parts, "destination")
    parameters, new = {}, 0
    index: dict[str, Any] = {"_class_name": layout.pipeline, "_diffusers_version": diffusers.__version__}
    with clear_write_errors(str(destination)), atomic_path(destination) as temporary:
        for name, part in given.networks.items():
            network, added = _load_network(part, name, given.name, _UNETS[to] if name == "unet" else None, seed)
            cast("Any", network).save_pretrained(temporary / layout.parts[name])
            parameters[name] = sum(weight.numel() for weight in network.parameters())
            index[layout.parts[name]] = index_entry(type(network))
            new += added
            del network
        for name, place in given.tokenizers.items():
            loaded = _load_tokenizer(place, given.tokenizer_options.get(name, {}))
            loaded.save_pretrained(temporary / layout.parts[name])
            index[layout.parts[name]] = ["transformers", type(loaded).__name__]
        class_name, config = given.scheduler
        getattr(diffusers, class_name).from_config(config).save_pretrained(temporary / "scheduler")
        index["scheduler"] = ["diffusers", class_name]
        write_json(temporary / "model_index.json", {**index, **layout.settings})
    return Conversion(str(destination), layout.pipeline, parameters, new, given.left_out)


def _open(source: str | Path, variant: str | None, tokenizer: str | None, prediction_type: str | None) -> Source:
    path = model_folder(str(source)) if source in MODELS else Path(source)
    if path.is_file():
        vocabulary = str(model_folder("emoji") / "tokenizer")  # BERT's, uncased: LDM's too
        if variant is not None:
            raise InputError("variant", variant, "be given for folders only; a single file is one")
        return read_single_file(path, tokenizer, prediction_type, vocabulary)
    for name, value in (("tokenizer", tokenizer), ("prediction_type", prediction_type)):
        if value is not None:
            raise InputError(name, value, "be given for single files only; a folder has its own")
    return read_folder(resolve_folder(path, FOLDERS, variant, argument="source", pickled=True), variant)


def _check_channels(source: Source) -> None:
    """Raises `InputError` for networks that make no picture of noise alone: of inpainting, or that edit pictures."""
    unet, vae = source.networks["unet"].config, source.networks["vae"].config
    taken, given, latent = unet.get("in_channels", 4), unet.get("out_channels", 4), vae.get("latent_channels", 4)
    if not taken == given == latent:
        expected = f"have a U-Net that takes and gives the {latent} channels of its latents; it takes {taken} and gives"
        raise InputError("source", source.name, f"{expected} {given}, as those that paint in or edit pictures do")


@dataclass(frozen=True)
class _Layout:
    pipeline: str
    parts: dict[str, str]
    settings: dict[str, Any]


def _video_layout(source: Source) -> _Layout:
    pipeline = LatentShiftXLPipeline if "text_encoder_2" in source.networks else LatentShiftPipeline
    settings = {name: value for name, value in source.settings.items() if name in pipeline.settings()}
    return _Layout(pipeline.__name__, {name: name for name in pipeline.parts}, settings)


def _image_layout(source: Source) -> _Layout:
    classes = {name: part.network_class for name, part in source.networks.items()}
    names = {name: name for name in (*classes, *source.tokenizers, "scheduler")}
    if classes["vae"].__module__.partition(".")[0] != "diffusers":
        raise InputError(
            "source", source.name, f"have an autoencoder of diffusers, which {classes['vae'].__name__} is not"
        )
    if classes["text_encoder"] is LDMBertModel:
        return _Layout("LDMTextToImagePipeline", {**names, "vae": "vqvae", "text_encoder": "bert"}, {})
    if classes.get("text_encoder_2") is CLIPTextModelWithProjection:
        kept = source.settings.get("force_zeros_for_empty_prompt", True)
        return _Layout("StableDiffusionXLPipeline", names, {"force_zeros_for_empty_prompt": kept})
    if classes["text_encoder"] is CLIPTextModel:
        nothing = {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
        return _Layout("StableDiffusionPipeline", names, nothing)
    expected = "have the text encoder of LDM, Stable Diffusion or SDXL: diffusers has no pipeline for"
    raise InputError("source", source.name, f"{expected} {classes['text_encoder'].__name__}")


def _load_network(
    part: Part, name: str, source: str, unet_class: type[UNet2DConditionModel] | None, seed: int
) -> tuple[nn.Module, int]:
    """The network with the source's own tensors, mapped and not copied; and how many parameters are new."""
    label, config = f"{name} of {source}", dict(part.config)
    if config.get("default_boundary", "") is None:  # of a model of pictures, which becomes one of videos
        del config["default_boundary"]
    with torch.device("meta"):
        network = _build(unet_class or part.network_class, config, label)
    state = _known_names(network, part.read())
    if unet_class not in (None, LatentVDMUNet):
        state = {key: tensor for key, tensor in state.items() if ".temporal_attentions." not in key}
    optional: set[str] = set()
    new = 0
    if unet_class is LatentVDMUNet:
        optional = cast("LatentVDMUNet", network).frame_mixing_keys
        if optional.isdisjoint(state):
            new = _make_temporal_layers(network, next(iter(state.values())).dtype, seed)
    load_exactly(network, state, label, optional, assign=True)
    return network, new


def _make_temporal_layers(network: nn.Module, dtype: torch.dtype, seed: int) -> int:
    layers = [layer for layer in network.modules() if isinstance(layer, TemporalAttention)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in layers:
            layer.to_empty(device="cpu").reset_parameters()
            layer.to(dtype)
    return sum(weight.numel() for layer in layers for weight in layer.parameters())


def _build(network_class: Any, config: Mapping[str, Any], label: str) -> nn.Module:
    check_settings(config, label)
    try:
        if issubclass(network_class, PreTrainedModel):
            made: nn.Module = network_class(
                network_class.config_class.from_dict(dict(config)), **without_pooling(network_class)
            )
            return made
        known = network_class._get_init_keys(network_class)
        made = network_class.from_config({key: value for key, value in config.items() if key in known})
    except (TypeError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"config of {label}", reason, f"make a {network_class.__name__}") from error
    return made


def _known_names(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names that the installed library has for them: of the autoencoder's attention, and of CLIP's layers."""
    kept = {key: tensor for key, tensor in state.items() if not _is_unused(key)}
    if isinstance(network, PreTrainedModel):
        names = {key.removeprefix("text_model."): key for key in network.state_dict()}
        return {names.get(key.removeprefix("text_model."), key): tensor for key, tensor in kept.items()}
    network._fix_state_dict_keys_on_load(kept)  # type: ignore[operator]
    return kept


def _is_unused(key: str) -> bool:
    """Whether old text encoders carry it and nothing reads it."""
    return key.endswith(("position_ids", "logit_scale")) or key.startswith("pooler.")


def _load_tokenizer(place: str, options: Mapping[str, Any]) -> Any:
    try:
        return AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError) as error:
        expected = "be a folder of a tokenizer, or a name of the hub that can be reached"
        raise InputError("tokenizer", place, expected) from error
