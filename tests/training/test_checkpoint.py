from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from latent_shift.core.errors import DataError, InputError
from latent_shift.training.checkpoint import checkpoint_state, latest_checkpoint, save_checkpoint


def groups(value: float) -> dict[str, dict[str, torch.Tensor]]:
    wide = torch.arange(6, dtype=torch.float32).reshape(2, 3) * value
    return {"network": {"a": wide, "b.turned": wide.T}, "ema": {"0": torch.tensor(value)}}


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "none") is None
    place = save_checkpoint(tmp_path, 12, groups(2.0), {"seconds": 1.5, "losses": [0.1 + 0.2]})
    assert place == tmp_path / "step_00000012"
    found = latest_checkpoint(tmp_path)
    assert found is not None
    loaded, state, step = found
    assert (state, step) == ({"seconds": 1.5, "losses": [0.1 + 0.2]}, 12)
    for name, tensors in groups(2.0).items():
        assert loaded[name].keys() == tensors.keys()
        assert all(torch.equal(loaded[name][key], tensor) for key, tensor in tensors.items())


def test_the_newest_wins_and_only_so_many_stay(tmp_path: Path) -> None:
    for step in (1, 2, 30):
        save_checkpoint(tmp_path, step, groups(float(step)), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000030"]
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[2] == 30
    assert found[0]["ema"]["0"].item() == 30


def test_a_damaged_checkpoint_does_not_outlive_those_that_come_after_it(tmp_path: Path) -> None:
    for step in (10, 25):
        save_checkpoint(tmp_path, step, groups(float(step)), {}, keep=1, keep_every=10)
    (tmp_path / "step_00000025/network.safetensors").write_bytes(b"damaged")
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[2] == 10
    save_checkpoint(tmp_path, 12, groups(12.0), {}, keep=1, keep_every=10)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000010", "step_00000012"]


def test_what_a_kill_left_half_written_is_not_seen_and_goes(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, groups(1.0), {})
    half = tmp_path / ".step_00000002.abcdefgh" / "step_00000002"
    half.mkdir(parents=True)
    (half / "network.safetensors").write_bytes(b"half")
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[2] == 1
    save_checkpoint(tmp_path, 2, groups(2.0), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


def test_a_copy_of_a_checkpoint_is_left_alone_and_not_read(tmp_path: Path) -> None:
    shutil.copytree(save_checkpoint(tmp_path, 4, groups(4.0), {}), tmp_path / "step_00000004.bak")
    (tmp_path / "step_00000009 (copy)").mkdir()
    for step in (5, 6):
        save_checkpoint(tmp_path, step, groups(float(step)), {}, keep=1)
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[2] == 6
    copies = ["step_00000004.bak", "step_00000009 (copy)"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [copies[0], "step_00000006", copies[1]]


def test_the_state_alone_is_read_without_the_tensors(tmp_path: Path) -> None:
    assert checkpoint_state(tmp_path) is None
    for step in (1, 2):
        save_checkpoint(tmp_path, step, groups(1.0), {"seconds": step})
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    assert checkpoint_state(tmp_path) == {"seconds": 2}
    (tmp_path / "step_00000002/manifest.json").write_text("{}")
    assert checkpoint_state(tmp_path) == {"seconds": 1}
    (tmp_path / "step_00000001/manifest.json").unlink()
    with pytest.raises(DataError, match="every checkpoint below .* is damaged; remove the folder to start anew"):
        checkpoint_state(tmp_path)


def test_the_same_step_is_replaced(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        save_checkpoint(tmp_path, 5, groups(value), {})
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found[0]["ema"]["0"].item() == 2


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="output must be in a folder that can be written"):
        save_checkpoint(tmp_path / "file", 1, groups(1.0), {})
