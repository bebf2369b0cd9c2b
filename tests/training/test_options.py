"""Every option bites: for each field of a recipe there is a run that another value changes."""

from __future__ import annotations

import ast
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from latent_shift.core.config import Config
from latent_shift.core.errors import DataError, InputError
from latent_shift.training import Recipe, train
from latent_shift.training.checkpoint import latest_checkpoint
from latent_shift.training.report import read_log

from .conftest import MakeRecipe

COMPILED = """
import sys
from functools import partial
import torch
from torch._dynamo.utils import counters
from latent_shift.training import Recipe, train

torch.compile = partial(torch.compile, backend="eager", fullgraph=True)  # traced whole, but no code is generated
train(Recipe.model_validate_json(sys.argv[1]))
print(counters["stats"]["unique_graphs"])
"""

V: dict[str, Any] = {"prediction_type": "v_prediction"}

FEW: dict[str, Any] = {
    "preview": {"num_inference_steps": 2, "guidance_scale": 1.0},
    "distillation": {"steps": 2},
    "model": {"arguments": {}},
}

CHANGES: dict[str, tuple[str, dict[str, Any], Any]] = {
    # field: the stage it is tried in, what else is set in both runs, and the other value
    "seed": ("video", {}, 1),
    "steps": ("video", {}, 3),
    "batch_size": ("video", {}, 2),
    "image_batch_size": ("video", {"steps": 4}, 2),
    "precision": ("video", {}, "bf16"),
    "log_every": ("video", {}, 1),
    "keep_every": ("video", {}, 1),
    "data.size": ("video", {}, 32),
    "data.num_frames": ("video", {}, 2),
    "data.duration_s": ("video", {"data": {"num_frames": 2}}, 0.2),
    "data.balance_by": ("video", {}, "label"),
    "model.video": ("video", {}, "vdm"),
    "model.max_tokens": ("image", {}, 5),
    "model.arguments": ("video", {}, {"noise_correlation": 0.9}),
    "lora.rank": ("video", {"lora": {"rank": 2}}, 3),
    "lora.alpha": ("video", {"lora": {"rank": 2}}, 3.0),
    "lora.target_modules": ("video", {"lora": {"rank": 2}}, ["conv1"]),
    "optimizer.name": ("video", {}, "adam"),
    "optimizer.learning_rate": ("video", {}, 1e-3),
    "optimizer.betas": ("video", {}, [0.5, 0.9]),
    "optimizer.weight_decay": ("video", {"optimizer": {"learning_rate": 1e-2}}, 0.9),
    "optimizer.warmup_steps": ("video", {}, 0),
    "optimizer.lr_scheduler": ("video", {"optimizer": {"decay_fraction": 0.9}}, "cosine"),
    "optimizer.decay_fraction": ("video", {}, 0.9),
    "optimizer.max_grad_norm": ("video", {"optimizer": {"learning_rate": 1e-2, "warmup_steps": 0}}, 1e-9),
    "optimizer.ema_decay": ("video", {}, 0.05),
    "autoencoder_loss.gradient_weight": ("autoencoder", {}, 5.0),
    "autoencoder_loss.kl_weight": ("autoencoder", {}, 1.0),
    "autoencoder_loss.crop": ("autoencoder", {}, 16),
    "diffusion.num_train_timesteps": ("video", {}, 500),
    "diffusion.beta_start": ("video", {}, 1e-3),
    "diffusion.beta_end": ("video", {}, 2e-2),
    "diffusion.beta_schedule": ("video", {}, "linear"),
    "diffusion.prediction_type": ("video", {}, "v_prediction"),
    "diffusion.zero_terminal_snr": ("video", {"diffusion": V}, True),
    "diffusion.min_snr_gamma": ("video", {}, 0.5),
    "diffusion.timestep_shift": ("video", {}, 3.0),
    "diffusion.motion_weight": ("video", {}, 3.0),
    "diffusion.caption_dropout": ("video", {}, 0.9),
    "diffusion.text_noise": ("video", {}, 1.0),
    "diffusion.image_share": ("video", {}, 0.75),
    "diffusion.joint_images": ("video", {"diffusion": {"image_share": 0.5}}, True),
    "diffusion.circular_share": ("video", {}, 0.0),
    "diffusion.random_phase": ("video", {}, True),
    "distillation.teacher_steps": ("video", FEW, 1),
    "distillation.guidance_scale": ("video", FEW, 9.0),
    "export_dtype": ("video", {}, "fp32"),
    "preview.every": ("video", {}, 1),
    "preview.prompts": ("video", {}, ["a blue square"]),
    "preview.num_inference_steps": ("video", {}, 3),
    "preview.guidance_scale": ("video", {}, 9.0),
    "preview.motion_guidance": ("video", {}, 0.5),
    "preview.guidance_interval": ("video", {}, [0.0, 0.5]),
    "preview.noise_correlation": ("video", {}, 0.9),
    "preview.seam_frames": ("video", {}, 2),
}
REFUSED = "test_run.py::test_what_cannot_be_trained_is_one_line_and_leaves_nothing"
BEGINNINGS = "test_options.py::test_what_a_run_begins_with_changes_it"
ELSEWHERE = {
    "stage": "test_road.py::test_a_run_leaves_log_curve_checkpoint_recipe_and_done",
    "output": "test_run.py::test_the_folder_of_another_recipe_is_refused",
    "data.source": BEGINNINGS,
    "data.cache": "test_denoising.py::test_without_a_cache_clips_are_decoded_and_encoded_as_they_come",
    "data.short": "test_options.py::test_short_videos_are_bad_or_taken_whole",
    "data.max_bad_share": "test_options.py::test_a_share_of_bad_videos_is_borne",
    "model.autoencoder": BEGINNINGS,
    "model.text_encoder": BEGINNINGS,
    "model.init": BEGINNINGS,
    "lora.init": "test_denoising.py::test_lora_goes_on_from_a_file",
    "autoencoder_loss.latent_noise": "test_autoencoding.py::test_the_loss_sees_that_noise",
    "distillation.steps": "test_distillation.py::test_a_student_learns_and_is_fast",
    # What makes a run faster or smaller and must not change what it learns:
    "micro_batch_size": "test_trainer.py::test_micro_batches_change_rounding_alone",
    "gradient_checkpointing": "test_denoising.py::test_gradient_checkpointing_changes_no_gradient",
    "workers": "test_trainer.py::test_workers_draw_what_the_process_itself_would",
    "device": REFUSED,
    "compile": "test_options.py::test_a_compiled_run_is_whole_graphs_and_learns_the_same",
    "checkpoint_minutes": "test_trainer.py::test_checkpoints_come_by_the_clock_and_two_stay",
    "keep_checkpoints": "test_trainer.py::test_milestones_stay",
    "trackers": "test_run.py::test_a_tracker_gets_the_rows_of_the_log",
}


