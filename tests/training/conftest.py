"""Recipes on the tiny data, and a stage so small that only the trainer around it is tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latent_shift.core.config import parse_config
from latent_shift.core.seeding import derive_seed
from latent_shift.training import Recipe
from latent_shift.training.denoising import DenoisingStage
from latent_shift.training.run import _denoising

MakeTree = Callable[..., dict[str, Any]]
MakeRecipe = Callable[..., Recipe]
MakeStage = Callable[..., DenoisingStage]


class LineStage:
    """Fits a line; writes down the weights that it sees."""

    def __init__(self, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.network: nn.Module = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 1))
        self.seen: list[list[Tensor]] = []
        self.previewed: dict[str, list[Tensor]] = {}
        self.bad_step: int | None = None
        self.seed = seed

    def weights(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.network.parameters()]

    def loss(self, step: int) -> Tensor:
        self.seen.append(self.weights())
        generator = torch.Generator().manual_seed(derive_seed(self.seed, step))
        x = torch.randn(8, 3, generator=generator)
        loss = (self.network(x)[:, 0] - 2 * x[:, 0] - 1).square().mean()
        return loss * float("nan") if step == self.bad_step else loss

    def preview(self, folder: Path) -> None:
        self.previewed[folder.name] = self.weights()
        folder.mkdir(parents=True)

    def export(self, folder: Path) -> None:
        self.previewed["export"] = self.weights()
        folder.mkdir(exist_ok=True)


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
        return parse_config(Recipe, make_tree(stage, tmp_path / output, **changes))

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
        return _denoising(make_recipe(stage, **changes), torch.device("cpu"))

    return make
