"""Recipes on the tiny data, and a stage so small that only the trainer around it is tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from latent_shift.core.config import parse_config
from latent_shift.core.seeding import derive_seed
from latent_shift.training import Recipe
from latent_shift.training.denoising import DenoisingStage
from latent_shift.training.noise import resolve_noise
from latent_shift.training.run import _denoising
from latent_shift.training.shares import Group
from latent_shift.training.sources import TrainingData

MakeTree = Callable[..., dict[str, Any]]
MakeRecipe = Callable[..., Recipe]
MakeStage = Callable[..., DenoisingStage]


class LineBatches:
    """Points on a line: eight a step, whatever the recipe says."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.bad: tuple[int, int] | None = None
        self.quarantined: dict[str, str] = {}

    def groups(self, step: int) -> list[Group]:
        return [Group(range(8))]

    def names(self, step: int, rows: range) -> list[str]:
        return [f"point {step}.{row}" for row in rows]

    def draw(self, step: int, rows: range | None = None) -> Tensor:
        points = torch.randn(8, 3, generator=torch.Generator().manual_seed(derive_seed(self.seed, step)))
        if self.bad is not None and self.bad[0] == step:
            points[self.bad[1]] = float("nan")
        rows = rows or range(8)
        return points[rows.start : rows.stop]


class LineStage:
    """Fits a line; writes down the weights that it sees."""

    data_digest = "points"

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.network: nn.Module = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 1))
        self.batches = LineBatches(seed)
        self.seen: list[list[Tensor]] = []
        self.previewed: dict[str, list[Tensor]] = {}

    def weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.network.parameters()]

    def loss(self, x: Tensor) -> Tensor:
        self.seen.append(self.weights())
        return (self.network(x)[:, 0] - 2 * x[:, 0] - 1).square()

    def preview(self, folder: Path) -> list[str]:
        self.previewed[folder.name] = self.weights()
        folder.mkdir(parents=True, exist_ok=True)
        return []

    def export(self, folder: Path) -> None:
        self.previewed["export"] = self.weights()
        folder.mkdir(exist_ok=True)


def make_stage_of(recipe: Recipe) -> DenoisingStage:
    """The image or video stage of a recipe, at its start."""
    return _denoising(resolve_noise(recipe)[0], Accelerator(cpu=True), TrainingData(recipe))


@pytest.fixture
def make_recipe(make_tree: MakeTree, road: Path, tmp_path: Path) -> MakeRecipe:
    """A recipe whose earlier stages are those of `road`; tables are changed by keyword."""

    def make(stage: str, output: str = "run", **changes: Any) -> Recipe:
        models: dict[str, dict[str, Any]] = {
            "autoencoder": {},
            "image": {"autoencoder": str(road / "autoencoder/model")},
            "video": {"init": str(road / "image/model"), "arguments": {"noise_correlation": 0.5}},
        }
        changes["model"] = {**models[stage], **changes.get("model", {})}
        if stage == "autoencoder" and "init" in changes["model"]:
            changes["model"] |= {"arguments": {}}
        tree = make_tree(stage, tmp_path / output, **changes)
        if not tree.get("diffusion", {}).get("image_share") and "image_batch_size" not in changes:
            tree.pop("image_batch_size", None)
        return parse_config(Recipe, tree)

    return make


@pytest.fixture
def line_recipe(make_tree: MakeTree, tmp_path: Path) -> MakeRecipe:
    """A recipe for `LineStage`: no data are read."""

    def make(output: str = "run", **changes: Any) -> Recipe:
        return parse_config(Recipe, make_tree("autoencoder", tmp_path / output, **changes))

    return make


@pytest.fixture
def make_stage(make_recipe: MakeRecipe) -> MakeStage:
    """A denoising stage at its start."""

    def make(stage: str, **changes: Any) -> DenoisingStage:
        return make_stage_of(make_recipe(stage, **changes))

    return make
