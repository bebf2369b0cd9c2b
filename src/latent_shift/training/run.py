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
from latent_shift.core.files import read_json_object, write_json
from latent_shift.core.seeding import derive_seed
from latent_shift.models.layers import lay_out_for_cpu
from latent_shift.pipelines import LatentShiftPipeline, LatentShiftXLPipeline, make_scheduler
from latent_shift.pipelines.components import damaged_files_named, text_encoders, without_pooling
from latent_shift.pipelines.inputs import check_size
from latent_shift.pipelines.loading import model_folder, pipeline_class_of, resolve_device

from .autoencoding import AutoencoderStage
from .checkpoint import checkpoint_state, has_checkpoints
from .config import Recipe
from .denoising import DenoisingStage, noise_schedule
from .distillation import DistillationStage
from .networks import UNETS, load_autoencoder, make_network, weights_digest
from .noise import resolve_noise
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


def make_accelerator(recipe: Recipe) -> Accelerator:
    """The processes and the device of a run; alone without `accelerate launch` or `torchrun`.

    Arithmetic and accumulation are the recipe's and not Accelerate's, so that no launch option changes a result.

    Raises:
        InputError: the recipe's device is not there, or the launch asks for another way to share than copies or FSDP2.
        MissingExtraError: a tracker is not installed.
    """
    device = resolve_device(recipe.device)
    if device.index is not None:
        torch.cuda.set_device(device)
    for tracker in recipe.trackers:
        if importlib.util.find_spec(tracker) is None:
            raise MissingExtraError(tracker, tracker)
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
        try:
            output.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise InputError("output", recipe.output, "be a folder that no other run is using now") from error
        except (OSError, ValueError) as error:
            expected = f"be in a folder that can be written ({getattr(error, 'strerror', error)})"
            raise InputError("output", recipe.output, expected) from error
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
    unet_class = UNETS[recipe.model.video]
    torch.manual_seed(derive_seed(recipe.seed, "initial weights"))
    scheduler = make_scheduler("dpm++", noise_schedule(recipe.diffusion).config)
    noise_correlation, guidance = recipe.preview.noise_correlation, (1.0, 1.0, (0.0, 1.0))
    seam_frames = recipe.preview.seam_frames
    if recipe.model.init:
        folder = model_folder(recipe.model.init, "model.init")
        base = pipeline_class_of(folder).from_pretrained(folder, torch_dtype=torch.float32)
        if recipe.distillation.steps and isinstance(base, LatentShiftXLPipeline):
            raise InputError("distillation.steps", recipe.distillation.steps, "be 0 where model.init is SDXL")
        arguments = _own_boundary(recipe, base.unet.config.get("default_boundary")) | recipe.model.arguments
        if recipe.model.video == "shift" and getattr(base.unet, "frame_mixing_keys", None):
            init = recipe.model.init
            expected = f"be vdm, as {init} is (or: latent-shift convert {init} OUT --to shift)"
            raise InputError("model.video", recipe.model.video, expected)
        unet = make_network(unet_class, arguments, base.unet.config)
        try:
            unet.load_image_state_dict(base.unet.state_dict())
        except InputError as error:
            expected = f"give a network that the weights of {recipe.model.init} fit ({error})"
            raise InputError("model.arguments", recipe.model.arguments, expected) from error
        if recipe.distillation.steps:
            _check_teacher(recipe, base.unet.config)
        if recipe.stage == "video" and recipe.lora.rank and unet.frame_mixing_keys - base.unet.state_dict().keys():
            expected = f"be 0 where {recipe.model.init} lacks the temporal layers of model.video: LoRA adds none"
            raise InputError("lora.rank", recipe.lora.rank, expected)
        parts: dict[str, Any] = {**base.components, "unet": unet}
        if recipe.model.autoencoder:
            parts["vae"] = load_autoencoder(Path(recipe.model.autoencoder), "model.autoencoder")
        kept = [name for name in ("mask_padding", "force_zeros_for_empty_prompt", "fps") if name in base.config]
        pipeline_class, own = type(base), {name: base.config[name] for name in kept}
        max_tokens = base.max_prompt_tokens
        if recipe.distillation.steps:
            scheduler = make_scheduler("ddim-trailing", base.scheduler.config)
            noise_correlation = base.noise_correlation if noise_correlation is None else noise_correlation
            seam_frames = base.config.default_seam_frames if seam_frames is None else seam_frames
            asked = recipe.distillation.guidance_scale
            scale = base.config.default_guidance_scale if asked is None else asked
            guidance = scale, base.config.default_motion_guidance, base.guidance_interval
    else:
        parts = {
            **load_text_encoder(Path(recipe.model.text_encoder)),
            "vae": load_autoencoder(Path(recipe.model.autoencoder), "model.autoencoder"),
            "unet": make_network(unet_class, _own_boundary(recipe, None) | recipe.model.arguments),
        }
        pipeline_class, own, max_tokens = LatentShiftPipeline, {"mask_padding": True}, recipe.model.max_tokens
    if recipe.stage == "video" and isinstance(recipe.data.duration_s, float):
        own["fps"] = recipe.data.num_frames / recipe.data.duration_s
    pipeline = pipeline_class(
        **{**parts, "scheduler": scheduler},
        **own,
        max_tokens=max_tokens,
        default_frames=recipe.data.num_frames if recipe.stage == "video" else 1,
        default_size=recipe.data.size,
        default_guidance_scale=recipe.preview.guidance_scale,
        default_motion_guidance=recipe.preview.motion_guidance,
        default_guidance_start=recipe.preview.guidance_interval[0],
        default_guidance_stop=recipe.preview.guidance_interval[1],
        default_noise_correlation=noise_correlation,
        default_seam_frames=seam_frames,
        distilled_steps=recipe.distillation.steps or None,
    )
    _check_fit(pipeline)
    check_size("data.size", pipeline, recipe.data.size, recipe.data.size)
    for name in ("vae", *text_encoders(pipeline.components)):
        getattr(pipeline, name).requires_grad_(False).eval()
    pipeline.to(accelerator.device)
    sharded = accelerator.distributed_type == DistributedType.FSDP  # which wants weights contiguous
    if accelerator.device.type == "cpu" and recipe.precision == "bf16" and not sharded:
        lay_out_for_cpu(pipeline.unet, torch.bfloat16)
    if recipe.distillation.steps:
        return DistillationStage(recipe, pipeline, accelerator, data, *guidance)
    return DenoisingStage(recipe, pipeline, accelerator, data)