def fields(cls: type[Config], prefix: str = "") -> Iterator[str]:
    for name, field in cls.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Config):
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def outcome(recipe: Recipe) -> str:
    """A hash of all that a run leaves: files and their bytes, the log without its clock, the checkpoint's tensors."""
    output, digest = Path(recipe.output), hashlib.sha256()
    for path in sorted(output.rglob("*")):
        digest.update(str(path.relative_to(output)).encode())
        if path.is_dir() or path.parent == output or "checkpoints" in path.parts:
            continue
        if path.suffix == ".safetensors":  # the order of what its header says besides the tensors is chance
            digest.update(repr(sorted((name, tensor.tolist()) for name, tensor in load_file(path).items())).encode())
        else:
            digest.update(path.read_bytes())
    for row in read_log(output / "log.jsonl"):
        digest.update(repr((row["step"], row["loss"], row["learning_rate"])).encode())
    found = latest_checkpoint(output / "checkpoints")
    assert found is not None
    for tensors in found[0].values():
        for name in sorted(tensors):
            digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def test_a_key_that_no_record_has_balances_nothing(make_recipe: MakeRecipe) -> None:
    for stage in ("autoencoder", "image", "video"):
        with pytest.raises(InputError, match=r"data.balance_by must be among the metadata of the records, label"):
            train(make_recipe(stage, data={"balance_by": "lable"}))


def test_no_field_is_forgotten() -> None:
    assert set(fields(Recipe)) == CHANGES.keys() | ELSEWHERE.keys()
    assert not CHANGES.keys() & ELSEWHERE.keys()


