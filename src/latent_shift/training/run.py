"""From a recipe to a trained model."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs
from filelock import FileLock, Timeout
from pydantic import ValidationError

from latent_shift import __version__
from latent_shift.core.errors import InputError, MissingExtraError
from latent_shift.core.files import check_can_write, read_json_object, write_json
from latent_shift.models.layers import lay_out_for_cpu
from latent_shift.pipelines.components import text_encoders
from latent_shift.pipelines.loading import MODELS, resolve_device

from .assembly import assemble
from .autoencoding import AutoencoderStage, make_autoencoder
from .checkpoint import checkpoint_state, has_checkpoints
from .config import Recipe
from .denoising import DenoisingStage
from .distillation import DistillationStage
from .networks import weights_digest
from .noise import resolve_noise
from .optimizer import optimizer_class
from .sources import TrainingData
from .trainer import Progress, Stage, kept_settings, run_stage

logger = logging.getLogger(__name__)

_FREE = frozenset(
    ("steps", "device", "compile", "workers", "micro_batch_size", "gradient_checkpointing", "output", "log_every")
    + ("checkpoint_minutes", "keep_checkpoints", "keep_every", "preview", "trackers", "export_dtype")
    + ("data.source", "data.max_bad_share")
)
"""Settings that a run may go on with when they changed: how fast it is, what it keeps and shows, how long it goes,
where the data are (checkpoints know which they were) and how much of them may be lost. So may the folders of
models, where checkpoints know what was in them. Where `kept_settings` of a complete run changed, its model is written
anew."""
_PEERS_WAIT = datetime.timedelta(hours=24)
"""How long processes wait for each other: the first one may encode all the data before the others begin."""


def train(recipe: Recipe, progress: Progress | None = None) -> Path:
    """Trains what `recipe` says, from its last checkpoint where there is one, and returns the folder of the model.

    The run's folder holds `recipe.json`, `log.jsonl`, `loss.png`, `checkpoints/`, `previews/` and, at the end,
    `model/`.

    Raises:
        InputError: a setting is wrong, or the run's folder belongs to another recipe.
        TrainingInterrupted: on Ctrl-C or SIGTERM, after a checkpoint.
    """
    recipe, notes = resolve_noise(recipe)
    for note in notes:
        logger.warning(note)
    output = Path(recipe.output)
    with _claimed(output, recipe):
        data = TrainingData(recipe)
        _refuse_other_run(output, recipe, data)
        if _is_complete(output, recipe):
            logger.info("%s is complete", output)
            return output / "model"
        facts = {"latent_shift": __version__, "torch": torch.__version__, "recipe": recipe.model_dump(mode="json")}
        accelerator = make_accelerator(recipe)
        write_json(output / "recipe.json", facts)  # when all processes are here, and have read the one before
        logger.info("processes: %d, on %s", accelerator.num_processes, accelerator.device)
        with accelerator.local_main_process_first():  # the first encodes the data, the others then find the cache
            stage = _make_stage(recipe, accelerator, data)
        run_stage(stage, recipe, progress, accelerator)
        if recipe.trackers:
            accelerator.end_training()
    return output / "model"


def check_run(recipe: Recipe) -> None:
    """Refuses what `train` refuses before it reads data, by the same code; reads no weights, and writes nothing.

    Args:
        recipe: with its noise process resolved.

    Raises:
        InputError: as `train` does, but for a folder that another run is using now.
        DataError: a file of a model, or every checkpoint of the run, is damaged.
        MissingExtraError: a tracker or the optimiser is not installed.
    """
    output = Path(recipe.output)
    check_can_write("output", recipe.output)
    _refuse_other_run(output, recipe, TrainingData(recipe))
    if _is_complete(output, recipe):
        return
    _check_machine(recipe)
    optimizer_class(recipe.optimizer)
    if recipe.stage == "autoencoder":
        make_autoencoder(recipe, "meta")
    else:
        assemble(recipe, "meta")


def absent_parts(recipe: Recipe) -> list[str]:
    """The settings that name folders which are not on this machine: of an earlier stage, say, that has yet to run."""
    places = {f"model.{name}": getattr(recipe.model, name) for name in ("init", "autoencoder", "text_encoder")}
    return [key for key, place in places.items() if place and place not in MODELS and not os.path.exists(place)]


def make_accelerator(recipe: Recipe) -> Accelerator:
    """The processes and the device of a run; alone without `accelerate launch` or `torchrun`.

    Arithmetic and accumulation are the recipe's and not Accelerate's, so that no launch option changes a result.

    Raises:
        InputError: the recipe's device is not there, or the launch asks for another way to share than copies or FSDP2.
        MissingExtraError: a tracker is not installed.
    """
    device = _check_machine(recipe)
    if device.index is not None:
        torch.cuda.set_device(device)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="no",
        log_with=list(recipe.trackers) or None,
        project_dir=recipe.output,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PEERS_WAIT)],
    )
    _check_launch(accelerator)
    settings = {key: str(value) for key, value in recipe.model_dump().items()}
    own = {"wandb": {"dir": recipe.output, "name": Path(recipe.output).name}}
    accelerator.init_trackers("latent-shift", config=settings, init_kwargs=own)
    return accelerator


def _check_machine(recipe: Recipe) -> torch.device:
    """The device of a run; raises where it or a tracker is not there."""
    device = resolve_device(recipe.device)
    for tracker in recipe.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise MissingExtraError(tracker, tracker)
    return device


def _check_launch(accelerator: Accelerator) -> None:
    kind = accelerator.distributed_type
    if kind == DistributedType.FSDP and not getattr(accelerator, "is_fsdp2", False):
        raise InputError("--fsdp_version", 1, "be 2 (accelerate launch --use_fsdp --fsdp_version 2)")
    if kind not in (DistributedType.NO, DistributedType.FSDP) and not kind.value.startswith("MULTI_"):
        raise InputError("accelerate launch", kind.value, "use --multi_gpu, or --use_fsdp --fsdp_version 2")


def _make_stage(recipe: Recipe, accelerator: Accelerator, data: TrainingData) -> Stage:
    if recipe.stage == "autoencoder":
        if accelerator.distributed_type == DistributedType.FSDP:  # it is small, and computes outside its loss, too
            raise InputError("stage", recipe.stage, "be image or video where the network is sharded (FSDP)")
        return AutoencoderStage(recipe, accelerator, data)
    return _denoising(recipe, accelerator, data)


@contextlib.contextmanager
def _claimed(output: Path, recipe: Recipe) -> Iterator[None]:
    """Keeps other runs out of the run's folder.

    A new run that fails before it has logged a step or kept a checkpoint leaves nothing behind.
    """
    first, is_new = os.environ.get("RANK", "0") == "0", not output.exists()
    lock = FileLock(output / ".lock", timeout=0)
    if first:
        check_can_write("output", recipe.output)
        try:
            output.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise InputError("output", recipe.output, "be a folder that no other run is using now") from error
        except OSError as error:
            raise InputError("output", recipe.output, f"be a folder that can be written ({error.strerror})") from error
    try:
        yield
    except BaseException:
        log = output / "log.jsonl"
        has_begun = (log.exists() and log.stat().st_size) or has_checkpoints(output / "checkpoints")
        if first and is_new and not has_begun:
            for file in (output / "recipe.json", log):
                file.unlink(missing_ok=True)
        raise
    finally:
        if lock.is_locked:
            (output / ".lock").unlink(missing_ok=True)
            lock.release()
            with contextlib.suppress(OSError):
                if is_new:
                    output.rmdir()  # where nothing is in it


def _refuse_other_run(output: Path, recipe: Recipe, data: TrainingData) -> None:
    """Refuses a folder that holds steps of a run with other settings, weights or data.

    More or fewer steps may be asked for later: the learning rate then decays towards the new end.
    """
    place, resolved = output / "recipe.json", recipe.model_dump(mode="json")
    state = checkpoint_state(output / "checkpoints")
    if state is None and not (output / "done.json").exists():
        return
    if not place.exists():
        held = "a model without its" if state is None else "checkpoints without their"
        raise InputError("output", recipe.output, f"be a new folder: it holds {held} recipe.json")
    state = state or {}
    before, unused = json.loads(place.read_text(encoding="utf-8"))["recipe"], [key for key, _ in recipe.unused()]
    for key in unused:  # versions before this one took more of them
        _drop(before, key)
    with contextlib.suppress(ValidationError):  # settings that this version added have their defaults
        before = Recipe.model_validate(before).model_dump(mode="json")
    ours, theirs = dict(_flat(resolved)), dict(_flat(before))
    for tree in (ours, theirs):  # a cache may be anywhere, but its clips are not those that are decoded as they come
        tree["data.cache"] = "a folder" if tree.get("data.cache") else ""
    free = _FREE if "data" in state else _FREE - {"data.source"}  # which older checkpoints do not know
    parts_alone = "parts" in state  # older checkpoints know "weights", which say nothing of how a network is configured
    weights = weights_digest(recipe.model, parts_alone)
    if parts_alone and weights is not None:
        free |= {"model.init", "model.autoencoder", "model.text_encoder"}
    bound = {"preview.noise_correlation"} if recipe.distillation.steps else set()  # there it is that of training
    for key in sorted(ours.keys() | theirs.keys()):
        is_free = key not in bound and (key in free or key.partition(".")[0] in free)
        is_free |= any(f"{key}.".startswith(f"{name}.") for name in unused)
        if not is_free and ours.get(key) != theirs.get(key):
            expected = f"be a new folder: it holds a run with {key} = {theirs.get(key)!r}, not {ours.get(key)!r}"
            raise InputError("output", recipe.output, expected)
    if None not in (weights, kept := state.get("parts", state.get("weights"))) and weights != kept:
        sources = ", ".join(filter(None, (recipe.model.init, recipe.model.autoencoder, recipe.model.text_encoder)))
        expected = "hold the weights and configurations that the run began from, or output be a new folder"
        raise InputError("model", sources, expected)
    if "data" in state and data.digest != state["data"]:
        expected = "hold the records and captions that the run began with, or output be a new folder"
        raise InputError("data.source", recipe.data.source, expected)


def _is_complete(output: Path, recipe: Recipe) -> bool:
    """Whether nothing is left to do: all steps are done, and the model is there, with the settings of the recipe.

    Raises:
        InputError: something is left, and the checkpoints to do it from are gone.
    """
    if not (output / "done.json").exists():
        return False
    done, wanted = read_json_object(output / "done.json"), kept_settings(recipe)
    begun_with = read_json_object(output / "recipe.json")["recipe"].get("preview", {})
    given = done.get("settings", {name: begun_with.get(name, value) for name, value in wanted.items()})
    given = {"export_dtype": "fp16", "guidance_interval": [0.0, 1.0], **given}  # which older versions do not say
    if done["steps"] >= recipe.steps and (output / "model").is_dir() and given == wanted:
        return True
    if not has_checkpoints(output / "checkpoints"):
        expected = f"be a new folder: it holds a run of {done['steps']} steps, whose checkpoints are gone"
        raise InputError("output", recipe.output, expected)
    return False


def _drop(tree: dict[str, Any], key: str) -> None:
    name, _, rest = key.partition(".")
    if not rest:
        tree.pop(name, None)
    elif isinstance(tree.get(name), dict):
        _drop(tree[name], rest)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _denoising(recipe: Recipe, accelerator: Accelerator, data: TrainingData) -> DenoisingStage:
    pipeline, guidance = assemble(recipe)
    for name in ("vae", *text_encoders(pipeline.components)):
        getattr(pipeline, name).requires_grad_(False).eval()
    pipeline.to(accelerator.device)
    sharded = accelerator.distributed_type == DistributedType.FSDP  # which wants weights contiguous
    if accelerator.device.type == "cpu" and recipe.precision == "bf16" and not sharded:
        lay_out_for_cpu(pipeline.unet, torch.bfloat16)
    if recipe.distillation.steps:
        return DistillationStage(recipe, pipeline, accelerator, data, *guidance)
    return DenoisingStage(recipe, pipeline, accelerator, data)
