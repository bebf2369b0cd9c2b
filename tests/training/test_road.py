"""The three stages, end to end, on squares that move: what a run leaves behind, and that it draws."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from latent_shift import LatentShiftPipeline, LatentShiftUNet, LatentVDMUNet, PatchAutoencoderKL
from latent_shift.media import read_video
from latent_shift.training import train
from latent_shift.training.checkpoint import latest_checkpoint
from latent_shift.training.report import read_log
from latent_shift.training.trainer import TrainingInterrupted

from .conftest import MakeRecipe

STAGES = ("autoencoder", "image", "video")


def draw(folder: Path, **options: Any) -> np.ndarray:
    pipeline = LatentShiftPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    given: dict[str, Any] = {"num_inference_steps": 2, "generator": generator, "output_type": "np", **options}
    result: Any = pipeline("a red square", **given)
    return np.asarray(result.frames)


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_leaves_log_curve_checkpoint_recipe_and_done(road: Path, stage: str) -> None:
    run = road / stage
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "done.json",
        "log.jsonl",
        "loss.png",
        "model",
        "previews",
        "recipe.json",
    ]
    assert [row["step"] for row in read_log(run / "log.jsonl")] == [2, 4]
    assert json.loads((run / "done.json").read_text())["steps"] == 4
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_00000004"]
    assert [path.name for path in (run / "previews").iterdir()] == ["step_00000004"]
    with Image.open(run / "loss.png") as picture:
        assert picture.width > 300


def test_previews_are_pictures_and_clips(road: Path) -> None:
    clips = [read_video(road / f"video/previews/step_00000004/{index:02d}.webp").frames for index in range(2)]
    assert [clip.shape for clip in clips] == [(4, 16, 16, 3)] * 2
    assert not (clips[0] == clips[1]).all()
    assert read_video(road / "image/previews/step_00000004/sheet.png").frames.shape == (1, 16, 34, 3)
    assert (road / "autoencoder/previews/step_00000004/reconstructions.png").is_file()


def test_the_video_model_draws_clips_loops_and_images(road: Path) -> None:
    clip = draw(road / "video/model")
    assert clip.shape == (1, 4, 16, 16, 3)
    assert np.isfinite(clip).all()
    assert draw(road / "video/model", num_frames=1).shape == (1, 1, 16, 16, 3)
    assert not np.array_equal(draw(road / "video/model", boundary="circular"), clip)


def test_the_image_model_draws_images(road: Path) -> None:
    assert draw(road / "image/model").shape == (1, 1, 16, 16, 3)


def test_a_model_folder_says_what_it_is(road: Path) -> None:
    index = json.loads((road / "video/model/model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["vae"] == ["latent_shift", "PatchAutoencoderKL"]
    expected = {"default_frames": 4, "default_size": 16, "default_guidance_scale": 4.0, "max_tokens": 8}
    assert {key: index[key] for key in expected} == expected
    assert json.loads((road / "image/model/model_index.json").read_text())["default_frames"] == 1
    unet = json.loads((road / "video/model/unet/config.json").read_text())
    assert unet["noise_correlation"] == 0.5
    assert str(road) not in "".join(file.read_text() for file in (road / "video/model").rglob("*.json"))


def test_the_model_is_the_average_in_half_precision(road: Path) -> None:
    found = latest_checkpoint(road / "video/checkpoints")
    assert found is not None
    weights = load_file(road / "video/model/unet/diffusion_pytorch_model.safetensors")
    names = [name for name, _ in LatentShiftUNet.from_pretrained(road / "video/model/unet").named_parameters()]
    assert len(names) == len(found[0]["ema"])
    for name in names:
        assert torch.equal(weights[name], found[0]["ema"][name].half()), name
    for file in (road / "video/model").rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}


def test_stages_hand_on_their_parts(road: Path) -> None:
    autoencoder = PatchAutoencoderKL.from_pretrained(road / "autoencoder/model").state_dict()
    for stage in ("image", "video"):
        for name, tensor in load_file(road / stage / "model/vae/diffusion_pytorch_model.safetensors").items():
            assert torch.equal(tensor, autoencoder[name].half())
    image = load_file(road / "image/model/unet/diffusion_pytorch_model.safetensors")
    video = load_file(road / "video/model/unet/diffusion_pytorch_model.safetensors")
    assert image.keys() == video.keys()
    assert any(not torch.equal(image[name], video[name]) for name in image)
    # Four steps at a rate of 2e-4 do not go far from the image model.
    assert all(torch.allclose(image[name].float(), video[name].float(), atol=0.01) for name in image)


def test_the_baseline_takes_the_same_road(make_recipe: MakeRecipe, road: Path) -> None:
    folder = train(make_recipe("video", model={"video": "vdm", "arguments": {"temporal_heads": 2}}))
    index = json.loads((folder / "model_index.json").read_text())
    assert index["unet"] == ["latent_shift", "LatentVDMUNet"]
    pipeline = LatentShiftPipeline.from_pretrained(folder)
    assert type(pipeline.unet) is LatentVDMUNet
    assert pipeline.unet.config.noise_correlation == 0
    # Trained: what was zero before is not, and the image model's weights moved a little.
    assert pipeline.unet.mid_block.temporal_attentions[0].to_out.weight.abs().max() > 0
    clip, loop, still = draw(folder), draw(folder, boundary="circular"), draw(folder, boundary=None)
    assert clip.shape == (1, 4, 16, 16, 3)
    assert not np.array_equal(clip, loop)
    assert not np.array_equal(clip, still)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stopped_run_equals_one_that_was_not(road: Path, make_recipe: MakeRecipe, stage: str) -> None:
    """Weights, average, optimiser, log, previews and model: bit for bit."""

    def stop(done: int, *_: Any) -> None:
        if done == 3:
            signal.raise_signal(signal.SIGTERM)

    recipe = make_recipe(stage)
    with pytest.raises(TrainingInterrupted, match="stopped after step 3"):
        train(recipe, stop)
    train(recipe)
    assert_same_run(Path(recipe.output), road / stage)


LIVE: dict[str, Any] = {"data": {"cache": ""}}
DROPOUT: dict[str, Any] = {"model": {"arguments": {"noise_correlation": 0.5, "dropout": 0.3}}}


@pytest.mark.parametrize(
    "changes",
    [LIVE, {**LIVE, "workers": 2}, {"workers": 2}, DROPOUT, {**LIVE, **DROPOUT, "workers": 2, "micro_batch_size": 3}],
    ids=["live", "live by workers", "workers", "dropout", "all of it"],
)
def test_a_stopped_run_of_any_kind_equals_one_that_was_not(
    make_recipe: MakeRecipe, road: Path, changes: dict[str, Any]
) -> None:
    def stop(done: int, *_: Any) -> None:
        if done == 3:
            signal.raise_signal(signal.SIGTERM)

    whole, stopped = make_recipe("video", "whole", **changes), make_recipe("video", "stopped", **changes)
    torch.manual_seed(1)
    train(whole)
    torch.manual_seed(2)
    with pytest.raises(TrainingInterrupted, match="stopped after step 3"):
        train(stopped, stop)
    torch.manual_seed(3)
    train(stopped)
    assert_same_run(Path(stopped.output), Path(whole.output))
    if "model" in changes:  # the masks are not all ones
        plain = latest_checkpoint(road / "video/checkpoints")
        found = latest_checkpoint(Path(whole.output) / "checkpoints")
        assert plain is not None
        assert found is not None
        assert any(not torch.equal(found[0]["ema"][name], tensor) for name, tensor in plain[0]["ema"].items())


def test_a_stopped_run_with_8_bit_adam_equals_one_that_was_not(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    def stop(done: int, *_: Any) -> None:
        if done == 3:
            signal.raise_signal(signal.SIGTERM)

    pytest.importorskip("bitsandbytes")
    changes: dict[str, Any] = {"optimizer": {"name": "adamw8bit"}, "steps": 4}
    whole = make_recipe("video", "whole", **changes)
    train(whole)
    stopped = make_recipe("video", "stopped", **changes)
    with pytest.raises(TrainingInterrupted, match="stopped after step 3"):
        train(stopped, stop)
    train(stopped)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    state = load_file(tmp_path / "whole/checkpoints/step_00000004/optimizer.safetensors")
    assert torch.uint8 in {tensor.dtype for tensor in state.values()}
    assert {tensor.item() for name, tensor in state.items() if name.endswith(".step")} == {4}


def assert_same_run(run: Path, other: Path) -> None:
    rows = [[{**row, "seconds": 0} for row in read_log(folder / "log.jsonl")] for folder in (run, other)]
    assert rows[0] == rows[1]
    for pattern in ("checkpoints/step_00000004/*.safetensors", "previews/*/*", "model/**/*"):
        files = sorted(path.relative_to(run) for path in run.glob(pattern) if path.is_file())
        assert files == sorted(path.relative_to(other) for path in other.glob(pattern) if path.is_file())
        assert files
        for file in files:
            assert (run / file).read_bytes() == (other / file).read_bytes(), file


KILLED = """
import json, os, signal, sys
from latent_shift.core.config import parse_config
from latent_shift.training import Recipe, train

def kill(done, *_):
    if done == 3:
        os.kill(os.getpid(), signal.SIGKILL)

train(parse_config(Recipe, json.loads(sys.argv[1])), kill)
"""


@pytest.mark.slow
def test_a_killed_run_equals_one_that_was_not(road: Path, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("video", checkpoint_minutes=1e-9)
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, recipe.model_dump_json()], env={**os.environ, **threads}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in sorted(Path(recipe.output).glob("checkpoints/step_*"))] == [
        "step_00000001",
        "step_00000002",
    ]
    steps: list[int] = []
    train(recipe, lambda done, *_: steps.append(done))
    assert steps == [3, 4]
    assert_same_run(Path(recipe.output), road / "video")
