"""From a recipe to a run: whose folder it is, what is refused, and that a refusal leaves nothing behind."""

from __future__ import annotations

import json
import logging
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from latent_shift import LatentShiftPipeline, PatchAutoencoderKL
from latent_shift.core.errors import DataError, InputError, MissingExtraError
from latent_shift.data.sources import open_source
from latent_shift.training import Recipe, run, sources, train
from latent_shift.training.assembly import load_text_encoder
from latent_shift.training.networks import weights_digest
from latent_shift.training.noise import resolve_noise
from latent_shift.training.report import read_log
from latent_shift.training.trainer import TrainingInterrupted

from .conftest import MakeRecipe, make_stage_of

NOWHERE = "data.source must be a file or folder that exists, got 'nowhere'"


def refused(recipe: Recipe) -> str:
    """The message of a recipe that must fail before its first step and leave no trace."""
    before = Path(recipe.output).exists()
    with pytest.raises((InputError, DataError)) as caught:
        train(recipe, lambda *_: pytest.fail("a step was made"))
    assert Path(recipe.output).exists() == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused_at_once(recipe: Recipe) -> str:
    """The message of a recipe that a dry run, which reads no data, refuses as the run does."""
    message, parent = refused(recipe), Path(recipe.output).parent
    before = sorted(parent.rglob("*")) if parent.is_dir() else []
    with pytest.raises((InputError, DataError)) as caught:
        run.check_run(resolve_noise(recipe)[0])
    assert str(caught.value) == message
    assert (sorted(parent.rglob("*")) if parent.is_dir() else []) == before
    return message


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in folder.rglob("*")
        if path.name != "recipe.json" and path.is_file()
    }


@pytest.mark.parametrize("stage", ["autoencoder", "image", "video"])
def test_a_finished_run_does_nothing_again(
    make_recipe: MakeRecipe, stage: str, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = make_recipe(stage, steps=2)
    assert train(recipe) == Path(recipe.output) / "model"
    before = snapshot(Path(recipe.output))
    assert {"done.json", "log.jsonl", "loss.png"} <= before.keys()
    with caplog.at_level(logging.INFO):
        train(recipe, lambda *_: pytest.fail("a step was made"))
    assert f"{recipe.output} is complete" in caplog.text
    assert snapshot(Path(recipe.output)) == before


def test_a_complete_run_without_its_checkpoints_is_whose_it_was_and_does_not_begin_again(
    make_recipe: MakeRecipe,
) -> None:
    recipe = make_recipe("autoencoder", steps=2)
    output = train(recipe).parent
    shutil.rmtree(output / "checkpoints")
    before = snapshot(output)
    assert "it holds a run with optimizer.learning_rate" in refused(
        make_recipe("autoencoder", steps=2, optimizer={"learning_rate": 1e-5})
    )
    train(recipe, lambda *_: pytest.fail("a step was made"))
    gone = "output must be a new folder: it holds a run of 2 steps, whose checkpoints are gone, got "
    assert refused(make_recipe("autoencoder", steps=3)).startswith(gone)
    assert snapshot(output) == before
    shutil.rmtree(output / "model")
    assert refused(recipe).startswith(gone)
    (output / "recipe.json").unlink()
    assert "it holds a model without its recipe.json" in refused(recipe)


@pytest.mark.parametrize("old", [False, True], ids=["", "of a version whose done.json does not know the settings"])
def test_a_complete_run_writes_its_model_anew_where_that_is_gone_or_to_be_sampled_otherwise(
    make_recipe: MakeRecipe, road: Path, tmp_path: Path, old: bool
) -> None:
    shutil.copytree(road / "video", tmp_path / "run")
    done = tmp_path / "run/done.json"
    if old:
        facts = json.loads(done.read_text())
        del facts["settings"]
        done.write_text(json.dumps(facts))
    index = tmp_path / "run/model/model_index.json"
    wanted = {"guidance_scale": 9.0, "motion_guidance": 0.5, "noise_correlation": 0.9, "seam_frames": 2}
    for preview in (wanted, {**wanted, "guidance_scale": 2.0}):
        train(make_recipe("video", preview=preview), lambda *_: pytest.fail("a step was made"))
        written = json.loads(index.read_text())
        assert {name: written[f"default_{name}"] for name in preview} == preview
    before = snapshot(tmp_path / "run")
    train(make_recipe("video", preview=preview))
    assert snapshot(tmp_path / "run") == before
    shutil.rmtree(tmp_path / "run/model")
    train(make_recipe("video", preview=preview), lambda *_: pytest.fail("a step was made"))
    assert index.is_file()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": 1}, "seed = 0, not 1"),
        ({"batch_size": 5}, "batch_size = 4, not 5"),
        ({"optimizer": {"learning_rate": 1e-5}}, "optimizer.learning_rate = "),
        ({"autoencoder_loss": {"kl_weight": 0.5}}, "autoencoder_loss."),
        ({"data": {"balance_by": ""}}, "data.balance_by = "),
        ({"model": {"arguments": {"latent_channels": 5}}}, "model.arguments."),
        ({"precision": "bf16"}, "precision = 'fp32', not 'bf16'"),
    ],
)
def test_the_folder_of_another_recipe_is_refused(make_recipe: MakeRecipe, changes: dict[str, Any], key: str) -> None:
    recipe = make_recipe("autoencoder", steps=1)
    train(recipe)
    before = snapshot(Path(recipe.output))
    saved = (Path(recipe.output) / "recipe.json").read_bytes()
    message = refused_at_once(make_recipe("autoencoder", **changes))
    assert message.startswith(f"output must be a new folder: it holds a run with {key}")
    assert message.endswith(f", got {recipe.output!r}")
    assert snapshot(Path(recipe.output)) == before
    assert (Path(recipe.output) / "recipe.json").read_bytes() == saved


