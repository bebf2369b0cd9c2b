"""The pipeline that the image and the video stage train: its parts loaded or made, and checked to fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from latent_shift.core.errors import InputError
from latent_shift.core.seeding import derive_seed
from latent_shift.models import VideoUNet
from latent_shift.pipelines import LatentShiftPipeline, LatentShiftXLPipeline, make_scheduler
from latent_shift.pipelines.components import DeviceMap, damaged_files_named, text_encoders, without_pooling
from latent_shift.pipelines.inputs import check_size
from latent_shift.pipelines.loading import model_folder, pipeline_class_of

from .config import Recipe
from .denoising import noise_schedule
from .encoding import check_cacheable
from .networks import UNETS, load_autoencoder, make_network


def assemble(
    recipe: Recipe, device_map: DeviceMap = None
) -> tuple[LatentShiftPipeline, tuple[float, float, tuple[float, float]]]:
    """The pipeline at the start of a run, in fp32, and how a distillation's teacher is guided.

    Args:
        recipe: of the image or the video stage, with its noise process resolved.
        device_map: "meta" for networks without memory: of their files the headers alone are read.

    Returns:
        The pipeline, and the scale, the motion's share and the interval of the guidance of `model.init`.

    Raises:
        InputError: a part is not there or not what the recipe says, or the parts or `data.size` do not fit each other.
        DataError: a file of a part is missing or damaged.
    """
    torch.manual_seed(derive_seed(recipe.seed, "initial weights"))
    scheduler = make_scheduler("dpm++", noise_schedule(recipe.diffusion).config)
    noise_correlation, guidance = recipe.preview.noise_correlation, (1.0, 1.0, (0.0, 1.0))
    seam_frames = recipe.preview.seam_frames
    if recipe.model.init:
        folder = model_folder(recipe.model.init, "model.init")
        kind = pipeline_class_of(folder)
        base = kind.from_pretrained(folder, torch_dtype=torch.float32, device_map=device_map)
        parts: dict[str, Any] = {**base.components, "unet": _unet_from(recipe, base, device_map)}
        if recipe.model.autoencoder:
            folder = Path(recipe.model.autoencoder)
            parts["vae"] = load_autoencoder(folder, "model.autoencoder", device_map=device_map)
        kept = [name for name in ("mask_padding", "force_zeros_for_empty_prompt", "fps") if name in base.config]
        pipeline_class, own = type(base), {name: base.config[name] for name in kept}
        max_tokens = base.max_prompt_tokens
        if recipe.distillation.steps:
            scheduler = make_scheduler("ddim-trailing", base.scheduler.config)
            noise_correlation = base.noise_correlation if noise_correlation is None else noise_correlation
            seam_frames = base.config.default_seam_frames if seam_frames is None else seam_frames
            asked = recipe.distillation.guidance_scale
            scale = base.config.default_guidance_scale if asked is None else asked
            guidance = scale, base.config.default_motion_guidance, base.guidance_interval
    else:
        arguments = _own_boundary(recipe, None) | recipe.model.arguments
        parts = {
            **load_text_encoder(Path(recipe.model.text_encoder), device_map),
            "vae": load_autoencoder(Path(recipe.model.autoencoder), "model.autoencoder", device_map=device_map),
            "unet": make_network(UNETS[recipe.model.video], arguments, device_map=device_map),
        }
        pipeline_class, own, max_tokens = LatentShiftPipeline, {"mask_padding": True}, recipe.model.max_tokens
    if recipe.stage == "video" and isinstance(recipe.data.duration_s, float):
        own["fps"] = recipe.data.num_frames / recipe.data.duration_s
    pipeline = pipeline_class(
        **{**parts, "scheduler": scheduler},
        **own,
        max_tokens=max_tokens,
        default_frames=recipe.data.num_frames if recipe.stage == "video" else 1,
        default_size=recipe.data.size,
        default_guidance_scale=recipe.preview.guidance_scale,
        default_motion_guidance=recipe.preview.motion_guidance,
        default_guidance_start=recipe.preview.guidance_interval[0],
        default_guidance_stop=recipe.preview.guidance_interval[1],
        default_noise_correlation=noise_correlation,
        default_seam_frames=seam_frames,
        distilled_steps=recipe.distillation.steps or None,
    )
    _check_fit(pipeline)
    check_size("data.size", pipeline, recipe.data.size, recipe.data.size)
    if recipe.data.cache:
        check_cacheable(pipeline, recipe.data)
    return pipeline, guidance


def _unet_from(recipe: Recipe, base: LatentShiftPipeline, device_map: DeviceMap) -> VideoUNet:
    """The U-Net of `model.init` with the recipe's arguments."""
    init, config = recipe.model.init, base.unet.config
    if recipe.distillation.steps and isinstance(base, LatentShiftXLPipeline):
        raise InputError("distillation.steps", recipe.distillation.steps, "be 0 where model.init is SDXL")
    arguments = _own_boundary(recipe, config.get("default_boundary")) | recipe.model.arguments
    if recipe.model.video == "shift" and getattr(base.unet, "frame_mixing_keys", None):
        expected = f"be vdm, as {init} is (or: latent-shift convert {init} OUT --to shift)"
        raise InputError("model.video", recipe.model.video, expected)
    unet: VideoUNet = make_network(UNETS[recipe.model.video], arguments, config, device_map)
    try:
        unet.load_image_state_dict(base.unet.state_dict())
    except InputError as error:
        expected = f"give a network that the weights of {init} fit ({error})"
        raise InputError("model.arguments", recipe.model.arguments, expected) from error
    if recipe.distillation.steps:
        _check_teacher(recipe, config)
    if recipe.stage == "video" and recipe.lora.rank and unet.frame_mixing_keys - base.unet.state_dict().keys():
        expected = f"be 0 where {init} lacks the temporal layers of model.video: LoRA adds none"
        raise InputError("lora.rank", recipe.lora.rank, expected)
    return unet


