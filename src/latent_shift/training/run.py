"""From a recipe to a trained model."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from latent_shift import __version__
from latent_shift.core.errors import DataError, InputError
from latent_shift.core.files import write_json
from latent_shift.core.seeding import derive_seed
from latent_shift.models import LatentShiftUNet, PatchAutoencoderKL
from latent_shift.pipelines import LatentShiftPipeline, make_scheduler
from latent_shift.pipelines.components import load_component
from latent_shift.pipelines.loading import model_folder, resolve_device

from .autoencoding import AutoencoderStage
from .config import Recipe
from .denoising import DenoisingStage, noise_schedule
from .trainer import Progress, Stage, run_stage

logger = logging.getLogger(__name__)


def train(recipe: Recipe, progress: Progress | None = None) -> Path:
    """Trains what `recipe` says, from its last checkpoint where there is one, and returns the folder of the model.

    The run's folder holds `recipe.json`, `log.jsonl`, `loss.png`, `checkpoints/`, `previews/` and, at the end,
    `model/`.

    Raises:
        InputError: a setting is wrong, or the run's folder belongs to another recipe.
        TrainingInterrupted: on Ctrl-C or SIGTERM, after a checkpoint.
    """
    output = Path(recipe.output)
    _claim(output, recipe)
    if (output / "done.json").exists() and json.loads((output / "done.json").read_text())["steps"] >= recipe.steps:
        logger.info("%s is complete", output)
        return output / "model"
    device = resolve_device(recipe.device)
    stage: Stage = AutoencoderStage(recipe, device) if recipe.stage == "autoencoder" else _denoising(recipe, device)
    run_stage(stage, recipe, progress)
    return output / "model"


def _claim(output: Path, recipe: Recipe) -> None:
    """Saves the recipe in the run's folder; refuses a folder that holds a run with other settings.

    More or fewer steps may be asked for later: the learning rate then decays towards the new end.
    """
    place, resolved = output / "recipe.json", recipe.model_dump(mode="json")
    if place.exists():
        before = json.loads(place.read_text(encoding="utf-8"))["recipe"]
        free = {"device", "checkpoint_minutes", "preview", "steps"}
        changed = sorted(key for key in resolved if key not in free and before.get(key) != resolved[key])
        if changed:
            raise InputError("output", recipe.output, f"be a new folder: it holds a run with another {changed[0]!r}")
    write_json(place, {"latent_shift": __version__, "torch": torch.__version__, "recipe": resolved})


def _denoising(recipe: Recipe, device: torch.device) -> DenoisingStage:
    options = recipe.diffusion
    if recipe.model.init:
        base = LatentShiftPipeline.from_pretrained(model_folder(recipe.model.init), torch_dtype=torch.float32)
        unet = LatentShiftUNet.from_config({**base.unet.config, **recipe.model.arguments})
        unet.load_state_dict(base.unet.state_dict(), strict=True)
        parts: dict[str, Any] = {**base.components, "unet": unet}
        max_tokens, mask_padding = base.max_prompt_tokens, base.config.mask_padding
    else:
        torch.manual_seed(derive_seed(recipe.seed, "initial weights"))
        parts = {
            **load_text_encoder(Path(recipe.model.text_encoder)),
            "vae": load_component(PatchAutoencoderKL, Path(recipe.model.autoencoder), torch_dtype=torch.float32),
            "unet": LatentShiftUNet(**recipe.model.arguments),
        }
        max_tokens, mask_padding = recipe.model.max_tokens, True
    pipeline = LatentShiftPipeline(
        **{**parts, "scheduler": make_scheduler("dpm++", noise_schedule(options).config)},
        max_tokens=max_tokens,
        mask_padding=mask_padding,
        default_frames=recipe.data.num_frames if recipe.stage == "video" else 1,
        default_size=recipe.data.size,
        default_guidance_scale=recipe.preview.guidance_scale,
    )
    pipeline.text_encoder.requires_grad_(False).eval()
    pipeline.vae.requires_grad_(False).eval()
    return DenoisingStage(recipe, pipeline.to(device), device)


def load_text_encoder(folder: Path) -> dict[str, Any]:
    """`text_encoder` and `tokenizer` of a folder laid out as a pipeline's.

    Raises:
        InputError: a part is missing.
        DataError: a part is damaged.
    """
    from transformers import AutoModel, AutoTokenizer

    for part in ("text_encoder", "tokenizer"):
        if not (folder / part).is_dir():
            raise InputError("model.text_encoder", str(folder), f"be a folder with {part}/ in it")
    try:
        encoder = AutoModel.from_pretrained(folder / "text_encoder", dtype=torch.float32, add_pooling_layer=False)
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} cannot be loaded: {str(error).splitlines()[0]}") from error
    return {"text_encoder": encoder, "tokenizer": tokenizer}
