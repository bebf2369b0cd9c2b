from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from latent_shift.core.errors import InputError
from latent_shift.pipelines import LatentShiftPipeline
from latent_shift.training.estimate import estimate_run

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


def test_a_linear_layer_more_or_less(make_recipe: MakeRecipe) -> None:
    lora = estimate_run(make_recipe("video", lora={"rank": 2}))
    assert 0 < lora.trained_parameters < lora.parameters / 4
    eight_bits = estimate_run(make_recipe("video", optimizer={"name": "adamw8bit"}))
    assert eight_bits.optimizer_gib <= estimate_run(make_recipe("video")).optimizer_gib
    with pytest.raises(InputError, match="stage must be image or video for an estimate, got 'autoencoder'"):
        estimate_run(make_recipe("autoencoder"))
    with pytest.raises(InputError, match="model must be one of emoji or a folder with a model_index.json"):
        estimate_run(make_recipe("video", model={"init": "nowhere"}))


def test_work_grows_with_the_batch_and_memory_with_the_micro_batch(make_recipe: MakeRecipe) -> None:
    options: dict[str, Any] = {"data": {"size": 64}, "batch_size": 8}
    whole, half = (
        estimate_run(make_recipe("video", **options)),
        estimate_run(make_recipe("video", **options, micro_batch_size=4)),
    )
    assert half.step_tflop == pytest.approx(whole.step_tflop, rel=0.02)
    assert whole.activations_gib is not None
    assert half.activations_gib is not None
    assert half.activations_gib == pytest.approx(whole.activations_gib / 2, abs=2e-3)
    assert estimate_run(make_recipe("video", **options), processes=2).step_tflop == pytest.approx(
        whole.step_tflop / 2, rel=0.02
    )
    assert estimate_run(make_recipe("video", **options, gradient_checkpointing=True)).activations_gib is None


def test_activations_are_what_a_real_forward_pass_keeps(make_recipe: MakeRecipe, make_stage: MakeStage) -> None:
    options: dict[str, Any] = {"data": {"size": 128}, "batch_size": 8, "diffusion": {"image_share": 0.0}}
    stage = make_stage("video", **options)
    weights = {parameter.untyped_storage().data_ptr() for parameter in stage.network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = stage.loss(stage.batches.draw(0))
    size = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)
    assert estimate_run(make_recipe("video", **options)).activations_gib == pytest.approx(size / 2**30, rel=0.2)
    assert torch.isfinite(loss).all()
