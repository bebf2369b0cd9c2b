from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from latent_shift.core.config import Config, load_config, parse_config
from latent_shift.core.errors import InputError
from latent_shift.training import Recipe

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
DATA = {"source": "y", "cache": "z"}
MINIMAL: dict[str, Any] = {"stage": "autoencoder", "output": "x", "steps": 1, "batch_size": 1, "data": DATA}


def every_class(cls: type[Config] = Recipe) -> list[type[Config]]:
    nested = [field.annotation for field in cls.model_fields.values()]
    return [cls, *(c for c in nested if isinstance(c, type) and issubclass(c, Config))]


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 3


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_right(path: Path) -> None:
    recipe = load_config(Recipe, path)
    stages = {"emoji-decoder": "autoencoder"} | dict.fromkeys(
        ("tiny", "emoji-fast", "paper-webvid", "paper-ucf101", "sd15-lora", "emoji-motion", "emoji-ablation"), "video"
    )
    assert recipe.stage == stages.get(path.stem, path.stem.split("-")[-1])
    assert recipe.output == f"runs/{path.stem}"


@pytest.mark.parametrize("cls", every_class(), ids=lambda cls: cls.__name__)
def test_every_field_says_what_it_is(cls: type[Config]) -> None:
    assert all(field.description for field in cls.model_fields.values())


def test_the_defaults_are_the_papers() -> None:
    diffusion = parse_config(Recipe, MINIMAL | {"autoencoder_loss": {"crop": 8}}).diffusion
    assert diffusion.prediction_type == "epsilon"
    assert diffusion.min_snr_gamma is None
    assert not diffusion.zero_terminal_snr
    assert diffusion.timestep_shift == 1
    assert diffusion.caption_dropout == 0.1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"stage": "image"},
            "model.autoencoder must be given in the image stage, or model.init for all parts, got ''",
        ),
        (
            {"stage": "image", "model": {"autoencoder": "a"}},
            "model.text_encoder must be given in the image stage, or model.init for all parts, got ''",
        ),
        (
            {"stage": "video"},
            "model.init must be a text-to-image model, from which the video stage starts, got ''",
        ),
        ({"data": DATA | {"size": 32}}, "autoencoder_loss.crop must be at most data.size, 32, got 64"),
        (
            {"stage": "video", "model": {"init": "m"}, "data": DATA | {"num_frames": 1}},
            "data.num_frames must be 2 or more in the video stage, got 1",
        ),
        (
            {"stage": "video", "model": {"init": "m"}, "data": DATA | {"duration_s": 1e-6}},
            "data.duration_s must give 16 frames a rate of 0.01 to 1000 a second, got 1e-06",
        ),
        (
            {"stage": "video", "model": {"init": "m"}, "preview": {"num_inference_steps": 2000}},
            "preview.num_inference_steps must be at most diffusion.num_train_timesteps, 1000, got 2000",
        ),
        (
            {"stage": "video", "model": {"init": "m"}, "preview": {"guidance_interval": [0.5, 0.5]}},
            "preview.guidance_interval must be two shares of the steps, 0 <= start < stop <= 1, got (0.5, 0.5)",
        ),
        (
            {"stage": "video", "model": {"init": "m"}, "diffusion": {"joint_images": True}},
            "diffusion.image_share must be between 0 and 1 with joint_images, got 0.0",
        ),
        (
            {"stage": "image", "model": {"init": "m"}, "distillation": {"steps": 2}},
            "distillation.steps must be 0 but in the video stage, got 2",
        ),
        ({"data": DATA | {"duration_s": float("inf")}}, "data.duration_s must be valid"),
        (
            {"autoencoder_loss": {"latent_noise": 0.4}},
            "autoencoder_loss.latent_noise must be 0 without model.init, whose latents are its unit, got 0.4",
        ),
        ({"data": DATA | {"size": 100}}, "data.size must be a positive multiple of 8, got 100"),
        (
            {"data": {"source": "y"}},
            "data.cache must be a folder for decoded frames, which the autoencoder stage needs, got ''",
        ),
        (
            {"diffusion": {"beta_start": 0.02}},
            "diffusion.beta_start must be at most beta_end, 0.012, got 0.02",
        ),
        (
            {"diffusion": {"zero_terminal_snr": True}},
            "diffusion.prediction_type must be v_prediction with zero_terminal_snr, got 'epsilon'",
        ),
        ({"autoencoder_loss": {"crop": 20}}, "autoencoder_loss.crop must be valid (Input should be a multiple of 8)"),
        ({"stage": "sound"}, "stage must be valid (Input should be 'autoencoder', 'image' or 'video'), got 'sound'"),
        ({"steps": 0}, "steps must be valid (Input should be greater than or equal to 1), got 0"),
        ({"batch_size": 0}, "batch_size must be valid"),
        ({"optimizer": {"learning_rate": 0}}, "optimizer.learning_rate must be valid"),
        (
            {"optimizer": {"learning_rate": float("inf")}},
            "optimizer.learning_rate must be valid (Input should be a finite number), got inf",
        ),
        ({"optimizer": {"max_grad_norm": float("nan")}}, "optimizer.max_grad_norm must be valid"),
        (
            {"optimizer": {"betas": [0.9, 1.5]}},
            "optimizer.betas.1 must be valid (Input should be less than 1), got 1.5",
        ),
        ({"optimizer": {"betas": [-0.1, 0.9]}}, "optimizer.betas.0 must be valid"),
        ({"diffusion": {"beta_start": 1.5}}, "diffusion.beta_start must be valid (Input should be less than 1)"),
        ({"diffusion": {"motion_weight": float("inf")}}, "diffusion.motion_weight must be valid"),
        ({"optimizer": {"ema_decay": 1.0}}, "optimizer.ema_decay must be valid"),
        ({"optimizer": {"decay_fraction": 1.5}}, "optimizer.decay_fraction must be valid"),
        ({"diffusion": {"caption_dropout": 1.1}}, "diffusion.caption_dropout must be valid"),
        ({"diffusion": {"min_snr_gamma": 0}}, "diffusion.min_snr_gamma must be valid"),
        ({"diffusion": {"betas": 1}}, "key must be a known key; did you mean 'beta_start'?, got 'diffusion.betas'"),
        ({"precison": "bf16"}, "key must be a known key; did you mean 'precision'?, got 'precison'"),
    ],
)
def test_what_does_not_fit_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_config(Recipe, {**MINIMAL, **changes})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_gradients_need_no_bound() -> None:
    recipe = parse_config(Recipe, MINIMAL | {"optimizer": {"max_grad_norm": float("inf")}})
    assert recipe.optimizer.max_grad_norm == float("inf")


