"""Covers `latent_shift.pipelines.latent_shift` on a whole tiny model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    AutoencoderTiny,
    DEISMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback
from PIL import Image
from torch import Tensor

from latent_shift import LatentShiftPipeline
from latent_shift.core.errors import InputError
from latent_shift.pipelines import LatentShiftPipelineOutput, make_scheduler
from latent_shift.pipelines.latent_shift import latent_statistics
from latent_shift.pipelines.noise import correlate_frames

from .conftest import MakePipeline, make_kl_vae

HEART, HAND = "a red heart", "a waving hand"


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def run(pipeline: LatentShiftPipeline, prompt: Any = HEART, seeds: tuple[int, ...] = (0,), **options: Any) -> Any:
    options = {"num_inference_steps": 2, "output_type": "latent", **options}
    return pipeline(prompt, generator=generators(*seeds), **options).frames


def count_rows(pipeline: LatentShiftPipeline) -> list[int]:
    """Into it go the clips of each pass of the U-Net."""
    rows: list[int] = []
    pipeline.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    return rows


def test_guidance_in_two_halves_gives_the_same_clips(pipeline: LatentShiftPipeline) -> None:
    options = {"guidance_scale": 5.0}
    expected = run(pipeline, [HEART, HAND], (0, 1), **options)
    rows = count_rows(pipeline)
    pipeline.guides_in_halves = True
    halves = run(pipeline, [HEART, HAND], (0, 1), **options)
    assert rows == [2, 2, 2, 2]
    torch.testing.assert_close(halves, expected, rtol=1e-4, atol=1e-4)


def test_without_memory_for_one_batch_guidance_takes_two_halves(
    pipeline: LatentShiftPipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = run(pipeline, guidance_scale=5.0)
    forward = pipeline.unet.forward

    def small(sample: Tensor, *args: Any, **options: Any) -> Any:
        if len(sample) > 1:
            raise torch.OutOfMemoryError("out of memory")
        return forward(sample, *args, **options)

    monkeypatch.setattr(pipeline.unet, "forward", small)
    rows = count_rows(pipeline)
    torch.testing.assert_close(run(pipeline, guidance_scale=5.0), expected, rtol=1e-4, atol=1e-4)
    assert rows == [2, 1, 1, 1, 1]  # it is tried once
    assert [record.message for record in caplog.records] == [
        "no memory for guidance in one batch: from here on in two halves"
    ]
    with pytest.raises(torch.OutOfMemoryError):  # what does not fit in halves does not fit
        run(pipeline, [HEART, HAND], (0, 1), guidance_scale=5.0)


def test_output_types_show_the_same_frames(pipeline: LatentShiftPipeline) -> None:
    prompts, seeds = [HEART, HAND], (0, 1)
    latents, floats, tensor, images = (
        run(pipeline, prompts, seeds, output_type=kind) for kind in ("latent", "np", "pt", "pil")
    )
    assert latents.shape == (2, 4, 3, 2, 2)
    assert floats.shape == (2, 3, 16, 16, 3)
    assert floats.dtype == np.float32
    assert tensor.shape == (2, 3, 3, 16, 16)
    assert 0 == floats.min() < floats.max() == 1
    np.testing.assert_array_equal(floats, tensor.permute(0, 1, 3, 4, 2).numpy())
    assert [len(clip) for clip in images] == [3, 3]
    assert isinstance(images[0][0], Image.Image)
    np.testing.assert_array_equal(np.stack(images), (floats * 255).round().astype(np.uint8))
    (frames,) = pipeline(
        prompts, generator=generators(*seeds), num_inference_steps=2, output_type="np", return_dict=False
    )
    np.testing.assert_array_equal(frames, floats)
    assert isinstance(pipeline(HEART, num_inference_steps=1), LatentShiftPipelineOutput)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["patch", "kl"])
def test_each_frame_is_decoded_alone(make_pipeline: MakePipeline, kind: str) -> None:
    if kind == "patch":
        pipeline, size = make_pipeline(), 16
        mean, std = torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([0.5, 1.0, 2.0, 0.7])
    else:
        pipeline, size = make_pipeline(vae=make_kl_vae()), 16
        mean, std = torch.zeros(4), torch.full((4,), 2.0)
    latents, frames = (run(pipeline, [HEART, HAND], (0, 1), output_type=output) for output in ("latent", "pt"))
    assert frames.shape == (2, 3, 3, size, size)
    for clip, pictures in zip(latents, frames, strict=True):
        for t, picture in enumerate(pictures):
            raw = clip[None, :, t] * std.view(1, 4, 1, 1) + mean.view(1, 4, 1, 1)
            expected = (pipeline.vae.decode(raw).sample[0] / 2 + 0.5).clamp(0, 1)
            torch.testing.assert_close(picture, expected, rtol=0, atol=1e-5)


def test_latents_are_scaled_by_statistics_and_factor_as_in_diffusers() -> None:
    statistics = {"latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [0.5, 1.0, 2.0, 0.7]}
    vae = make_kl_vae()  # of scaling_factor 0.5
    vae.register_to_config(**statistics)
    mean, std = latent_statistics(vae, torch.device("cpu"))
    assert mean.flatten().tolist() == pytest.approx(statistics["latents_mean"])
    assert std.flatten().tolist() == pytest.approx([1.0, 2.0, 4.0, 1.4])


def test_chunked_decoding_changes_nothing(pipeline: LatentShiftPipeline) -> None:
    sizes: list[int] = []
    decode = pipeline.vae.decode
    pipeline.vae.decode = lambda part: (sizes.append(len(part)), decode(part))[1]
    results = [
        run(pipeline, [HEART, HAND], (0, 1), output_type="pt", decode_chunk_size=size) for size in (1, 4, 5, 6, 100)
    ]
    assert sizes == [1] * 6 + [4, 2] + [5, 1] + [6] + [6]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("noise_correlation", [0.0, 0.5])
@pytest.mark.parametrize("scheduler", ["ddpm", "dpm++"])
def test_a_clip_does_not_depend_on_its_neighbours_in_the_batch(
    make_pipeline: MakePipeline, scheduler: str, noise_correlation: float
) -> None:
    pipeline = make_pipeline(unet={"noise_correlation": noise_correlation})
    pipeline.scheduler = make_scheduler(scheduler, pipeline.scheduler.config)
    prompts = [HEART, HAND, "a blue ."]
    together = run(pipeline, prompts, (5, 6, 7), negative_prompt=["red", "blue", ""])
    for index, (prompt, negative) in enumerate(zip(prompts, ["red", "blue", ""], strict=True)):
        alone = run(pipeline, prompt, (5 + index,), negative_prompt=negative)
        torch.testing.assert_close(together[[index]], alone, rtol=0, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)
    # Any sequence of generators will do.
    again = pipeline(
        tuple(prompts),
        negative_prompt=("red", "blue", ""),
        generator=tuple(generators(5, 6, 7)),
        num_inference_steps=2,
        output_type="latent",
    ).frames
    assert torch.equal(again, together)


def test_several_clips_of_a_prompt_come_one_after_the_other(pipeline: LatentShiftPipeline) -> None:
    together = run(pipeline, [HEART, HAND], (1, 2, 3, 4), num_videos_per_prompt=2, negative_prompt=["red", "blue"])
    jobs = [(HEART, "red", 1), (HEART, "red", 2), (HAND, "blue", 3), (HAND, "blue", 4)]
    alone = [run(pipeline, prompt, (seed,), negative_prompt=negative) for prompt, negative, seed in jobs]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)


def test_only_the_generator_counts(pipeline: LatentShiftPipeline) -> None:
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        results.append(run(pipeline))
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], run(pipeline, seeds=(1,)), atol=1e-2)
    single = pipeline(HEART, generator=generators(0)[0], num_inference_steps=2, output_type="latent").frames
    assert torch.equal(single, results[0])
    torch.manual_seed(1)
    free = [pipeline(HEART, num_inference_steps=1, output_type="latent").frames for _ in range(2)]
    assert not torch.allclose(free[0], free[1], atol=1e-2)


def test_latents_in_are_the_noise(pipeline: LatentShiftPipeline) -> None:
    for name in ("dpm++", "euler", "ddpm"):
        pipeline.scheduler = make_scheduler(name, pipeline.scheduler.config)
        generator = generators(0)[0]
        noise = torch.randn(1, 4, 3, 2, 2, generator=generator)
        before = noise.clone()
        result = pipeline(HEART, latents=noise, generator=generator, num_inference_steps=2, output_type="latent").frames
        assert torch.equal(result, run(pipeline))
        assert torch.equal(noise, before)


def test_an_image_is_a_clip_of_one_frame(pipeline: LatentShiftPipeline) -> None:
    image = run(pipeline, num_frames=1)
    assert image.shape == (1, 4, 1, 2, 2)
    assert torch.equal(image, run(pipeline, num_frames=1, boundary="zero"))
    assert not torch.allclose(image, run(pipeline, num_frames=1, boundary=None), atol=1e-3)
    assert run(pipeline, num_frames=1, output_type="np").shape == (1, 1, 16, 16, 3)


def test_around_a_loop_of_one_frame_the_shift_is_the_identity(make_pipeline: MakePipeline) -> None:
    looping = make_pipeline(unet={"default_boundary": "circular"})
    image = run(looping, num_frames=1)
    assert torch.equal(image, run(looping, num_frames=1, boundary=None))
    assert not torch.allclose(image, run(looping, num_frames=1, boundary="zero"), atol=1e-3)


def test_boundary_reaches_the_network(make_pipeline: MakePipeline) -> None:
    pipeline, looping = make_pipeline(), make_pipeline(unet={"default_boundary": "circular"})
    results = {boundary: run(pipeline, boundary=boundary) for boundary in ("zero", "circular", None)}
    assert torch.equal(run(pipeline), results["zero"])
    assert torch.equal(run(looping), results["circular"])
    for one, other in (("zero", "circular"), ("zero", None), ("circular", None)):
        assert not torch.allclose(results[one], results[other], atol=1e-3)


def test_a_loop_has_no_first_frame(pipeline: LatentShiftPipeline) -> None:
    pipeline.scheduler = make_scheduler("ddim", pipeline.scheduler.config)
    noise = torch.randn(1, 4, 5, 2, 2)
    options = {"num_frames": 5, "num_inference_steps": 3, "output_type": "latent"}
    for boundary, commutes in (("circular", True), ("zero", False)):
        result, rolled = (
            pipeline(HEART, latents=latents, boundary=boundary, **options).frames
            for latents in (noise, noise.roll(2, 2))
        )
        assert torch.allclose(rolled, result.roll(2, 2), rtol=0, atol=1e-3) is commutes


def test_guidance(pipeline: LatentShiftPipeline) -> None:
    rows = count_rows(pipeline)
    without = run(pipeline, guidance_scale=1.0)
    assert rows == [1, 1]
    assert torch.equal(run(pipeline, guidance_scale=1.0, negative_prompt="blue"), without)
    assert torch.equal(run(pipeline, guidance_scale=0.0), without)
    rows.clear()
    guided = run(pipeline, guidance_scale=3.0)
    assert rows == [2, 2]
    assert not torch.allclose(guided, without, atol=1e-3)
    assert torch.equal(run(pipeline, guidance_scale=3.0, negative_prompt=""), guided)
    assert not torch.allclose(run(pipeline, guidance_scale=3.0, negative_prompt="blue"), guided, atol=1e-3)
    # Led away from itself, a prompt gives what it gives without guidance.
    itself = run(pipeline, guidance_scale=3.0, negative_prompt=HEART)
    torch.testing.assert_close(itself, without, rtol=0, atol=1e-4)


@pytest.mark.parametrize("halves", [False, True])
def test_guidance_may_be_weaker_on_motion(pipeline: LatentShiftPipeline, halves: bool) -> None:
    """Of one step to the end: what the mean over the frames has, and what is left of a frame."""
    pipeline.scheduler = make_scheduler("ddim-trailing", pipeline.scheduler.config)
    pipeline.guides_in_halves = halves

    def parts(**options: Any) -> tuple[Tensor, Tensor]:
        frames = run(pipeline, num_inference_steps=1, **options)
        mean = frames.mean(dim=2, keepdim=True)
        return mean, frames - mean

    still, motion = parts(guidance_scale=5.0, motion_guidance=0.25)
    torch.testing.assert_close(still, parts(guidance_scale=5.0)[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(motion, parts(guidance_scale=2.0)[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(motion, parts(guidance_scale=5.0)[1], atol=1e-2)
    # An image has no motion.
    image = run(pipeline, num_frames=1, guidance_scale=5.0, motion_guidance=0.0)
    torch.testing.assert_close(image, run(pipeline, num_frames=1, guidance_scale=5.0), rtol=1e-4, atol=1e-4)


def test_motion_guidance_of_the_model(pipeline: LatentShiftPipeline, tmp_path: Path) -> None:
    calm = run(pipeline, motion_guidance=0.25)
    assert not torch.equal(calm, run(pipeline))
    pipeline.register_to_config(default_motion_guidance=0.25)
    assert torch.equal(run(pipeline), calm)
    pipeline.save_pretrained(tmp_path)
    assert LatentShiftPipeline.from_pretrained(tmp_path).config.default_motion_guidance == 0.25
    for wrong in (-0.1, 1.1):
        with pytest.raises(InputError, match=rf"motion_guidance must be in \[0, 1\], got {wrong}"):
            run(pipeline, motion_guidance=wrong)


def test_defaults_are_the_models(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(default_frames=2, default_guidance_scale=4.0)
    assert torch.equal(run(pipeline), run(pipeline, num_frames=2, guidance_scale=4.0, height=16, width=16))
    assert run(pipeline, height=32).shape == (1, 4, 2, 4, 2)
    assert run(pipeline, width=48).shape == (1, 4, 2, 2, 6)
    for sample_size, shape in ((4, (4, 4)), ((2, 4), (2, 4))):
        pipeline = make_pipeline(unet={"sample_size": sample_size}, default_size=None)
        assert run(pipeline).shape == (1, 4, 3, *shape)
    bare = LatentShiftPipeline(**make_pipeline().components)
    assert (bare.config.default_frames, bare.config.default_guidance_scale, bare.config.fps) == (16, 7.5, 8.0)
    assert (bare.config.mask_padding, bare.max_prompt_tokens) == (False, 8)
    assert make_pipeline(max_tokens=5).max_prompt_tokens == 5


def test_factors_of_the_autoencoders(make_pipeline: MakePipeline) -> None:
    assert make_pipeline().vae_scale_factor == 8
    assert make_pipeline(vae=make_kl_vae()).vae_scale_factor == 4


def test_prompt_embeds_instead_of_prompts(pipeline: LatentShiftPipeline) -> None:
    positive, negative = pipeline.encode_prompt([HEART, HAND], "blue")
    assert positive.shape == negative.shape == (2, 8, 12)
    expected = run(pipeline, [HEART, HAND], (0, 1), negative_prompt="blue")
    embedded = run(pipeline, None, (0, 1), prompt_embeds=positive, negative_prompt_embeds=negative)
    assert torch.equal(embedded, expected)
    assert torch.equal(run(pipeline, None, (0, 1), prompt_embeds=positive, negative_prompt="blue"), expected)
    twice, _ = pipeline.encode_prompt(None, None, 2, positive)
    assert torch.equal(twice, positive[[0, 0, 1, 1]])


def test_without_guidance_negative_prompts_are_not_encoded(pipeline: LatentShiftPipeline) -> None:
    embeds = pipeline.encode_prompt(HEART)[0]
    expected = run(pipeline, guidance_scale=1.0)
    encoded: list[int] = []
    pipeline.text_encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    run(pipeline, guidance_scale=1.0, negative_prompt="blue")
    assert encoded == [1]
    pipeline.register_modules(text_encoder=None, tokenizer=None)
    assert torch.equal(run(pipeline, None, prompt_embeds=embeds, guidance_scale=1.0), expected)


def test_weights_may_be_elsewhere_until_they_are_needed(pipeline: LatentShiftPipeline) -> None:
    expected = run(pipeline, output_type="pt")
    for part in (pipeline.vae, pipeline.text_encoder, pipeline.unet):
        cpu_offload(part, torch.device("cpu"), offload_buffers=True)
    assert pipeline.text_encoder.device.type == "meta"
    torch.testing.assert_close(run(pipeline, output_type="pt"), expected)


def test_padding_is_hidden_where_the_model_says_so(make_pipeline: MakePipeline) -> None:
    visible, hidden = (make_pipeline(mask_padding=mask).encode_prompt("a")[0] for mask in (False, True))
    assert visible.shape == hidden.shape == (1, 8, 12)
    assert not hidden[0, 3:].any()
    assert visible[0, 3:].any()


def test_callback_sees_every_step(pipeline: LatentShiftPipeline) -> None:
    seen: list[tuple[Any, int, int, dict[str, Tensor]]] = []
    names = ("latents", "prompt_embeds", "negative_prompt_embeds")

    def note(*arguments: Any) -> None:
        seen.append(arguments)

    result = run(
        pipeline,
        num_inference_steps=3,
        negative_prompt="blue",
        callback_on_step_end=note,
        callback_on_step_end_tensor_inputs=names,
    )
    assert [pipe for pipe, *_ in seen] == [pipeline] * 3
    assert [(step, timestep) for _, step, timestep, _ in seen] == [(0, 999), (1, 500), (2, 0)]
    positive, negative = pipeline.encode_prompt(HEART, "blue")
    for *_, tensors in seen:
        assert set(tensors) == set(names)
        assert torch.equal(tensors["prompt_embeds"], positive)
        assert torch.equal(tensors["negative_prompt_embeds"], negative)
    assert torch.equal(seen[-1][-1]["latents"], result)
    assert torch.equal(run(pipeline, num_inference_steps=3, negative_prompt="blue"), result)
    run(pipeline, callback_on_step_end=note)
    assert set(seen[-1][-1]) == {"latents"}


def test_a_callback_ends_the_steps(pipeline: LatentShiftPipeline) -> None:
    rows = count_rows(pipeline)

    def stop(pipe: LatentShiftPipeline, index: int, *_: Any) -> None:
        assert (pipe.guidance_scale, pipe.num_timesteps) == (3.0, 5)
        pipe._interrupt = index == 1

    short = run(pipeline, num_inference_steps=5, guidance_scale=3.0, callback_on_step_end=stop)
    assert (len(rows), pipeline.interrupt) == (2, True)
    assert not torch.equal(run(pipeline, num_inference_steps=5, guidance_scale=3.0), short)
    assert (len(rows), pipeline.interrupt) == (7, False)


@pytest.mark.parametrize("several", [False, True])
def test_callbacks_of_diffusers_say_which_tensors_they_get(pipeline: LatentShiftPipeline, several: bool) -> None:
    rows = count_rows(pipeline)
    callback: Any = SDCFGCutoffCallback(cutoff_step_ratio=0.25)
    callback = MultiPipelineCallbacks([callback]) if several else callback
    run(pipeline, num_inference_steps=4, guidance_scale=3.0, callback_on_step_end=callback)
    assert rows == [2, 2, 1, 1]


def test_one_tensor_of_a_callback_has_a_name_and_no_letters(pipeline: LatentShiftPipeline) -> None:
    seen: list[set[str]] = []
    options = {"callback_on_step_end": lambda *arguments: seen.append(set(arguments[3]))}
    run(pipeline, **options, callback_on_step_end_tensor_inputs="prompt_embeds")
    assert seen == [{"prompt_embeds"}] * 2


@pytest.mark.parametrize("scheduler", ["dpm++", "unipc", "ddim", "euler", "ddpm"])
def test_clean_latents_are_what_the_solver_expects_in_the_end(pipeline: LatentShiftPipeline, scheduler: str) -> None:
    pipeline.scheduler = make_scheduler(scheduler, pipeline.scheduler.config)
    clean: list[Tensor] = []

    def note(_pipe: Any, _index: int, _timestep: Tensor, tensors: dict[str, Tensor]) -> None:
        clean.append(tensors["clean_latents"])

    options = {"callback_on_step_end": note, "callback_on_step_end_tensor_inputs": ["clean_latents"]}
    last = run(pipeline, num_inference_steps=5, **options)
    away = [float((guess - last).abs().mean()) for guess in clean]
    assert away[-1] < 0.02 < away[0]
    frames = pipeline.decode_latents(clean[-1])
    assert frames.shape == (1, 3, 16, 16, 3)


@pytest.mark.parametrize(
    "scheduler", [DEISMultistepScheduler(solver_order=1), UniPCMultistepScheduler(predict_x0=False)]
)
def test_of_a_solver_that_remembers_noise_clean_latents_are_the_latents(
    pipeline: LatentShiftPipeline, scheduler: Any
) -> None:
    pipeline.scheduler = scheduler
    seen: list[dict[str, Tensor]] = []
    options = {"callback_on_step_end_tensor_inputs": ["latents", "clean_latents"]}
    run(pipeline, num_inference_steps=3, callback_on_step_end=lambda *arguments: seen.append(arguments[3]), **options)
    assert all(tensors["clean_latents"] is tensors["latents"] for tensors in seen)


def test_a_callback_that_drops_a_clip_drops_its_generator(pipeline: LatentShiftPipeline) -> None:
    pipeline.scheduler = make_scheduler("ddpm", pipeline.scheduler.config)
    both = generators(0, 1)

    def drop(_pipe: Any, index: int, _timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if index:
            return {}
        del both[0]
        return {name: tensor[1:] for name, tensor in tensors.items()}

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    left = pipeline(
        [HEART, HAND],
        generator=both,
        num_inference_steps=3,
        output_type="latent",
        callback_on_step_end=drop,
        callback_on_step_end_tensor_inputs=names,
    ).frames
    alone = run(pipeline, HAND, (1,), num_inference_steps=3)
    torch.testing.assert_close(left, alone, atol=1e-4, rtol=0)


def test_callback_changes_tensors(pipeline: LatentShiftPipeline) -> None:
    last = run(pipeline, callback_on_step_end=lambda *arguments: {"latents": torch.ones_like(arguments[3]["latents"])})
    assert torch.equal(last, torch.ones(1, 4, 3, 2, 2))
    # The steps after the first go by another prompt.
    positive, negative = pipeline.encode_prompt(HAND, "red")
    plain = run(pipeline, num_inference_steps=3)
    for changes in ({"prompt_embeds": positive}, {"negative_prompt_embeds": negative}):
        options = {"callback_on_step_end": lambda *_, changes=changes: changes}
        assert not torch.allclose(run(pipeline, num_inference_steps=3, **options), plain, atol=1e-3)
    both = run(pipeline, callback_on_step_end=lambda *_: {"latents": plain, "prompt_embeds": positive})
    assert torch.equal(both, plain)


def test_only_the_frames_at_the_seam_see_the_loop_closed(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    pipeline = make_pipeline()
    options = {
        "num_frames": 8,
        "num_inference_steps": 1,
        "output_type": "latent",
        "latents": torch.randn(1, 4, 8, 2, 2),
    }

    def draw(**changes: Any) -> Tensor:
        return pipeline(HEART, **options, **changes).frames

    ends, loop, seam = draw(), draw(boundary="circular"), draw(boundary="circular", seam_frames=2)
    for frame, share in enumerate([1, 0.5, 0, 0, 0, 0, 0.5, 1]):
        assert torch.allclose(seam[:, :, frame], torch.lerp(ends, loop, share)[:, :, frame], rtol=0, atol=1e-5), frame
    assert not torch.allclose(loop, ends, atol=1e-3)
    image = run(pipeline, num_frames=1, boundary="circular")
    assert torch.equal(run(pipeline, num_frames=1, boundary="circular", seam_frames=2), image)
    pipeline.register_to_config(default_seam_frames=2)
    assert torch.equal(draw(boundary="circular"), seam)
    assert torch.equal(draw(), ends)
    pipeline.save_pretrained(tmp_path)
    assert LatentShiftPipeline.from_pretrained(tmp_path).config.default_seam_frames == 2
    looping = make_pipeline(unet={"default_boundary": "circular"})
    assert torch.equal(looping(HEART, **options, seam_frames=2).frames, seam)
    pipeline.register_to_config(default_seam_frames=0)
    with pytest.raises(InputError, match="seam_frames must be at least 1, got 0"):
        draw(boundary="circular")


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seam_frames": 0, "boundary": "circular"}, "seam_frames must be at least 1, got 0"),
        ({"seam_frames": 2.5, "boundary": "circular"}, "seam_frames must be a whole number, got 2.5"),
        ({"seam_frames": 2}, "seam_frames must be left out where the boundary is not circular, got 2"),
        ({"seam_frames": 2, "boundary": None}, "seam_frames must be left out where the boundary is not circular"),
    ],
)
def test_a_seam_of_no_loop_is_refused(pipeline: LatentShiftPipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(pipeline, **options)


@pytest.mark.parametrize("boundary", ["default", "zero", "circular", None])
def test_correlated_noise(make_pipeline: MakePipeline, boundary: Any) -> None:
    shape = (2, 4, 3, 2, 2)
    own = torch.cat([torch.randn(1, *shape[1:], generator=generator) for generator in generators(0, 1)])
    plain = make_pipeline(unet={"noise_correlation": 0.0})
    assert torch.equal(plain.prepare_latents(shape, generators(0, 1), None, boundary), own)
    for default in ("zero", "circular"):
        pipeline = make_pipeline(unet={"noise_correlation": 0.8, "default_boundary": default})
        made = pipeline.prepare_latents(shape, generators(0, 1), None, boundary)
        # Without the shift the noise is that of the clip with it, for comparison.
        edges = default if boundary in ("default", None) else boundary
        assert torch.equal(made, correlate_frames(own, 0.8, edges))
        # The call's own, before the pipeline's, before the U-Net's of training.
        made = pipeline.prepare_latents(shape, generators(0, 1), None, boundary, 0.95)
        assert torch.equal(made, correlate_frames(own, 0.95, edges))
        pipeline.register_to_config(default_noise_correlation=0.9)
        made = pipeline.prepare_latents(shape, generators(0, 1), None, boundary)
        assert torch.equal(made, correlate_frames(own, 0.9, edges))


def test_noise_correlation_of_a_call(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    pipeline = make_pipeline(unet={"noise_correlation": 0.8})
    calm = run(pipeline, noise_correlation=0.99)
    assert not torch.allclose(calm, run(pipeline), atol=1e-3)
    pipeline.register_to_config(default_noise_correlation=0.99)
    assert torch.equal(run(pipeline), calm)
    pipeline.save_pretrained(tmp_path)
    assert LatentShiftPipeline.from_pretrained(tmp_path).noise_correlation == 0.99
    with pytest.raises(InputError, match=r"noise_correlation must be in \[0, 1\), got 1.0"):
        run(pipeline, noise_correlation=1.0)


def test_schedulers_that_take_more_steps_than_asked_for(pipeline: LatentShiftPipeline) -> None:
    totals: list[int] = []
    rows = count_rows(pipeline)
    bar = pipeline.progress_bar
    pipeline.progress_bar = lambda total: (totals.append(total), bar(total=total))[1]
    pipeline.scheduler = HeunDiscreteScheduler.from_config(pipeline.scheduler.config)
    assert run(pipeline, num_inference_steps=4).isfinite().all()
    assert totals == [len(rows)] == [7]


def test_eta_reaches_the_schedulers_that_have_it(pipeline: LatentShiftPipeline) -> None:
    pipeline.scheduler = make_scheduler("ddim", pipeline.scheduler.config)
    results = [run(pipeline, num_inference_steps=3, eta=eta) for eta in (0.0, 1.0, 1.0)]
    assert torch.equal(results[1], results[2])
    assert not torch.allclose(results[0], results[1], atol=1e-2)
    pipeline.scheduler = make_scheduler("dpm++", pipeline.scheduler.config)
    assert torch.equal(run(pipeline, eta=1.0), run(pipeline))


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": None}, "prompt must be given, or prompt_embeds, and not both, got None"),
        (
            {"prompt_embeds": torch.zeros(1, 8, 12)},
            "prompt must be given, or prompt_embeds, and not both, got 'a red heart'",
        ),
        ({"prompt": 5}, "prompt must be a sentence or a list of sentences, got 5"),
        ({"prompt": []}, r"prompt must be a sentence or a list of sentences, got \[\]"),
        ({"prompt": [HEART, 3]}, "prompt must be a sentence or a list of sentences, got"),
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"num_frames": -3}, "num_frames must be at least 1, got -3"),
        ({"height": 20}, "height must be a positive multiple of 16, got 20"),
        ({"width": 8}, "width must be a positive multiple of 16, got 8"),
        ({"height": 0}, "height must be a positive multiple of 16, got 0"),
        ({"width": -16}, "width must be a positive multiple of 16, got -16"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ({"num_inference_steps": 1001}, "num_inference_steps must be at most 1000, the steps of training, got 1001"),
        ({"num_videos_per_prompt": 0}, "num_videos_per_prompt must be at least 1, got 0"),
        ({"decode_chunk_size": 0}, "decode_chunk_size must be at least 1, got 0"),
        ({"output_type": "gif"}, "output_type must be one of pil, np, pt, latent, got 'gif'"),
        ({"boundary": "mirror"}, "boundary must be default, zero, circular or None, got 'mirror'"),
        ({"negative_prompt": ["a", "b"]}, "must be a sentence, or a list with one for each of 1 prompts, got 2"),
        ({"negative_prompt": 3}, "negative_prompt must be a sentence or a list of sentences, got 3"),
        ({"negative_prompt": []}, r"negative_prompt must be a sentence or a list of sentences, got \[\]"),
        (
            {"negative_prompt": "red", "negative_prompt_embeds": torch.zeros(1, 8, 12)},
            "negative_prompt must be left out where negative_prompt_embeds are given, got 'red'",
        ),
        (
            {"prompt": None, "prompt_embeds": torch.zeros(8, 12)},
            r"^prompt_embeds must have the shape \(prompts, tokens, width\), got \(8, 12\)",
        ),
        ({"num_frames": 2.0}, "num_frames must be a whole number, got 2.0"),
        ({"height": 16.0}, "height must be a positive multiple of 16, got 16.0"),
        ({"num_inference_steps": 2.5}, "num_inference_steps must be a whole number, got 2.5"),
        ({"guidance_scale": math.nan}, "guidance_scale must be a number, got nan"),
        ({"eta": -1.0}, "eta must be at least 0, got -1.0"),
        ({"generator": 5}, "generator must be a torch.Generator, or a list of them, got 5"),
        (
            {"negative_prompt_embeds": torch.zeros(1, 5, 12)},
            r"negative_prompt_embeds must have the shape of the prompt's, \(1, 8, 12\), got \(1, 5, 12\)",
        ),
        ({"generator": generators(0, 1)}, "generator must be one, or one for each of 1 clips, got 2"),
        ({"generator": [], "latents": torch.zeros(1, 4, 3, 2, 2)}, "generator must be one, or .* got 0"),
        (
            {"latents": torch.zeros(1, 4, 3, 2, 4)},
            r"latents must have the shape \(1, 4, 3, 2, 2\), got \(1, 4, 3, 2, 4\)",
        ),
        (
            {"callback_on_step_end_tensor_inputs": ["noise"]},
            "tensor_inputs must be among latents, prompt_embeds, negative_prompt_embeds, clean_latents, got 'noise'",
        ),
    ],
)
def test_arguments_that_are_refused(pipeline: LatentShiftPipeline, options: dict[str, Any], message: str) -> None:
    rows = count_rows(pipeline)
    with pytest.raises(InputError, match=message):
        pipeline(**{"prompt": HEART, "num_inference_steps": 1, **options})
    assert not rows  # before any work


def test_a_scheduler_of_flow_matching_is_refused(pipeline: LatentShiftPipeline) -> None:
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(InputError, match="scheduler must be one of diffusion, .* got 'FlowMatchEulerDiscreteSched"):
        run(pipeline)


def test_a_tokenizer_without_a_maximum_needs_one(pipeline: LatentShiftPipeline) -> None:
    pipeline.tokenizer.model_max_length = int(1e30)
    with pytest.raises(InputError, match="max_tokens must be given: the tokenizer has no maximum, got None"):
        run(pipeline)
    pipeline.register_to_config(max_tokens=8)
    run(pipeline)


def test_a_small_autoencoder_of_diffusers_decodes(make_pipeline: MakePipeline) -> None:
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(4,) * 4,
        decoder_block_out_channels=(4,) * 4,
        num_encoder_blocks=(1,) * 4,
        num_decoder_blocks=(1,) * 4,
    )
    pipeline = make_pipeline(vae=tiny.eval())
    assert run(pipeline, output_type="np").shape == (1, 3, 16, 16, 3)


def test_a_model_without_a_size(make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(unet={"sample_size": None}, default_size=None)
    with pytest.raises(InputError, match="height and width must be given: the model has no size of its own, got None"):
        run(pipeline)
    with pytest.raises(InputError, match="height and width must be given"):
        run(pipeline, height=16)
    assert run(pipeline, height=16, width=16).shape == (1, 4, 3, 2, 2)


@pytest.mark.parametrize(
    ("interval", "steps", "rows"),
    [
        ((0.0, 1.0), 4, [2, 2, 2, 2]),
        ((0.3, 0.8), 4, [1, 2, 2, 1]),
        ((0.0, 0.5), 4, [2, 2, 1, 1]),
        ((0.5, 1.0), 3, [1, 2, 2]),
    ],
)
def test_guidance_starts_and_stops(
    pipeline: LatentShiftPipeline, interval: tuple[float, float], steps: int, rows: list[int]
) -> None:
    seen = count_rows(pipeline)
    options = {"num_inference_steps": steps, "guidance_scale": 3.0}
    given = run(pipeline, guidance_interval=interval, **options)
    assert seen == rows
    pipeline.register_to_config(default_guidance_start=interval[0], default_guidance_stop=interval[1])
    assert torch.equal(run(pipeline, **options), given)
    seen.clear()
    run(pipeline, num_inference_steps=steps, guidance_scale=1.0)
    assert seen == [1] * steps


def test_the_interval_of_guidance_is_kept_with_the_model(pipeline: LatentShiftPipeline, tmp_path: Path) -> None:
    pipeline.register_to_config(default_guidance_start=0.25, default_guidance_stop=0.75)
    pipeline.save_pretrained(tmp_path / "model")
    assert LatentShiftPipeline.from_pretrained(tmp_path / "model").guidance_interval == (0.25, 0.75)


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.8, 0.2), (-0.1, 1.0), (0.0, 1.1), (0.5,), (0.0, math.nan)])
def test_an_interval_is_two_shares(pipeline: LatentShiftPipeline, interval: Any) -> None:
    with pytest.raises(InputError, match="guidance_interval must be two shares of the steps, 0 <= start < stop <= 1"):
        run(pipeline, guidance_interval=interval)


@pytest.mark.parametrize(
    "wrong",
    [
        {"boundary": "circle"},
        {"noise_correlation": 1.5},
        {"seam_frames": 2},
        {"latents": torch.zeros(1)},
        {"noise_correlation": 0.5, "latents": torch.zeros(1)},
        {"negative_prompt": ["blue", "red"]},
        {"guidance_interval": (1, 0)},
        {"timesteps": [999, 1], "num_inference_steps": 2},
        {"timesteps": [999, 1], "sigmas": [1.0, 0.5], "num_inference_steps": None},
        {"sigmas": [1.0, 0.5], "num_inference_steps": None},  # which DDIM does not take
    ],
    ids=str,
)
@pytest.mark.usefixtures("as_users_run")
def test_all_is_checked_before_anything_is_computed(pipeline: LatentShiftPipeline, wrong: dict[str, Any]) -> None:
    pipeline.scheduler = make_scheduler("ddim", pipeline.scheduler.config)
    encoded: list[int] = []
    pipeline.text_encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    names = "|".join(wrong)
    with pytest.raises(InputError, match=rf"^({names}) must "):
        run(pipeline, **wrong)
    assert not encoded


def test_noise_levels_may_be_given_one_by_one(pipeline: LatentShiftPipeline) -> None:
    pipeline.scheduler = make_scheduler("euler", pipeline.scheduler.config)
    run(pipeline, num_inference_steps=None, sigmas=[9.0, 2.0, 0.5, 0.0])
    assert pipeline.scheduler.sigmas.tolist() == [9.0, 2.0, 0.5, 0.0]


@pytest.mark.parametrize("name", ["prompt", "negative_prompt"])
def test_half_an_emoji_is_no_sentence(pipeline: LatentShiftPipeline, name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} must be UTF-8 text, got"):
        pipeline(**{"prompt": HEART, name: "smile \ud83d"})


def test_steps_may_be_given_one_by_one(pipeline: LatentShiftPipeline) -> None:
    pipeline.scheduler = make_scheduler("dpm++", pipeline.scheduler.config)
    times: list[int] = []
    options = {"num_inference_steps": None, "callback_on_step_end": lambda *arguments: times.append(int(arguments[2]))}
    run(pipeline, timesteps=[900, 500, 20], **options)
    assert times == [900, 500, 20]


def test_attention_processors_get_their_arguments(
    pipeline: LatentShiftPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    forward = pipeline.unet.forward

    def note(*args: Any, cross_attention_kwargs: Any = None, **options: Any) -> Any:
        seen.append(cross_attention_kwargs)
        return forward(*args, **options)

    monkeypatch.setattr(pipeline.unet, "forward", note)
    run(pipeline, cross_attention_kwargs={"scale": 0.5})
    run(pipeline)
    assert seen == [{"scale": 0.5}] * 2 + [None] * 2


def test_another_pipeline_of_the_same_parts(pipeline: LatentShiftPipeline) -> None:
    other = LatentShiftPipeline.from_pipe(pipeline)
    assert other.unet is pipeline.unet
    other.set_progress_bar_config(disable=True)
    assert torch.equal(run(other), run(pipeline))


@pytest.mark.parametrize("output_type", ["latent", "jpeg"])
@pytest.mark.usefixtures("as_users_run")
def test_what_is_decoded_is_pictures(pipeline: LatentShiftPipeline, output_type: Any) -> None:
    with pytest.raises(InputError, match="output_type must be one of pil, np, pt, got"):
        pipeline.decode_latents(run(pipeline), output_type=output_type)


def test_a_model_of_pictures_is_sampled_without_the_shift(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    pictures, videos = make_pipeline(unet={"default_boundary": None}), make_pipeline()
    expected = run(videos, boundary=None, num_frames=1)
    assert torch.equal(run(pictures, num_frames=1), expected)
    assert not torch.allclose(run(videos, num_frames=1), expected, atol=1e-3)
    assert torch.equal(run(pictures, boundary="zero", num_frames=1), run(videos, num_frames=1))
    pictures.save_pretrained(tmp_path / "model")
    loaded = LatentShiftPipeline.from_pretrained(tmp_path / "model")
    loaded.set_progress_bar_config(disable=True)
    assert torch.equal(run(loaded, num_frames=1), expected)


def test_the_first_noise_is_as_large_as_the_scheduler_begins(pipeline: LatentShiftPipeline) -> None:
    pipeline.scheduler = make_scheduler("euler", pipeline.scheduler.config)
    seen: list[Tensor] = []
    pipeline.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    noise = torch.randn(1, 4, 3, 2, 2)
    run(pipeline, latents=noise, num_frames=3, num_inference_steps=4, guidance_scale=1.0)
    assert pipeline.scheduler.init_noise_sigma > 10
    torch.testing.assert_close(seen[0], noise, rtol=1e-2, atol=1e-2)
