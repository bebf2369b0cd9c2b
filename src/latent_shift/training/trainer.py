"""The training loop: one for all stages. What a step computes is the stage's; everything around it is here."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from latent_shift.core.errors import LatentShiftError
from latent_shift.core.files import atomic_path, write_json

from .checkpoint import latest_checkpoint, load_optimizer_tensors, optimizer_tensors, save_checkpoint
from .config import OptimizerConfig, Recipe
from .report import plot_losses, read_log

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, float, float], None]
"""Called with steps done, all steps, the loss and the seconds left."""


@runtime_checkable
class Stage(Protocol):
    """What the trainer needs of a stage. A step's randomness must be a function of (seed, step) alone."""

    @property
    def network(self) -> nn.Module:
        """What is trained."""

    def loss(self, step: int) -> Tensor:
        """The loss of optimiser step `step`, counted from 0."""

    def preview(self, folder: Path) -> None:
        """Writes samples of the network as it is, by the code that users run."""

    def export(self, folder: Path) -> None:
        """Writes the finished model."""


class TrainingInterrupted(LatentShiftError):
    """Ctrl-C or SIGTERM: the checkpoint is written, the same command goes on."""

    exit_code = 130


class NonFiniteLossError(LatentShiftError):
    """The loss is NaN or infinite."""


def run_stage(stage: Stage, recipe: Recipe, progress: Progress | None = None) -> None:
    """Trains from the newest checkpoint of `recipe.output`, or from the start, to `recipe.steps`, and exports.

    Raises:
        TrainingInterrupted: on Ctrl-C or SIGTERM, after a checkpoint.
        NonFiniteLossError: if a loss is NaN or infinite; the last checkpoint stays.
    """
    output = Path(recipe.output)
    parameters = [parameter for parameter in stage.network.parameters() if parameter.requires_grad]
    options = recipe.optimizer
    optimizer = torch.optim.AdamW(
        parameters, lr=options.learning_rate, betas=options.betas, weight_decay=options.weight_decay, fused=True
    )
    ema = EMAModel(parameters, decay=options.ema_decay)
    start, state = _resume(output, stage, optimizer, ema)
    log = _TrainingLog(output / "log.jsonl", start, state.get("losses", ()))

    def save(step: int, seconds: float) -> None:
        groups = {
            "network": stage.network.state_dict(),
            "ema": {str(index): tensor for index, tensor in enumerate(ema.shadow_params)},
            "optimizer": optimizer_tensors(optimizer),
        }
        save_checkpoint(output / "checkpoints", step, groups, {"seconds": seconds, "losses": log.unwritten})

    def preview(step: int) -> None:
        with _averaged_weights(ema, parameters), torch.no_grad():
            stage.preview(output / "previews" / f"step_{step:08d}")

    clock = _Clock(float(state.get("seconds", 0.0)))
    saved = started = time.monotonic()
    with _stop_signals() as stopped:
        for step in range(start, recipe.steps):
            loss = _train_step(stage, step, recipe, optimizer, parameters)
            ema.step(parameters)
            log.add(step + 1, loss, clock.seconds)
            if progress is not None:
                left = (recipe.steps - step - 1) * (time.monotonic() - started) / (step + 1 - start)
                progress(step + 1, recipe.steps, loss, left)
            last, stopping = step + 1 == recipe.steps, stopped()
            if (step + 1) % recipe.log_every == 0 or last:
                log.write(options.learning_rate * _schedule(step, recipe.steps, options))
            if stopping or last or time.monotonic() - saved > 60 * recipe.checkpoint_minutes:
                save(step + 1, clock.seconds)
                plot_losses(output / "log.jsonl", output / "loss.png")
                saved = time.monotonic()
            if stopping and not last:
                raise TrainingInterrupted(f"stopped after step {step + 1}; the same command goes on from there")
            if last or (step + 1) % recipe.preview.every == 0:
                preview(step + 1)
    with _averaged_weights(ema, parameters), torch.no_grad():
        stage.export(output / "model")
    write_json(output / "done.json", {"steps": recipe.steps, "seconds": round(clock.seconds, 1)})


def _train_step(
    stage: Stage, step: int, recipe: Recipe, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]
) -> float:
    rate = recipe.optimizer.learning_rate * _schedule(step, recipe.steps, recipe.optimizer)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    device = parameters[0].device.type
    # The CPU's flash-attention backward took 39 % of a step (docs/architecture.md); plain matrix products do not.
    attention = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else contextlib.nullcontext()
    with attention:
        with torch.autocast(device, torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = stage.loss(step)
        loss.backward()  # type: ignore[no-untyped-call]
    value = loss.item()
    if not math.isfinite(value):
        hint = "start anew in another output folder with a lower optimizer.learning_rate"
        raise NonFiniteLossError(f"the loss of step {step + 1} is {value}; {hint}")
    nn.utils.clip_grad_norm_(parameters, recipe.optimizer.max_grad_norm)
    optimizer.step()
    return value


def _schedule(step: int, steps: int, options: OptimizerConfig) -> float:
    warmup = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    decay = (steps - step) / (options.decay_fraction * steps) if options.decay_fraction else 1.0
    return min(warmup, decay, 1.0)


def _resume(output: Path, stage: Stage, optimizer: torch.optim.Optimizer, ema: EMAModel) -> tuple[int, dict[str, Any]]:
    """Steps done, and the state that the checkpoint keeps besides the tensors."""
    checkpoint = latest_checkpoint(output / "checkpoints")
    if checkpoint is None:
        return 0, {}
    groups, state, step = checkpoint
    stage.network.load_state_dict(groups["network"])
    load_optimizer_tensors(optimizer, groups["optimizer"])
    averaged = [groups["ema"][str(index)] for index in range(len(groups["ema"]))]
    ema.shadow_params = [tensor.to(shadow.device) for tensor, shadow in zip(averaged, ema.shadow_params, strict=True)]
    ema.optimization_step = step
    logger.info("going on from step %d", step)
    return step, state


@contextlib.contextmanager
def _averaged_weights(ema: EMAModel, parameters: list[nn.Parameter]) -> Iterator[None]:
    """The network carries its averaged weights inside."""
    ema.store(parameters)
    ema.copy_to(parameters)
    try:
        yield
    finally:
        ema.restore(parameters)


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """SIGINT and SIGTERM ask for a stop after the step; a second one ends at once."""
    received: list[int] = []

    def ask(number: int, _frame: Any) -> None:
        received.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Clock:
    """Seconds of training over all stretches of a run."""

    def __init__(self, before: float) -> None:
        self._start = time.monotonic() - before

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start


class _TrainingLog:
    """Averages losses and appends them to a JSONL file, from which a resumed run first drops what it will redo."""

    def __init__(self, path: Path, start: int, unwritten: Iterable[float] = ()) -> None:
        self._path = path
        self._losses = list(unwritten)
        self._row: dict[str, int | float] = {}
        kept = [row for row in read_log(path) if row["step"] <= start]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    @property
    def unwritten(self) -> list[float]:
        """Losses since the last row; a checkpoint keeps them, so that a resumed run writes the same rows."""
        return list(self._losses)

    def add(self, step: int, loss: float, seconds: float) -> None:
        self._losses.append(loss)
        self._row = {"step": step, "seconds": round(seconds, 2)}

    def write(self, learning_rate: float) -> None:
        loss = sum(self._losses) / len(self._losses)
        row = {**self._row, "loss": round(loss, 6), "learning_rate": learning_rate}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._losses.clear()
