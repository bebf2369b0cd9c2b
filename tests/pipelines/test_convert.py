from __future__ import annotations

import json
import pickle
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from latent_shift.core.errors import DataError, InputError
from latent_shift.models import LatentShiftUNet, LatentVDMUNet
from latent_shift.pipelines import (
    LatentShiftPipeline,
    LatentShiftXLPipeline,
    convert_model,
    load_pipeline,
    load_preset,
)
from latent_shift.pipelines import _original_keys as original

from .original_networks import OpenClipText, TransformerWrapper
from .pretrained import SIZE, make_pipeline, perturb

KINDS = ["sd1", "sd2", "sdxl"]
PROMPT = "a red heart"


@pytest.fixture(scope="module", params=KINDS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Path]:
    """Kind, diffusers' pipeline, and its folder."""
    folder = tmp_path_factory.mktemp(request.param)
    pipeline = make_pipeline(request.param, folder / "words")
    pipeline.save_pretrained(folder / "model")
    return request.param, pipeline, folder / "model"


@pytest.fixture(scope="module")
def ldm() -> LatentShiftPipeline:
    """LDM's parts; every weight another, norms and zero-initialised layers too."""
    pipeline = load_preset("tiny", "cpu", "fp32", seed=1)
    for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        perturb(network)
    return pipeline