IMAGE: dict[str, Any] = {"stage": "image", "model": {"autoencoder": "a", "text_encoder": "t"}}
VIDEO: dict[str, Any] = {"stage": "video", "model": {"init": "m"}}
STUDENT: dict[str, Any] = {
    **VIDEO,
    "distillation": {"steps": 2},
    "preview": {"num_inference_steps": 2, "guidance_scale": 1.0},
}


@pytest.mark.parametrize(
    ("stage", "changes", "key", "why"),
    [
        ({}, {"image_batch_size": 3}, "image_batch_size", "in the autoencoder stage, got 3"),
        ({}, {"compile": True}, "compile", "in the autoencoder stage, got True"),
        ({}, {"lora": {"rank": 2}}, "lora.rank", "in the autoencoder stage, got 2"),
        ({}, {"diffusion": {"caption_dropout": 0.2}}, "diffusion.caption_dropout", "in the autoencoder stage, got 0.2"),
        ({}, {"model": {"video": "vdm"}}, "model.video", "in the autoencoder stage, got 'vdm'"),
        ({}, {"preview": {"prompts": ["a"]}}, "preview.prompts", "in the autoencoder stage, got ('a',)"),
        (
            {},
            {"model": {"init": "a", "arguments": {"latent_channels": 4}}},
            "model.arguments",
            "with model.init, whose network goes on learning, got {'latent_channels': 4}",
        ),
        (IMAGE, {"image_batch_size": 3}, "image_batch_size", "in the image stage, got 3"),
        (IMAGE, {"diffusion": {"motion_weight": 2.0}}, "diffusion.motion_weight", "in the image stage, got 2.0"),
        (IMAGE, {"autoencoder_loss": {"crop": 8}}, "autoencoder_loss.crop", "in the image stage, got 8"),
        (
            IMAGE,
            {"model": {"init": "m", "text_encoder": "t"}},
            "model.text_encoder",
            "with model.init, which has its own, got 't'",
        ),
        (IMAGE, {"model": {"init": "m", "max_tokens": 9}}, "model.max_tokens", "with model.init, which has its own, "),
        (VIDEO, {"model": {"init": "m", "max_tokens": 9}}, "model.max_tokens", "in the video stage, got 9"),
        (
            VIDEO,
            {"distillation": {"teacher_steps": 2}},
            "distillation.teacher_steps",
            "without distillation.steps, got 2",
        ),
        (VIDEO, {"image_batch_size": 3}, "image_batch_size", "without diffusion.image_share, got 3"),
        (
            VIDEO | {"optimizer": {"lr_scheduler": "constant"}},
            {"optimizer": {"lr_scheduler": "constant", "decay_fraction": 0.9}},
            "optimizer.decay_fraction",
            "with a constant optimizer.lr_scheduler, got 0.9",
        ),
        (
            {"model": {"init": "a"}},
            {"autoencoder_loss": {"kl_weight": 0.1}},
            "autoencoder_loss.kl_weight",
            "with model.init, whose encoder stays as it is, got 0.1",
        ),
        (IMAGE, {"preview": {"noise_correlation": 0.5}}, "preview.noise_correlation", "in the image stage, got 0.5"),
        (VIDEO, {"lora": {"alpha": 2.0}}, "lora.alpha", "without lora.rank, got 2.0"),
        (STUDENT, {"diffusion": {"min_snr_gamma": 5.0}}, "diffusion.min_snr_gamma", "in a distillation, got 5.0"),
    ],
)
def test_what_a_stage_does_not_use_is_refused(
    stage: dict[str, Any], changes: dict[str, Any], key: str, why: str
) -> None:
    tree = {**MINIMAL, **stage}
    with pytest.raises(InputError, match=f"^{key} must be left out: it changes nothing {re.escape(why)}"):
        parse_config(Recipe, {**tree, **changes})
    # A saved recipe names every field, with the defaults of those that its stage does not use.
    saved = parse_config(Recipe, tree).model_dump(mode="json")
    assert parse_config(Recipe, saved).model_dump(mode="json") == saved
