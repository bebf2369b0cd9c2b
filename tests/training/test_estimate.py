from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from latent_shift.core.errors import DataError, InputError
from latent_shift.pipelines import LatentShiftPipeline
from latent_shift.training.denoising import DenoisingStage
from latent_shift.training.estimate import _frozen_parameters, estimate_run

from .conftest import MakeRecipe, MakeStage


def test_parameters_and_memory_are_those_of_the_network(make_recipe: MakeRecipe, road: Path) -> None:
    count = sum(p.numel() for p in LatentShiftPipeline.from_pretrained(road / "image/model").unet.parameters())
    found = estimate_run(make_recipe("video"))
    assert (found.parameters, found.trained_parameters) == (count, count)
    gib = count / 2**30
    assert found.weights_gib == pytest.approx(8 * gib, abs=1e-3)
    assert found.gradients_gib == pytest.approx(4 * gib, abs=1e-3)
    assert found.optimizer_gib == pytest.approx(8 * gib, abs=1e-3)
    assert found.step_seconds_at_least == pytest.approx(found.step_tflop / found.matrix_tflop_per_s, abs=2e-3)


def test_weights_are_there_in_16_bits_too_where_that_is_the_arithmetic(make_recipe: MakeRecipe) -> None:
    larger: dict[str, Any] = {"model": {"init": "emoji", "arguments": {}}, "data": {"size": 32}}
    whole, half = (estimate_run(make_recipe("video", **larger, precision=name)) for name in ("fp32", "bf16"))
    assert half.weights_gib - whole.weights_gib == pytest.approx(2 * whole.parameters / 2**30, abs=2e-3)
    assert 2 * whole.parameters / 2**30 > 1e-2


def test_a_linear_layer_more_or_less(make_recipe: MakeRecipe) -> None:
    lora = estimate_run(make_recipe("video", lora={"rank": 2}))
    assert 0 < lora.trained_parameters < lora.parameters / 4
    eight_bits = estimate_run(make_recipe("video", optimizer={"name": "adamw8bit"}))
    assert eight_bits.optimizer_gib <= estimate_run(make_recipe("video")).optimizer_gib
    with pytest.raises(InputError, match="stage must be image or video for an estimate, got 'autoencoder'"):
        estimate_run(make_recipe("autoencoder"))
    with pytest.raises(InputError, match="model.init must be one of emoji or a folder with a model_index.json"):
        estimate_run(make_recipe("video", model={"init": "nowhere"}))


def test_work_grows_with_the_batch_and_memory_with_the_micro_batch(make_recipe: MakeRecipe) -> None:
    options: dict[str, Any] = {"data": {"size": 64}, "batch_size": 8}
    whole, half = (
        estimate_run(make_recipe("video", **options)),
        estimate_run(make_recipe("video", **options, micro_batch_size=4)),
    )
    assert half.step_tflop == pytest.approx(whole.step_tflop, rel=0.02)
    assert half.activations_gib == pytest.approx(whole.activations_gib / 2, abs=2e-3)
    assert estimate_run(make_recipe("video", **options), processes=2).step_tflop == pytest.approx(
        whole.step_tflop / 2, rel=0.02
    )
    again = estimate_run(make_recipe("video", **options, gradient_checkpointing=True))
    assert again.step_tflop > 1.2 * whole.step_tflop  # the forward pass, or most of it, once more


def test_stills_are_counted_where_they_are_the_larger_step_or_a_part_of_it(make_recipe: MakeRecipe) -> None:
    def found(**diffusion: Any) -> Any:
        stills = {"image_batch_size": 64} if diffusion["image_share"] else {}
        return estimate_run(make_recipe("video", data={"size": 64}, **stills, diffusion=diffusion))

    clips, stills, joint = (
        found(image_share=0.0),
        found(image_share=0.5),
        found(image_share=0.5, joint_images=True),
    )
    assert stills.step_tflop > 2 * clips.step_tflop
    assert joint.step_tflop == pytest.approx(clips.step_tflop + stills.step_tflop, rel=0.02)
    assert joint.activations_gib == stills.activations_gib > clips.activations_gib


