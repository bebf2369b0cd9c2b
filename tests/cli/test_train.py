"""`latent-shift train`: dry runs, a run on the tiny data, stops, and bad recipes."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from latent_shift.training import Recipe
from latent_shift.training.autoencoding import AutoencoderStage

from .conftest import Refused, Run

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


def toml(tree: dict[str, Any], name: str = "") -> str:
    """A nested dict as TOML."""
    plain = [f"{key} = {json.dumps(value)}" for key, value in tree.items() if not isinstance(value, dict)]
    tables = [toml(value, f"{name}{key}.") for key, value in tree.items() if isinstance(value, dict)]
    return "\n".join([f"[{name[:-1]}]" if name else "", *plain, *tables])


@pytest.fixture
def recipe(make_tree: Callable[..., dict[str, Any]], tmp_path: Path) -> Path:
    """A file with a tiny run of the autoencoder stage, two steps long."""
    path = tmp_path / "tiny.toml"
    path.write_text(toml(make_tree("autoencoder", Path("run"), steps=2)), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_dry_run_prints_the_resolved_recipe_and_writes_nothing(run: Run, path: Path) -> None:
    result = run("train", path, "--dry-run", "--set", "steps=17", "--set", "data.source=elsewhere")
    assert (result.code, result.err) == (0, "")
    facts = json.loads(result.out)
    printed = facts["recipe"]
    if printed["model"]["init"] in ("", "emoji") and printed["stage"] != "autoencoder":
        assert facts["estimate"]["parameters"] > 18_000_000
        assert facts["estimate"]["step_tflop"] > 0.01
    else:
        assert facts["estimate"].startswith("not known: ")
    assert Recipe(**printed).model_dump(mode="json") == printed
    assert (printed["steps"], printed["data"]["source"]) == (17, "elsewhere")
    assert printed["output"] == f"runs/{path.stem}"
    assert facts["notes"] == []
    assert facts["data"] == "not known: data.source must be a file or folder that exists, got 'elsewhere'"
    # What the file does not say is there, too.
    assert printed["optimizer"]["max_grad_norm"] == 1.0
    if printed["model"]["init"] == "emoji":
        assert printed["diffusion"]["prediction_type"] == "v_prediction"
    assert list(Path().iterdir()) == []


def test_a_dry_run_says_where_a_recipe_leaves_the_noise_of_its_model(run: Run) -> None:
    given = ("diffusion.prediction_type=epsilon", "diffusion.zero_terminal_snr=false")
    settings = [part for setting in given for part in ("--set", setting)]
    result = run("train", RECIPES[0].with_name("tiny.toml"), "--dry-run", *settings)
    assert json.loads(result.out)["notes"] == [
        "diffusion.prediction_type = 'epsilon' changes the noise process: emoji was trained with 'v_prediction'",
        "diffusion.zero_terminal_snr = False changes the noise process: emoji was trained with True",
    ]


def test_a_dry_run_counts_the_records(run: Run, refused: Refused, recipe: Path, squares: Path) -> None:
    rows = (squares / "metadata.jsonl").read_text().splitlines()
    facts = json.loads(run("train", recipe, "--dry-run").out)
    assert facts["data"]["records"] == len(rows) > facts["data"]["stills"]
    assert facts["data"]["dropped"] == 0
    facts = json.loads(run("train", recipe, "--dry-run", "--set", "data.balance_by=nothing").out)
    assert facts["data"].startswith("not known: data.balance_by must be among the metadata of the records, ")


def test_a_run_prints_its_recipe_and_where_the_model_is(run: Run, recipe: Path) -> None:
    result = run("train", recipe)
    assert result.code == 0, result.err
    printed, end = json.JSONDecoder().raw_decode(result.out)
    assert printed["output"] == "run"
    assert "step 2/2" in result.out[end:]
    assert result.out.endswith("model: run/model\n")
    assert (Path("run") / "model" / "config.json").is_file()
    assert json.loads((Path("run") / "recipe.json").read_text())["recipe"] == printed
    before = (Path("run") / "done.json").stat().st_mtime_ns
    assert run("train", recipe).out.endswith("model: run/model\n")
    assert (Path("run") / "done.json").stat().st_mtime_ns == before


def test_every_setting_is_printed_with_its_default_and_what_it_means(run: Run) -> None:
    result = run("train", "--settings")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    keys = {line.partition(" = ")[0] for line in lines if not line.startswith(" ")}
    assert {"stage", "data.size", "optimizer.max_grad_norm", "preview.seam_frames"} <= keys
    assert lines[:2] == [
        "stage = (required)",
        '    Which part of the paper\'s road this is. Values: "autoencoder", "image", "video".',
    ]
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        assert line.startswith("    ") or below.startswith("    "), line  # none without a meaning


def test_settings_of_the_command_line_win(run: Run, recipe: Path) -> None:
    assert run("train", recipe, "--set", "steps=1", "--set", "output=other run").code == 0
    assert json.loads((Path("other run") / "done.json").read_text())["steps"] == 1


def test_ctrl_c_ends_with_130_one_line_and_a_checkpoint(
    run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = AutoencoderStage.loss

    def stop(self: AutoencoderStage, step: int) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        return loss(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(AutoencoderStage, "loss", stop)
        result = run("train", recipe)
    assert result.code == 130
    expected = "latent-shift: error: stopped after step 1; the same command goes on from there"
    assert result.err.splitlines()[-1] == expected
    assert "Traceback" not in result.err
    assert run("train", recipe).code == 0
    assert json.loads((Path("run") / "done.json").read_text())["steps"] == 2


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("stpes=3", "key must be a known key; did you mean 'steps'?, got 'stpes'"),
        ("optimizer.leraning_rate=1", "key must be a known key; did you mean 'learning_rate'?, got 'optimizer.lera"),
        ("model.arguments.latent_chanels=4", "key must be a known key; did you mean 'latent_channels'?, got 'model"),
        ("steps=0", "steps must be valid (Input should be greater than or equal to 1), got 0"),
        ("steps", "--set must look like key.subkey=value, got 'steps'"),
        ("stage=video", "model.init must be a text-to-image model, from which the video stage starts, got ''"),
        ("data.size=100", "data.size must be a positive multiple of 8, got 100"),
        ("data.source=nowhere", "data.source must be a file or folder that exists, got 'nowhere'"),
        ("device=tpu", "device must be auto, cpu, cuda, cuda:N or mps, and be present, got 'tpu'"),
        ("output=../tiny.toml/run", "output must be in a folder that can be written ("),
    ],
)
def test_a_bad_setting_is_one_line(refused: Refused, recipe: Path, setting: str, message: str) -> None:
    assert refused("train", recipe, "--set", setting).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("data.size=24", "data.size must be a positive multiple of 16, got 24"),
        (
            "data.size=1000000000",
            "data.size must be valid (Input should be less than or equal to 16383), got 1000000000",
        ),
        ("model.arguments.block_out_channels=[8,24]", "model.arguments must give a network that the weights of "),
        (
            "model.autoencoder=..",
            "model.autoencoder must be the folder of a trained autoencoder (config.json), got '..'",
        ),
        ("model.init=..", "model.init must be one of emoji or a folder with a model_index.json, got '..'"),
        ("device=tpu", "device must be auto, cpu, cuda, cuda:N or mps, and be present, got 'tpu'"),
        ("output=../tiny.toml/run", "output must be in a folder that can be written ("),
        ("output=../begun seed=5", "output must be a new folder: it holds a run with seed = 0, not 5, got "),
    ],
)
def test_a_dry_run_refuses_in_the_words_of_the_run(
    refused: Refused,
    make_tree: Callable[..., dict[str, Any]],
    road: Path,
    recipe: Path,
    tmp_path: Path,
    settings: str,
    message: str,
) -> None:
    shutil.copytree(road / "video", tmp_path / "begun")
    model = {"init": str(road / "image/model"), "arguments": {"noise_correlation": 0.5}}
    recipe.write_text(toml(make_tree("video", Path("run"), model=model)), encoding="utf-8")
    changes = [part for setting in settings.split() for part in ("--set", setting)]
    dry = refused("train", recipe, "--dry-run", *changes)
    assert dry.startswith(message)
    assert refused("train", recipe, *changes) == dry


def test_a_dry_run_of_a_run_that_goes_on_passes_and_changes_nothing(
    run: Run, make_tree: Callable[..., dict[str, Any]], road: Path, recipe: Path, tmp_path: Path
) -> None:
    shutil.copytree(road / "video", tmp_path / "begun")
    model = {"init": str(road / "image/model"), "arguments": {"noise_correlation": 0.5}}
    recipe.write_text(toml(make_tree("video", tmp_path / "begun", model=model)), encoding="utf-8")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for steps in (4, 9):
        result = run("train", recipe, "--dry-run", "--set", f"steps={steps}")
        assert (result.code, result.err) == (0, "")
        assert json.loads(result.out)["estimate"]["parameters"] > 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_dry_run_refuses_an_argument_that_the_network_does_not_have(refused: Refused) -> None:
    place = str(RECIPES[0].with_name("tiny.toml"))
    message = refused("train", place, "--dry-run", "--set", "model.arguments.shift_folds=3")
    assert message == "key must be a known key; did you mean 'shift_fold'?, got 'model.arguments.shift_folds'"


def test_an_empty_data_folder_is_one_line(refused: Refused, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = refused("train", recipe, "--set", f"data.source={tmp_path / 'empty'}")
    assert message.startswith("data.source must hold captioned video")


def test_a_bad_key_in_a_file_is_one_line(refused: Refused, recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("crop =", "corp ="))
    expected = "key must be a known key; did you mean 'crop'?, got 'autoencoder_loss.corp'"
    assert refused("train", recipe) == expected
    assert refused("train", recipe, "--dry-run") == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "recipe must be a TOML file that can be read, got"),
        ("steps = = 2", "recipe must be valid TOML ("),
        ("", "stage must be given, got None"),
    ],
)
def test_a_bad_file_is_one_line(refused: Refused, tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "bad.toml"
    if content is not None:
        path.write_text(content)
    assert refused("train", path).startswith(message)


def test_a_loss_that_is_no_number_is_one_line_and_code_1(
    run: Run, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = AutoencoderStage.loss
    monkeypatch.setattr(AutoencoderStage, "loss", lambda self, batch: loss(self, batch) * float("inf"))
    result = run("train", recipe)
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith("latent-shift: error: the loss of step 1 is inf (")
    assert "Traceback" not in result.err
