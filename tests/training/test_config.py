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
        ("tiny", "paper-webvid", "paper-ucf101", "sd15-lora", "emoji-motion", "emoji-ablation"), "video"
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
        ({"data": {"source": "y"}}, "the autoencoder stage needs data.cache, a folder for decoded frames"),
        ({"diffusion": {"zero_terminal_snr": True}}, "zero_terminal_snr needs prediction_type = 'v_prediction'"),
        ({"autoencoder_loss": {"crop": 20}}, "autoencoder_loss.crop must be valid (Input should be a multiple of 8)"),
        ({"stage": "sound"}, "stage must be valid (Input should be 'autoencoder', 'image' or 'video'), got 'sound'"),
        ({"steps": 0}, "steps must be valid (Input should be greater than or equal to 1), got 0"),
        ({"batch_size": 0}, "batch_size must be valid"),
        ({"optimizer": {"learning_rate": 0}}, "optimizer.learning_rate must be valid"),
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
