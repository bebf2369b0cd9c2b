"""Covers `latent_shift.pipelines.components`, and saving and loading of whole models."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import hub_utils
from disk import full_disk
from huggingface_hub import ModelCard
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, BertTokenizerFast

from latent_shift import LatentShiftPipeline, LatentShiftUNet, PatchAutoencoderKL
from latent_shift.core.errors import DataError, InputError
from latent_shift.pipelines import convert_model
from latent_shift.pipelines.components import read_index

from .conftest import MakePipeline, make_kl_vae, make_unet

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


def run(pipeline: LatentShiftPipeline) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipeline("a red heart", num_inference_steps=2, generator=generator, output_type="pt").frames


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def test_round_trip_of_the_patch_autoencoder(pipeline: LatentShiftPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "model")
    loaded = LatentShiftPipeline.from_pretrained(tmp_path / "model")
    assert torch.equal(run(loaded), run(pipeline))
    loaded.save_pretrained(tmp_path / "again")
    for file in sorted(path for path in (tmp_path / "model").rglob("*") if path.is_file()):
        other = tmp_path / "again" / file.relative_to(tmp_path / "model")
        if file.name != "tokenizer_config.json":  # says whether it came from a folder
            assert other.read_bytes() == file.read_bytes(), file.name


def test_round_trip_of_diffusers_autoencoder_and_all_settings(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    settings = {
        "max_tokens": 5,
        "mask_padding": True,
        "default_frames": 2,
        "default_size": 8,
        "default_guidance_scale": 1.5,
        "default_motion_guidance": 0.5,
        "fps": 12.0,
    }
    options = {
        "shift_fold": 2,
        "default_boundary": "circular",
        "noise_correlation": 0.5,
        "shift_placement": "before_conv1",
    }
    pipeline = make_pipeline(unet=options, vae=make_kl_vae(), **settings)
    pipeline.save_pretrained(tmp_path / "model")
    loaded = LatentShiftPipeline.from_pretrained(str(tmp_path / "model"))
    assert torch.equal(run(loaded), run(pipeline))
    assert isinstance(loaded.vae, AutoencoderKL)
    assert {name: loaded.config[name] for name in settings} == settings
    assert {name: loaded.unet.config[name] for name in options} == options
    index = json.loads((tmp_path / "model/model_index.json").read_text())
    assert index["vae"] == ["diffusers", "AutoencoderKL"]


def test_the_folder_names_no_machine_and_no_module_of_ours(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    make_pipeline().save_pretrained(tmp_path / "first")
    # Loaded ones remember where they came from.
    LatentShiftPipeline.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
    for folder in (tmp_path / "first", tmp_path / "second"):
        index = json.loads((folder / "model_index.json").read_text())
        assert {name: value for name, value in index.items() if isinstance(value, list)} == {
            "vae": ["latent_shift", "PatchAutoencoderKL"],
            "text_encoder": ["transformers", "BertModel"],
            "tokenizer": ["transformers", "BertTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "scheduler": ["diffusers", "DDPMScheduler"],
        }
        assert index["_class_name"] == "LatentShiftPipeline"
        for file in folder.rglob("*"):
            if file.suffix == ".json":
                text = file.read_text()
                for forbidden in ("_name_or_path", "local_files_only", "is_local", str(tmp_path), "latent_shift."):
                    assert forbidden not in text, (file.name, forbidden)
            assert file.is_dir() or file.suffix in (".json", ".safetensors"), file.name


@torch.no_grad()
def test_diffusers_loads_the_unet_as_an_image_model(saved: Path) -> None:
    image_model, report = UNet2DConditionModel.from_pretrained(saved, subfolder="unet", output_loading_info=True)
    assert not any(report.values()), report
    sample, text = torch.randn(2, 4, 1, 4, 4), torch.randn(2, 8, 12)
    expected = make_unet()(sample, 5, text, boundary=None).sample[:, :, 0]
    assert torch.equal(image_model(sample[:, :, 0], 5, text).sample, expected)


def test_parts_and_settings_can_be_given(saved: Path) -> None:
    unet, scheduler = make_unet(noise_correlation=0.25), DDIMScheduler()
    loaded = LatentShiftPipeline.from_pretrained(saved, unet=unet, scheduler=scheduler, default_frames=7)
    assert loaded.unet is unet
    assert loaded.scheduler is scheduler
    assert isinstance(loaded.vae, PatchAutoencoderKL)
    assert (loaded.config.default_frames, loaded.config.default_size) == (7, 16)


@pytest.mark.parametrize("name", ["torch_dtype", "dtype"])
def test_dtypes_of_all_parts_or_each(saved: Path, name: str) -> None:
    bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
    for given, expected in (
        (None, (fp32, fp32, fp32)),
        (bf16, (bf16, bf16, bf16)),
        ({"default": fp16, "unet": bf16}, (bf16, fp16, fp16)),
        ({"unet": bf16}, (bf16, fp32, fp32)),
    ):
        loaded = LatentShiftPipeline.from_pretrained(saved, **{name: given})
        assert tuple(part.dtype for part in (loaded.unet, loaded.vae, loaded.text_encoder)) == expected


def test_weights_saved_in_fp16_load_in_fp32(pipeline: LatentShiftPipeline, tmp_path: Path) -> None:
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        torch.nn.Module.half(part)
    pipeline.save_pretrained(tmp_path / "model", variant="fp16")
    assert (tmp_path / "model/unet/diffusion_pytorch_model.fp16.safetensors").is_file()
    loaded = LatentShiftPipeline.from_pretrained(tmp_path / "model", variant="fp16")
    for part in ("unet", "vae", "text_encoder"):
        weights = getattr(loaded, part).state_dict()
        for key, value in getattr(pipeline, part).state_dict().items():
            assert weights[key].dtype == (torch.float32 if value.is_floating_point() else value.dtype)
            assert torch.equal(weights[key], value.to(weights[key].dtype)), key


def test_a_pooler_is_not_wanted(copy: Path) -> None:
    tensors = load_file(copy / TEXT)
    assert not any(key.startswith("pooler") for key in tensors)
    before = run(LatentShiftPipeline.from_pretrained(copy))
    save_file({**tensors, "pooler.dense.weight": torch.zeros(12, 12)}, copy / TEXT, {"format": "pt"})
    assert torch.equal(run(LatentShiftPipeline.from_pretrained(copy)), before)


def test_a_compiled_model_is_saved_as_what_it_is(pipeline: LatentShiftPipeline, tmp_path: Path) -> None:
    expected = run(pipeline)
    pipeline.unet = torch.compile(pipeline.unet, backend="eager")
    pipeline.save_pretrained(tmp_path / "model")
    assert torch.equal(run(LatentShiftPipeline.from_pretrained(tmp_path / "model")), expected)


def test_a_model_that_is_not_whole_is_not_saved(saved: Path, tmp_path: Path) -> None:
    loaded = LatentShiftPipeline.from_pretrained(saved, text_encoder=None)
    with pytest.raises(InputError, match="text_encoder must be there: a model is saved whole, got None"):
        loaded.save_pretrained(tmp_path / "model")
    assert not list(tmp_path.iterdir())


class TestSavingIsAtomic:
    @pytest.mark.parametrize("error", [RuntimeError("disk full"), KeyboardInterrupt()])
    def test_a_failure_leaves_nothing(
        self, pipeline: LatentShiftPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(pipeline.unet, "save_pretrained", fail)
        with pytest.raises(type(error)):
            pipeline.save_pretrained(tmp_path / "model")
        assert not list(tmp_path.iterdir())

    def test_a_failure_keeps_the_old_one(
        self, pipeline: LatentShiftPipeline, copy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}

        def fail(*_: Any) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", fail)
            with pytest.raises(InputError, match="No space left on device"):
                pipeline.save_pretrained(copy)
        assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before
        assert list(copy.parent.iterdir()) == [copy]

    def test_a_full_disk_is_one_line(self, pipeline: LatentShiftPipeline, saved: Path, tmp_path: Path) -> None:
        for name, write in (
            ("saved", pipeline.save_pretrained),
            ("converted", lambda place: convert_model(saved, place, "shift")),
        ):
            with full_disk() as limit, pytest.raises(DataError) as error:  # noqa: PT012
                limit(1000)
                write(tmp_path / name)
            assert re.fullmatch(rf"{tmp_path / name} cannot be written \(.*File too large.*\)", str(error.value))
        assert not list(tmp_path.iterdir())

    def test_a_model_replaces_a_model_whole(self, make_pipeline: MakePipeline, copy: Path) -> None:
        pipeline = make_pipeline(unet={"shift_fold": 4})
        pipeline.save_pretrained(copy)
        assert torch.equal(run(LatentShiftPipeline.from_pretrained(copy)), run(pipeline))
        assert list(copy.parent.iterdir()) == [copy]

    def test_other_files_are_never_lost(self, pipeline: LatentShiftPipeline, copy: Path, tmp_path: Path) -> None:
        work = tmp_path / "work"
        work.mkdir()
        pipeline.save_pretrained(work)  # empty
        (copy / "README.md").write_text("a card")
        (tmp_path / "papers").mkdir()
        (tmp_path / "papers/unet").mkdir()
        for folder, name in ((copy, "README.md"), (tmp_path / "papers", "unet")):
            with pytest.raises(InputError, match=f"be new, empty or a saved pipeline; it holds {name}, got"):
                pipeline.save_pretrained(folder)
            assert (folder / name).exists()

    def test_places_that_cannot_be_written(
        self, pipeline: LatentShiftPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match="save_directory must be a folder; it is a file, got"):
            pipeline.save_pretrained(tmp_path / "file")
        (tmp_path / "empty").mkdir()
        monkeypatch.chdir(tmp_path / "empty")
        with pytest.raises(InputError, match=r"save_directory must be another than the current folder .* got '\.'"):
            pipeline.save_pretrained(".")
        (tmp_path / "empty").rmdir()
        with pytest.raises(InputError, match="output must be in a folder that can be written"):
            pipeline.save_pretrained(tmp_path / "file/model")
        with pytest.raises(InputError, match="safe_serialization must be True: nothing is pickled, got False"):
            pipeline.save_pretrained(tmp_path / "model", safe_serialization=False)
        assert [path.name for path in tmp_path.iterdir()] == ["file"]


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoil(path: Path) -> None:
    path.write_bytes(b"{ no model" * 20)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, halve) for name in (UNET, VAE, TEXT)),
        *(
            (name, spoil)
            for name in (UNET, VAE, TEXT, "unet/config.json", "vae/config.json", "text_encoder/config.json")
        ),
        *((name, spoil) for name in ("scheduler/scheduler_config.json", "tokenizer/tokenizer.json")),
        ("tokenizer/tokenizer_config.json", spoil),
    ],
)
def test_a_damaged_file_is_named(copy: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(copy / name)
    with pytest.raises(DataError, match=f"{copy / name} cannot be loaded: ") as error:
        LatentShiftPipeline.from_pretrained(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (UNET, "unet cannot be loaded: .*no file named diffusion_pytorch_model.safetensors"),
        (VAE, "vae cannot be loaded: .*no file named diffusion_pytorch_model.safetensors"),
        (TEXT, "text_encoder cannot be loaded: .*no file named model.safetensors"),
        ("unet/config.json", "unet/config.json is missing"),
        ("vae", "vae/config.json is missing"),
        ("text_encoder/config.json", "text_encoder/config.json is missing"),
        ("tokenizer", "tokenizer/tokenizer_config.json is missing"),
        ("tokenizer/tokenizer.json", "tokenizer/vocab.txt is missing"),
        ("scheduler", "scheduler/scheduler_config.json is missing"),
    ],
)
def test_a_missing_file_is_named(copy: Path, name: str, message: str) -> None:
    place = copy / name
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink()
    with pytest.raises(DataError, match=message):
        LatentShiftPipeline.from_pretrained(copy)


def test_of_a_missing_variant_those_that_are_there_are_named(copy: Path) -> None:
    for name in (UNET, VAE, TEXT):
        (copy / name).rename((copy / name).with_suffix(".fp16.safetensors"))
    for variant in (None, "fp32"):
        with pytest.raises(DataError, match=f"has no weights of variant={variant!r}; it has those of variant='fp16'$"):
            LatentShiftPipeline.from_pretrained(copy, variant=variant)
    LatentShiftPipeline.from_pretrained(copy, variant="fp16")


def test_pickles_are_not_read(copy: Path) -> None:
    for name, pickled in ((UNET, "diffusion_pytorch_model.bin"), (TEXT, "pytorch_model.bin")):
        weights = (copy / name).read_bytes()
        torch.save(load_file(copy / name), (copy / name).with_name(pickled))
        (copy / name).unlink()
        with pytest.raises(DataError, match="no file named"):
            LatentShiftPipeline.from_pretrained(copy)
        (copy / name).write_bytes(weights)


def change(path: Path, kind: str) -> str:
    """Damages one key; returns its name."""
    tensors = load_file(path)
    key = next(key for key in sorted(tensors) if key.endswith(".bias"))
    if kind == "missing":
        del tensors[key]
    elif kind == "unexpected":
        key = "nonsense.weight"
        tensors[key] = torch.zeros(2)
    else:
        tensors[key] = torch.zeros(3, 2)
    save_file(tensors, path, {"format": "pt"})
    return key


@pytest.mark.parametrize("kind", ["missing", "unexpected"])
@pytest.mark.parametrize("name", [UNET, VAE, TEXT])
def test_every_key_must_fit(copy: Path, name: str, kind: str) -> None:
    key = change(copy / name, kind)
    folder = copy / name.split("/")[0]
    with pytest.raises(InputError, match=rf"weights in {folder} must fit the network, got .*{kind} keys \['{key}'\]"):
        LatentShiftPipeline.from_pretrained(copy)


@pytest.mark.parametrize("name", [UNET, VAE, TEXT])
def test_every_shape_must_fit(copy: Path, name: str) -> None:
    key = change(copy / name, "shape")
    with pytest.raises((InputError, DataError), match=key):
        LatentShiftPipeline.from_pretrained(copy)


@pytest.mark.parametrize(
    ("change_index", "message"),
    [
        (lambda index: index.pop("vae"), "model must have a model_index.json that names its vae, got"),
        (lambda index: index.update(scheduler="DDPM"), "have a model_index.json that names its scheduler"),
        (lambda index: index.update(text_encoder=[None, None]), "have a model_index.json that names its text_encoder"),
        (
            lambda index: index.update(vae=["diffusers", "NoSuchModel"]),
            "vae in .*model_index.json must be a class of diffusers, latent_shift, transformers, latent_diffusion, "
            "got 'diffusers.NoSuchModel'",
        ),
        (lambda index: index.update(vae=["os", "system"]), "got 'os.system'"),
    ],
)
def test_an_index_that_names_no_known_part(
    copy: Path, change_index: Callable[[dict[str, Any]], Any], message: str
) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    change_index(index)
    (copy / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=message):
        LatentShiftPipeline.from_pretrained(copy)


def test_no_pipeline(copy: Path, tmp_path: Path) -> None:
    for damage in ("[1, 2]", "{", None):
        (copy / "model_index.json").unlink()
        if damage is not None:
            (copy / "model_index.json").write_text(damage)
        with pytest.raises(InputError, match=rf"model must .*model_index.json, got '{copy}'"):
            LatentShiftPipeline.from_pretrained(copy)
    with pytest.raises(InputError, match=r"be a folder, or a name of the hub that can be reached \(\S.+\), got"):
        LatentShiftPipeline.from_pretrained(tmp_path / "nothing")


@pytest.fixture
def hub(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hub has the tiny model with what others put beside it; into the list go the files that were downloaded."""
    for name in (UNET, VAE, TEXT):
        for variant in (".fp16.safetensors", ".fp16-00001-of-00002.safetensors"):
            (copy / name).with_suffix(variant).touch()
        (copy / name).with_suffix(".bin").touch()
    (copy / "safety_checker").mkdir()
    for name in ("whole.safetensors", "README.md", "safety_checker/config.json", "unet/model.onnx"):
        (copy / name).touch()
    downloaded: list[str] = []

    def download(name: str, allow_patterns: list[str], ignore_patterns: list[str] | None, **_: Any) -> str:
        if name != "someone/model":
            raise OSError("404 Client Error\nmore of it")
        files = [str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()]
        kept = filter_repo_objects(files, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns)
        for file in sorted(kept):
            (tmp_path / "cache" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(copy / file, tmp_path / "cache" / file)
            downloaded.append(file)
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return downloaded


def test_a_model_of_the_hub_is_loaded_and_converted(saved: Path, hub: list[str], tmp_path: Path) -> None:
    expected = run(LatentShiftPipeline.from_pretrained(saved))
    assert torch.equal(run(LatentShiftPipeline.from_pretrained("someone/model")), expected)
    assert hub == sorted(str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file())
    convert_model("someone/model", tmp_path / "made", "shift")
    assert torch.equal(run(LatentShiftPipeline.from_pretrained(tmp_path / "made")), expected)
    assert not any(file.endswith(".bin") for file in hub)
    hub.clear()
    with pytest.raises(DataError):  # what the files of the variant hold is nothing
        LatentShiftPipeline.from_pretrained("someone/model", variant="fp16")
    weights = [file for file in hub if file.endswith(".safetensors")]
    assert len(weights) == 6
    assert all(".fp16" in file for file in weights)


def test_pickled_weights_of_the_hub_are_converted_where_there_are_no_others(
    copy: Path, hub: list[str], tmp_path: Path
) -> None:
    torch.save(load_file(copy / UNET), (copy / UNET).with_suffix(".bin"))
    (copy / UNET).unlink()
    convert_model("someone/model", tmp_path / "made", "shift")
    assert [file for file in hub if file.endswith(".bin")] == [UNET.replace(".safetensors", ".bin")]


def test_a_model_that_the_hub_does_not_have(hub: list[str]) -> None:
    for name, expected in (
        ("someone/else", r"be a folder, or a name of the hub that can be reached \(404 Client Error\)"),
        ("missing.ckpt", "be there: no such file"),
    ):
        with pytest.raises(InputError, match=f"^model must {expected}, got '{name}'$"):
            LatentShiftPipeline.from_pretrained(name)


def test_arguments_that_are_not_known(saved: Path) -> None:
    with pytest.raises(
        InputError, match="argument must be a part or setting of the pipeline, or revision, .* got 'shift'"
    ):
        LatentShiftPipeline.from_pretrained(saved, shift=3)


def test_a_setting_that_is_not_known_is_not_passed_over(copy: Path, tmp_path: Path) -> None:
    place = copy / "unet/config.json"
    config = json.loads(place.read_text())
    place.write_text(json.dumps({**config, "frame_frequencies": 4}))
    for load in (LatentShiftPipeline.from_pretrained, lambda model: convert_model(model, tmp_path / "made", "vdm")):
        with pytest.raises(InputError, match=r"^frame_frequencies in the config of .*unet.* must be left out"):
            load(str(copy))
    assert not (tmp_path / "made").exists()
    place.write_text(json.dumps({**config, "frame_frequencies": 0}))  # which asked for nothing
    LatentShiftPipeline.from_pretrained(copy)


def test_the_text_encoder_of_another_size_is_refused(copy: Path) -> None:
    config = BertConfig(vocab_size=13, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(config, add_pooling_layer=False).save_pretrained(copy / "other")
    (copy / "text_encoder/config.json").write_bytes((copy / "other/config.json").read_bytes())
    with pytest.raises(InputError, match="mismatched keys"):
        LatentShiftPipeline.from_pretrained(copy)


def test_a_tokenizer_of_a_vocabulary_file_is_whole(copy: Path, tokenizer_folder: Path) -> None:
    (copy / "tokenizer/tokenizer.json").unlink()
    shutil.copy(tokenizer_folder / "vocab.txt", copy / "tokenizer/vocab.txt")
    loaded = LatentShiftPipeline.from_pretrained(copy)
    assert isinstance(loaded.tokenizer, BertTokenizerFast)
    assert loaded.tokenizer("a red heart")["input_ids"] == [2, 5, 6, 8, 3]
    assert isinstance(loaded.unet, LatentShiftUNet)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"torch_dtype": "auto"}, "torch_dtype must be a torch.dtype, or map names of parts to them, got 'auto'"),
        ({"dtype": {"unet": "fp16"}}, "torch_dtype must be a torch.dtype, or map names of parts to them, got 'fp16'"),
        ({"device_map": "cpu"}, "device_map must be left out: move the pipeline with `to`, or offload it"),
        ({"use_safetensors": False}, "use_safetensors must be True, or left out, got False"),
        ({"low_cpu_mem_usage": False}, "low_cpu_mem_usage must be True, or left out, got False"),
    ],
    ids=str,
)
@pytest.mark.usefixtures("as_users_run")
def test_what_diffusers_takes_and_this_does_not(saved: Path, options: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=re.escape(named)):
        LatentShiftPipeline.from_pretrained(saved, **options)


def test_what_is_so_anyway_may_be_said(saved: Path) -> None:
    loaded = LatentShiftPipeline.from_pretrained(saved, use_safetensors=True, low_cpu_mem_usage=True, device_map=None)
    assert torch.equal(run(loaded), run(LatentShiftPipeline.from_pretrained(saved)))


def test_saving_does_not_upload(pipeline: LatentShiftPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="push_to_hub must be left out: the pipeline's method push_to_hub"):
        pipeline.save_pretrained(tmp_path / "model", push_to_hub=True)
    assert not list(tmp_path.iterdir())
    uploaded: list[dict[str, Any]] = []
    monkeypatch.setattr(hub_utils, "create_repo", lambda name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(hub_utils, "load_or_create_model_card", lambda *_, **__: ModelCard("a card"))
    monkeypatch.setattr(
        LatentShiftPipeline, "_upload_folder", lambda _self, folder, *_, **__: uploaded.append(read_index(Path(folder)))
    )
    pipeline.push_to_hub("us/model")
    (index,) = uploaded
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
