"""Where pretrained text-to-image models come from: diffusers folders, and the original single-file checkpoints.

Nothing is unpickled but tensors: `.bin` and `.ckpt` files are read with `weights_only=True`, and the trainer's classes
that old ones name are replaced by inert ones. Files are mapped into memory, not read, and part by part.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SchedulerMixin, UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertModel
from safetensors import safe_open
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from latent_shift.core.errors import DataError, InputError
from latent_shift.core.files import read_json_object
from latent_shift.models.video_unet import check_option

from . import _original_keys as original
from .components import component_class, damaged_files_named, read_index, weight_variants
from .schedulers import PAPER_NOISE

_RENAMED_PARTS = {"vqvae": "vae", "bert": "text_encoder"}
"""What `LDMTextToImagePipeline` calls them."""
_NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
_TOKENIZERS = ("tokenizer", "tokenizer_2")
FOLDERS = (*_NETWORKS, *_TOKENIZERS, *_RENAMED_PARTS, "scheduler")
"""Of a model, what is read."""
_WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_PICKLED_FILES = ("diffusion_pytorch_model.bin", "pytorch_model.bin")
_ENDINGS = (".safetensors", ".bin")
_TRAINERS = ("pytorch_lightning.", "lightning.", "lightning_fabric.", "lightning_utilities.")
_STARTS = (b"PK", b"\x80")
"""Of what `torch.save` writes: a zip file, or before PyTorch 1.6 a pickle."""
_CLIP_TOKENIZER = "openai/clip-vit-large-patch14"


@dataclass(frozen=True)
class Part:
    """A network of a source.

    Attributes:
        network_class: of diffusers, transformers or this package.
        config: its configuration.
        read: reads its weights, under its own keys; called once, when they are needed.
    """

    network_class: Any
    config: dict[str, Any]
    read: Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class Source:
    """A pretrained model: networks, tokenizers, noise schedule.

    Attributes:
        name: what messages call it.
        networks: by the names of `LatentShiftPipeline`'s parts.
        tokenizers: folders, or names of the hub, by part.
        tokenizer_options: what the tokenizers are loaded with, by part.
        scheduler: class name of diffusers and configuration.
        settings: of the pipeline.
        left_out: what it holds besides.
    """

    name: str
    networks: dict[str, Part]
    tokenizers: dict[str, str]
    scheduler: tuple[str, dict[str, Any]]
    tokenizer_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def read_folder(folder: Path, variant: str | None = None) -> Source:
    """A diffusers folder: LDM's, Stable Diffusion's, SDXL's, or a model of this package.

    Raises:
        InputError: it is no pipeline with a `UNet2DConditionModel`, a tokenizer and a text encoder.
        DataError: a file is missing or damaged.
    """
    index = read_index(folder, "source")
    folders = {_RENAMED_PARTS.get(name, name): name for name, entry in index.items() if _is_part(entry)}
    for name in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        if name not in folders:
            raise InputError("source", str(folder), f"have a {name} in its model_index.json")
    networks = {}
    for name in (name for name in _NETWORKS if name in folders):
        place = folder / folders[name]
        network_class = component_class(folder, folders[name], "source")
        if name == "unet" and not issubclass(network_class, UNet2DConditionModel):
            raise InputError("source", network_class.__name__, "have a UNet2DConditionModel")
        networks[name] = Part(network_class, read_json_object(place / "config.json"), _folder_reader(place, variant))
    scheduler = component_class(folder, folders["scheduler"], "source")
    if not issubclass(scheduler, SchedulerMixin):
        raise InputError("source", scheduler.__name__, "have a scheduler of diffusers")
    known = {*networks, *_TOKENIZERS, "scheduler"}
    settings = {name: value for name, value in index.items() if not name.startswith("_") and not _is_entry(value)}
    if networks["text_encoder"].network_class is LDMBertModel:
        settings.setdefault("max_tokens", 77)  # its tokenizer says 512
    return Source(
        name=str(folder),
        networks=networks,
        tokenizers={name: str(folder / folders[name]) for name in _TOKENIZERS if name in folders},
        scheduler=(scheduler.__name__, read_json_object(folder / "scheduler" / "scheduler_config.json")),
        settings=settings,
        left_out=sorted(folders[name] for name in folders.keys() - known),
    )


def read_single_file(
    path: Path, tokenizer: str | None = None, prediction_type: str | None = None, bert_vocabulary: str = ""
) -> Source:
    """An original checkpoint: LDM's txt2img-f8-large, Stable Diffusion 1.x, 2.x or XL.

    Args:
        path: `.ckpt` (or `.pt`, `.bin`), or `.safetensors`.
        tokenizer: folder or name of the hub; where None, CLIP's on the hub, or `bert_vocabulary` for LDM.
        prediction_type: "epsilon" or "v_prediction"; needed for Stable Diffusion 2.x, whose weights do not tell.
        bert_vocabulary: folder of BERT's uncased tokenizer.

    Raises:
        InputError: it is none of these.
        DataError: it is damaged.
    """
    if prediction_type is not None:
        check_option("prediction_type", prediction_type, ("epsilon", "v_prediction"))
    shapes = read_tensors(path, shapes_only=True)
    keys = shapes.keys()
    if not original.has_prefix(keys, "model.diffusion_model."):
        raise InputError("source", str(path), "hold a U-Net (model.diffusion_model.*)")
    unet = original.unet_config(original.without_prefix(shapes, "model.diffusion_model."))
    is_v2 = original.has_prefix(keys, "cond_stage_model.model.")
    is_xl = original.has_prefix(keys, "conditioner.embedders.1.model.")
    if is_v2 and prediction_type is None:
        expected = "be given for Stable Diffusion 2.x: v_prediction (768 pixels) or epsilon (512, base)"
        raise InputError("prediction_type", None, expected)
    # The pictures that a model was trained on are not in its file; these are the families' sizes.
    is_ldm = original.has_prefix(keys, "cond_stage_model.transformer.attn_layers.")
    size = 32 if is_ldm else 128 if is_xl else 96 if is_v2 and prediction_type == "v_prediction" else 64
    unet["sample_size"] = size
    vae = original.vae_config(original.without_prefix(shapes, "first_stage_model."), 0.13025 if is_xl else 0.18215)
    vae["sample_size"] = size * 2 ** (len(vae["block_out_channels"]) - 1)
    text = _text_networks(path, shapes)

    def read_unet() -> dict[str, Tensor]:
        return original.rename(read_tensors(path, "model.diffusion_model."), original.unet_names(unet), str(path))

    def read_vae() -> dict[str, Tensor]:
        return original.vae_state(read_tensors(path, "first_stage_model."), vae, str(path))

    vocabulary = tokenizer or (bert_vocabulary if is_ldm else _CLIP_TOKENIZER)
    padding: dict[str, Any] = {"pad_token": "!"}  # token 0, as OpenCLIP pads
    tokenizers, options = {"tokenizer": vocabulary}, {"tokenizer": padding if is_v2 else {}}
    if is_xl:
        tokenizers["tokenizer_2"], options["tokenizer_2"] = vocabulary, padding
    noise = {**PAPER_NOISE, "prediction_type": prediction_type or "epsilon"}
    return Source(
        name=str(path),
        networks={
            "unet": Part(UNet2DConditionModel, unet, read_unet),
            "vae": Part(AutoencoderKL, vae, read_vae),
            **text,
        },
        tokenizers=tokenizers,
        tokenizer_options=options,
        scheduler=("DDIMScheduler", {**noise, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
        settings={"max_tokens": 77} if is_ldm else {"force_zeros_for_empty_prompt": True} if is_xl else {},
        left_out=["model_ema"] if original.has_prefix(keys, "model_ema.") else [],
    )


def _text_networks(path: Path, shapes: original.State) -> dict[str, Part]:
    def clip(prefix: str, activation: str) -> Part:
        config = original.clip_config(original.without_prefix(shapes, prefix), activation)
        return Part(CLIPTextModel, config, lambda: read_tensors(path, prefix))

    def open_clip(prefix: str, projection: bool) -> Part:
        def renamed(state: original.State) -> dict[str, Tensor]:
            return original.open_clip_state(state, str(path), projection)

        network = CLIPTextModelWithProjection if projection else CLIPTextModel
        config = original.clip_config(renamed(original.without_prefix(shapes, prefix)), "gelu")
        return Part(network, config, lambda: renamed(read_tensors(path, prefix)))

    ldm, sd2 = "cond_stage_model.transformer.", "cond_stage_model.model."
    sdxl = ("conditioner.embedders.0.transformer.", "conditioner.embedders.1.model.")
    if original.has_prefix(shapes, f"{ldm}attn_layers."):
        bert = original.ldm_bert_config(original.without_prefix(shapes, ldm))
        names = original.ldm_bert_names(bert)
        return {
            "text_encoder": Part(LDMBertModel, bert, lambda: original.rename(read_tensors(path, ldm), names, str(path)))
        }
    if original.has_prefix(shapes, f"{ldm}text_model."):
        return {"text_encoder": clip(ldm, "quick_gelu")}
    if original.has_prefix(shapes, sd2):
        return {"text_encoder": open_clip(sd2, projection=False)}
    if original.has_prefix(shapes, sdxl[1]):
        return {"text_encoder": clip(sdxl[0], "quick_gelu"), "text_encoder_2": open_clip(sdxl[1], projection=True)}
    expected = "hold the text encoder of LDM, Stable Diffusion 1.x, 2.x or XL (cond_stage_model.*, conditioner.*)"
    raise InputError("source", str(path), expected)


def read_tensors(path: Path, prefix: str = "", shapes_only: bool = False) -> dict[str, Tensor]:
    """The tensors below a prefix of a weight file, without the prefix, mapped into memory.

    Args:
        path: `.safetensors`, or a file of `torch.save`.
        prefix: of the keys that are wanted.
        shapes_only: whether the tensors are to be on the meta device.

    Raises:
        DataError: the file is damaged, or holds what is no tensor and no known trainer's record.
    """
    with damaged_files_named(path, Exception):  # of a file that is cut, PyTorch reads on until anything goes wrong
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118, it is no dict
                if shapes_only:
                    return {
                        name[len(prefix) :]: torch.empty(file.get_slice(name).get_shape(), device="meta")
                        for name in names
                    }
                return {name[len(prefix) :]: file.get_tensor(name) for name in names}
        found = original.without_prefix(_unpickle_tensors(path), prefix)
        return {name: tensor.to("meta") for name, tensor in found.items()} if shapes_only else found


def _unpickle_tensors(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        if not file.read(2).startswith(_STARTS):
            raise DataError(f"{path} cannot be loaded: it is no checkpoint, neither .safetensors nor of torch.save")
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        named = []  # no zip file (before PyTorch 1.6), or damaged in any way: reading it, below, finds out which
    inert: list[Any] = [(_inert_class(name), name) for name in named if name.startswith(_TRAINERS)]
    try:
        with torch.serialization.safe_globals(inert):
            try:
                tree = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap can only be used" not in str(error):
                    raise
                tree = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = [name for name in named if not name.startswith(_TRAINERS)]
        reason = f": names {', '.join(sorted(refused)[:3])}" if refused else ", or is damaged"
        raise DataError(f"{path} is not read, it holds more than tensors{reason}") from error
    tree = tree.get("state_dict", tree) if isinstance(tree, dict) else tree
    if not (isinstance(tree, dict) and all(isinstance(name, str) for name in tree)):
        raise DataError(f"{path} cannot be loaded: it holds no tensors by name")
    return {name: value for name, value in tree.items() if isinstance(value, Tensor)}


def _inert_class(name: str) -> type:
    """A class of that name that holds nothing and does nothing."""
    module, _, last = name.rpartition(".")

    def ignore(self: object, *_: object, **__: object) -> None:
        del self

    return type(last, (), {"__module__": module, "__init__": ignore, "__setstate__": ignore})


def _folder_reader(folder: Path, variant: str | None) -> Callable[[], dict[str, Tensor]]:
    def read() -> dict[str, Tensor]:
        for name in (*_WEIGHT_FILES, *_PICKLED_FILES):
            stem, _, ending = name.rpartition(".")
            whole = folder / (f"{stem}.{variant}.{ending}" if variant else name)
            shards = [folder / (f"{name}.index.{variant}.json" if variant else f"{name}.index.json")]
            if whole.is_file():
                return read_tensors(whole)
            if shards[0].is_file():
                places = read_json_object(shards[0]).get("weight_map")
                if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
                    raise DataError(f"{shards[0]} cannot be loaded: it has no weight_map of files")
                files = sorted(set(places.values()))
                return {key: tensor for file in files for key, tensor in read_tensors(folder / file).items()}
        names = ", ".join((*_WEIGHT_FILES, *_PICKLED_FILES))
        others = sorted(filter(None, weight_variants(folder, _ENDINGS)))
        hint = f"; it has variants: {', '.join(others)}" if others else ""
        raise DataError(f"{folder} has no weights ({names}){hint}")

    return read


def _is_entry(value: Any) -> bool:
    """Whether it is how `model_index.json` lists a part: library and class, or two nulls for one that is left out."""
    return isinstance(value, list) and len(value) == 2


def _is_part(value: Any) -> bool:
    return _is_entry(value) and None not in value