def _own_boundary(recipe: Recipe, given: str | None) -> dict[str, str | None]:
    """What the ends of a clip see where a call does not say: as in training, lest it be sampled as it never was seen.

    Args:
        recipe: of the run.
        given: of the network that it starts from.
    """
    if recipe.stage == "image":
        return {"default_boundary": None}
    share, own = recipe.diffusion.circular_share, given or "zero"
    return {"default_boundary": own if 0 < share < 1 else "circular" if share else "zero"}


def _check_teacher(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Raises `InputError` where a distillation would give its teacher, too, other arguments than it was made with."""
    for key, value in recipe.model.arguments.items():
        own = config.get(key)
        if value != (list(own) if isinstance(own, tuple) else own):
            expected = f"be {own!r}, or left out: a distillation has the network of its teacher"
            raise InputError(f"model.arguments.{key}", value, expected)


def _check_fit(pipeline: LatentShiftPipeline) -> None:
    """Raises `InputError` unless the U-Net takes the autoencoder's latents and the text encoder's features."""
    config, latent_channels = pipeline.unet.config, pipeline.vae.config.latent_channels
    widths = [getattr(pipeline, name).config.hidden_size for name in text_encoders(pipeline.components)]
    for key, expected in (
        ("in_channels", latent_channels),
        ("out_channels", latent_channels),
        ("cross_attention_dim", sum(widths)),
    ):
        if config[key] != expected:
            raise InputError(f"model.arguments.{key}", config[key], f"be {expected}, as the loaded parts have it")


def load_text_encoder(folder: Path, device_map: DeviceMap = None) -> dict[str, Any]:
    """`text_encoder` and `tokenizer` of a folder laid out as a pipeline's.

    Args:
        folder: the pipeline's.
        device_map: "meta" for an encoder without memory.

    Raises:
        InputError: a part is missing.
        DataError: a part is damaged.
    """
    from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoTokenizer

    for part in ("text_encoder", "tokenizer"):
        if not (folder / part).is_dir():
            raise InputError("model.text_encoder", str(folder), f"be a folder with {part}/ in it")
    with damaged_files_named(folder):
        config = AutoConfig.from_pretrained(folder / "text_encoder")
        options = {"dtype": torch.float32, "device_map": device_map, **without_pooling(MODEL_MAPPING[type(config)])}
        encoder = AutoModel.from_pretrained(folder / "text_encoder", **options)
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return {"text_encoder": encoder, "tokenizer": tokenizer}
