"""Several processes on one machine, over gloo: what they learn is what one process learns."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from latent_shift.media import read_video
from latent_shift.training.checkpoint import latest_checkpoint
from latent_shift.training.report import read_log

from .conftest import MakeRecipe, MakeTree

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def write_script(recipe: Any) -> Path:
    """A program that runs the recipe."""
    place = Path(recipe.output).parent / f"{Path(recipe.output).name}.json"
    place.write_text(json.dumps(recipe.model_dump(mode="json")))
    code = (
        "import json, sys; from latent_shift.core.config import parse_config;"
        "from latent_shift.training import Recipe, train;"
        f"train(parse_config(Recipe, json.load(open({str(place)!r}))))"
    )
    script = place.with_suffix(".py")
    script.write_text(code)
    return script


def train(recipe: Any, processes: int) -> subprocess.CompletedProcess[str]:
    """`latent-shift train`, in so many processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launch if processes > 1 else []), str(write_script(recipe))]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=300, check=False)


def weights(output: str | Path) -> dict[str, torch.Tensor]:
    found = latest_checkpoint(Path(output) / "checkpoints")
    assert found is not None
    return {f"{group}.{name}": tensor for group, tensors in found[0].items() for name, tensor in tensors.items()}


@pytest.fixture(scope="session")
def pair(make_tree: MakeTree, road: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same video recipe, run by one process and by two."""
    from latent_shift.core.config import parse_config
    from latent_shift.training import Recipe

    root = tmp_path_factory.mktemp("processes")
    model = {"init": str(road / "image/model"), "arguments": {"noise_correlation": 0.5}}
    made = {}
    for processes in (1, 2):
        tree = make_tree("video", root / str(processes), model=model, steps=6, log_every=1, image_batch_size=4)
        tree["keep_every"] = 3
        tree["diffusion"]["joint_images"] = True
        result = train(parse_config(Recipe, tree), processes)
        assert result.returncode == 0, result.stderr
        made[processes] = root / str(processes)
    return made


def test_two_machines_with_one_disk_are_two_processes(
    pair: dict[int, Path], make_tree: MakeTree, road: Path, tmp_path: Path
) -> None:
    """Both want the same new cache, and each asks for its own process."""
    from latent_shift.core.config import parse_config
    from latent_shift.training import Recipe

    model = {"init": str(road / "image/model"), "arguments": {"noise_correlation": 0.5}}
    tree = make_tree("video", tmp_path / "run", model=model, steps=6, log_every=1, image_batch_size=4)
    tree["data"]["cache"] = str(tmp_path / "cache")
    tree["diffusion"]["joint_images"] = True
    script = write_script(parse_config(Recipe, tree))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    machines = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *meeting, "--node-rank", str(rank), str(script)],
            env=ENVIRONMENT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], errors
    ours, expected = weights(tmp_path / "run"), weights(pair[2])
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], expected[name]) for name in ours)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_two_processes_learn_what_one_does(pair: dict[int, Path]) -> None:
    one, two = (read_log(pair[processes] / "log.jsonl") for processes in (1, 2))
    assert [row["step"] for row in two] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], abs=1e-5)
    left, right = weights(pair[1]), weights(pair[2])
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-3, atol=1e-5)


def test_previews_are_drawn_by_both_and_all_there(pair: dict[int, Path]) -> None:
    for name in ("00.webp", "01.webp"):
        one, two = (read_video(pair[n] / "previews/step_00000006" / name).frames for n in (1, 2))
        assert one.shape == two.shape
        assert abs(one.astype(int) - two).mean() < 0.5


@pytest.mark.parametrize("processes", [1, 4])
def test_a_run_of_two_goes_on_with_any_number(
    pair: dict[int, Path], make_recipe: MakeRecipe, tmp_path: Path, processes: int
) -> None:
    output = tmp_path / "run"
    shutil.copytree(pair[2], output)
    shutil.rmtree(output / "checkpoints" / "step_00000006")
    (output / "done.json").unlink()
    facts = json.loads((output / "recipe.json").read_text())
    facts["recipe"]["output"] = str(output)
    (output / "recipe.json").write_text(json.dumps(facts))
    result = train(make_recipe("video").model_validate(facts["recipe"]), processes)
    assert result.returncode == 0, result.stderr
    left, right = weights(output), weights(pair[1])
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-3, atol=1e-5)


def test_what_cannot_be_shared_between_the_processes_is_refused(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("video", image_batch_size=2)
    result = train(recipe, 4)
    assert result.returncode != 0
    assert "image_batch_size must be a multiple of the number of processes, 4, got 2" in result.stderr
    assert not (Path(recipe.output) / "checkpoints").exists()
