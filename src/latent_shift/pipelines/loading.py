"""Models by name, on the device at hand."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch

from latent_shift.core.errors import InputError
from latent_shift.models.layers import lay_out_for_cpu, set_memory_format
from latent_shift.models.presets import Preset, find_preset

from .components import read_index, text_encoders
from .fast import make_fast
from .latent_shift import LatentShiftPipeline
from .latent_shift_xl import LatentShiftXLPipeline
from .schedulers import PAPER_NOISE, make_scheduler

MODELS = ("emoji",)
"""Models that come with the package."""

DtypeName = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_pipeline(
    model: str = "emoji", device: str = "auto", dtype: str = "auto", fast: bool = False
) -> LatentShiftPipeline:
    """Loads a model of this package by name, or a folder, ready to generate.

    Args:
        model: a name of `MODELS`, or a pipeline folder.
        device: "auto" (CUDA, then Apple's MPS, then the CPU) or a torch device.
        dtype: of the U-Net: "fp32", "bf16", "fp16", or "auto": fp16 on a GPU, bf16 on a CPU that has it in hardware.
            On a CPU the text encoder runs in fp32, where it costs little, and so does the autoencoder unless that is
            bf16, in which it takes a fifth of the time.
        fast: distilled to 4 steps without guidance (`make_fast`), for models that have this.

    Raises:
        InputError: a `ValueError`, for an unknown model, device or dtype, or a model that cannot be fast.
        DataError: a weight file is missing or damaged.
    """
    folder = model_folder(model)
    target = resolve_device(device)
    unet_dtype = resolve_dtype(dtype, device)
    others = torch.float32 if target.type == "cpu" else unet_dtype
    # What is merged into rounded weights is lost in part: where the model is to be fast, they are rounded afterwards.
    dtypes = {"default": others, "unet": torch.float32 if fast else unet_dtype}
    if unet_dtype == torch.bfloat16:
        dtypes["vae"] = unet_dtype
    pipeline = pipeline_class_of(folder).from_pretrained(folder, torch_dtype=dtypes)
    if fast:
        make_fast(pipeline, folder)
        pipeline.unet.to(unet_dtype)
    pipeline.to(target)
    lay_out(pipeline)
    return pipeline


def pipeline_class_of(folder: Path) -> type[LatentShiftPipeline]:
    """Which of the pipelines a folder holds.

    Raises:
        InputError: the folder is no pipeline.
    """
    return LatentShiftXLPipeline if len(text_encoders(read_index(folder))) > 1 else LatentShiftPipeline


def load_preset(name: str, device: str = "auto", dtype: str = "auto", seed: int = 0) -> LatentShiftPipeline:
    """A model of the paper's size (or a small twin) with random weights: for timing, memory and tests.

    Args:
        name: a key of `latent_shift.models.presets.PRESETS`.
        device: as in `load_pipeline`.
        dtype: of all networks; as in `load_pipeline`.
        seed: of the weights.

    Raises:
        InputError: a `ValueError`, for an unknown preset, device or dtype.
    """
    preset = find_preset(name)
    target, network_dtype = resolve_device(device), resolve_dtype(dtype, device)
    with torch.random.fork_rng(devices=[target] if target.type == "cuda" else []):
        torch.manual_seed(seed)
        pipeline = assemble_preset(preset, preset.build(target, network_dtype))
    lay_out(pipeline)
    return pipeline


def lay_out(pipeline: LatentShiftPipeline) -> None:
    """Lays the weights out as they compute fastest on a CPU: channels_last in bf16."""
    if pipeline.unet.device.type == "cpu":
        lay_out_for_cpu(pipeline.unet, pipeline.unet.dtype)
    lay_out_decoder(pipeline)


def lay_out_decoder(pipeline: LatentShiftPipeline) -> None:
    """What `lay_out` does for the autoencoder."""
    if pipeline.vae.device.type == "cpu" and pipeline.vae.dtype == torch.bfloat16:
        set_memory_format(pipeline.vae, "channels_last")


def assemble_preset(preset: Preset, networks: Mapping[str, Any]) -> LatentShiftPipeline:
    """The pipeline of a preset, from its networks `unet`, `vae` and `text_encoder`."""
    from transformers import AutoTokenizer

    return LatentShiftPipeline(
        **networks,
        # LDM's text encoder reads BERT's uncased vocabulary, as the default model's does.
        tokenizer=AutoTokenizer.from_pretrained(model_folder("emoji") / "tokenizer", local_files_only=True),
        scheduler=make_scheduler("ddpm", PAPER_NOISE),
        max_tokens=preset.max_tokens,
        default_frames=preset.num_frames,
        default_size=preset.size,
        default_guidance_scale=preset.guidance_scale,
    )


def model_folder(model: str, argument: str = "model") -> Path:
    """The folder of a model named in `MODELS`, or `model` itself where it is a pipeline folder.

    Raises:
        InputError: it is neither; `argument` is its name in the message.
    """
    if model in MODELS:
        return Path(str(importlib.resources.files("latent_shift"))) / "weights" / model
    if (Path(model) / "model_index.json").is_file():
        return Path(model)
    raise InputError(argument, model, f"be one of {', '.join(MODELS)} or a folder with a model_index.json")


def resolve_device(device: str) -> torch.device:
    """A torch device by name; "auto" takes the fastest there is."""
    if device == "auto":
        mps: Any = torch.backends.mps
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if mps.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
        if found.type == "meta":
            raise RuntimeError("it has no memory")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError("device", device, "be auto, cpu, cuda, cuda:N or mps, and be present") from error
    return found


def resolve_dtype(dtype: str, device: str = "auto") -> torch.dtype:
    """A torch dtype by name; "auto" is fp16 on a GPU, bf16 on a CPU that has it in hardware, else fp32."""
    if dtype not in get_args(DtypeName):
        raise InputError("dtype", dtype, f"be one of {', '.join(get_args(DtypeName))}")
    return _DTYPES.get(dtype) or _best_dtype(resolve_device(device))


def _best_dtype(device: torch.device) -> torch.dtype:
    if device.type != "cpu":
        return torch.float16
    mkldnn: Any = torch.backends.mkldnn
    fast = mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if fast else torch.float32