def networks(pipeline: Any) -> dict[str, torch.nn.Module]:
    return {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for key, tensor in first.items():
        assert torch.equal(tensor, second[key]), key


def draw(pipeline: Any, latents: torch.Tensor, **options: Any) -> np.ndarray:
    options = {"num_inference_steps": 3, "guidance_scale": 5.0, "output_type": "np", **options}
    if not isinstance(pipeline, LatentShiftPipeline):
        return np.asarray(pipeline(PROMPT, height=SIZE, width=SIZE, latents=latents, **options).images)
    pipeline.set_progress_bar_config(disable=True)
    made: Any = pipeline(PROMPT, num_frames=1, latents=latents[:, :, None], boundary=None, **options)
    return np.asarray(made.frames)[:, 0]


def test_a_folder_becomes_a_video_model_that_draws_the_same_pictures(
    source: tuple[str, Any, Path], tmp_path: Path
) -> None:
    kind, theirs, folder = source
    made = convert_model(folder, tmp_path / "video", "shift")
    ours = load_pipeline(str(tmp_path / "video"), "cpu", "fp32")
    assert type(ours) is (LatentShiftXLPipeline if kind == "sdxl" else LatentShiftPipeline)
    assert made.pipeline == type(ours).__name__
    assert made.new_parameters == 0
    assert type(ours.unet) is LatentShiftUNet
    for name, network in networks(theirs).items():
        assert_same_weights(network, getattr(ours, name))
        assert made.parameters[name] == sum(weight.numel() for weight in network.parameters())
    assert ours.scheduler.config.prediction_type == ("v_prediction" if kind == "sd2" else "epsilon")
    latents = torch.randn(1, 4, SIZE // 4, SIZE // 4, generator=torch.Generator().manual_seed(0))
    expected = draw(theirs, latents)
    np.testing.assert_allclose(draw(ours, latents), expected, atol=1e-5)
    assert np.ptp(expected) > 0.05
    worded = draw(theirs, latents, negative_prompt="blue")
    np.testing.assert_allclose(draw(ours, latents, negative_prompt="blue"), worded, atol=1e-5)
    assert np.abs(worded - expected).max() > 1e-3


def test_and_back(source: tuple[str, Any, Path], tmp_path: Path) -> None:
    _, theirs, folder = source
    for to in ("shift", "vdm"):
        convert_model(folder, tmp_path / to, to)
        convert_model(tmp_path / to, tmp_path / f"{to}-image", "image")
        loaded = DiffusionPipeline.from_pretrained(tmp_path / f"{to}-image")
        assert type(loaded) is type(theirs)
        for name, network in networks(theirs).items():
            assert_same_weights(network, getattr(loaded, name))


def test_latent_vdm_starts_as_the_image_model(source: tuple[str, Any, Path], tmp_path: Path) -> None:
    _, theirs, folder = source
    made = convert_model(folder, tmp_path / "vdm", "vdm")
    again = convert_model(folder, tmp_path / "again", "vdm")
    ours = load_pipeline(str(tmp_path / "vdm"), "cpu", "fp32")
    assert type(ours.unet) is LatentVDMUNet
    assert_same_weights(ours.unet, load_pipeline(str(tmp_path / "again"), "cpu", "fp32").unet)
    new = sum(weight.numel() for name, weight in ours.unet.named_parameters() if ".temporal_attentions." in name)
    assert made.new_parameters == again.new_parameters == new > 0
    latents = torch.randn(1, 4, SIZE // 4, SIZE // 4, generator=torch.Generator().manual_seed(0))
    ours.set_progress_bar_config(disable=True)
    frames = ours(PROMPT, latents=latents[:, :, None].repeat(1, 1, 3, 1, 1), num_frames=3, num_inference_steps=2)
    images = theirs(PROMPT, latents=latents, num_inference_steps=2, height=SIZE, width=SIZE, guidance_scale=7.5).images
    difference = np.asarray(frames.frames[0][1], int) - np.asarray(images[0], int)
    assert np.abs(difference).max() <= 1


def test_the_layout_of_ldm_on_the_hub(ldm: LatentShiftPipeline, tmp_path: Path) -> None:
    """Parts are called `vqvae` and `bert`, and the weights are pickled."""
    ldm.save_pretrained(tmp_path / "ours")
    convert_model(tmp_path / "ours", tmp_path / "image", "image")
    index = json.loads((tmp_path / "image" / "model_index.json").read_text())
    assert index["bert"] == ["latent_diffusion", "LDMBertModel"]
    for part in ("vqvae", "unet", "bert"):
        (place,) = (tmp_path / "image" / part).glob("*.safetensors")
        name = "pytorch_model.bin" if part == "bert" else "diffusion_pytorch_model.bin"
        torch.save(load_file(place), place.with_name(name))
        place.unlink()
    made = convert_model(tmp_path / "image", tmp_path / "video", "shift")
    loaded = load_pipeline(str(tmp_path / "video"), "cpu", "fp32")
    for name, network in networks(ldm).items():
        assert_same_weights(network, getattr(loaded, name))
    assert made.left_out == []
    assert loaded.max_prompt_tokens == 77
    assert not loaded.text_encoder.training


def original_state(pipeline: Any) -> dict[str, torch.Tensor]:
    """The U-Net and the autoencoder under the names of the original single file."""
    state = {}
    names = {new: old for old, new in original.unet_names(pipeline.unet.config).items()}
    for key, tensor in original.rename(pipeline.unet.state_dict(), names, "").items():
        state[f"model.diffusion_model.{key}"] = tensor
    names = {new: old for old, new in original.vae_names(pipeline.vae.config).items()}
    for key, tensor in original.rename(pipeline.vae.state_dict(), names, "").items():
        is_attention = ".attn_1." in key and tensor.ndim == 2
        state[f"first_stage_model.{key}"] = tensor[:, :, None, None] if is_attention else tensor
    return state


def test_the_original_names_are_those_that_diffusers_knows(source: tuple[str, Any, Path]) -> None:
    """diffusers' own converters take what our names, read backwards, make."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    _, pipeline, _ = source
    state = original_state(pipeline)
    unet = UNet2DConditionModel.from_config(pipeline.unet.config)
    unet.load_state_dict(convert_ldm_unet_checkpoint(dict(state), dict(pipeline.unet.config)), strict=True)
    assert_same_weights(unet, pipeline.unet)
    vae = AutoencoderKL.from_config(pipeline.vae.config)
    vae.load_state_dict(convert_ldm_vae_checkpoint(dict(state), dict(pipeline.vae.config)), strict=True)
    assert_same_weights(vae, pipeline.vae)


@pytest.mark.parametrize("ending", ["ckpt", "safetensors"])
def test_the_single_file_of_ldm(ldm: LatentShiftPipeline, ending: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = perturb(TransformerWrapper(vocabulary=30522, width=32, layers=2, tokens=77))
    state = original_state(ldm)
    state |= {f"cond_stage_model.transformer.{key}": tensor for key, tensor in text.state_dict().items()}
    state["betas"] = torch.linspace(0, 1, 10)
    path = tmp_path / f"model.{ending}"
    if ending == "ckpt":
        torch.save({"state_dict": state, "global_step": 7}, path)
    else:
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    convert_model(path, tmp_path / "video", "shift")
    loaded = load_pipeline(str(tmp_path / "video"), "cpu", "fp32")
    assert_same_weights(ldm.unet, loaded.unet)
    assert_same_weights(ldm.vae, loaded.vae)
    ids = loaded.tokenizer([PROMPT, ""], padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        torch.testing.assert_close(loaded.text_encoder(ids)[0], text(ids))
    assert loaded.max_prompt_tokens == 77
    assert loaded.config.default_size is None
    assert loaded.unet.config.sample_size == 32


@pytest.mark.parametrize("kind", KINDS)
def test_single_files_of_stable_diffusion(kind: str, tmp_path: Path) -> None:
    pipeline = make_pipeline(kind, tmp_path / "words")
    state = original_state(pipeline)
    encoders = [(pipeline.text_encoder, "cond_stage_model.transformer.text_model.")]
    if kind == "sd2":
        encoders = []
    elif kind == "sdxl":
        encoders = [(pipeline.text_encoder, "conditioner.embedders.0.transformer.text_model.")]
    for encoder, prefix in encoders:
        for key, tensor in encoder.state_dict().items():
            state[prefix + key.removeprefix("text_model.")] = tensor
        state[f"{prefix}embeddings.position_ids"] = torch.arange(16)[None]  # as older files have it
    open_clip = perturb(OpenClipText(vocabulary=len(pipeline.tokenizer), width=64, layers=4, tokens=16))
    prefix = {"sd2": "cond_stage_model.model.", "sdxl": "conditioner.embedders.1.model."}.get(kind)
    if prefix:
        state |= {prefix + key: tensor for key, tensor in open_clip.state_dict().items()}
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "model.safetensors")
    options = {"tokenizer": str(tmp_path / "words"), "prediction_type": "v_prediction" if kind == "sd2" else None}
    convert_model(tmp_path / "model.safetensors", tmp_path / "video", "shift", **options)
    loaded: Any = load_pipeline(str(tmp_path / "video"), "cpu", "fp32")
    assert_same_weights(pipeline.unet, loaded.unet)
    assert_same_weights(pipeline.vae, loaded.vae)
    assert loaded.scheduler.config.prediction_type == (options["prediction_type"] or "epsilon")
    assert loaded.unet.config.attention_head_dim == pipeline.unet.config.attention_head_dim
    ids = loaded.tokenizer([PROMPT], padding="max_length", max_length=16, return_tensors="pt").input_ids
    with torch.no_grad():
        if kind != "sd2":
            torch.testing.assert_close(loaded.text_encoder(ids)[0], pipeline.text_encoder(ids)[0])
        else:  # the last layer is left out, the last norm is not
            torch.testing.assert_close(loaded.text_encoder(ids)[0], open_clip(ids, layers=3)[0], atol=1e-5, rtol=1e-4)
        if kind == "sdxl":
            ends = ids.clone()
            ends[:, -1] = len(pipeline.tokenizer) - 1
            pooled = loaded.text_encoder_2(ends)[0]
            torch.testing.assert_close(pooled, open_clip(ends, layers=4)[1], atol=1e-5, rtol=1e-4)
            assert loaded.tokenizer_2.pad_token == "!"


def test_the_records_of_a_trainer_are_passed_over_and_nothing_else_is(
    ldm: LatentShiftPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import types

    module = types.ModuleType("pytorch_lightning.callbacks")

    class ModelCheckpoint:
        pass

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = module.__name__, "ModelCheckpoint"
    module.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    text = TransformerWrapper(vocabulary=30522, width=32, layers=2, tokens=77)
    state = original_state(ldm)
    state |= {f"cond_stage_model.transformer.{key}": tensor for key, tensor in text.state_dict().items()}
    torch.save({"state_dict": state, "callbacks": {ModelCheckpoint: {"best": 1.0}}}, tmp_path / "model.ckpt")
    monkeypatch.undo()
    convert_model(tmp_path / "model.ckpt", tmp_path / "video", "shift")
    assert_same_weights(ldm.unet, load_pipeline(str(tmp_path / "video"), "cpu", "fp32").unet)


class Evil:
    def __reduce__(self) -> Any:
        return Path.write_text, (Path("evil.txt"), "was here")


@pytest.mark.parametrize("protocol", ["zip", "old"])
def test_nothing_is_unpickled_but_tensors(protocol: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {}, "evil": Evil()}, path, _use_new_zipfile_serialization=protocol == "zip")
    with pytest.raises(DataError, match=r"model\.ckpt is not read, it holds more than tensors"):
        convert_model(path, tmp_path / "video", "shift")
    assert not (tmp_path / "evil.txt").exists()
    assert not (tmp_path / "video").exists()
    pickle.dumps(Evil())  # it is a pickle that would run


@pytest.mark.parametrize("size", [0, 1, 20, 250, 300, 400, -10])
def test_a_checkpoint_that_is_cut_is_one_line(size: int, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(100)}}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:size])
    expected = r"cannot be loaded: \S.*|is not read, it holds more than tensors, or is damaged"
    with pytest.raises(DataError, match=rf"^{path} ({expected})$"):
        convert_model(path, tmp_path / "video", "shift")


@pytest.mark.parametrize("tree", [[torch.zeros(1)], {1: torch.zeros(1)}, {"state_dict": [torch.zeros(1)]}])
def test_a_checkpoint_without_names_is_one_line(tree: Any, tmp_path: Path) -> None:
    torch.save(tree, tmp_path / "model.ckpt")
    with pytest.raises(DataError, match=r"model\.ckpt cannot be loaded: it holds no tensors by name$"):
        convert_model(tmp_path / "model.ckpt", tmp_path / "video", "shift")


def change(folder: Path, edit: Any) -> None:
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    edit(state)
    save_file(state, path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda state: state.pop("conv_in.bias"), "unet of .* must fit LatentShiftUNet, got 'missing conv_in.bias'"),
        (lambda state: state.update(odd=torch.zeros(1)), "must fit LatentShiftUNet, got 'unexpected odd'"),
        (
            lambda state: state.update({"conv_in.bias": torch.zeros(3)}),
            r"conv_in.bias must have the shape \(32,\), got \(3,\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_written(edit: Any, message: str, tmp_path: Path) -> None:
    make_pipeline("sd1", tmp_path / "words").save_pretrained(tmp_path / "model")
    change(tmp_path / "model", edit)
    with pytest.raises(InputError, match=message):
        convert_model(tmp_path / "model", tmp_path / "video", "shift")
    assert not (tmp_path / "video").exists()


def test_what_cannot_be_converted_is_told(ldm: LatentShiftPipeline, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="to must be one of shift, vdm, image, got 'clip'"):
        convert_model("emoji", tmp_path / "x", "clip")
    with pytest.raises(InputError, match="have an autoencoder of diffusers, which PatchAutoencoderKL is not"):
        convert_model("emoji", tmp_path / "x", "image")
    with pytest.raises(InputError, match=r"prediction_type must be given for single files only"):
        convert_model("emoji", tmp_path / "x", "shift", prediction_type="epsilon")
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="prediction_type must be one of epsilon, v_prediction, got 'x0'"):
        convert_model(tmp_path / "a.safetensors", tmp_path / "x", "shift", prediction_type="x0")
    with pytest.raises(InputError, match=r"source must hold a U-Net \(model\.diffusion_model\.\*\)"):
        convert_model(tmp_path / "a.safetensors", tmp_path / "x", "shift")
    with pytest.raises(InputError, match="variant must be given for folders only"):
        convert_model(tmp_path / "a.safetensors", tmp_path / "x", "shift", variant="fp16")
    (tmp_path / "b.safetensors").write_bytes(b"no")
    with pytest.raises(DataError, match=r"b\.safetensors cannot be loaded"):
        convert_model(tmp_path / "b.safetensors", tmp_path / "x", "shift")
    state = original_state(ldm)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "c.safetensors")
    with pytest.raises(InputError, match="source must hold the text encoder of LDM, Stable Diffusion"):
        convert_model(tmp_path / "c.safetensors", tmp_path / "x", "shift")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(InputError, match="be new, empty or a saved pipeline; it holds thesis.txt"):
        convert_model("emoji", tmp_path / "mine", "shift")
    with pytest.raises(InputError, match="destination must be a folder; it is a file, got"):
        convert_model("emoji", tmp_path / "a.safetensors", "shift")
    assert not (tmp_path / "x").exists()


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_models_that_need_a_picture_are_refused(tmp_path: Path) -> None:
    pipeline: Any = make_pipeline("sd1", tmp_path / "words")
    pipeline.save_pretrained(tmp_path / "model")
    edit_json(tmp_path / "model/unet/config.json", in_channels=9)
    state = original_state(pipeline)
    state["model.diffusion_model.input_blocks.0.0.weight"] = torch.zeros(32, 9, 3, 3)
    prefix = "cond_stage_model.transformer.text_model."
    state |= {prefix + key.removeprefix("text_model."): one for key, one in pipeline.text_encoder.state_dict().items()}
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "model.safetensors")
    expected = "source must have a U-Net that takes and gives the 4 channels of its latents; it takes 9 and gives 4"
    for source in (tmp_path / "model", tmp_path / "model.safetensors"):
        with pytest.raises(InputError, match=expected):
            convert_model(source, tmp_path / "video", "shift")
    assert not (tmp_path / "video").exists()


def test_folders_that_are_not_as_diffusers_writes_them(tmp_path: Path) -> None:
    def refused(kind: type[Exception], message: str, **options: Any) -> None:
        with pytest.raises(kind, match=message):
            convert_model(tmp_path / "model", tmp_path / "video", "shift", **options)

    make_pipeline("sd1", tmp_path / "words").save_pretrained(tmp_path / "model")
    index = tmp_path / "model/model_index.json"
    for name, message in (
        ("NoSuchScheduler", "scheduler in .* must be a class of .* got 'diffusers.NoSuchScheduler'"),
        ("AutoencoderKL", "source must have a scheduler of diffusers, got 'AutoencoderKL'"),
    ):
        edit_json(index, scheduler=["diffusers", name])
        refused(InputError, message)
    edit_json(index, scheduler=["diffusers", "DDIMScheduler"])
    weights = tmp_path / "model/unet/diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    refused(DataError, r"unet has no weights \(.*\); it has variants: fp16$")
    shards = weights.with_name(f"{weights.name}.index.json")
    for content in ("{}", '{"weight_map": {"a": 3}}'):
        shards.write_text(content)
        refused(DataError, f"{shards} cannot be loaded: it has no weight_map of files")


def test_stable_diffusion_2_needs_to_be_told_what_it_predicts(tmp_path: Path) -> None:
    pipeline = make_pipeline("sd2", tmp_path / "words")
    state = original_state(pipeline)
    text = OpenClipText(vocabulary=100, width=64, layers=2, tokens=16)
    state |= {f"cond_stage_model.model.{key}": tensor for key, tensor in text.state_dict().items()}
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"prediction_type must be given for Stable Diffusion 2\.x"):
        convert_model(tmp_path / "model.safetensors", tmp_path / "video", "shift")


def test_half_precision_stays(source: tuple[str, Any, Path], tmp_path: Path) -> None:
    _, _, folder = source
    DiffusionPipeline.from_pretrained(folder).to(torch.float16).save_pretrained(tmp_path / "half", variant="fp16")
    convert_model(tmp_path / "half", tmp_path / "video", "vdm", variant="fp16")
    for file in (tmp_path / "video").rglob("*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}


MEASURE = """
import resource, sys
from latent_shift.pipelines import convert_model
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert_model(sys.argv[1], sys.argv[2], "shift")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "ckpt"])
def test_one_network_at_a_time_is_in_memory(form: str, tmp_path: Path) -> None:
    """Peak memory stays under 1.3 times the largest part, here 400 MB of a U-Net beside 390 MB of text encoder."""
    torch.manual_seed(0)
    pipeline = load_preset("tiny", "cpu", "fp32")
    config = {**pipeline.unet.config, "block_out_channels": [128, 256, 512, 512], "cross_attention_dim": 32}
    pipeline.unet = LatentShiftUNet.from_config(config)
    text = TransformerWrapper(vocabulary=30522, width=1536, layers=2, tokens=77)
    largest = sum(tensor.nbytes for tensor in pipeline.unet.state_dict().values())
    state = original_state(pipeline)
    state |= {f"cond_stage_model.transformer.{key}": tensor for key, tensor in text.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    if form == "folder":
        convert_model(tmp_path / "model.ckpt", tmp_path / "folder", "shift")
    source = tmp_path / ("folder" if form == "folder" else "model.ckpt")
    command = [sys.executable, "-c", MEASURE, str(source), str(tmp_path / "video")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    peak = int(result.stdout.split()[-1]) * (1024 if sys.platform != "darwin" else 1)
    both = largest + sum(tensor.nbytes for tensor in text.state_dict().values())
    assert largest < both / 1.3
    assert peak < 1.3 * largest
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss > 0


@pytest.mark.parametrize("to", ["shift", "vdm"])
def test_a_model_of_pictures_becomes_one_of_videos(ldm: LatentShiftPipeline, tmp_path: Path, to: str) -> None:
    ldm.save_pretrained(tmp_path / "pictures")
    config = tmp_path / "pictures/unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "default_boundary": None}))
    assert LatentShiftPipeline.from_pretrained(tmp_path / "pictures").unet.default_boundary is None
    convert_model(tmp_path / "pictures", tmp_path / to, to)
    assert LatentShiftPipeline.from_pretrained(tmp_path / to).unet.default_boundary == "zero"
