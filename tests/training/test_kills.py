"""Kill -9 at any moment: the next run finds a whole checkpoint, and in the end nothing was lost or learned twice."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from pathlib import Path

import pytest
import torch

from latent_shift.training import Recipe
from latent_shift.training.checkpoint import latest_checkpoint
from latent_shift.training.report import read_log
from latent_shift.training.trainer import run_stage

from .conftest import LineStage, MakeRecipe


def learn(recipe: Recipe) -> None:
    """In a process of its own: the number of threads outlives a test, and with it the last bit of every sum."""
    torch.set_num_threads(1)
    run_stage(LineStage(), recipe)


def weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    found = latest_checkpoint(Path(recipe.output) / "checkpoints")
    assert found is not None
    return {f"{group}.{name}": tensor for group, tensors in found[0].items() for name, tensor in tensors.items()}


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_kills_cost_time_alone(line_recipe: MakeRecipe, kills: int) -> None:
    options = {"steps": 40, "checkpoint_minutes": 1e-9, "keep_every": 7, "log_every": 3}
    fork, chance, killed, run, longest = multiprocessing.get_context("fork"), random.Random(0), 0, 0, 0
    straight = line_recipe("straight", **options)
    child = fork.Process(target=learn, args=(straight,))
    child.start()
    child.join()
    assert child.exitcode == 0
    expected, rows = weights(straight), read_log(Path(straight.output) / "log.jsonl")
    while killed < kills:
        recipe = line_recipe(f"run {run}", **options)
        steps: list[int] = []
        while not (Path(recipe.output) / "done.json").exists():
            child = fork.Process(target=learn, args=(recipe,))
            child.start()
            assert child.pid is not None
            child.join(chance.uniform(0.0, 0.25))
            if child.is_alive():
                os.kill(child.pid, signal.SIGKILL)
                killed += 1
                child.join()
            else:
                assert child.exitcode == 0
            found = latest_checkpoint(Path(recipe.output) / "checkpoints")
            steps.append(found[2] if found else 0)
        assert steps == sorted(steps)
        assert steps[-1] == 40
        longest = max(longest, len(set(steps)))
        made = weights(recipe)
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[name], expected[name]) for name in expected)
        log = read_log(Path(recipe.output) / "log.jsonl")
        for left, right in zip(log, rows, strict=True):
            assert {**left, "seconds": 0} == {**right, "seconds": 0}
        run += 1
    assert longest > 2  # kills did hit runs in the middle
