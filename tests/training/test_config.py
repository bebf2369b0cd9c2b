from __future__ import annotations

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
        ({"stage": "image"}, "the image stage needs model.autoencoder and model.text_encoder, or model.init"),
        ({"stage": "image", "model": {"autoencoder": "a"}}, "the image stage needs model.autoencoder and"),
        ({"stage": "video"}, "the video stage needs model.init, a text-to-image model"),
        ({"data": DATA | {"size": 32}}, "autoencoder_loss.crop, 64, is larger than data.size"),
        (
            {"stage": "video", "model": {"init": "m"}, "data": DATA | {"num_frames": 1}},
            "the video stage needs data.num_frames of 2 or more, not 1",
        ),
        (
            {"stage": "video", "model": {"init": "m"}, "data": DATA | {"duration_s": 1e-6}},
            "data.duration_s, 1e-06, makes no clips of 0.01 to 1000 frames a second",
        ),
        (
            {"stage": "video", "model": {"init": "m"}, "preview": {"num_inference_steps": 2000}},
            "preview.num_inference_steps, 2000, is over diffusion.num_train_timesteps, 1000",
        ),
        (
            {"stage": "video", "model": {"init": "m"}, "preview": {"guidance_interval": [0.5, 0.5]}},
            "guidance_interval must be two shares of the steps, 0 <= start < stop <= 1, got (0.5, 0.5)",
        ),
        ({"data": DATA | {"duration_s": float("inf")}}, "data.duration_s must be valid"),
        ({"autoencoder_loss": {"latent_noise": 0.4}}, "autoencoder_loss.latent_noise needs model.init, whose latents"),
        ({"data": DATA | {"size": 100}}, "data.size, 100, is no multiple of 8, the autoencoder's factor"),
        ({"data": {"source": "y"}}, "the autoencoder stage needs data.cache, a folder for decoded frames"),
        ({"diffusion": {"zero_terminal_snr": True}}, "zero_terminal_snr needs prediction_type = 'v_prediction'"),
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
    assert message in str(caught.value)
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
    ("stage", "changes", "message"),
    [
        ({}, {"image_batch_size": 3}, "image_batch_size changes nothing in the autoencoder stage; leave it out"),
        ({}, {"compile": True}, "compile changes nothing in the autoencoder stage"),
        ({}, {"lora": {"rank": 2}}, "lora changes nothing in the autoencoder stage"),
        ({}, {"diffusion": {"caption_dropout": 0.2}}, "diffusion changes nothing in the autoencoder stage"),
        ({}, {"model": {"video": "vdm"}}, "model.video changes nothing in the autoencoder stage"),
        ({}, {"preview": {"prompts": ["a"]}}, "preview.prompts changes nothing in the autoencoder stage"),
        (
            {},
            {"model": {"init": "a", "arguments": {"latent_channels": 4}}},
            "model.arguments changes nothing with model",
        ),
        (IMAGE, {"image_batch_size": 3}, "image_batch_size changes nothing in the image stage"),
        (IMAGE, {"diffusion": {"motion_weight": 2.0}}, "diffusion.motion_weight changes nothing in the image stage"),
        (IMAGE, {"autoencoder_loss": {"crop": 8}}, "autoencoder_loss changes nothing in the image stage"),
        (IMAGE, {"model": {"init": "m", "text_encoder": "t"}}, "model.text_encoder changes nothing with model.init"),
        (IMAGE, {"model": {"init": "m", "max_tokens": 9}}, "model.max_tokens changes nothing with model.init"),
        (VIDEO, {"model": {"init": "m", "max_tokens": 9}}, "model.max_tokens changes nothing in the video stage"),
        (VIDEO, {"distillation": {"teacher_steps": 2}}, "distillation.teacher_steps changes nothing without d"),
        (VIDEO, {"image_batch_size": 3}, "image_batch_size changes nothing without diffusion.image_share"),
        (
            VIDEO | {"optimizer": {"lr_scheduler": "constant"}},
            {"optimizer": {"lr_scheduler": "constant", "decay_fraction": 0.9}},
            "optimizer.decay_fraction changes nothing with a constant optimizer.lr_scheduler",
        ),
        (
            {"model": {"init": "a"}},
            {"autoencoder_loss": {"kl_weight": 0.1}},
            "autoencoder_loss.kl_weight changes nothing with model.init",
        ),
        (
            IMAGE,
            {"preview": {"noise_correlation": 0.5}},
            "preview.noise_correlation changes nothing in the image stage",
        ),
        (VIDEO, {"lora": {"alpha": 2.0}}, "lora.alpha changes nothing without lora.rank"),
        (STUDENT, {"diffusion": {"min_snr_gamma": 5.0}}, "diffusion.min_snr_gamma changes nothing in a distillation"),
    ],
)
def test_what_a_stage_does_not_use_is_refused(stage: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    tree = {**MINIMAL, **stage}
    with pytest.raises(InputError, match=f"^recipe must be valid .{message}"):
        parse_config(Recipe, {**tree, **changes})
    # A saved recipe names every field, with the defaults of those that its stage does not use.
    saved = parse_config(Recipe, tree).model_dump(mode="json")
    assert parse_config(Recipe, saved).model_dump(mode="json") == saved