def test_a_run_of_a_version_with_fewer_settings_goes_on(make_recipe: MakeRecipe) -> None:
    train(make_recipe("autoencoder", steps=1))
    place = Path(make_recipe("autoencoder").output) / "recipe.json"
    facts = json.loads(place.read_text())
    del facts["recipe"]["autoencoder_loss"]["gradient_weight"]
    place.write_text(json.dumps(facts))
    assert train(make_recipe("autoencoder", steps=2)).is_dir()
    changed = make_recipe("autoencoder", steps=2, autoencoder_loss={"gradient_weight": 0.1, "crop": 8})
    assert "it holds a run with autoencoder_loss.gradient_weight = 1.0, not 0.1" in refused(changed)


def test_a_run_goes_on_without_a_setting_that_changed_nothing_and_was_taken_before(make_recipe: MakeRecipe) -> None:
    constant: dict[str, Any] = {"optimizer": {"lr_scheduler": "constant"}}
    train(make_recipe("autoencoder", steps=1, **constant))
    place = Path(make_recipe("autoencoder").output) / "recipe.json"
    facts = json.loads(place.read_text())
    facts["recipe"]["optimizer"]["decay_fraction"] = 0.9
    facts["recipe"]["lora"]["alpha"] = 3.0
    del facts["recipe"]["autoencoder_loss"]["kl_weight"]
    place.write_text(json.dumps(facts))
    assert train(make_recipe("autoencoder", steps=2, **constant)).is_dir()


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"lora": {"rank": 2}}, "lora.rank = 2, not 0"),
        (
            {"distillation": {"steps": 2}, "preview": {"num_inference_steps": 2, "guidance_scale": 1.0}},
            "distillation.steps = 2, not 0",
        ),
    ],
)
def test_what_decides_whether_others_are_used_may_not_change(
    make_recipe: MakeRecipe, given: dict[str, Any], key: str
) -> None:
    train(make_recipe("video", steps=1, model={"arguments": {}}, **given))
    assert f"it holds a run with {key}" in refused(make_recipe("video", steps=2, model={"arguments": {}}))


def test_what_changes_no_result_may_change(make_recipe: MakeRecipe) -> None:
    train(make_recipe("autoencoder", steps=2))
    steps: list[int] = []
    changes: dict[str, Any] = {"device": "auto", "checkpoint_minutes": 1.0, "preview": {"every": 7}, "steps": 3}
    changes |= {"log_every": 3, "data": {"max_bad_share": 0.5}}
    output = train(make_recipe("autoencoder", **changes), lambda done, *_: steps.append(done))
    assert steps == [3]
    assert json.loads((output.parent / "recipe.json").read_text())["recipe"]["preview"]["every"] == 7


