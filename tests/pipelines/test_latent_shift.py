"""`LatentShiftPipeline` on a tiny whole model."""

import json

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from latent_shift import LatentShiftPipeline
from latent_shift.core.errors import DataError
from latent_shift.pipelines import SCHEDULERS, load_pipeline, make_scheduler


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def run(pipeline, prompt="a red heart", seeds=(0,), **options):
    options = {"num_inference_steps": 2, "output_type": "np", **options}
    return np.asarray(pipeline(prompt, generator=generators(*seeds), **options).frames)


def test_shapes_and_range(pipeline):
    frames = run(pipeline, ["a red heart", "blue hand"], (0, 1))
    assert frames.shape == (2, 3, 16, 16, 3)
    assert frames.min() >= 0
    assert frames.max() <= 1
    assert run(pipeline, num_frames=1).shape[1] == 1
    assert len(pipeline("a heart", num_inference_steps=1).frames[0]) == 3


def test_a_clip_does_not_depend_on_its_neighbours_in_the_batch(pipeline):
    together = run(pipeline, ["a red heart", "blue hand"], (5, 6))
    alone = [run(pipeline, "a red heart", (5,)), run(pipeline, "blue hand", (6,))]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-4)


def test_save_and_load_give_the_same_frames(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "model")
    loaded = LatentShiftPipeline.from_pretrained(tmp_path / "model")
    loaded.set_progress_bar_config(disable=True)
    np.testing.assert_allclose(run(loaded), run(pipeline), atol=1e-5)
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["vae"] == ["latent_shift", "PatchAutoencoderKL"]
    for file in (tmp_path / "model").rglob("*.json"):
        assert "_name_or_path" not in file.read_text()
        assert str(tmp_path) not in file.read_text()
    UNet2DConditionModel.from_pretrained(tmp_path / "model" / "unet")


def test_a_corrupt_weight_file_is_named(saved, tmp_path):
    import shutil

    folder = shutil.copytree(saved, tmp_path / "model")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(DataError, match=r"diffusion_pytorch_model\.safetensors"):
        LatentShiftPipeline.from_pretrained(folder)


def test_every_scheduler_runs_and_ddpm_100_is_guided_diffusions(pipeline):
    for name in SCHEDULERS:
        pipeline.scheduler = make_scheduler(name, pipeline.scheduler.config)
        assert np.isfinite(run(pipeline)).all()
    scheduler = make_scheduler("ddpm", pipeline.scheduler.config)
    scheduler.set_timesteps(100)
    # guided-diffusion's space_timesteps(1000, "100"): strides of 999 / 99, rounded.
    expected = [round(index * 999 / 99) for index in range(100)]
    assert scheduler.timesteps.tolist() == expected[::-1]


def test_boundary_negative_prompt_and_guidance_change_the_clip(pipeline):
    base = run(pipeline)
    for options in ({"boundary": "circular"}, {"boundary": None}, {"negative_prompt": "blue"}, {"guidance_scale": 5.0}):
        assert not np.array_equal(run(pipeline, **options), base), options


def test_without_guidance_the_network_sees_one_half(pipeline):
    rows = []
    pipeline.unet.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    run(pipeline, guidance_scale=1.0)
    run(pipeline, guidance_scale=2.0)
    assert rows == [1, 1, 2, 2]


def test_latents_in_and_out(pipeline):
    latents = torch.randn(1, 4, 3, 2, 2)
    pipeline.scheduler = make_scheduler("ddim", pipeline.scheduler.config)
    out = pipeline("a heart", latents=latents, num_inference_steps=2, output_type="latent").frames
    assert out.shape == latents.shape
    again = pipeline("a heart", latents=latents, num_inference_steps=2, output_type="latent").frames
    assert torch.equal(out, again)


def test_callback_sees_and_changes_latents(pipeline):
    seen = []

    def zero(pipe, step, timestep, tensors):
        seen.append((step, timestep))
        return {"latents": torch.zeros_like(tensors["latents"])}

    out = pipeline("a heart", num_inference_steps=2, output_type="latent", callback_on_step_end=zero).frames
    assert out.abs().max() == 0
    assert [step for step, _ in seen] == [0, 1]


def test_chunked_decoding_changes_nothing(pipeline):
    np.testing.assert_allclose(run(pipeline, decode_chunk_size=1), run(pipeline, decode_chunk_size=3), atol=1e-6)


def test_shared_noise_is_shared(make_pipeline):
    shape = (2, 4, 6, 2, 2)
    noise = make_pipeline({"noise_shared": 0.8}).prepare_latents(shape, generators(0, 1))
    own = make_pipeline().prepare_latents(shape, generators(0, 1))
    across = [(x - x.mean(2, keepdim=True)).square().mean() for x in (noise, own)]
    assert across[0] < 0.35 * across[1]


@pytest.mark.usefixtures("as_users_run")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"height": 20}, "height must be a positive multiple of 16, got 20"),
        ({"num_inference_steps": 0}, "num_inference_steps must be at least 1, got 0"),
        ({"output_type": "gif"}, "output_type must be one of pil, np, pt, latent, got 'gif'"),
        ({"negative_prompt": ["a", "b"]}, "negative_prompt must be one"),
    ],
)
def test_bad_arguments_are_named(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline("a heart", **{"num_inference_steps": 1, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "nothing"}, "model must be one of emoji or a folder"),
        ({"dtype": "fp8"}, "dtype must be one of auto, fp32, bf16, fp16"),
        ({"device": "gameboy"}, "device must be"),
    ],
)
def test_bad_names_are_named(saved, options, message):
    with pytest.raises(ValueError, match=message):
        load_pipeline(**{"model": str(saved), **options})
    with pytest.raises(ValueError, match="scheduler must be one of"):
        make_scheduler("magic", {})
