"""What a run will need, before it starts: memory and arithmetic, counted on networks without memory ("meta")."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.flop_counter import FlopCounterMode

from latent_shift.core.errors import DataError, InputError
from latent_shift.core.files import read_json_object
from latent_shift.core.shapes import check_divisible
from latent_shift.models import TemporalAttention
from latent_shift.ops.rates import matrix_rate
from latent_shift.pipelines.components import read_index, scale_factor, text_encoders
from latent_shift.pipelines.loading import model_folder, resolve_device

from .config import Recipe
from .lora import add_lora
from .networks import DTYPES, UNETS, make_network

_GIB = 2**30
_USUAL_FACTOR = 8
"""Of an autoencoder that is not there yet."""
_CLIP_TOKENS = 77
"""Of models that leave the length of captions to their tokenizer, which is CLIP's."""
_COMPUTED_AGAIN = (ResnetBlock2D, BasicTransformerBlock, TemporalAttention)
"""What a U-Net with gradient checkpointing computes again, each by itself."""


@dataclass(frozen=True)
class Estimate:
    """Needs of one process.

    Attributes:
        parameters: of the U-Net.
        trained_parameters: those of them that learn.
        weights_gib: weights of the U-Net, of their running average and, where the arithmetic has 16 bits, of the copies
            that are computed with, GiB.
        gradients_gib: gradients, GiB.
        optimizer_gib: the optimiser's state, GiB.
        activations_gib: what the backward pass keeps of one micro-batch, GiB, with attention as plain matrix
            products (fused attention keeps less). With gradient checkpointing: what is kept between the parts that are
            computed again, and of the largest of these all.
        frozen_gib: weights of the autoencoder, the text encoder and a distillation's teacher, GiB; not known where the
            recipe names parts that are not there yet.
        total_gib: all of these, GiB. Buffers of the libraries, previews and clips that are encoded live come on top.
        step_tflop: floating-point operations of one optimiser step of this process, 10^12, forward and backward; those
            that checkpointing repeats count twice.
        matrix_tflop_per_s: what this device does in matrix products of the recipe's precision, measured now.
        step_seconds_at_least: the quotient. A run takes longer: norms and attention move memory, and data are drawn.
    """

    parameters: int
    trained_parameters: int
    weights_gib: float
    gradients_gib: float
    optimizer_gib: float
    activations_gib: float
    frozen_gib: float | None
    total_gib: float | None
    step_tflop: float
    matrix_tflop_per_s: float
    step_seconds_at_least: float