def test_a_run_goes_on_where_its_folder_was_moved_to(make_recipe: MakeRecipe) -> None:
    before = Path(train(make_recipe("autoencoder", steps=2))).parent
    moved = make_recipe("autoencoder", "moved", steps=3)
    before.rename(moved.output)
    steps: list[int] = []
    train(moved, lambda done, *_: steps.append(done))
    assert steps == [3]


@pytest.mark.parametrize("cache", [True, False], ids=["cached", "live"])
def test_a_run_goes_on_with_its_records_wherever_they_are_and_with_no_others(
    make_recipe: MakeRecipe, squares: Path, tmp_path: Path, cache: bool
) -> None:
    data = {"cache": str(tmp_path / "cache") if cache else "", "balance_by": "label"}
    elsewhere = {**data, "source": str(tmp_path / "elsewhere"), "cache": str(tmp_path / "other cache") if cache else ""}
    shutil.copytree(squares, elsewhere["source"])
    train(make_recipe("image", steps=1, data=data))
    steps: list[int] = []
    moved = make_recipe("image", steps=2, data=elsewhere)
    train(moved, lambda done, *_: steps.append(done))
    assert steps == [2]
    kept = (Path(moved.output) / "recipe.json").read_bytes()
    table = Path(elsewhere["source"]) / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    expected = "data.source must hold the records and captions that the run began with, or output be a new folder"
    labelled = [{**row, "metadata": {**row["metadata"], "label": "one"}} for row in rows]
    captioned = [{**row, "caption": "else", "captions": ["else"]} for row in rows]
    for other in (rows[:-1], rows[::-1], labelled, captioned):
        table.write_text("".join(json.dumps(row) + "\n" for row in other))
        for asked in (2, 3):  # complete, and not
            message = refused(make_recipe("image", steps=asked, data=elsewhere))
            assert message == f"{expected}, got {elsewhere['source']!r}"
    assert (Path(moved.output) / "recipe.json").read_bytes() == kept


