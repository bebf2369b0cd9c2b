"""The three stages end to end, and going on after a stop."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latent_shift import LatentShiftPipeline
from latent_shift.core.config import parse_config
from latent_shift.core.errors import DataError, InputError
from latent_shift.training import Recipe, train
from latent_shift.training.checkpoint import latest_checkpoint
from latent_shift.training.trainer import TrainingInterrupted


def make(make_tree, stage, output, **changes):
    return parse_config(Recipe, make_tree(stage, output, **changes))


def checkpoint(folder):
    newest = sorted((folder / "checkpoints").glob("step_*"))[-1]
    return {name: load_file(newest / f"{name}.safetensors") for name in ("network", "ema", "optimizer")}


def test_the_road_leads_to_a_model_that_makes_clips(road):
    for stage in ("autoencoder", "image", "video"):
        for name in ("recipe.json", "log.jsonl", "loss.png", "done.json"):
            assert (road / stage / name).exists(), (stage, name)
        assert list((road / stage / "previews").rglob("*.png"))
    pipeline = LatentShiftPipeline.from_pretrained(road / "video" / "model", torch_dtype=torch.float32)
    assert pipeline.unet.config.noise_shared == 0.5
    frames = pipeline("a red square", num_inference_steps=2, output_type="np").frames
    assert np.asarray(frames).shape == (1, 4, 16, 16, 3)


def test_a_stopped_run_goes_on_as_if_never_stopped(make_tree, road, tmp_path):
    model = {"init": str(road / "image/model")}
    straight, stopped = (make(make_tree, "video", tmp_path / name, model=model) for name in ("a", "b"))
    train(straight)

    def stop_after_two(done, *_):
        if done == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingInterrupted, match="after step 2"):
        train(stopped, stop_after_two)
    train(stopped)
    for name, tensors in checkpoint(tmp_path / "a").items():
        for key, tensor in checkpoint(tmp_path / "b")[name].items():
            assert torch.equal(tensor, tensors[key]), (name, key)
    rows = [(tmp_path / run / "log.jsonl").read_text().splitlines() for run in ("a", "b")]
    losses = [[json.loads(row)["loss"] for row in part] for part in rows]
    assert losses[0] == losses[1]


def test_a_damaged_checkpoint_falls_back_and_all_damaged_is_an_error(make_tree, road, tmp_path, caplog):
    recipe = make(
        make_tree, "video", tmp_path / "run", model={"init": str(road / "image/model")}, checkpoint_minutes=1e-9
    )
    train(recipe)
    places = sorted((tmp_path / "run" / "checkpoints").glob("step_*"))
    assert [place.name for place in places] == ["step_00000003", "step_00000004"]
    (places[1] / "ema.safetensors").write_bytes(b"no")
    assert latest_checkpoint(tmp_path / "run" / "checkpoints")[2] == 3
    assert "step_00000004 is damaged" in caplog.text
    (places[0] / "manifest.json").unlink()
    with pytest.raises(DataError, match="every checkpoint"):
        latest_checkpoint(tmp_path / "run" / "checkpoints")


def test_another_recipe_in_the_same_folder_is_refused(make_tree, road):
    changed = make(make_tree, "autoencoder", road / "autoencoder", seed=1)
    with pytest.raises(InputError, match="another 'seed'"):
        train(changed)


def test_a_finished_run_does_nothing(make_tree, road):
    before = (road / "autoencoder" / "log.jsonl").stat().st_mtime_ns
    train(make(make_tree, "autoencoder", road / "autoencoder"))
    assert (road / "autoencoder" / "log.jsonl").stat().st_mtime_ns == before


def test_unknown_heldout_list_is_refused(make_tree, squares, tmp_path):
    import shutil

    folder = shutil.copytree(squares, tmp_path / "data")
    (folder / "dataset.json").write_text(json.dumps({"heldout": {"name": "mine", "sha256": "0"}}))
    with pytest.raises(InputError, match="held-out list"):
        train(make(make_tree, "autoencoder", tmp_path / "run", data={"folder": str(folder)}))