def estimate_run(recipe: Recipe, processes: int = 1) -> Estimate:
    """Counts what one of `processes` needs for the largest step of an image or a video run.

    Raises:
        InputError: a model that the recipe names is not there, its network does not take `data.size`, or no memory
            could hold a step; or the stage is the autoencoder's.
        DataError: a file of such a model is damaged.
    """
    if recipe.stage == "autoencoder":
        raise InputError("stage", recipe.stage, "be image or video for an estimate")
    dtype, device = DTYPES[recipe.precision], resolve_device(recipe.device)
    config = None
    if recipe.model.init:
        config = read_json_object(Path(model_folder(recipe.model.init, "model.init")) / "unet" / "config.json")
    unet = make_network(UNETS[recipe.model.video], recipe.model.arguments, config, "meta")
    if recipe.lora.rank:
        add_lora(unet, recipe.lora)
        unet.to("meta")
    check_divisible("data.size", recipe.data.size, _factor(recipe) * 2**unet.num_upsamplers)
    total = sum(parameter.numel() for parameter in unet.parameters())
    trained = sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad)
    unet.to(dtype).train()
    frames = recipe.data.num_frames if recipe.stage == "video" else 1
    with _overflow_named(recipe):
        activations, step_flop = _count(unet, recipe, recipe.batch_size // processes, frames)
        if recipe.stage == "video" and recipe.diffusion.image_share:
            of_stills, flop = _count(unet, recipe, recipe.image_batch_size // processes, 1)
            activations = max(activations, of_stills)
            step_flop = step_flop + flop if recipe.diffusion.joint_images else max(step_flop, flop)
    rate = matrix_rate(device, dtype)
    copies = 0 if recipe.precision == "fp32" else dtype.itemsize * total
    weights, gradients = 4 * (total + trained) + copies, 4 * trained
    optimizer = (2 if recipe.optimizer.name == "adamw8bit" else 8) * trained
    parts = _frozen_parameters(recipe)
    frozen = None if parts is None else 4 * parts + (dtype.itemsize * total if recipe.distillation.steps else 0)
    whole = None if frozen is None else weights + gradients + optimizer + activations + frozen
    return Estimate(
        parameters=total,
        trained_parameters=trained,
        weights_gib=round(weights / _GIB, 3),
        gradients_gib=round(gradients / _GIB, 3),
        optimizer_gib=round(optimizer / _GIB, 3),
        activations_gib=round(activations / _GIB, 3),
        frozen_gib=None if frozen is None else round(frozen / _GIB, 3),
        total_gib=None if whole is None else round(whole / _GIB, 3),
        step_tflop=round(step_flop / 1e12, 6),
        matrix_tflop_per_s=round(rate / 1e12, 3),
        step_seconds_at_least=round(step_flop / rate, 3),
    )


def _frozen_parameters(recipe: Recipe) -> int | None:
    """Of the autoencoder and the text encoder, which training holds in fp32, by their files' headers; None of none."""
    model = recipe.model
    init = Path(model_folder(model.init, "model.init")) if model.init else None
    text = Path(model.text_encoder) if init is None else init
    count = 0
    encoders = text_encoders(read_index(text)) if init is not None else ["text_encoder"]
    for folder in (_autoencoder_folder(recipe), *(text / name for name in encoders)):
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            return None
        for file in files:
            try:
                with safe_open(file, "pt") as tensors:
                    count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
            except (OSError, SafetensorError) as error:
                raise DataError(f"{file} is damaged ({error})") from error
    return count


def _autoencoder_folder(recipe: Recipe) -> Path:
    model = recipe.model
    named = model.autoencoder or not model.init
    return Path(model.autoencoder) if named else Path(model_folder(model.init, "model.init")) / "vae"


def _factor(recipe: Recipe) -> int:
    config = _autoencoder_folder(recipe) / "config.json"
    return scale_factor(read_json_object(config)) if config.is_file() else _USUAL_FACTOR


class _Kept:
    """Counts what the backward pass keeps: all storages that are saved while it listens, but for those of weights."""

    def __init__(self, unet: nn.Module) -> None:
        self._weights = {_storage(parameter) for parameter in unet.parameters()}
        self._found: dict[Any, Tensor] = {}

    def add(self, tensor: Tensor) -> Tensor:
        storage = _storage(tensor)
        if storage not in self._weights:
            self._found[storage] = tensor
        return tensor

    @property
    def size(self) -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in self._found.values())

    def listen(self) -> saved_tensors_hooks:
        return saved_tensors_hooks(self.add, lambda tensor: tensor)


def _count(unet: nn.Module, recipe: Recipe, share: int, frames: int) -> tuple[int, float]:
    """Bytes that the backward pass of a micro-batch keeps, and operations of forward and backward of `share` rows."""
    rows = min(recipe.micro_batch_size or share, share)
    if not recipe.gradient_checkpointing:
        kept, flop = _run(unet, recipe, rows, frames, _Kept(unet))
        return kept, flop * share / rows
    cast("Any", unet).disable_gradient_checkpointing()
    largest = _largest_part(unet, recipe, rows, frames)
    cast("Any", unet).enable_gradient_checkpointing()
    between, flop = _run(unet, recipe, rows, frames, _Kept(unet))
    return between + largest, flop * share / rows


def _largest_part(unet: nn.Module, recipe: Recipe, rows: int, frames: int) -> int:
    """Bytes that the largest of the parts keeps that checkpointing computes again one at a time."""
    kept, before, largest = _Kept(unet), [0], [0]

    def start(*_: Any) -> None:
        before[0] = kept.size

    def end(*_: Any) -> None:
        largest[0] = max(largest[0], kept.size - before[0])

    handles = []
    for module in unet.modules():
        if isinstance(module, _COMPUTED_AGAIN):
            handles += [module.register_forward_pre_hook(start), module.register_forward_hook(end)]
    _run(unet, recipe, rows, frames, kept)
    for handle in handles:
        handle.remove()
    return largest[0]


def _run(unet: nn.Module, recipe: Recipe, rows: int, frames: int, kept: _Kept) -> tuple[int, float]:
    config: Any = unet.config
    side = recipe.data.size // _factor(recipe)
    dtype = next(unet.parameters()).dtype
    sample = torch.zeros(rows, config.in_channels, frames, side, side, dtype=dtype, device="meta")
    text = torch.zeros(rows, _tokens(recipe), config.cross_attention_dim, dtype=dtype, device="meta")
    steps = torch.zeros(rows, dtype=torch.int64, device="meta")
    conditions: dict[str, Any] = {"boundary": "zero" if recipe.stage == "video" else None}
    if config.addition_embed_type == "text_time":  # SDXL: the pooled caption beside six embedded numbers
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        rows_of = functools.partial(torch.zeros, rows, dtype=dtype, device="meta")
        conditions["added_cond_kwargs"] = {"text_embeds": rows_of(pooled), "time_ids": rows_of(6)}
    with FlopCounterMode(display=False) as counter:
        with kept.listen():
            prediction: Tensor = unet(sample, steps, text, **conditions, return_dict=False)[0]
        size = kept.size
        prediction.sum().backward()  # type: ignore[no-untyped-call]
    return size, float(counter.get_total_flops())


@contextlib.contextmanager
def _overflow_named(recipe: Recipe) -> Iterator[None]:
    """PyTorch counts the bytes of a tensor in 64 bits, also of one without memory."""
    try:
        yield
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        expected = f"be smaller: with batch_size {recipe.batch_size} no memory could hold a step"
        raise InputError("data.size", recipe.data.size, expected) from error


def _tokens(recipe: Recipe) -> int:
    """Length of a caption: that of `model.init`, where there is one."""
    if not recipe.model.init:
        return recipe.model.max_tokens
    return int(read_index(Path(model_folder(recipe.model.init, "model.init"))).get("max_tokens") or _CLIP_TOKENS)


def _storage(tensor: Tensor) -> Any:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