@pytest.mark.parametrize("stage", ["autoencoder", "image"])
def test_a_run_opens_its_records_once_also_where_it_goes_on(
    make_recipe: MakeRecipe, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def count(spec: str, argument: str) -> Any:
        opened.append(spec)
        return open_source(spec, argument)

    monkeypatch.setattr(sources, "open_source", count)
    for steps in (1, 2):
        recipe = make_recipe(stage, steps=steps)
        train(recipe)
        assert opened == [recipe.data.source] * steps


def test_clips_of_a_cache_are_not_those_that_come(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    train(make_recipe("image", steps=1, data={"cache": str(tmp_path / "cache")}))
    message = refused(make_recipe("image", steps=2, data={"cache": ""}))
    assert message.startswith("output must be a new folder: it holds a run with data.cache = ")


def test_a_checkpoint_that_knows_no_data_goes_on_with_its_source_alone(
    make_recipe: MakeRecipe, squares: Path, tmp_path: Path
) -> None:
    train(make_recipe("image", steps=1))
    (place,) = (tmp_path / "run/checkpoints").iterdir()
    manifest = json.loads((place / "manifest.json").read_text())
    del manifest["state"]["data"]
    (place / "manifest.json").write_text(json.dumps(manifest))
    shutil.copytree(squares, tmp_path / "elsewhere")
    message = refused(make_recipe("image", steps=2, data={"source": str(tmp_path / "elsewhere")}))
    assert message.startswith("output must be a new folder: it holds a run with data.source = ")
    assert train(make_recipe("image", steps=2)).is_dir()


def test_fewer_steps_than_were_done_are_refused_and_a_complete_run_keeps_its_recipe(make_recipe: MakeRecipe) -> None:
    output = train(make_recipe("autoencoder", steps=3)).parent
    saved = (output / "recipe.json").read_bytes()
    train(make_recipe("autoencoder", steps=2))
    assert (output / "recipe.json").read_bytes() == saved
    (output / "done.json").unlink()
    assert refused(make_recipe("autoencoder", steps=2)).startswith("steps must be at least 3, which ")


def test_a_run_that_took_no_step_leaves_its_folder_free(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise InputError("batch_size", 3, "be right")

    with monkeypatch.context() as patch:
        patch.setattr(run, "run_stage", fail)
        assert refused(make_recipe("autoencoder", batch_size=3)) == "batch_size must be right, got 3"
    recipe = make_recipe("autoencoder", steps=1)
    assert not Path(recipe.output).exists()
    Path(recipe.output).mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(run, "run_stage", fail)
        refused(make_recipe("autoencoder", batch_size=3))
    assert train(recipe).is_dir()


def test_a_run_that_fails_later_keeps_its_log(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = make_recipe("autoencoder", steps=1)

    def fail(*_: Any) -> None:
        (Path(recipe.output) / "log.jsonl").write_text('{"step": 1}\n')
        raise InputError("loss", "nan", "be finite")

    monkeypatch.setattr(run, "run_stage", fail)
    with pytest.raises(InputError):
        train(recipe)
    assert sorted(path.name for path in Path(recipe.output).iterdir()) == ["log.jsonl", "recipe.json"]


def test_a_run_that_stops_before_its_first_row_keeps_its_recipe(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("autoencoder", steps=3)
    with pytest.raises(TrainingInterrupted):
        train(recipe, lambda *_: signal.raise_signal(signal.SIGINT))
    output = Path(recipe.output)
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step_00000001"]
    other = make_recipe("autoencoder", steps=3, optimizer={"learning_rate": 5.0})
    assert "it holds a run with optimizer.learning_rate" in refused(other)
    (output / "recipe.json").rename(output / "elsewhere.json")
    assert refused(recipe).startswith("output must be a new folder: it holds checkpoints without their recipe.json")
    (output / "elsewhere.json").rename(output / "recipe.json")
    assert train(recipe).is_dir()


@pytest.mark.parametrize(("stage", "part"), [("video", "init"), ("image", "autoencoder"), ("image", "text_encoder")])
def test_a_run_goes_on_from_its_own_weights_alone(
    make_recipe: MakeRecipe, road: Path, tmp_path: Path, stage: str, part: str
) -> None:
    tree = make_recipe(stage).model_dump(exclude_unset=True)
    source = tmp_path / "source"
    shutil.copytree(tree["model"][part], source)
    model = {part: str(source)}
    train(make_recipe(stage, steps=1, model=model))
    (weights,) = {"init": source.glob("unet/*.safetensors"), "autoencoder": source.glob("*.safetensors")}.get(
        part, source.glob("text_encoder/*.safetensors")
    )
    before = load_file(weights)
    save_file({key: value + 0.5 for key, value in before.items()}, weights, {"format": "pt"})
    expected = "model must hold the weights and configurations that the run began from, or output be a new folder, got "
    for steps in (1, 2):
        assert refused_at_once(make_recipe(stage, steps=steps, model=model)).startswith(expected)
    save_file(before, weights, {"format": "pt"})
    assert train(make_recipe(stage, steps=2, model=model)).is_dir()


def test_a_run_goes_on_where_its_model_was_moved_and_has_more_beside_its_parts(
    make_recipe: MakeRecipe, road: Path, tmp_path: Path
) -> None:
    shutil.copytree(road / "image/model", tmp_path / "init")
    train(make_recipe("video", steps=1, model={"init": str(tmp_path / "init")}))
    moved = (tmp_path / "init").rename(tmp_path / "moved")
    (moved / "fast").mkdir()
    save_file({"a": torch.zeros(1)}, moved / "fast/pytorch_lora_weights.safetensors")
    assert train(make_recipe("video", steps=2, model={"init": str(moved)})).is_dir()
    config = moved / "unet/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "shift_fold": 4}))
    message = refused(make_recipe("video", steps=3, model={"init": str(moved)}))
    assert message.startswith("model must hold the weights and configurations that the run began from, or output be ")


def test_a_checkpoint_that_knows_weights_alone_goes_on(make_recipe: MakeRecipe, road: Path, tmp_path: Path) -> None:
    init = {"init": str(shutil.copytree(road / "image/model", tmp_path / "init"))}
    recipe = make_recipe("video", steps=1, model=init)
    train(recipe)
    (place,) = (tmp_path / "run/checkpoints").iterdir()
    manifest = json.loads((place / "manifest.json").read_text())
    del manifest["state"]["parts"]
    manifest["state"]["weights"] = weights_digest(recipe.model, parts_alone=False)
    (place / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "init").rename(tmp_path / "moved")
    moved = make_recipe("video", steps=2, model={"init": str(tmp_path / "moved")})
    assert "it holds a run with model.init = " in refused(moved)
    (tmp_path / "moved").rename(tmp_path / "init")
    assert train(make_recipe("video", steps=2, model=init)).is_dir()


def test_a_vdm_model_is_no_shift_model(make_recipe: MakeRecipe) -> None:
    init = train(make_recipe("video", "vdm", steps=1, model={"video": "vdm"}))
    message = refused_at_once(make_recipe("video", model={"init": str(init)}))
    assert message.startswith(f"model.video must be vdm, as {init} is (or: latent-shift convert {init} OUT --to shift)")


def test_a_text_encoder_without_a_pooling_layer_is_loaded(road: Path, tmp_path: Path) -> None:
    config = CLIPTextConfig(
        vocab_size=64, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    saved = CLIPTextModel(config)
    saved.save_pretrained(tmp_path / "text_encoder")
    shutil.copytree(road / "image/model/tokenizer", tmp_path / "tokenizer")
    loaded = load_text_encoder(tmp_path)["text_encoder"]
    assert loaded.state_dict().keys() == saved.state_dict().keys()
    assert all(torch.equal(value, saved.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_two_runs_do_not_share_a_folder(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("autoencoder", steps=1)
    Path(recipe.output).mkdir(parents=True)
    with FileLock(Path(recipe.output) / ".lock"):
        assert refused(recipe) == f"output must be a folder that no other run is using now, got {recipe.output!r}"
    train(recipe)
    assert not (Path(recipe.output) / ".lock").exists()


@pytest.mark.parametrize(
    ("changes", "boundary", "fps"),
    [
        ({}, "zero", 2.0),
        ({"diffusion": {"circular_share": 0.5}}, "circular", 2.0),
        ({"diffusion": {"circular_share": 1.0}, "init": "zero"}, "circular", 2.0),
        ({"diffusion": {"circular_share": 0.5}, "init": "zero"}, "zero", 2.0),
        ({"model": {"arguments": {"default_boundary": "circular"}}}, "circular", 2.0),
        ({"data": {"num_frames": 2, "duration_s": 0.2}}, "zero", 10.0),
    ],
)
def test_a_model_is_sampled_as_it_was_trained(
    make_recipe: MakeRecipe, road: Path, tmp_path: Path, changes: dict[str, Any], boundary: str, fps: float
) -> None:
    init = Path(shutil.copytree(road / "video/model", tmp_path / "init"))
    own = changes.get("init", "circular")
    for file, key, value in (("unet/config.json", "default_boundary", own), ("model_index.json", "fps", 2.0)):
        (init / file).write_text(json.dumps({**json.loads((init / file).read_text()), key: value}))
    changes = {"diffusion": {"circular_share": 0.0}} | {key: changes[key] for key in changes if key != "init"}
    changes["model"] = {"init": str(init), "arguments": {}, **changes.get("model", {})}
    pipeline = make_stage_of(make_recipe("video", **changes)).pipeline
    assert pipeline.unet.config.default_boundary == boundary
    assert pipeline.config.fps == fps


@pytest.mark.parametrize(("share", "boundary"), [(0.0, "zero"), (0.5, "zero"), (1.0, "circular")])
def test_a_model_of_pictures_becomes_one_of_videos(
    make_recipe: MakeRecipe, road: Path, share: float, boundary: str
) -> None:
    pictures = LatentShiftPipeline.from_pretrained(road / "image/model")
    assert pictures.unet.config.default_boundary is None
    assert make_stage_of(make_recipe("image")).pipeline.unet.config.default_boundary is None
    videos = make_stage_of(make_recipe("video", diffusion={"circular_share": share})).pipeline
    assert videos.unet.config.default_boundary == boundary


def test_the_resolved_recipe_is_kept_with_the_run(road: Path) -> None:
    facts = json.loads((road / "video" / "recipe.json").read_text())
    assert set(facts) == {"latent_shift", "torch", "recipe"}
    assert Recipe(**facts["recipe"]).diffusion.beta_start == 8.5e-4


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (
            "autoencoder",
            {"data": {"source": "nowhere"}},
            NOWHERE,
        ),
        ("image", {"data": {"source": "nowhere"}}, NOWHERE),
        ("autoencoder", {"device": "tpu"}, "device must be auto, cpu, cuda, cuda:N or mps, and be present, got 'tpu'"),
        ("video", {"model": {"init": "nowhere"}}, "model.init must be one of emoji or a folder with a model_index"),
        ("image", {"model": {"autoencoder": "nowhere"}}, "model.autoencoder must be the folder of a trained auto"),
        ("image", {"model": {"text_encoder": "nowhere"}}, "model.text_encoder must be a folder with text_encoder/ in"),
        ("image", {"model": {"arguments": {"sample_sise": 2}}}, "did you mean 'sample_size'?"),
        ("autoencoder", {"model": {"arguments": {"decoder_layer": 2}}}, "did you mean 'decoder_layers'?"),
        ("video", {"model": {"arguments": {"noise_corelation": 0.5}}}, "did you mean 'noise_correlation'?"),
        ("video", {"model": {"arguments": {"block_out_channels": [8, 24]}}}, "give a network that the weights of"),
        ("autoencoder", {"model": {"arguments": {"in_channels": 1}}}, "in_channels must be 3: pictures are RGB, got 1"),
        ("image", {"data": {"size": 20}}, "data.size must be a positive multiple of 16, got 20"),
        ("video", {"data": {"size": 24, "cache": ""}}, "data.size must be a positive multiple of 16, got 24"),
        ("video", {"model": {"video": "vdm"}, "lora": {"rank": 2}}, "lora.rank must be 0 where "),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_leaves_nothing(
    make_recipe: MakeRecipe, stage: str, changes: dict[str, Any], message: str
) -> None:
    recipe = make_recipe(stage, **changes)
    assert message in (refused if message == NOWHERE else refused_at_once)(recipe)


def test_an_autoencoder_is_no_text_to_image_model_and_a_text_encoder_no_autoencoder(
    make_recipe: MakeRecipe, road: Path, tiny_text: Path
) -> None:
    autoencoder = str(road / "autoencoder/model")
    message = refused_at_once(make_recipe("image", model={"autoencoder": str(tiny_text)}))
    assert message.startswith("model.autoencoder must be the folder of a trained autoencoder (config.json), got ")
    message = refused_at_once(make_recipe("video", model={"init": autoencoder}))
    assert message.startswith("model.init must be one of emoji or a folder with a model_index.json, got ")
    message = refused_at_once(make_recipe("autoencoder", model={"init": str(road / "image/model")}))
    assert message.startswith("model.init must be the folder of a trained autoencoder (config.json), got ")


def test_an_autoencoder_with_other_latents_does_not_fit(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    PatchAutoencoderKL(latent_channels=6).save_pretrained(tmp_path / "six")
    for stage in ("image", "video"):
        message = refused_at_once(make_recipe(stage, model={"autoencoder": str(tmp_path / "six")}))
        assert message == "model.arguments.in_channels must be 6, as the loaded parts have it, got 4"


@pytest.mark.parametrize("stage", ["autoencoder", "image", "video"])
def test_what_can_be_trained_is_not_refused_and_a_dry_run_makes_nothing(make_recipe: MakeRecipe, stage: str) -> None:
    recipe = make_recipe(stage, steps=1)
    resolved = resolve_noise(recipe)[0]
    run.check_run(resolved)
    assert not Path(recipe.output).exists()
    output = train(recipe).parent
    before = snapshot(output)
    run.check_run(resolved)  # complete
    run.check_run(resolved.model_copy(update={"steps": 2}))
    assert snapshot(output) == before


@pytest.mark.parametrize(
    ("key", "value", "expected"), [("in_channels", 8, 4), ("out_channels", 3, 4), ("cross_attention_dim", 32, 16)]
)
def test_a_unet_that_does_not_fit_the_loaded_parts_is_named(
    make_recipe: MakeRecipe, key: str, value: int, expected: int
) -> None:
    arguments = {**make_recipe("image").model.arguments, key: value}
    message = refused_at_once(make_recipe("image", model={"arguments": arguments}))
    assert message == f"model.arguments.{key} must be {expected}, as the loaded parts have it, got {value}"


def test_an_empty_data_folder_is_named(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = refused(make_recipe("autoencoder", data={"source": str(tmp_path / "empty")}))
    assert message.startswith("data.source must hold captioned video, which is one of: metadata.jsonl; ")
    assert message.endswith(f"got {str(tmp_path / 'empty')!r}")


@pytest.mark.parametrize("stage", ["autoencoder", "image", "video"])
@pytest.mark.parametrize("heldout", [{"name": "emoji-v1", "sha256": "0" * 64}, {"name": "mine", "sha256": "1"}])
def test_data_with_an_unknown_heldout_list_are_refused(
    make_recipe: MakeRecipe, squares: Path, tmp_path: Path, stage: str, heldout: dict[str, str]
) -> None:
    shutil.copytree(squares, tmp_path / "data")
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"name": "x", "heldout": heldout}))
    message = refused(make_recipe(stage, data={"source": str(tmp_path / "data")}))
    assert message.startswith("data must have the held-out list emoji-v1 (")
    assert heldout["name"] in message


def test_an_output_that_cannot_be_written_is_named(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refused_at_once(make_recipe("autoencoder", "file/run"))
    assert message.startswith("output must be in a folder that can be written (")


@pytest.mark.parametrize(
    "file",
    [
        "autoencoder/diffusion_pytorch_model.safetensors",
        "autoencoder/config.json",
        "text/text_encoder/model.safetensors",
        "text/text_encoder/config.json",
        "text/tokenizer/tokenizer.json",
    ],
)
@pytest.mark.parametrize("damage", ["cut", "empty", "garbage"])
def test_a_damaged_part_is_named(
    make_recipe: MakeRecipe, road: Path, tiny_text: Path, tmp_path: Path, file: str, damage: str
) -> None:
    shutil.copytree(road / "autoencoder" / "model", tmp_path / "autoencoder")
    shutil.copytree(tiny_text, tmp_path / "text")
    path = tmp_path / file
    content = path.read_bytes()
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b"", "garbage": b"\x00garbage" * 40}[damage])
    model = {"autoencoder": str(tmp_path / "autoencoder"), "text_encoder": str(tmp_path / "text")}
    assert path.parts[len(tmp_path.parts)] in refused_at_once(make_recipe("image", model=model))


def test_a_later_failure_keeps_the_folder_of_a_run(make_recipe: MakeRecipe, squares: Path, tmp_path: Path) -> None:
    """Only a folder that the failing call began goes; a run with checkpoints stays."""
    shutil.copytree(squares, tmp_path / "data")
    recipe = make_recipe("autoencoder", steps=1, data={"source": str(tmp_path / "data")})
    train(recipe)
    shutil.rmtree(tmp_path / "data")
    before = snapshot(Path(recipe.output))
    message = refused(make_recipe("autoencoder", steps=2, data={"source": str(tmp_path / "data")}))
    assert message.startswith("data.source must be a file or folder that exists")
    assert snapshot(Path(recipe.output)) == before
    assert (Path(recipe.output) / "recipe.json").exists()


def test_a_tracker_gets_the_rows_of_the_log(make_recipe: MakeRecipe) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = make_recipe("autoencoder", trackers=["tensorboard"], steps=4, log_every=2)
    train(recipe)
    events = EventAccumulator(str(Path(recipe.output) / "latent-shift"))
    events.Reload()
    for name in ("loss", "learning_rate"):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        rows = [(row["step"], row[name]) for row in read_log(Path(recipe.output) / "log.jsonl")]
        assert [step for step, _ in found] == [step for step, _ in rows] == [2, 4]
        assert [value for _, value in found] == pytest.approx([value for _, value in rows], rel=1e-4)


def test_weights_and_biases_gets_a_run_in_the_runs_folder(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    recipe = make_recipe("autoencoder", trackers=["wandb"], steps=4, log_every=2)
    train(recipe)
    (written,) = (Path(recipe.output) / "wandb").glob("offline-run-*/*.wandb")
    assert written.stat().st_size > 0


def test_a_tracker_that_is_not_installed_is_named(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    expected = r"^wandb is not installed; run: pip install 'latent-shift\[wandb\]'$"
    with pytest.raises(MissingExtraError, match=expected):
        train(make_recipe("autoencoder", trackers=["wandb"]))
    with pytest.raises(MissingExtraError, match=expected):
        run.check_run(make_recipe("autoencoder", trackers=["wandb"]))
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    for what in (train, run.check_run):
        with pytest.raises(MissingExtraError, match=r"^bitsandbytes is not installed; .*latent-shift\[adam8bit\]"):
            what(make_recipe("autoencoder", optimizer={"name": "adamw8bit"}))


def test_a_null_byte_is_in_no_folders_name(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("video").model_copy(update={"output": "a\0b"})
    expected = r"^output must be in a folder that can be written \([^()]*embedded null [^()]*\), got 'a"
    assert re.match(expected, refused_at_once(recipe))