def test_frozen_parts_and_a_total_are_counted(make_recipe: MakeRecipe, road: Path) -> None:
    pipeline = LatentShiftPipeline.from_pretrained(road / "image/model")
    parts = (pipeline.vae, pipeline.text_encoder)
    frozen = sum(parameter.numel() for part in parts for parameter in part.parameters())
    for recipe in (make_recipe("video"), make_recipe("image")):
        found = estimate_run(recipe)
        assert found.frozen_gib == pytest.approx(4 * frozen / 2**30, abs=1e-3)
        assert found.frozen_gib is not None
        sizes = (found.weights_gib, found.gradients_gib, found.optimizer_gib, found.activations_gib, found.frozen_gib)
        assert found.total_gib == pytest.approx(sum(sizes), abs=3e-3)
    assert _frozen_parameters(make_recipe("video")) == _frozen_parameters(make_recipe("image")) == frozen
    few = {"preview": {"num_inference_steps": 2, "guidance_scale": 1.0}, "distillation": {"steps": 2}}
    larger: dict[str, Any] = {"model": {"init": "emoji", "arguments": {}}, "data": {"size": 32}}
    teacher = estimate_run(make_recipe("video", **larger, **few))
    plain = estimate_run(make_recipe("video", **larger))
    assert teacher.frozen_gib is not None
    assert plain.frozen_gib is not None
    assert teacher.frozen_gib - plain.frozen_gib == pytest.approx(4 * plain.parameters / 2**30, abs=2e-3)


def test_latents_are_as_large_as_the_autoencoder_makes_them(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    AutoencoderKL(block_out_channels=[8, 8], norm_num_groups=4, **blocks).save_pretrained(tmp_path / "half")
    of_eighths = estimate_run(make_recipe("video", data={"size": 32}))
    of_halves = estimate_run(make_recipe("video", data={"size": 8}, model={"autoencoder": str(tmp_path / "half")}))
    assert of_halves.step_tflop == of_eighths.step_tflop
    with pytest.raises(InputError, match="^data.size must be a positive multiple of 16, got 24$"):
        estimate_run(make_recipe("video", data={"size": 24}))


def test_a_step_that_no_memory_holds_is_one_line(make_recipe: MakeRecipe) -> None:
    expected = r"^data.size must be smaller: with batch_size 1000000000000 no memory could hold a step, got 16368$"
    with pytest.raises(InputError, match=expected):
        estimate_run(make_recipe("video", data={"size": 16368}, batch_size=10**12))


def test_captions_are_as_long_as_those_of_the_model(make_recipe: MakeRecipe, road: Path, tmp_path: Path) -> None:
    init = Path(shutil.copytree(road / "image/model", tmp_path / "init"))
    index = json.loads((init / "model_index.json").read_text())
    flops = []
    for tokens in (8, 77, None):  # None: as many as the tokenizer takes, CLIP's 77
        (init / "model_index.json").write_text(json.dumps({**index, "max_tokens": tokens}))
        flops.append(estimate_run(make_recipe("video", model={"init": str(init)})).step_tflop)
    assert flops[0] < flops[1] == flops[2]


def test_parts_that_are_not_there_yet_are_not_known(make_recipe: MakeRecipe) -> None:
    found = estimate_run(make_recipe("image", model={"autoencoder": "nowhere"}))
    assert (found.frozen_gib, found.total_gib) == (None, None)
    assert found.parameters > 0


def test_a_damaged_part_is_named(make_recipe: MakeRecipe, road: Path, tmp_path: Path) -> None:
    init = Path(shutil.copytree(road / "image/model", tmp_path / "init"))
    (init / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"vae/diffusion_pytorch_model.safetensors is damaged \("):
        estimate_run(make_recipe("video", model={"init": str(init)}))


def kept_gib(stage: DenoisingStage) -> float:
    """What the backward pass of a real step keeps."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in stage.network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = stage.loss(stage.batches.draw(0))
    assert torch.isfinite(loss).all()
    return sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in weights) / 2**30


REAL: dict[str, Any] = {"data": {"size": 128}, "batch_size": 8, "diffusion": {"image_share": 0.0}}


@pytest.mark.parametrize("video", ["shift", "vdm"])
def test_with_checkpointing_less_is_kept_and_the_largest_part_comes_back(
    make_recipe: MakeRecipe, make_stage: MakeStage, video: str
) -> None:
    options = {**REAL, "model": {"video": video, "arguments": {}}}
    between = kept_gib(make_stage("video", **options, gradient_checkpointing=True))
    whole = estimate_run(make_recipe("video", **options)).activations_gib
    found = estimate_run(make_recipe("video", **options, gradient_checkpointing=True)).activations_gib
    assert between < found < between + 0.5 * whole
    assert found < 0.8 * whole


def test_activations_are_what_a_real_forward_pass_keeps(make_recipe: MakeRecipe, make_stage: MakeStage) -> None:
    size = kept_gib(make_stage("video", **REAL))
    assert estimate_run(make_recipe("video", **REAL)).activations_gib == pytest.approx(size, rel=0.2)
