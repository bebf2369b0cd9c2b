"""The loop around a stage: schedule, average, log, checkpoints, stops. A resumed run equals an uninterrupted one."""

from __future__ import annotations

import json
import logging
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from disk import full_disk
from torch import Tensor

from latent_shift.core.errors import DataError, InputError
from latent_shift.training import trainer
from latent_shift.training.checkpoint import latest_checkpoint
from latent_shift.training.config import OptimizerConfig
from latent_shift.training.optimizer import learning_rate
from latent_shift.training.report import read_log
from latent_shift.training.trainer import (
    NonFiniteLossError,
    Progress,
    TrainingInterrupted,
    run_stage,
)

from .conftest import LineBatches, LineStage, MakeRecipe


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than the training of a line; `test_road.py` looks at them."""
    monkeypatch.setattr(trainer, "plot_losses", lambda *_: None)


@pytest.fixture(autouse=True)
def _usual_handlers() -> Iterator[None]:
    """Whatever started pytest may have switched Ctrl-C off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def stop_at(step: int, number: signal.Signals = signal.SIGINT) -> Progress:
    def progress(done: int, _total: int, _loss: float, _left: float) -> None:
        if done == step:
            signal.raise_signal(number)

    return progress


def content(output: str | Path) -> dict[str, Tensor]:
    """Every tensor of the newest checkpoint: weights, their average, the optimiser."""
    checkpoint = latest_checkpoint(Path(output) / "checkpoints")
    assert checkpoint is not None
    return {f"{group}.{name}": tensor for group, tensors in checkpoint[0].items() for name, tensor in tensors.items()}


