"""Covers `latent_shift.pipelines.loading`."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import latent_shift
from latent_shift.core.errors import InputError
from latent_shift.models.presets import PRESETS
from latent_shift.ops import Choice
from latent_shift.pipelines import MODELS, LatentShiftPipeline, load_pipeline, load_preset
from latent_shift.pipelines.loading import lay_out, model_folder, resolve_device


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("backend", ["eager", "native"])
def test_what_convolutions_compute_in_is_the_layout(dtype: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_channels_last(network: torch.nn.Module) -> bool:
        kernels = [weight for weight in network.parameters() if weight.dim() == 4 and weight.shape[-1] > 1]
        assert all(weight.is_contiguous() for weight in kernels) or not any(
            weight.is_contiguous() for weight in kernels
        )
        return kernels[0].is_contiguous(memory_format=torch.channels_last)

    monkeypatch.setattr("latent_shift.models.layers.choose_backend", lambda *_: Choice(backend, ""))
    pipeline = load_preset("tiny", "cpu", dtype)  # one channel a group
    assert is_channels_last(pipeline.unet) == (dtype == "bf16" and backend == "native")
    assert is_channels_last(pipeline.vae) == (dtype == "bf16")
    preset = dataclasses.replace(PRESETS["tiny"], unet={**PRESETS["tiny"].unet, "norm_num_groups": 4})
    unet = preset.build("cpu", pipeline.unet.dtype)["unet"]
    pipeline.register_modules(unet=unet)
    lay_out(pipeline)
    assert is_channels_last(unet) == (dtype == "bf16")


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_dtypes_on_the_cpu(saved: Path, name: str, dtype: torch.dtype) -> None:
    pipeline = load_pipeline(str(saved), "cpu", name)
    assert pipeline.unet.dtype == dtype
    assert pipeline.text_encoder.dtype == torch.float32
    assert pipeline.vae.dtype == (torch.bfloat16 if name == "bf16" else torch.float32)
    assert not any(part.training for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder))
    pipeline.set_progress_bar_config(disable=True)
    results = []
    for one in (pipeline, load_pipeline(str(saved), "cpu", "fp32")):
        one.set_progress_bar_config(disable=True)
        options = {"num_inference_steps": 2, "generator": torch.Generator().manual_seed(0), "output_type": "np"}
        results.append(one("a red heart", **options).frames)
    assert results[0].dtype == np.float32
    np.testing.assert_allclose(*results, atol={"fp32": 0, "bf16": 0.1, "fp16": 0.02}[name])


@pytest.fixture
def distilled(saved: Path, tmp_path: Path) -> Path:
    """The tiny model with a distilled difference beside it."""
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    generator = torch.Generator().manual_seed(5)
    shapes = {"conv_in.lora_A": (2, 4, 3, 3), "conv_in.lora_B": (8, 2, 1, 1)}
    tensors = {f"unet.{name}.weight": 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    (folder / "fast").mkdir()
    save_file(tensors, folder / "fast/pytorch_lora_weights.safetensors")
    return folder


def test_the_difference_of_a_fast_model_is_rounded_with_its_weights(distilled: Path) -> None:
    fast = {name: load_pipeline(str(distilled), "cpu", name, fast=True).unet for name in ("fp32", "bf16")}
    assert fast["bf16"].dtype == torch.bfloat16
    for name, tensor in fast["fp32"].state_dict().items():
        assert torch.equal(fast["bf16"].state_dict()[name], tensor.bfloat16()), name
    slow = load_pipeline(str(distilled), "cpu", "fp32").unet
    assert not torch.allclose(fast["fp32"].conv_in.weight, slow.conv_in.weight, atol=1e-3)


def test_a_fast_model_takes_its_few_steps_and_stays_fast_when_it_is_saved(distilled: Path, tmp_path: Path) -> None:
    def draw(pipeline: LatentShiftPipeline) -> Any:
        steps.clear()
        pipeline.set_progress_bar_config(disable=True)
        pipeline.unet.register_forward_pre_hook(lambda _, inputs: steps.append(len(inputs[0])))
        return pipeline("a red heart", generator=torch.Generator().manual_seed(0), output_type="np").frames

    steps: list[int] = []
    fast = load_pipeline(str(distilled), "cpu", "fp32", fast=True)
    expected = draw(fast)
    assert steps == [1] * 4
    fast.save_pretrained(tmp_path / "fast")
    loaded = load_pipeline(str(tmp_path / "fast"), "cpu", "fp32")
    assert loaded.is_fast
    assert np.array_equal(draw(loaded), expected)
    assert steps == [1] * 4
    with pytest.raises(InputError, match="fast must be left out: the model is distilled to few steps already"):
        load_pipeline(str(tmp_path / "fast"), "cpu", "fp32", fast=True)


def test_auto_takes_what_the_processor_is_good_at(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda fast=fast: fast)
        assert load_pipeline(str(saved), "cpu").unet.dtype == dtype


def test_auto_takes_the_fastest_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, name in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert resolve_device("auto") == torch.device(name)
    assert resolve_device("cpu") == torch.device("cpu")


def test_models_by_name_lie_in_the_package() -> None:
    package = Path(latent_shift.__file__).parent
    assert [model_folder(name) for name in MODELS] == [package / "weights" / name for name in MODELS]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "nothing"}, "model must be one of emoji or a folder with a model_index.json, got 'nothing'"),
        ({"model": "."}, r"model must be one of emoji or a folder with a model_index.json, got '\.'"),
        ({"dtype": "fp8"}, "dtype must be one of auto, fp32, bf16, fp16, got 'fp8'"),
        ({"device": "gameboy"}, "device must be auto, cpu, cuda, cuda:N or mps, and be present, got 'gameboy'"),
        ({"device": "meta"}, "device must be auto, cpu, cuda, cuda:N or mps, and be present, got 'meta'"),
        ({"device": "cuda:97"}, "device must be auto, cpu, cuda, cuda:N or mps, and be present, got 'cuda:97'"),
    ],
)
def test_names_that_are_refused(saved: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_pipeline(**{"model": str(saved), "device": "cpu", **options})


@pytest.mark.parametrize("name", ["tiny", "tiny-vdm"])
def test_a_preset_makes_clips(name: str) -> None:
    clips = []
    for _ in range(2):
        pipeline = load_preset(name, "cpu", "fp32", seed=3)
        assert not pipeline.text_encoder.training
        output = pipeline(
            "a waving hand", num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np"
        )
        clips.append(np.asarray(output.frames))
    assert clips[0].shape == (1, 4, 64, 64, 3)
    assert np.array_equal(clips[0], clips[1])
    assert np.isfinite(clips[0]).all()


def test_a_presets_sampler_is_the_papers() -> None:
    scheduler = load_preset("tiny", "cpu").scheduler
    assert type(scheduler).__name__ == "DDPMScheduler"
    scheduler.set_timesteps(100)
    assert scheduler.timesteps[0] == 999
    assert scheduler.timesteps[-1] == 0
    assert scheduler.betas[[0, -1]].tolist() == pytest.approx([8.5e-4, 1.2e-2])