def _own_boundary(recipe: Recipe, given: str | None) -> dict[str, str | None]:
    """What the ends of a clip see where a call does not say: as in training, lest it be sampled as it never was seen.

    Args:
        recipe: of the run.
        given: of the network that it starts from.
    """
    if recipe.stage == "image":
        return {"default_boundary": None}
    share, own = recipe.diffusion.circular_share, given or "zero"
    return {"default_boundary": own if 0 < share < 1 else "circular" if share else "zero"}


def _check_teacher(recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Raises `InputError` where a distillation would give its teacher, too, other arguments than it was made with."""
    for key, value in recipe.model.arguments.items():
        own = config.get(key)
        if value != (list(own) if isinstance(own, tuple) else own):
            expected = f"be {own!r}, or left out: a distillation has the network of its teacher"
            raise InputError(f"model.arguments.{key}", value, expected)


def _check_fit(pipeline: LatentShiftPipeline) -> None:
    """Raises `InputError` unless the U-Net takes the autoencoder's latents and the text encoder's features."""
    config, latent_channels = pipeline.unet.config, pipeline.vae.config.latent_channels
    widths = [getattr(pipeline, name).config.hidden_size for name in text_encoders(pipeline.components)]
    for key, expected in (
        ("in_channels", latent_channels),
        ("out_channels", latent_channels),
        ("cross_attention_dim", sum(widths)),
    ):
        if config[key] != expected:
            raise InputError(f"model.arguments.{key}", config[key], f"be {expected}, as the loaded parts have it")


def load_text_encoder(folder: Path) -> dict[str, Any]:
    """`text_encoder` and `tokenizer` of a folder laid out as a pipeline's.

    Raises:
        InputError: a part is missing.
        DataError: a part is damaged.
    """
    from transformers import MODEL_MAPPING, AutoConfig, AutoModel, AutoTokenizer

    for part in ("text_encoder", "tokenizer"):
        if not (folder / part).is_dir():
            raise InputError("model.text_encoder", str(folder), f"be a folder with {part}/ in it")
    with damaged_files_named(folder):
        config = AutoConfig.from_pretrained(folder / "text_encoder")
        options = without_pooling(MODEL_MAPPING[type(config)])
        encoder = AutoModel.from_pretrained(folder / "text_encoder", dtype=torch.float32, **options)
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return {"text_encoder": encoder, "tokenizer": tokenizer}
