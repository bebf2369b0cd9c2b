"""SDXL learns as the other models do: live captions, its two encoders, added conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pipelines.pretrained import SIZE, make_pipeline

from latent_shift.core.errors import InputError
from latent_shift.pipelines import LatentShiftXLPipeline, load_pipeline
from latent_shift.pipelines.convert import convert_model
from latent_shift.training import train
from latent_shift.training.encoding import open_clip_cache
from latent_shift.training.estimate import estimate_run

from .conftest import MakeRecipe, make_stage_of

LIVE = {"data": {"cache": "", "size": SIZE}}


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A video model with SDXL's parts and random weights."""
    folder = tmp_path_factory.mktemp("sdxl")
    make_pipeline("sdxl", folder / "words").save_pretrained(folder / "image")
    convert_model(folder / "image", folder / "video", "shift")
    return str(folder / "video")


def test_a_run_leaves_a_model_that_moved_and_draws(sdxl: str, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    fast = {"learning_rate": 1e-2, "ema_decay": 0.5}
    train(make_recipe("video", model={"init": sdxl, "arguments": {}}, optimizer=fast, **LIVE))
    before, after = (load_pipeline(folder, "cpu", "fp32") for folder in (sdxl, str(tmp_path / "run/model")))
    assert isinstance(after, LatentShiftXLPipeline)
    pairs = zip(before.unet.parameters(), after.unet.parameters(), strict=True)
    assert sum(not torch.allclose(one, other, atol=1e-3, rtol=1e-2) for one, other in pairs) > 20
    assert after.config.force_zeros_for_empty_prompt == before.config.force_zeros_for_empty_prompt
    clip: Any = after("a red square", num_frames=2, num_inference_steps=1)
    assert len(clip.frames[0]) == 2
    assert (tmp_path / "run/previews/step_00000004/00.webp").is_file()


@pytest.mark.parametrize("zeros", [True, False])
def test_a_dropped_caption_is_what_sampling_has_for_no_negative_prompt(
    sdxl: str, zeros: bool, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe("video", model={"init": sdxl, "arguments": {}}, **LIVE)
    stage = make_stage_of(recipe)
    pipeline = stage.pipeline
    pipeline.register_to_config(force_zeros_for_empty_prompt=zeros)
    batch = stage.batches.draw(0)
    captions = batch.captions
    assert captions is not None
    captions[0] = ""
    text, added = stage.encode_text(batch)
    none = (None,) * 4
    told = pipeline._conditions(captions[1:2], None, 1, none, (SIZE, SIZE))
    assert added is not None
    torch.testing.assert_close(text[:2], torch.cat([told["negative_prompt_embeds"], told["prompt_embeds"]]))
    for name in ("text_embeds", "time_ids"):
        torch.testing.assert_close(added[name][:2], torch.cat([told[f"negative_add_{name}"], told[f"add_{name}"]]))
    assert (text[0].abs().sum() == 0) == zeros
    stage.loss(batch).mean().backward()
    assert all(one.grad is not None for one in stage.network.add_embedding.parameters())


def test_what_it_needs_is_estimated(sdxl: str, make_recipe: MakeRecipe) -> None:
    needs = estimate_run(make_recipe("video", model={"init": sdxl, "arguments": {}}, **LIVE))
    pipeline = load_pipeline(sdxl, "cpu", "fp32")
    frozen = (pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2)
    count = sum(parameter.numel() for part in frozen for parameter in part.parameters())
    assert needs.frozen_gib == pytest.approx(4 * count / 2**30, abs=6e-4)
    assert needs.step_tflop > 0


def test_caches_and_distillation_are_refused(sdxl: str, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    cached = make_recipe("video", model={"init": sdxl, "arguments": {}}, data={"size": SIZE})
    with pytest.raises(InputError, match=r"^data.cache must be empty where the model is SDXL"):
        train(cached)
    with pytest.raises(InputError, match=r"^data.cache must be empty where the model is SDXL"):
        open_clip_cache(load_pipeline(sdxl, "cpu", "fp32"), [], cached.data, 0)
    assert not (tmp_path / "run").exists()
