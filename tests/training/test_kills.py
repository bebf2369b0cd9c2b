"""Kill -9 at any moment: the next run finds a whole checkpoint, and in the end nothing was lost or learned twice."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_shift.training import Recipe, train
from latent_shift.training.checkpoint import latest_checkpoint
from latent_shift.training.report import read_log
from latent_shift.training.trainer import run_stage

from .conftest import LineStage, MakeRecipe


def learn(recipe: Recipe, log: Path) -> None:
    """In a process of its own: the number of threads outlives a test, and with it the last bit of every sum."""
    listen(log)
    run_stage(LineStage(), recipe)


def learn_really(recipe: Recipe, log: Path) -> None:
    listen(log)
    train(recipe)


def listen(log: Path) -> None:
    torch.set_num_threads(1)
    logger = logging.getLogger("latent_shift")
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.FileHandler(log))


def finish(learn: Callable[[Recipe, Path], None], recipe: Recipe, log: Path, timeout_s: float | None = None) -> bool:
    """Whether a run came to its end; after the timeout it is killed."""
    child = multiprocessing.get_context("fork").Process(target=learn, args=(recipe, log))
    child.start()
    assert child.pid is not None
    child.join(timeout_s)
    if child.is_alive():
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        return False
    assert child.exitcode == 0
    return True


def weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    found = latest_checkpoint(Path(recipe.output) / "checkpoints")
    assert found is not None
    return {f"{group}.{name}": tensor for group, tensors in found[0].items() for name, tensor in tensors.items()}


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_kills_cost_time_alone(
    line_recipe: MakeRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture, kills: int
) -> None:
    options = {"steps": 40, "checkpoint_minutes": 1e-9, "keep_every": 7, "log_every": 3}
    chance, killed, run, longest, told = random.Random(0), 0, 0, 0, tmp_path / "log"
    straight = line_recipe("straight", **options)
    finish(learn, straight, told)
    expected, rows = weights(straight), read_log(Path(straight.output) / "log.jsonl")
    while killed < kills:
        recipe = line_recipe(f"run {run}", **options)
        steps: list[int] = []
        while not (Path(recipe.output) / "done.json").exists():
            killed += not finish(learn, recipe, told, chance.uniform(0.0, 0.25))
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
    # Neither the runs nor this test ever met a newest checkpoint that could not be used.
    assert "is damaged" not in told.read_text() + caplog.text
    assert "going on from step" in told.read_text()


@pytest.mark.slow
def test_kills_of_a_real_run_cost_time_alone(
    make_recipe: MakeRecipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The video stage, which decodes, encodes and draws previews: whatever a kill hits, the run ends the same."""
    options: dict[str, Any] = {"steps": 12, "checkpoint_minutes": 1e-9, "keep_every": 5, "preview": {"every": 4}}
    options |= {"data": {"cache": ""}, "log_every": 3}
    straight, told = make_recipe("video", "straight", **options), tmp_path / "log"
    started = time.monotonic()
    assert finish(learn_really, straight, told)
    whole_s, chance, killed, run, longest = time.monotonic() - started, random.Random(0), 0, 0, 0
    expected = weights(straight)
    files = [path for part in ("previews/*/*", "model/**/*") for path in Path(straight.output).glob(part)]
    while killed < 8:
        recipe, steps = make_recipe("video", f"run {run}", **options), [0]
        while not finish(learn_really, recipe, told, chance.uniform(0.1, 0.8) * whole_s if len(steps) < 5 else None):
            found = latest_checkpoint(Path(recipe.output) / "checkpoints")
            steps.append(found[2] if found else 0)
        assert steps == sorted(steps)
        killed, run, longest = killed + len(steps) - 1, run + 1, max(longest, len(set(steps)))
        made = weights(recipe)
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[name], expected[name]) for name in expected)
        for file in files:
            other = Path(recipe.output) / file.relative_to(straight.output)
            assert file.is_dir() or other.read_bytes() == file.read_bytes(), other
    assert longest > 2  # kills did hit runs in the middle
    assert "is damaged" not in told.read_text() + caplog.text