def rows(output: str | Path) -> list[dict[str, Any]]:
    """The log without its clock."""
    return [{key: row[key] for key in row if key != "seconds"} for row in read_log(Path(output) / "log.jsonl")]


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"warmup_steps": 0, "decay_fraction": 0.0}, [1] * 10),
        ({"warmup_steps": 4, "decay_fraction": 0.0}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        ({"warmup_steps": 0, "decay_fraction": 0.4}, [1, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        ({"warmup_steps": 2, "decay_fraction": 1.0}, [0.5, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ({"warmup_steps": 4, "lr_scheduler": "constant"}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1]),
        (
            {"warmup_steps": 0, "lr_scheduler": "cosine", "decay_fraction": 0.4},
            [1] * 7 + [(1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2],
        ),
        ({"warmup_steps": 20, "decay_fraction": 0.4}, [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.25]),
    ],
)
def test_the_learning_rate_warms_up_stays_and_falls(options: dict[str, Any], expected: list[float]) -> None:
    rates = [learning_rate(step, 10, OptimizerConfig(learning_rate=0.5, **options)) for step in range(10)]
    assert rates == pytest.approx([0.5 * share for share in expected])


def test_the_first_step_is_adamw_with_the_first_rate(line_recipe: MakeRecipe) -> None:
    """PyTorch's own unfused AdamW, one step by hand."""
    options = {"learning_rate": 0.01, "warmup_steps": 4, "weight_decay": 0.1, "max_grad_norm": 0.5}
    stage, twin = LineStage(), LineStage()
    run_stage(stage, line_recipe(steps=1, optimizer={**options, "decay_fraction": 0.0}))
    optimizer = torch.optim.AdamW(twin.network.parameters(), 0.01 / 4, (0.9, 0.99), weight_decay=0.1)
    twin.loss(twin.batches.draw(0)).mean().backward()  # type: ignore[no-untyped-call]
    norm = torch.nn.utils.clip_grad_norm_(twin.network.parameters(), 0.5)
    assert norm > 0.5
    optimizer.step()
    for left, right in zip(stage.weights(), twin.weights(), strict=True):
        torch.testing.assert_close(left, right)


def test_accumulation_that_the_launch_asks_for_changes_nothing(
    line_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stage(LineStage(), line_recipe("plain"))
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    run_stage(LineStage(), line_recipe("launched"))
    assert_equal(content(line_recipe("launched").output), content(line_recipe("plain").output))


@pytest.mark.parametrize(
    "changed",
    [
        {"learning_rate": 1e-3},
        {"betas": [0.8, 0.99]},
        {"betas": [0.9, 0.9]},
        {"weight_decay": 0.5},
        {"warmup_steps": 3},
        {"decay_fraction": 0.9},
        {"max_grad_norm": 0.01},
        {"name": "adam"},
        {"lr_scheduler": "constant"},
        {"lr_scheduler": "cosine"},
    ],
)
def test_every_option_of_the_optimizer_changes_the_weights(line_recipe: MakeRecipe, changed: dict[str, Any]) -> None:
    for output, options in (("plain", {}), ("changed", changed)):
        run_stage(LineStage(), line_recipe(output, optimizer=options))
    plain, other = (content(line_recipe(output).output) for output in ("plain", "changed"))
    assert not torch.equal(plain["network.0.weight"], other["network.0.weight"])


@pytest.mark.parametrize("decay", [0.9995, 0.3])
def test_the_average_decays_by_step_plus_1_over_step_plus_10(line_recipe: MakeRecipe, decay: float) -> None:
    stage, recipe = LineStage(), line_recipe(steps=6, optimizer={"ema_decay": decay, "learning_rate": 0.1})
    run_stage(stage, recipe)
    average = [weight.double() for weight in stage.seen[0]]
    for step, weights in enumerate([*stage.seen[1:], stage.weights()]):
        kept = min(decay, (step + 1) / (step + 10)) if step else 0.0
        average = [kept * old + (1 - kept) * new.double() for old, new in zip(average, weights, strict=True)]
    saved = content(recipe.output)
    for (name, _), expected in zip(stage.network.named_parameters(), average, strict=True):
        torch.testing.assert_close(saved[f"ema.{name}"].double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(saved["ema.0.weight"], saved["network.0.weight"], atol=1e-4)


def test_previews_and_the_model_carry_the_average_and_training_does_not(line_recipe: MakeRecipe) -> None:
    stage, recipe = LineStage(), line_recipe(steps=6, optimizer={"learning_rate": 0.1}, preview={"every": 2})
    run_stage(stage, recipe)
    saved = content(recipe.output)
    assert list(stage.previewed) == ["step_00000002", "step_00000004", "step_00000006", "export"]
    for (name, _), weight in zip(stage.network.named_parameters(), stage.previewed["export"], strict=True):
        assert torch.equal(weight, saved[f"ema.{name}"])
    assert torch.equal(stage.weights()[0], saved["network.0.weight"])
    assert not torch.equal(stage.weights()[0], saved["ema.0.weight"])
    without = LineStage()
    run_stage(without, line_recipe("without", steps=6, optimizer={"learning_rate": 0.1}))
    assert list(without.previewed) == ["step_00000006", "export"]
    assert_equal(saved, content(line_recipe("without").output))


def test_the_log_averages_over_its_steps_and_ends_with_the_run(line_recipe: MakeRecipe) -> None:
    losses: list[float] = []
    recipe = line_recipe(steps=5, log_every=2, optimizer={"warmup_steps": 4, "learning_rate": 0.01})
    run_stage(LineStage(), recipe, lambda _done, _total, loss, _left: losses.append(loss))
    log = read_log(Path(recipe.output) / "log.jsonl")
    assert [row["step"] for row in log] == [2, 4, 5]
    means = [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2, losses[4]]
    assert [row["loss"] for row in log] == pytest.approx(means, abs=1e-6)
    assert [row["learning_rate"] for row in log] == pytest.approx([0.005, 0.01, 0.005])
    assert [row["seconds"] for row in log] == sorted(row["seconds"] for row in log)


def test_progress_counts_and_guesses_the_time_left(line_recipe: MakeRecipe) -> None:
    calls: list[tuple[int, int, float, float]] = []
    run_stage(LineStage(), line_recipe(steps=3), lambda *call: calls.append(call))
    assert [call[:2] for call in calls] == [(1, 3), (2, 3), (3, 3)]
    assert calls[-1][3] == 0
    assert calls[0][3] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    line_recipe: MakeRecipe, number: signal.Signals, step: int
) -> None:
    run_stage(LineStage(), line_recipe("straight", steps=7, log_every=3))
    recipe = line_recipe("stopped", steps=7, log_every=3)
    before = signal.getsignal(number)
    with pytest.raises(TrainingInterrupted, match=f"stopped after step {step}; the same command goes on") as caught:
        run_stage(LineStage(), recipe, stop_at(step, number))
    assert caught.value.exit_code == 130
    assert signal.getsignal(number) == before
    assert not (Path(recipe.output) / "done.json").exists()
    # Another initial network: everything must come from the checkpoint.
    second = LineStage()
    second.network[0].weight.data.fill_(9.0)  # type: ignore[index, union-attr, operator]
    run_stage(second, recipe)
    assert_equal(content(recipe.output), content(line_recipe("straight").output))
    assert rows(recipe.output) == rows(line_recipe("straight").output)
    assert [row["step"] for row in rows(recipe.output)] == [3, 6, 7]


def test_a_second_signal_ends_at_once(line_recipe: MakeRecipe) -> None:
    def twice(_done: int, _total: int, _loss: float, _left: float) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    recipe = line_recipe()
    with pytest.raises(KeyboardInterrupt):
        run_stage(LineStage(), recipe, twice)
    assert not (Path(recipe.output) / "checkpoints").exists()


def test_a_signal_in_the_last_step_does_not_stop_what_is_done(line_recipe: MakeRecipe) -> None:
    stage, recipe = LineStage(), line_recipe(steps=3)
    run_stage(stage, recipe, stop_at(3))
    assert json.loads((Path(recipe.output) / "done.json").read_text())["steps"] == 3
    assert "export" in stage.previewed


def test_rows_of_steps_that_are_done_again_leave_the_log(line_recipe: MakeRecipe) -> None:
    """A kill loses the steps since the checkpoint, but not the rows that they wrote."""
    recipe = line_recipe(steps=6, log_every=1)
    with pytest.raises(TrainingInterrupted):
        run_stage(LineStage(), recipe, stop_at(2))
    with (Path(recipe.output) / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "seconds": 1.0, "loss": 77.0, "learning_rate": 0.1}\n{"step": 4, "sec')
    run_stage(LineStage(), recipe)
    assert [row["step"] for row in rows(recipe.output)] == [1, 2, 3, 4, 5, 6]
    assert all(row["loss"] != 77.0 for row in rows(recipe.output))


def test_checkpoints_come_by_the_clock_and_two_stay(line_recipe: MakeRecipe) -> None:
    recipe = line_recipe(steps=4, checkpoint_minutes=1e-9)
    run_stage(LineStage(), recipe)
    assert sorted(path.name for path in (Path(recipe.output) / "checkpoints").iterdir()) == [
        "step_00000003",
        "step_00000004",
    ]
    rare = line_recipe("rare", steps=4)
    run_stage(LineStage(), rare)
    assert [path.name for path in (Path(rare.output) / "checkpoints").iterdir()] == ["step_00000004"]
    assert_equal(content(rare.output), content(recipe.output))


@pytest.mark.parametrize("damage", ["flip", "cut", "no manifest", "no file", "empty manifest"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    line_recipe: MakeRecipe, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    run_stage(LineStage(), line_recipe("straight", steps=7, log_every=3))
    recipe = line_recipe(steps=7, log_every=3, checkpoint_minutes=1e-9)
    with pytest.raises(TrainingInterrupted):
        run_stage(LineStage(), recipe, stop_at(5))
    newest = Path(recipe.output) / "checkpoints" / "step_00000005"
    weights = newest / "network.safetensors"
    if damage == "flip":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-4])
    elif damage == "no file":
        weights.unlink()
    elif damage == "no manifest":
        (newest / "manifest.json").unlink()
    else:
        (newest / "manifest.json").write_text("")
    steps: list[int] = []
    run_stage(LineStage(), recipe, lambda done, *_: steps.append(done))
    assert steps == [5, 6, 7]
    assert "checkpoint step_00000005 is damaged" in caplog.text
    assert_equal(content(recipe.output), content(line_recipe("straight").output))
    assert rows(recipe.output) == rows(line_recipe("straight").output)


def test_only_damaged_checkpoints_are_an_error(line_recipe: MakeRecipe) -> None:
    recipe = line_recipe(steps=4, checkpoint_minutes=1e-9)
    run_stage(LineStage(), recipe)
    for file in Path(recipe.output).glob("checkpoints/*/ema.safetensors"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match=r"^every checkpoint below .*checkpoints is damaged; remove the folder to"):
        run_stage(LineStage(), line_recipe(steps=6))


@pytest.mark.parametrize("step", [0, 2])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(line_recipe: MakeRecipe, step: int) -> None:
    stage, recipe = LineStage(), line_recipe(checkpoint_minutes=1e-9)
    stage.batches.bad = (step, 5)
    expected = rf"^the loss of step {step + 1} is nan \(point {step}.5\); start anew"
    with pytest.raises(NonFiniteLossError, match=rf"{expected} .*learning_rate$"):
        run_stage(stage, recipe)
    checkpoints = Path(recipe.output) / "checkpoints"
    assert sorted(path.name for path in checkpoints.glob("*")) == [f"step_{n:08d}" for n in range(1, step + 1)]
    assert not (Path(recipe.output) / "done.json").exists()
    assert not (Path(recipe.output) / "model").exists()
    if step:
        assert all(tensor.isfinite().all() for tensor in content(recipe.output).values())


class BrokenGradient(LineStage):
    """From the third step on the loss is a number and its gradient is none."""

    def loss(self, x: Tensor) -> Tensor:
        losses = super().loss(x)
        return losses if len(self.seen) < 3 else losses + (self.network[0].weight.sum() * 0).sqrt()  # type: ignore[index, union-attr, operator]


def test_a_gradient_that_is_no_number_stops_the_run_before_the_step(line_recipe: MakeRecipe) -> None:
    stage, recipe = BrokenGradient(), line_recipe(checkpoint_minutes=1e-9)
    expected = (
        r"^the gradient of step 3 is nan \(point 2.0, point 2.1, point 2.2, point 2.3, point 2.4 and 3 more\); start"
    )
    with pytest.raises(NonFiniteLossError, match=expected):
        run_stage(stage, recipe)
    checkpoints = Path(recipe.output) / "checkpoints"
    assert sorted(path.name for path in checkpoints.glob("*")) == ["step_00000001", "step_00000002"]
    assert all(tensor.isfinite().all() for tensor in content(recipe.output).values())
    assert all(weight.isfinite().all() for weight in stage.weights())


def test_with_fp16_a_step_without_a_gradient_is_left_out(line_recipe: MakeRecipe) -> None:
    stage, recipe = BrokenGradient(), line_recipe(steps=4, precision="fp16")
    run_stage(stage, recipe)
    assert all(tensor.isfinite().all() for tensor in content(recipe.output).values())


def test_with_fp16_a_gradient_that_no_scale_helps_stops_the_run(line_recipe: MakeRecipe) -> None:
    with pytest.raises(NonFiniteLossError, match=r"^the gradient of step 19 is nan"):
        run_stage(BrokenGradient(), line_recipe(steps=30, precision="fp16"))


def test_a_cache_that_lacks_other_videos_is_refused(line_recipe: MakeRecipe) -> None:
    stage = LineStage()
    run_stage(stage, line_recipe(steps=2))
    stage = LineStage()
    stage.batches.quarantined = {"a.mp4": "it is no video"}
    expected = "data.cache must lack the 0 videos that it could not read when the run began, and not 1"
    with pytest.raises(InputError, match=expected):
        run_stage(stage, line_recipe(steps=3))


def test_processes_with_different_data_are_refused(line_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "gather_object", lambda own: [*own, "other points"])
    with pytest.raises(InputError, match="data.source must hold the same records on all machines"):
        run_stage(LineStage(), line_recipe(steps=2))


class DroppingStage(LineStage):
    """With dropout, whose masks are no part of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.network.append(torch.nn.Dropout(0.5))  # type: ignore[operator]


def test_masks_of_dropout_follow_from_seed_and_step(line_recipe: MakeRecipe) -> None:
    torch.manual_seed(1)
    run_stage(DroppingStage(), line_recipe("straight", steps=6))
    recipe = line_recipe("stopped", steps=6)
    torch.manual_seed(2)
    with pytest.raises(TrainingInterrupted):
        run_stage(DroppingStage(), recipe, stop_at(3))
    torch.manual_seed(3)
    run_stage(DroppingStage(), recipe)
    assert_equal(content(recipe.output), content(line_recipe("straight").output))
    run_stage(DroppingStage(), line_recipe("other seed", steps=6, seed=1))
    other = content(line_recipe("other seed").output)
    assert not torch.equal(other["network.0.weight"], content(recipe.output)["network.0.weight"])


class ShakyBatches(LineBatches):
    """Each process meets a bad file of its own in each step, and none can read step 3."""

    def draw(self, step: int, rows: range | None = None) -> Tensor:
        self.quarantined[f"{step}.mp4"] = "is cut off"
        self.quarantined["everywhere.mp4"] = "is empty"
        if step == 3 and self.seed:
            raise InputError("data.source", "films", "have fewer bad files")
        return super().draw(step, rows)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_workers_cannot_read_is_counted_in_one_file(
    line_recipe: MakeRecipe, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    stage, recipe = LineStage(), line_recipe(steps=4, workers=workers)
    stage.batches = ShakyBatches(0)
    with caplog.at_level(logging.INFO):
        run_stage(stage, recipe)
    place = Path(recipe.output) / "quarantine.jsonl"
    found = [json.loads(line) for line in place.read_text().splitlines()]
    names = ["everywhere.mp4", *(f"{step}.mp4" for step in range(4))]
    assert sorted(row["file"] for row in found) == sorted(names)
    assert {row["reason"] for row in found} == {"is cut off", "is empty"}
    assert f"5 files could not be read: {place}" in caplog.messages
    with place.open("a") as file:
        file.write('{"file": "cut')  # by a kill
    again = LineStage()
    again.batches = ShakyBatches(0)
    run_stage(again, line_recipe(steps=5, workers=workers))
    assert [json.loads(line)["file"] for line in place.read_text().splitlines()][5:] == ["4.mp4"]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_worker_is_one_line(line_recipe: MakeRecipe, workers: int) -> None:
    stage, recipe = LineStage(), line_recipe(steps=6, workers=workers, checkpoint_minutes=1e-9)
    stage.batches = ShakyBatches(1)
    with pytest.raises(InputError) as caught:
        run_stage(stage, recipe)
    assert str(caught.value) == "data.source must have fewer bad files, got 'films'"
    assert caught.value.argument == "data.source"
    assert sorted(path.name for path in (Path(recipe.output) / "checkpoints").iterdir())[-1] == "step_00000003"
    assert '"3.mp4"' in (Path(recipe.output) / "quarantine.jsonl").read_text()


def test_a_preview_that_a_kill_took_is_drawn_when_the_run_goes_on(line_recipe: MakeRecipe) -> None:
    class Killed(LineStage):
        def preview(self, folder: Path) -> list[str]:
            super().preview(folder)
            raise KeyboardInterrupt

    options: dict[str, Any] = {"steps": 4, "preview": {"every": 2}, "checkpoint_minutes": 1e-9}
    straight = LineStage()
    run_stage(straight, line_recipe("straight", **options))
    recipe = line_recipe("killed", **options)
    with pytest.raises(KeyboardInterrupt):
        run_stage(Killed(), recipe)
    place = Path(recipe.output) / "previews"
    assert not (place / "step_00000002").exists()
    stage = LineStage()
    run_stage(stage, recipe)
    assert list(stage.previewed) == ["step_00000002", "step_00000004", "export"]
    for name, weights in straight.previewed.items():
        assert all(torch.equal(one, other) for one, other in zip(stage.previewed[name], weights, strict=True))
    assert sorted(path.name for path in place.iterdir()) == ["step_00000002", "step_00000004"]
    # One that is there is not drawn again, nor is one at a step where none is due.
    again = LineStage()
    run_stage(again, line_recipe("killed", **{**options, "steps": 5}))
    assert list(again.previewed) == ["step_00000005", "export"]


def test_a_stop_at_a_step_with_a_preview_draws_it_later(line_recipe: MakeRecipe) -> None:
    recipe = line_recipe(steps=4, preview={"every": 2})
    with pytest.raises(TrainingInterrupted):
        run_stage(LineStage(), recipe, stop_at(2))
    stage = LineStage()
    run_stage(stage, recipe)
    assert list(stage.previewed) == ["step_00000002", "step_00000004", "export"]


def test_more_steps_go_on_from_the_end(line_recipe: MakeRecipe) -> None:
    run_stage(LineStage(), line_recipe(steps=3))
    steps: list[int] = []
    run_stage(LineStage(), line_recipe(steps=5), lambda done, *_: steps.append(done))
    assert steps == [4, 5]
    assert json.loads((Path(line_recipe().output) / "done.json").read_text())["steps"] == 5


def test_a_run_that_was_killed_before_its_export_exports(line_recipe: MakeRecipe) -> None:
    recipe = line_recipe()
    run_stage(LineStage(), recipe)
    (Path(recipe.output) / "done.json").unlink()
    shutil.rmtree(Path(recipe.output) / "model")
    stage = LineStage()
    run_stage(stage, recipe)
    assert stage.seen == []
    assert (Path(recipe.output) / "model").is_dir()
    assert torch.equal(stage.previewed["export"][0], content(recipe.output)["ema.0.weight"])


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_precision_is_that_of_the_forward_pass_alone(
    line_recipe: MakeRecipe, precision: str, dtype: torch.dtype
) -> None:
    stage, recipe = LineStage(), line_recipe(steps=1, precision=precision)
    seen: list[torch.dtype] = []
    stage.network[0].register_forward_hook(lambda _module, _given, out: seen.append(out.dtype))  # type: ignore[index, union-attr, operator]
    run_stage(stage, recipe)
    assert seen == [dtype]
    assert {tensor.dtype for tensor in content(recipe.output).values()} == {torch.float32}


@pytest.mark.parametrize("most", [1, 3, 8, 100])
def test_micro_batches_change_rounding_alone(line_recipe: MakeRecipe, most: int) -> None:
    options = {"learning_rate": 0.01}
    stage, whole = LineStage(), LineStage()
    losses: dict[str, list[float]] = {"micro": [], "whole": []}
    recipe = line_recipe("micro", steps=5, micro_batch_size=most, optimizer=options)
    run_stage(stage, recipe, lambda _done, _all, loss, _left: losses["micro"].append(loss))
    run_stage(
        whole,
        line_recipe("whole", steps=5, optimizer=options),
        lambda _done, _all, loss, _left: losses["whole"].append(loss),
    )
    assert len(stage.seen) == 5 * -(-8 // most)
    assert losses["micro"] == pytest.approx(losses["whole"], rel=1e-5)
    for left, right in zip(stage.weights(), whole.weights(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-6)


def test_workers_draw_what_the_process_itself_would(line_recipe: MakeRecipe) -> None:
    drawn: list[int] = []
    for workers in (0, 2):
        stage, recipe = LineStage(), line_recipe(f"{workers} workers", steps=5, workers=workers)
        draw = stage.batches.draw
        stage.batches.draw = lambda *given, draw=draw: (drawn.append(given[0]), draw(*given))[1]  # type: ignore[method-assign]
        run_stage(stage, recipe)
    assert drawn == list(range(5))  # by this process; the others are in processes of their own
    assert_equal(content(line_recipe("0 workers").output), content(line_recipe("2 workers").output))


def test_milestones_stay(line_recipe: MakeRecipe) -> None:
    recipe = line_recipe(steps=10, keep_every=4, keep_checkpoints=1)
    run_stage(LineStage(), recipe)
    assert sorted(path.name for path in (Path(recipe.output) / "checkpoints").iterdir()) == [
        "step_00000004",
        "step_00000008",
        "step_00000010",
    ]
    more = line_recipe("more", steps=4, checkpoint_minutes=1e-9, keep_checkpoints=3)
    run_stage(LineStage(), more)
    assert len(list((Path(more.output) / "checkpoints").iterdir())) == 3


def test_with_fp16_the_loss_is_scaled_and_the_scale_is_kept(line_recipe: MakeRecipe) -> None:
    run_stage(LineStage(), line_recipe("straight", steps=6, precision="fp16"))
    recipe = line_recipe("stopped", steps=6, precision="fp16")
    with pytest.raises(TrainingInterrupted):
        run_stage(LineStage(), recipe, stop_at(3))
    found = latest_checkpoint(Path(recipe.output) / "checkpoints")
    assert found is not None
    # The first scale, 65536, overflowed: that step was left out and the scale halved.
    assert found[1]["scaler"]["scale"] == 32768.0
    assert found[1]["scaler"]["_growth_tracker"] == 2
    run_stage(LineStage(), recipe)
    assert_equal(content(recipe.output), content(line_recipe("straight").output))
    assert not torch.equal(content(recipe.output)["network.0.weight"], content_of_fp32(line_recipe)["network.0.weight"])


def content_of_fp32(line_recipe: MakeRecipe) -> dict[str, Tensor]:
    run_stage(LineStage(), line_recipe("fp32", steps=6))
    return content(line_recipe("fp32").output)


def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(line_recipe: MakeRecipe) -> None:
    recipe = line_recipe(steps=6, checkpoint_minutes=1e-9)
    with pytest.raises(TrainingInterrupted):
        run_stage(LineStage(), recipe, stop_at(3))
    before = content(recipe.output)
    with (
        full_disk() as limit,
        pytest.raises(DataError, match=r"^checkpoint .*step_00000004 cannot be written \(.*File too large") as caught,
    ):
        run_stage(LineStage(), recipe, lambda *_: limit(600))
    assert str(caught.value).endswith("; the one before it stays")
    assert_equal(content(recipe.output), before)
    assert not list((Path(recipe.output) / "checkpoints").glob(".*"))
    run_stage(LineStage(), recipe)
    run_stage(LineStage(), line_recipe("straight", steps=6))
    assert_equal(content(recipe.output), content(line_recipe("straight").output))


@pytest.mark.parametrize("name", ["log.jsonl", "quarantine.jsonl", "previews/step_00000003", "model"])
def test_a_disk_that_is_full_elsewhere_is_one_line_too(line_recipe: MakeRecipe, name: str) -> None:
    class Large(LineStage):
        def write(self, wanted: str, folder: Path) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            with full_disk() as limit:
                limit(600 if name.startswith(wanted) else 10**6)
                (folder / "picture.png").write_bytes(b"0" * 700)

        def preview(self, folder: Path) -> list[str]:
            self.write("previews", folder)
            return []

        def export(self, folder: Path) -> None:
            self.write("model", folder)

    stage, recipe = Large(), line_recipe(steps=3, log_every=1)
    if name == "quarantine.jsonl":
        recipe = line_recipe(steps=3, log_every=100)
        stage.batches = ShakyBatches(0)
    with full_disk() as limit, pytest.raises(DataError) as caught:
        run_stage(stage, recipe, lambda *_: limit(10) if name.endswith(".jsonl") else None)
    expected = f"{Path(recipe.output) / name} cannot be written (File too large); the last checkpoint stays"
    assert str(caught.value) == expected
    assert not (Path(recipe.output) / "done.json").exists()
    run_stage(LineStage(), recipe)
    run_stage(LineStage(), line_recipe("straight", steps=3, log_every=recipe.log_every))
    assert_equal(content(recipe.output), content(line_recipe("straight").output))


def test_a_checkpoint_of_another_network_is_named(line_recipe: MakeRecipe) -> None:
    run_stage(LineStage(), line_recipe(steps=2))
    other = LineStage()
    other.network.append(torch.nn.Linear(1, 1))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"^the checkpoint of step 2 in .*run has other tensors \('3.weight'\)$"):
        run_stage(other, line_recipe(steps=3))
