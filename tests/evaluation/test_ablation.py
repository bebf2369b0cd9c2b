"""Covers `latent-shift reproduce ablation`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latent_shift.core.config import parse_config
from latent_shift.core.errors import InputError
from latent_shift.evaluation import ReproduceOptions, ablate, ablation
from latent_shift.evaluation.ablation import VARIANTS
from latent_shift.evaluation.report import ablation_to_markdown
from latent_shift.training import Recipe

MakeTree = Callable[..., dict[str, Any]]
OPTIONS = ReproduceOptions(steps=1, seeds=2, labels=2, resamples=10)
SOME = {name: VARIANTS[name] for name in ("paper", "fold-4")}


@pytest.fixture
def recipe(make_tree: MakeTree, road: Path, emoji_data: Path, tmp_path: Path) -> Recipe:
    tree: dict[str, Any] = make_tree("video", tmp_path / "runs", model={"init": str(road / "image/model")})
    tree["data"]["source"] = str(emoji_data)
    tree["steps"] = 2
    return parse_config(Recipe, tree)


def test_a_variant_is_the_recipe_with_one_change(recipe: Recipe) -> None:
    first, *others = (ablation._vary(recipe, name, variant).model_dump() for name, variant in VARIANTS.items())
    for (name, variant), other in zip(list(VARIANTS.items())[1:], others, strict=True):
        changed = {key for key in first if first[key] != other[key]}
        assert changed <= {"output", "model", "diffusion"}, name
        arguments = {
            key: value
            for key, value in other["model"]["arguments"].items()
            if first["model"]["arguments"][key] != value
        }
        assert arguments == variant.arguments, name
        assert other["diffusion"] == {**first["diffusion"], "circular_share": variant.circular_share}
        assert Path(other["output"]).name == name


def test_variants_are_trained_once_and_compared_with_the_first(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablation, "VARIANTS", SOME)
    places = (tmp_path / "clips", tmp_path / "report", OPTIONS, "cpu", "fp32")
    result = ablate(recipe, *places)
    for name, variant in SOME.items():
        config = json.loads((tmp_path / f"runs/{name}/model/unet/config.json").read_text())
        assert config["shift_fold"] == {"paper": 3, "fold-4": 4}[name]
        assert result["variants"][name]["title"] == variant.title
    assert "gains" not in result["variants"]["paper"]
    gains = result["variants"]["fold-4"]["gains"]
    scores = [result["variants"][name]["scores"] for name in SOME]
    assert gains["r2"]["value"] == pytest.approx(scores[1]["r2"]["value"] - scores[0]["r2"]["value"], abs=2e-3)
    assert gains["r2"]["value"] != 0
    distance = "lite0-clips-kd"
    assert gains[distance]["value"] == pytest.approx(
        scores[0][distance]["value"] - scores[1][distance]["value"], abs=2e-3
    )
    assert result["settings"]["steps"] == 2

    assert json.loads((tmp_path / "report/ablation.json").read_text()) == result
    text = (tmp_path / "report/ablation.md").read_text()
    assert text == ablation_to_markdown(result)
    assert text.count("a quarter each way") == 2

    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("model_index.json")}
    assert len(stamps) == 2
    assert ablate(recipe, *places) == result
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_other_recipes_are_refused(make_tree: MakeTree, recipe: Recipe, road: Path, tmp_path: Path) -> None:
    tree = make_tree("image", tmp_path / "image", model={"autoencoder": str(road / "autoencoder/model")})
    with pytest.raises(InputError, match="recipe must be one that trains a Latent-Shift model on video"):
        ablate(parse_config(Recipe, tree), tmp_path / "clips", tmp_path / "report")
    vdm = recipe.model_copy(update={"model": recipe.model.model_copy(update={"video": "vdm"})})
    with pytest.raises(InputError, match="recipe must be one that trains a Latent-Shift model on video"):
        ablate(vdm, tmp_path / "clips", tmp_path / "report")
    assert list(tmp_path.iterdir()) == []
