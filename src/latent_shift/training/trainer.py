"""The training loop: one for all stages and for any number of processes (Hugging Face Accelerate).

A step's batch is cut into equal shares, one a process, and a share into micro-batches that fit into memory. What a row
of it is depends on (seed, step, row) alone, so the number of processes and the size of micro-batches change how fast
a run is and not what it learns; but for dropout, whose masks depend on both.
"""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from latent_shift.core.disk import clear_write_errors
from latent_shift.core.errors import DataError, InputError, LatentShiftError
from latent_shift.core.files import write_json
from latent_shift.core.seeding import derive_seed
from latent_shift.models.attention import training_attention

from .checkpoint import latest_checkpoint, save_checkpoint
from .config import Recipe
from .networks import autocast, weights_digest
from .optimizer import learning_rate, make_optimizer
from .report import Clock, Quarantine, TrainingLog, plot_losses
from .sharding import full_tensors, load_optimizer_tensors, load_tensors, optimizer_tensors
from .shares import Batches, Share, Shares, load_shares

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, float, float], None]
"""Called with steps done, all steps, the loss and the seconds left."""

_NAMES_SHOWN = 5


@runtime_checkable
class Stage(Protocol):
    """What the trainer needs of a stage."""

    @property
    def network(self) -> nn.Module:
        """What is trained."""

    @property
    def batches(self) -> Batches:
        """What it learns from."""

    @property
    def data_digest(self) -> str:
        """Which records that is, for the checkpoints; the same in all processes."""

    def loss(self, batch: Any) -> Tensor:
        """The loss of each row of a batch, `(rows,)`."""

    def preview(self, folder: Path) -> list[str]:
        """Writes samples of the network as it is, by the code that users run. Called by every process.

        Returns:
            In the main process the names of those that are not of finite numbers, which as bytes are black.
        """

    def export(self, folder: Path) -> None:
        """Writes the finished model. Called by every process."""


class TrainingInterrupted(LatentShiftError):
    """Ctrl-C or SIGTERM: the checkpoint is written, the same command goes on."""

    exit_code = 130


class NonFiniteLossError(LatentShiftError):
    """The loss, or its gradient, is NaN or infinite."""


def kept_settings(recipe: Recipe) -> dict[str, Any]:
    """What a model keeps of its recipe besides what it learned: its dtype, and how it is sampled by default."""
    names = {"guidance_scale", "motion_guidance", "guidance_interval", "noise_correlation", "seam_frames"}
    return {**recipe.preview.model_dump(mode="json", include=names), "export_dtype": recipe.export_dtype}


def run_stage(
    stage: Stage, recipe: Recipe, progress: Progress | None = None, accelerator: Accelerator | None = None
) -> None:
    """Trains from the newest checkpoint of `recipe.output`, or from the start, to `recipe.steps`, and exports.

    Raises:
        InputError: a batch cannot be shared out equally between the processes, they have different data, or a cache was
            built again and lacks other videos.
        DataError: the checkpoint is of another network, or of a version with other names.
        TrainingInterrupted: on Ctrl-C or SIGTERM, in any process, after a checkpoint.
        NonFiniteLossError: if a loss or its gradient is NaN or infinite; names the samples, and nothing is saved.
    """
    _Run(stage, recipe, accelerator or Accelerator(cpu=recipe.device == "cpu", mixed_precision="no")).train(progress)


