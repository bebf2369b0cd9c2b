"""Covers `latent-shift reproduce ablation`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latent_shift.core.config import parse_config
from latent_shift.core.errors import InputError
from latent_shift.core.files import sha256_file
from latent_shift.evaluation import ReproduceOptions, ablate, ablation
from latent_shift.evaluation.ablation import VARIANTS
from latent_shift.evaluation.report import ablation_to_markdown
from latent_shift.evaluation.samples import SampleStore
from latent_shift.training import Recipe
from latent_shift.training.report import read_log

MakeTree = Callable[..., dict[str, Any]]
OPTIONS = ReproduceOptions(steps=1, seeds=2, labels=2, resamples=10)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def recipe(make_tree: MakeTree, road: Path, emoji_data: Path, tmp_path: Path) -> Recipe:
    tree: dict[str, Any] = make_tree("video", tmp_path / "runs", model={"init": str(road / "image/model")})
    tree["data"]["source"] = str(emoji_data)
    tree["steps"] = 2
    del tree["diffusion"]["circular_share"]
    return parse_config(Recipe, tree)


def test_a_variant_is_the_recipe_with_one_change(recipe: Recipe) -> None:
    first, *others = (ablation._vary(recipe, name, variant).model_dump() for name, variant in VARIANTS.items())
    for (name, variant), other in zip(list(VARIANTS.items())[1:], others, strict=True):
        changed = {key for key in first if first[key] != other[key]}
        assert changed <= {"output", "model", "diffusion", "seed"}, name
        assert other["seed"] == first["seed"] + variant.seed
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
    places = (tmp_path / "clips", tmp_path / "report", OPTIONS, "cpu", "fp32")
    told: list[tuple[str, int]] = []
    result = ablate(recipe, *places, lambda what, done, _total: told.append((what, done)))
    for name in VARIANTS:
        assert (f"training {name}", 2) in told
    configs = {name: json.loads((tmp_path / f"runs/{name}/model/unet/config.json").read_text()) for name in VARIANTS}
    found = {name: [config[key] for key in ablation._COMMON] for name, config in configs.items()}
    assert found == {
        "paper": [3, "before_norm1", 1, "zero"],
        "fold-4": [4, "before_norm1", 1, "zero"],
        "fold-8": [8, "before_norm1", 1, "zero"],
        "before-conv1": [3, "before_conv1", 1, "zero"],
        "distance-2": [3, "before_norm1", 2, "zero"],
        "circular": [3, "before_norm1", 1, "circular"],
        "mixed": [3, "before_norm1", 1, "zero"],
        "seed": [3, "before_norm1", 1, "zero"],
    }
    weights = {sha256_file(tmp_path / f"runs/{name}/model/unet" / WEIGHTS) for name in VARIANTS}
    assert len(weights) == len(VARIANTS)

    assert [row["title"] for row in result["variants"].values()] == [one.title for one in VARIANTS.values()]
    assert "gains" not in result["variants"]["paper"]
    scores = {name: row["scores"] for name, row in result["variants"].items()}
    gains = result["variants"]["fold-4"]["gains"]
    for key, sign in (("r2", 1), ("lite0-clips-kd", -1)):  # of a distance, less is better
        difference = scores["fold-4"][key]["value"] - scores["paper"][key]["value"]
        assert gains[key]["value"] == pytest.approx(sign * difference, abs=2e-3)
        assert difference != 0
    losses = {name: read_log(tmp_path / f"runs/{name}/log.jsonl")[-1]["loss"] for name in VARIANTS}
    for name, row in result["variants"].items():
        assert row["loss"] == pytest.approx(losses[name], abs=1e-4)
        if name != "paper":
            assert row["loss_gain"]["value"] == pytest.approx(losses["paper"] - losses[name], rel=1e-3)
    assert result["settings"]["steps"] == 2
    assert json.loads((tmp_path / "report/ablation.json").read_text()) == result
    text = (tmp_path / "report/ablation.md").read_text()
    assert text == ablation_to_markdown(result)
    assert text.count("a quarter each way") == 2

    monkeypatch.setattr(SampleStore, "_make", None)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("model_index.json")}
    assert len(stamps) == len(VARIANTS)
    assert ablate(recipe, *places) == result
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    # What is complete after two steps is no run of one step.
    with pytest.raises(InputError, match="recipe.output must be a new folder, or that of runs of 1 steps: paper has 2"):
        ablate(recipe.model_copy(update={"steps": 1}), *places)
    origin = tmp_path / "runs/origin.json"
    known = json.loads(origin.read_text())
    origin.write_text(json.dumps({"init": "another"}))
    with pytest.raises(InputError, match="recipe.output must be a new folder: its runs began from another init"):
        ablate(recipe, *places)
    origin.unlink()
    with pytest.raises(InputError, match="recipe.output must be a new folder: what its runs began from is not known"):
        ablate(recipe, *places)
    origin.write_text(json.dumps({**known, "autoencoder": "its own"}))
    with pytest.raises(InputError, match="recipe.output must be a new folder: its runs began from another autoencoder"):
        ablate(recipe, *places)


def test_losses_are_compared_where_both_were_logged() -> None:
    first, other = {20: 1.0, 40: 0.8, 60: 0.9}, {20: 0.9, 40: 0.6, 80: 9.0}
    value, low, high = ablation._loss_gain(first, other)
    assert value == pytest.approx(0.15)
    assert (low + high) / 2 == pytest.approx(value)
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 2)  # a standard deviation of 0.1 / sqrt(2), of two


def test_losses_that_follow_those_before_tell_less() -> None:
    zeros = dict.fromkeys(range(20), 0.0)
    alternating, slow = ({step: float(step * turns // 20 % 2) for step in zeros} for turns in (20, 2))
    widths = [high - low for _, low, high in (ablation._loss_gain(zeros, one) for one in (alternating, slow))]
    assert widths[0] == pytest.approx(2 * 1.96 * 0.5 * (20 / 19) ** 0.5 / 20**0.5)
    assert widths[1] > 3 * widths[0]


def test_other_recipes_are_refused(make_tree: MakeTree, recipe: Recipe, road: Path, tmp_path: Path) -> None:
    tree = make_tree("image", tmp_path / "image", model={"autoencoder": str(road / "autoencoder/model")})
    with pytest.raises(InputError, match="recipe must be one that trains a Latent-Shift model on video"):
        ablate(parse_config(Recipe, tree), tmp_path / "clips", tmp_path / "report")
    vdm = recipe.model_copy(update={"model": recipe.model.model_copy(update={"video": "vdm"})})
    with pytest.raises(InputError, match="recipe must be one that trains a Latent-Shift model on video"):
        ablate(vdm, tmp_path / "clips", tmp_path / "report")
    with pytest.raises(InputError, match="dtype must be one of auto"):
        ablate(recipe, tmp_path / "clips", tmp_path / "report", dtype="fp7")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("table", "values", "named"),
    [
        ("model", {"arguments": {"shift_fold": 5}}, "model.arguments.shift_fold"),
        ("model", {"arguments": {"default_boundary": "zero"}}, "model.arguments.default_boundary"),
        ("diffusion", {"circular_share": 0.3}, "diffusion.circular_share"),
    ],
)
def test_what_the_variants_change_is_not_the_recipes(
    recipe: Recipe, tmp_path: Path, table: str, values: dict[str, Any], named: str
) -> None:
    tree = recipe.model_dump(exclude_unset=True)
    tree[table] |= values
    with pytest.raises(InputError, match=f"recipe must leave to the variants what they change, got '{named}'"):
        ablate(parse_config(Recipe, tree), tmp_path / "clips", tmp_path / "report")
    assert not (tmp_path / "runs").exists()
