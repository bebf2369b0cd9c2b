"""Distillation: its target against diffusers' own samplers, and a student that learns."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latent_shift import LatentShiftPipeline
from latent_shift.core.errors import DataError, InputError
from latent_shift.data.records import CaptionedVideoFolder
from latent_shift.pipelines import load_pipeline, make_scheduler
from latent_shift.pipelines.fast import make_fast
from latent_shift.training import Recipe, train
from latent_shift.training.config import DiffusionConfig
from latent_shift.training.denoising import noise_schedule
from latent_shift.training.distillation import DistillationStage
from latent_shift.training.networks import autocast

from .conftest import MakeRecipe, make_stage_of

SCALE, SHARE = 3.0, 0.4
MakeStudent = Callable[..., DistillationStage]


@pytest.fixture(params=["epsilon", "v_prediction"])
def teacher(request: pytest.FixtureRequest, road: Path, tmp_path: Path) -> Path:
    """The model of the video stage, its last layer made large so that steps matter; of either kind of prediction."""
    kind = request.param
    pipeline = LatentShiftPipeline.from_pretrained(road / "video/model", torch_dtype=torch.float32)
    with torch.no_grad():
        for parameter in pipeline.unet.conv_out.parameters():
            parameter *= 5
    noise = noise_schedule(DiffusionConfig(prediction_type=kind, zero_terminal_snr=kind == "v_prediction"))
    pipeline.scheduler = make_scheduler("dpm++", noise.config)
    pipeline.register_to_config(
        default_guidance_scale=SCALE,
        default_motion_guidance=SHARE,
        default_noise_correlation=0.8,
        default_seam_frames=2,
    )
    pipeline.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture
def make_student(make_recipe: MakeRecipe, teacher: Path) -> MakeStudent:
    def make(steps: int, teacher_steps: int, **changes: Any) -> DistillationStage:
        stage = make_stage_of(make_recipe("video", **distilled(teacher, steps, teacher_steps, **changes)))
        assert isinstance(stage, DistillationStage)
        return stage

    return make


def distilled(teacher: Path, few: int, teacher_steps: int, **changes: Any) -> dict[str, Any]:
    return {
        "model": {"init": str(teacher), "arguments": {}},
        "diffusion": {"image_share": 0.0, "circular_share": 0.0, "caption_dropout": 0.0},
        "preview": {"num_inference_steps": few, "guidance_scale": 1.0},
        "distillation": {"steps": few, "teacher_steps": teacher_steps},
        **changes,
    }


def loss_of(stage: DistillationStage, prediction: Tensor, target: Tensor) -> Tensor:
    return (prediction - target).square().mean(dim=(1, 2, 3, 4))


def sample(teacher: Path, scheduler: str, spacing: str, steps: int, noise: Tensor, text: Tensor, scale: float) -> Any:
    """Latents after each step of diffusers' sampler, from this noise."""
    pipeline = LatentShiftPipeline.from_pretrained(teacher, torch_dtype=torch.float32)
    made: Any = make_scheduler(scheduler, pipeline.scheduler.config)
    pipeline.scheduler = type(made).from_config(made.config, timestep_spacing=spacing)
    pipeline.set_progress_bar_config(disable=True)
    latents = []

    def keep(_pipeline: Any, _index: int, _time: int, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        latents.append(tensors["latents"])
        return {}

    pipeline(
        prompt_embeds=text,
        negative_prompt_embeds=pipeline.encode_prompt("")[0].expand_as(text),
        num_frames=noise.shape[2],
        latents=noise,
        num_inference_steps=steps,
        guidance_scale=scale,
        boundary="zero",
        output_type="latent",
        callback_on_step_end=keep,
    )
    return latents


@pytest.mark.parametrize("count", [1, 5])
def test_one_step_learns_all_steps_of_the_solver(make_student: MakeStudent, teacher: Path, count: int) -> None:
    stage = make_student(1, count)
    batch = stage.batches.draw(0)
    text, _ = stage.encode_text(batch)
    with torch.no_grad():
        last = torch.full((len(text),), 999)
        prediction = stage.network(batch.noise, last, text, boundary="zero", return_dict=False)[0]
        clean = sample(teacher, "dpm++", "trailing", count, batch.noise, text, SCALE)[-1]
        kept = stage._noise_schedule.alphas_cumprod[-1]
        alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
        found = alpha * batch.noise - sigma * prediction  # x, or x / alpha: what its noise leaves of the latents
        loss = stage.loss(batch)
    if stage._noise_schedule.config.prediction_type == "epsilon":
        found, clean = batch.noise - sigma * prediction, alpha * clean
    torch.testing.assert_close(loss, (found - clean).square().mean(dim=(1, 2, 3, 4)) / sigma**2, rtol=2e-3, atol=1e-6)


def test_later_steps_start_where_the_students_steps_lead(make_student: MakeStudent, teacher: Path) -> None:
    """With one step of the teacher to a step and the same weights, only guidance is between the two."""
    stage = make_student(4, 1)
    batch = stage.batches.draw(0)
    text, _ = stage.encode_text(batch)
    path = [batch.noise, *sample(teacher, "ddim-trailing", "trailing", 4, batch.noise, text, 1.0)]
    steps = 3 - batch.timesteps // 250
    assert sorted(steps.tolist()) == [0, 1, 2, 3]
    with torch.no_grad():
        loss = stage.loss(batch)
        for row, step in enumerate(steps.tolist()):
            time, latents, words = torch.tensor([999 - 250 * step]), path[step][[row]], text[[row]]
            options: dict[str, Any] = {"boundary": "zero", "return_dict": False}
            plain = stage.network(latents, time, words, **options)[0]
            empty = stage.network(latents, time, stage._empty.expand_as(words), **options)[0]
            difference = plain - empty
            still = difference.mean(dim=2, keepdim=True)
            expected = ((SCALE - 1) * (still + SHARE * (difference - still))).square().mean()
            torch.testing.assert_close(loss[row], expected, rtol=1e-3, atol=1e-7)


def test_every_process_calls_the_network_as_often(make_student: MakeStudent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a sharded network wait for each other at each call; what is called besides changes nothing."""
    stage = make_student(4, 1)
    batch = stage.batches.draw(0)
    steps = 3 - batch.timesteps // 250
    batch = dataclasses.replace(
        batch, timesteps=batch.timesteps + 250 * (steps - 1).clamp(min=0)
    )  # at most one step in
    calls: list[int] = []
    stage.network.register_forward_hook(lambda _module, inputs, _output: calls.append(len(inputs[0])))
    alone = stage.loss(batch)
    assert len(calls) == 2
    monkeypatch.setattr(stage._accelerator, "gather", lambda _most: torch.tensor([1, 3]))  # another process's
    torch.testing.assert_close(stage.loss(batch), alone)
    assert calls[2:] == [*calls[:1], 1, 1, *calls[1:2]]


def test_in_bf16_every_weight_learns(make_student: MakeStudent) -> None:
    """Steps of the student come before, without gradients: what they leave in autocast's cache is not taken."""
    stage = make_student(4, 1, precision="bf16")
    batch = stage.batches.draw(0)
    with autocast(torch.device("cpu"), "bf16"):
        stage.loss(batch).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in stage.network.parameters())


def test_noise_is_that_of_sampling(make_student: MakeStudent) -> None:
    noise = torch.cat([make_student(2, 1).batches.draw(step).noise for step in range(30)])
    correlation = (noise[:, :, 1:] * noise[:, :, :-1]).mean()
    assert abs(correlation - 0.8) < 0.03


@pytest.mark.parametrize("teacher", ["epsilon"], indirect=True)
def test_without_a_cache_no_video_is_read(
    make_student: MakeStudent, make_recipe: MakeRecipe, teacher: Path, squares: Path, tmp_path: Path
) -> None:
    data = {"source": str(shutil.copytree(squares, tmp_path / "data")), "cache": "", "max_bad_share": 0.0}
    for video in (tmp_path / "data").rglob("*.webp"):
        video.write_bytes(b"")
    changes = {"data": data, "image_batch_size": 2, "diffusion": {"image_share": 0.5}}
    stage = make_student(2, 1, **changes)
    clips, stills = stage.batches.draw(0), stage.batches.draw(1)
    assert (clips.noise.shape[2], stills.noise.shape[2]) == (stage._recipe.data.num_frames, 1)
    known = {caption for record in CaptionedVideoFolder(squares) for caption in record.captions}
    assert set(clips.captions or ()) | set(stills.captions or ()) <= known | {""}
    assert train(make_recipe("video", **distilled(teacher, 2, 1, **changes, steps=2))).is_dir()


@pytest.mark.parametrize("teacher", ["v_prediction"], indirect=True)
def test_another_noise_is_another_distillation(make_recipe: MakeRecipe, teacher: Path) -> None:
    def recipe(steps: int, noise_correlation: float) -> Recipe:
        tree = distilled(teacher, 2, 3, steps=steps)
        tree["preview"] |= {"noise_correlation": noise_correlation}
        return make_recipe("video", **tree)

    train(recipe(1, 0.5))
    with pytest.raises(InputError, match=r"it holds a run with preview.noise_correlation = 0.5, not 0.25"):
        train(recipe(2, 0.25))
    assert train(recipe(2, 0.5)).is_dir()


def test_a_student_learns_and_is_fast(make_recipe: MakeRecipe, teacher: Path) -> None:
    lora = {"rank": 8, "alpha": 16.0}
    optimizer = {"learning_rate": 3e-3, "warmup_steps": 2, "ema_decay": 0.5}
    changes = {"lora": lora, "steps": 60, "log_every": 5, "optimizer": optimizer}
    recipe = make_recipe("video", **distilled(teacher, 2, 3, **changes))
    stage = make_stage_of(recipe)
    batches = [stage.batches.draw(step) for step in range(100, 104)]
    with torch.no_grad():
        before = sum(stage.loss(batch).mean() for batch in batches)
    merged = train(recipe)
    run = Path(recipe.output)
    (run / "lora").rename(teacher / "fast")
    fast = load_pipeline(str(teacher), "cpu", "fp32", fast=True)
    assert fast.config.default_guidance_scale == 1
    stage.network.unload_lora()
    stage.network.load_state_dict(fast.unet.state_dict())
    with torch.no_grad():
        after = sum(stage.loss(batch).mean() for batch in batches)
    assert after < 0.6 * before

    # The same weights as the exported model's, but for its fp16, and as by diffusers' own loader
    exported = LatentShiftPipeline.from_pretrained(merged, torch_dtype=torch.float32)
    loaded = LatentShiftPipeline.from_pretrained(teacher, torch_dtype=torch.float32)
    loaded.load_lora_weights(teacher / "fast")
    loaded.fuse_lora()
    loaded.unload_lora_weights()
    for name, tensor in fast.unet.state_dict().items():
        torch.testing.assert_close(tensor, exported.unet.state_dict()[name], rtol=2e-3, atol=1e-4)
        torch.testing.assert_close(tensor, loaded.unet.state_dict()[name], rtol=1e-5, atol=1e-6)
    assert exported.scheduler.config.timestep_spacing == "trailing"
    assert exported.config.default_guidance_scale == 1
    assert exported.config.default_noise_correlation == 0.8
    assert exported.config.distilled_steps == 2  # so it is fast by itself
    assert exported.config.default_seam_frames == 2


@pytest.mark.parametrize("teacher", ["epsilon"], indirect=True)
def test_only_a_model_with_its_difference_is_fast(teacher: Path, road: Path) -> None:
    with pytest.raises(InputError, match=r"^--fast must be for a model with a distilled difference .*, got True$"):
        make_fast(load_pipeline(str(teacher), "cpu"), teacher, "--fast")
    file = teacher / "fast/pytorch_lora_weights.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="pytorch_lora_weights.safetensors cannot be loaded"):
        load_pipeline(str(teacher), "cpu", fast=True)


@pytest.mark.parametrize("teacher", ["epsilon"], indirect=True)
def test_a_student_has_the_network_of_its_teacher(make_recipe: MakeRecipe, teacher: Path) -> None:
    def recipe(**arguments: Any) -> Recipe:
        return make_recipe("video", **distilled(teacher, 2, 1, model={"init": str(teacher), "arguments": arguments}))

    assert isinstance(make_stage_of(recipe(shift_distance=1)), DistillationStage)  # which it has anyway
    expected = "^model.arguments.shift_distance must be 1, or left out: a distillation has the network of its teacher"
    with pytest.raises(InputError, match=expected):
        make_stage_of(recipe(shift_distance=2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"preview": {"num_inference_steps": 25, "guidance_scale": 1.0}},
            "^preview.num_inference_steps must be 2: so a student of 2 steps is sampled, got 25$",
        ),
        (
            {"preview": {"num_inference_steps": 2, "guidance_scale": 4.0}},
            "^preview.guidance_scale must be 1: so a student of 2 steps is sampled, got 4.0$",
        ),
    ],
)
@pytest.mark.parametrize("teacher", ["epsilon"], indirect=True)
def test_previews_are_as_the_student_is_sampled(
    make_recipe: MakeRecipe, teacher: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_recipe("video", **distilled(teacher, 2, 1, **changes))


def test_the_teacher_has_guidance_where_sampling_has_it(make_student: MakeStudent) -> None:
    stage = make_student(2, 2)
    stage._guidance = 3.0, 1.0, (0.25, 0.5)
    nothing, sentence = torch.zeros(4, 4, 2, 2, 2), torch.ones(4, 4, 2, 2, 2)
    guided = stage._guide(nothing, sentence, torch.tensor([999, 749, 500, 499]))  # shares 0, 0.25, 0.499, 0.5
    assert guided[:, 0, 0, 0, 0].tolist() == [1, 3, 3, 1]