class _Run:
    def __init__(self, stage: Stage, recipe: Recipe, accelerator: Accelerator) -> None:
        self._stage, self._recipe, self._accelerator = stage, recipe, accelerator
        self._output = Path(recipe.output)
        if len(set(gather_object([stage.data_digest]))) > 1:
            raise InputError("data.source", recipe.data.source, "hold the same records on all machines")
        self._shares = Shares(stage.batches, accelerator.num_processes, accelerator.process_index, recipe)
        optimizer = make_optimizer(self._trained().values(), recipe.optimizer)
        self._losses, prepared = accelerator.prepare(_Losses(stage), optimizer)
        self._optimizer: torch.optim.Optimizer = prepared.optimizer
        self._parameters = list(self._trained().values())
        if recipe.optimizer.name == "adamw8bit" and any(isinstance(one, DTensor) for one in self._parameters):
            raise InputError("optimizer.name", "adamw8bit", "be adamw or adam where the parameters are sharded (FSDP)")
        self._ema = EMAModel(self._parameters, decay=recipe.optimizer.ema_decay)
        self._scaler = torch.amp.GradScaler(accelerator.device.type, enabled=recipe.precision == "fp16")
        self._quarantine = Quarantine(self._output / "quarantine.jsonl") if accelerator.is_main_process else None
        self._bad: dict[str, str] = {}
        self._weights = weights_digest(recipe.model)  # now, and not when a checkpoint is written: what was loaded
        self._unread = len(stage.batches.quarantined)  # of a cache: they are no part of the order of samples

    def train(self, progress: Progress | None) -> None:
        recipe, output, main = self._recipe, self._output, self._accelerator.is_main_process
        start, state = self._resume()
        if start > recipe.steps:
            raise InputError("steps", recipe.steps, f"be at least {start}, which {output} has done already")
        log = TrainingLog(output / "log.jsonl", start, state.get("losses", ())) if main else None
        clock = Clock(float(state.get("seconds", 0.0)))
        if start and self._sum(main and not self._preview_folder(start).exists())[0]:
            self._preview(start)  # a run that ended between the checkpoint and its preview
        saved = started = time.monotonic()
        with _stop_signals() as stopped:
            shares = load_shares(self._shares, start, recipe, self._accelerator)
            for step, share in zip(range(start, recipe.steps), shares, strict=True):
                self._note_bad(share)
                loss, last = self._step(step, share), step + 1 == recipe.steps
                if log is not None:
                    log.add(step + 1, loss, clock.seconds)
                    if (step + 1) % recipe.log_every == 0 or last:
                        row = log.write(learning_rate(step, recipe.steps, recipe.optimizer))
                        self._accelerator.log({key: row[key] for key in ("loss", "learning_rate")}, step=step + 1)
                if main and progress is not None:
                    left = (recipe.steps - step - 1) * (time.monotonic() - started) / (step + 1 - start)
                    progress(step + 1, recipe.steps, loss, left)
                late = main and time.monotonic() - saved > 60 * recipe.checkpoint_minutes
                stopping, late = (bool(count) for count in self._sum(stopped(), late))  # in any process
                if stopping or last or late or (recipe.keep_every and (step + 1) % recipe.keep_every == 0):
                    self._save(step + 1, {"seconds": clock.seconds, "losses": log.unwritten if log else []})
                    saved = time.monotonic()
                if stopping and not last:
                    raise TrainingInterrupted(f"stopped after step {step + 1}; the same command goes on from there")
                self._preview(step + 1)
        with self._averaged_weights(), clear_write_errors(str(output / "model"), "the last checkpoint stays"):
            self._stage.export(output / "model")
        if main:
            with clear_write_errors(str(output / "done.json"), "the last checkpoint stays"):
                facts = {"steps": recipe.steps, "seconds": round(clock.seconds, 1), "settings": kept_settings(recipe)}
                write_json(output / "done.json", facts)
        self._accelerator.wait_for_everyone()

    def _preview_folder(self, step: int) -> Path:
        return self._output / "previews" / f"step_{step:08d}"

    def _preview(self, step: int) -> None:
        """Draws the preview of a step, whole or not at all, where one is due."""
        if step != self._recipe.steps and step % self._recipe.preview.every:
            return
        place = self._preview_folder(step)
        drawing = place.parent / ".drawing" / place.name
        with self._averaged_weights(), clear_write_errors(str(place), "the last checkpoint stays"):
            if self._accelerator.is_main_process:
                shutil.rmtree(drawing.parent, ignore_errors=True)  # of a run that was killed while it drew
            broken = self._stage.preview(drawing)
            if broken:
                names = ", ".join(map(repr, broken))
                logger.warning("the preview of step %d is not of finite numbers: %s", step, names)
            if self._accelerator.is_main_process and drawing.exists():
                shutil.rmtree(place, ignore_errors=True)
                drawing.rename(place)
                drawing.parent.rmdir()

    def _note_bad(self, share: Share) -> None:
        """Keeps what could not be read, and raises what kept a share from being drawn at all."""
        self._bad |= share.quarantined
        if self._quarantine is not None:
            self._quarantine.add(share.quarantined)
        if share.error is not None:
            raise share.error

    def _step(self, step: int, share: Share) -> float:
        """One optimiser step: the loss of the whole batch."""
        accelerator, recipe, optimizer = self._accelerator, self._recipe, self._optimizer
        device = accelerator.device
        torch.manual_seed(derive_seed(recipe.seed, "step", step, accelerator.process_index))  # dropout's masks
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe.steps, recipe.optimizer)
        optimizer.zero_grad(set_to_none=True)
        total, found = torch.zeros((), device=device), []
        for number, part in enumerate(share.parts, start=1):
            waiting = accelerator.no_sync(self._losses) if number < len(share.parts) else contextlib.nullcontext()
            with waiting, training_attention(device, recipe.compile):
                with autocast(device, recipe.precision):
                    losses: Tensor = self._losses(part.batch)
                # The processes' gradients are averaged, so this makes the sum over the whole batch of all of them.
                scaled = self._scaler.scale(losses.sum() * (accelerator.num_processes * part.weight))
                scaled.backward()  # Accelerate's divides by a launch option
            found.append(losses.detach())
            total += found[-1].sum() * part.weight
        (loss,) = self._sum(total.item())
        if not math.isfinite(loss):  # only now: to look at each part would wait for the device each time
            finite = torch.cat(found).isfinite().tolist()
            names = [name for part in share.parts for name in part.names]
            self._refuse("loss", step, loss, [name for name, fine in zip(names, finite, strict=True) if not fine])
        self._scaler.unscale_(optimizer)
        norm: Tensor = accelerator.clip_grad_norm_(self._parameters, recipe.optimizer.max_grad_norm)
        length = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        # A scaler leaves the step out, and scales less; below 1 that is not what is wrong.
        if not math.isfinite(length) and not (self._scaler.is_enabled() and self._scaler.get_scale() >= 1):
            self._refuse("gradient", step, length, [name for part in share.parts for name in part.names])
        self._scaler.step(optimizer)
        self._scaler.update()
        self._ema.step(self._parameters)
        return loss

    def _sum(self, *values: float) -> list[float]:
        """Each value, summed over the processes."""
        if self._accelerator.num_processes == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self._accelerator.device)
        return cast("list[float]", self._accelerator.reduce(tensor, "sum").tolist())

    def _refuse(self, what: str, step: int, value: float, files: list[str]) -> NoReturn:
        names = gather_object(files)
        more = len(names) - _NAMES_SHOWN
        shown = ", ".join(names[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
        hint = "start anew in another output folder with a lower optimizer.learning_rate"
        raise NonFiniteLossError(f"the {what} of step {step + 1} is {value} ({shown}); {hint}")

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: value for name, value in self._stage.network.named_parameters() if value.requires_grad}

    def _save(self, step: int, state: dict[str, Any]) -> None:
        groups = {
            "network": full_tensors(self._trained()),
            "ema": full_tensors(dict(zip(self._trained(), self._ema.shadow_params, strict=True))),
            "optimizer": optimizer_tensors(self._stage.network, self._optimizer),
        }
        found = gather_object([self._bad])
        self._bad = {}
        if self._quarantine is not None:
            recipe, scaler = self._recipe, self._scaler.state_dict()
            place = self._output / "checkpoints"
            for bad in found:
                self._quarantine.add(bad)
            if len(self._quarantine):
                logger.info("%d files could not be read: %s", len(self._quarantine), self._quarantine.path)
            kept = {**state, "scaler": scaler, "unread": self._unread}
            kept |= {"data": self._stage.data_digest, "parts": self._weights}
            save_checkpoint(place, step, groups, kept, recipe.keep_checkpoints, recipe.keep_every)
            plot_losses(self._output / "log.jsonl", self._output / "loss.png")
        self._accelerator.wait_for_everyone()

    def _resume(self) -> tuple[int, dict[str, Any]]:
        """Steps done, and the state that the checkpoint keeps besides the tensors."""
        checkpoint = latest_checkpoint(self._output / "checkpoints")
        if checkpoint is None:
            return 0, {}
        groups, state, step = checkpoint
        if state.get("unread", self._unread) != self._unread:
            expected = (
                f"lack the {state['unread']} videos that it could not read when the run began, and not {self._unread}"
            )
            raise InputError("data.cache", self._recipe.data.cache, expected)
        try:
            load_tensors(self._trained(), groups["network"])
            load_tensors(dict(zip(self._trained(), self._ema.shadow_params, strict=True)), groups["ema"])
            load_optimizer_tensors(self._stage.network, self._optimizer, groups["optimizer"])
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"the checkpoint of step {step} in {self._output} has other tensors ({reason})") from error
        self._ema.optimization_step = step
        if state.get("scaler"):
            self._scaler.load_state_dict(state["scaler"])
        logger.info("going on from step %d", step)
        return step, state

    @contextlib.contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """The network carries its averaged weights inside."""
        self._ema.store(self._parameters)
        self._ema.copy_to(self._parameters)
        try:
            with torch.no_grad():
                yield
        finally:
            self._ema.restore(self._parameters)


class _Losses(nn.Module):
    """The stage's loss as a module: what is wrapped for several processes, so that no stage has to know."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.network = stage.network
        self._loss = stage.loss

    def forward(self, batch: Any) -> Tensor:
        return self._loss(batch)


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