@pytest.mark.parametrize("test", sorted(set(ELSEWHERE.values())))
def test_the_tests_elsewhere_exist(test: str) -> None:
    file, _, name = test.partition("::")
    tree = ast.parse((Path(__file__).parent / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(
    ("key", "stage"),
    [
        ("data.source", "video"),
        ("model.autoencoder", "image"),
        ("model.text_encoder", "image"),
        ("model.init", "video"),
    ],
)
def test_what_a_run_begins_with_changes_it(make_recipe: MakeRecipe, tmp_path: Path, key: str, stage: str) -> None:
    table, _, name = key.partition(".")
    one = make_recipe(stage, "one", steps=2)
    changed = tmp_path / "changed"
    shutil.copytree(getattr(getattr(one, table), name), changed)
    for file in changed.rglob("*.safetensors"):
        save_file({part: 1.1 * tensor for part, tensor in load_file(file).items()}, file)
    if key == "data.source":
        rows = [json.loads(line) for line in (changed / "metadata.jsonl").read_text().splitlines()]
        rows = [{**row, "caption": "a triangle", "captions": ["a triangle"]} for row in rows]
        (changed / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    other = make_recipe(stage, "other", steps=2, **{table: {name: str(changed)}})
    losses = []
    for recipe in (one, other):
        train(recipe)
        losses.append([row["loss"] for row in read_log(Path(recipe.output) / "log.jsonl")])
    assert losses[0] != losses[1]


@pytest.mark.parametrize("key", CHANGES)
def test_another_value_changes_the_run(make_recipe: MakeRecipe, key: str) -> None:
    stage, both, value = CHANGES[key]
    table, _, name = key.rpartition(".")
    changed: dict[str, Any] = {**both, table: {**both.get(table, {}), name: value}} if table else {**both, name: value}
    quick: dict[str, Any] = {"steps": 2}
    one, other = make_recipe(stage, "one", **{**quick, **both}), make_recipe(stage, "other", **{**quick, **changed})
    for recipe in (one, other):
        train(recipe)
    assert outcome(one) != outcome(other)


@pytest.mark.parametrize(
    "options",
    [{}, {"lora": {"rank": 2}}, {"model": {"video": "vdm"}}],
    ids=["all weights", "lora", "new layers"],
)
def test_the_same_values_change_nothing(make_recipe: MakeRecipe, options: dict[str, Any]) -> None:
    recipes = [make_recipe("video", name, steps=4, **options) for name in ("one", "again")]
    for recipe in recipes:
        train(recipe)
    assert outcome(recipes[0]) == outcome(recipes[1])


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_compiled_run_is_whole_graphs_and_learns_the_same(make_recipe: MakeRecipe, checkpointing: bool) -> None:
    """Clips with zeros and circles at their ends, and stills: a graph each, without a break."""
    diffusion = {"image_share": 0.4, "circular_share": 0.5}
    options: dict[str, Any] = {"steps": 6, "log_every": 1, "diffusion": diffusion, "precision": "fp32"}
    plain = make_recipe("video", "plain", **options)
    compiled = make_recipe("video", "compiled", compile=True, gradient_checkpointing=checkpointing, **options)
    train(plain)
    # Here, annotations are checked at every call, which PyTorch's compiler cannot see through.
    done = subprocess.run([sys.executable, "-c", COMPILED, compiled.model_dump_json()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3
    losses = [[row["loss"] for row in read_log(Path(run.output) / "log.jsonl")] for run in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "live"])
def test_short_videos_are_bad_or_taken_whole(make_recipe: MakeRecipe, tmp_path: Path, cached: bool) -> None:
    """The clips last half a second."""
    data = {"duration_s": 2.0, "cache": str(tmp_path / "cache") if cached else ""}
    with pytest.raises(DataError, match=r"lasts 0.50 s, less than the clip's 2 s") as caught:
        train(make_recipe("video", "drop", steps=2, data={**data, "short": "drop"}))
    assert "\n" not in str(caught.value)
    assert train(make_recipe("video", "whole", steps=2, data={**data, "short": "whole"})).is_dir()


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "live"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_share_of_bad_videos_is_borne(
    make_recipe: MakeRecipe, squares: Path, tmp_path: Path, cached: bool, workers: int
) -> None:
    """One of twelve: less than a tenth. What was bad is told in the run's folder."""
    shutil.copytree(squares, tmp_path / "data")
    bad = next((tmp_path / "data" / "clips").iterdir())
    bad.write_bytes(b"RIFF, but no picture")
    data = {"source": str(tmp_path / "data"), "cache": str(tmp_path / "cache") if cached else "", "balance_by": ""}
    options: dict[str, Any] = {"steps": 3, "workers": workers, "diffusion": {"image_share": 0.0}}
    with pytest.raises(DataError, match=r"videos.* are bad, more than max_bad_share = 0[:;] ") as caught:
        train(make_recipe("video", "none", **options, data={**data, "max_bad_share": 0.0}))
    assert "\n" not in str(caught.value)
    borne = make_recipe("video", "some", **options, data={**data, "max_bad_share": 0.2})
    assert train(borne).is_dir()
    (row,) = [json.loads(line) for line in (Path(borne.output) / "quarantine.jsonl").read_text().splitlines()]
    assert row["file"] == str(bad)
    assert row["reason"]
