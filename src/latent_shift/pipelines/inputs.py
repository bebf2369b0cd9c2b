"""What a call of a pipeline is given, checked before anything is computed: each problem is one line that names it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from latent_shift.core.errors import InputError
from latent_shift.core.shapes import check_divisible, check_interval, check_number, check_whole, is_number, is_text

if TYPE_CHECKING:
    from .latent_shift import LatentShiftPipeline

OutputType = Literal["pil", "np", "pt", "latent"]

_FEATURES = {
    "prompt_embeds": "(prompts, tokens, width)",
    "negative_prompt_embeds": "(prompts, tokens, width)",
    "pooled_prompt_embeds": "(prompts, width)",
    "negative_pooled_prompt_embeds": "(prompts, width)",
}
"""Text features that a call may be given, and their shapes."""


def size_factor(pipeline: LatentShiftPipeline) -> int:
    """What width and height must be divisible by, in pixels."""
    return int(pipeline.vae_scale_factor * 2**pipeline.unet.num_upsamplers)


def check_size(argument: str, pipeline: LatentShiftPipeline, width: int | None, height: int | None) -> None:
    """Raises `InputError` unless the model can make clips of this size; None is the model's own."""
    for value in (width, height):
        if value is not None:
            check_divisible(argument, value, size_factor(pipeline))


def check_tensor(name: str, value: Any) -> None:
    """Raises `InputError` unless it is a tensor of finite numbers."""
    if not isinstance(value, Tensor):
        raise InputError(name, value, "be a torch.Tensor")
    finite = value.isfinite()
    if not finite.all():
        raise InputError(name, value[~finite][0].item(), "be of finite numbers")


def check_prompts(
    prompt: Any,
    negative_prompt: Any,
    prompt_embeds: Tensor | None,
    negative_prompt_embeds: Tensor | None,
    pooled_prompt_embeds: Tensor | None = None,
    negative_pooled_prompt_embeds: Tensor | None = None,
) -> int:
    """How many prompts there are.

    Raises:
        InputError: sentences are not given once, as text or as features `(prompts, tokens, width)`; features are no
            tensors of finite numbers; or there are other negative prompts than one, or one for each.
    """
    if (prompt is None) == (prompt_embeds is None):
        raise InputError("prompt", prompt, "be given, or prompt_embeds, and not both")
    if negative_prompt is not None and negative_prompt_embeds is not None:
        raise InputError("negative_prompt", negative_prompt, "be left out where negative_prompt_embeds are given")
    for name, given in (("prompt", prompt), ("negative_prompt", negative_prompt)):
        prompts = [given] if isinstance(given, str) else given
        several = isinstance(prompts, Sequence) and len(prompts) > 0
        if given is not None and not (several and all(isinstance(text, str) for text in prompts)):
            raise InputError(name, given, "be a sentence or a list of sentences")
        for text in prompts or ():
            if not is_text(text):
                raise InputError(name, text, "be UTF-8 text")
    given = (prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds)
    for (name, shape), embeds in zip(_FEATURES.items(), given, strict=True):
        if embeds is None:
            continue
        check_tensor(name, embeds)
        if embeds.dim() != len(shape.split(",")):
            raise InputError(name, tuple(embeds.shape), f"have the shape {shape}")
    count = len(prompt_embeds) if prompt_embeds is not None else 1 if isinstance(prompt, str) else len(prompt)
    one_each(negative_prompt, count)
    return count


def check_clip(
    pipeline: LatentShiftPipeline, num_frames: int, height: int, width: int, num_inference_steps: int
) -> None:
    """Raises `InputError` unless the model and its scheduler can make a clip of this shape in so many steps."""
    if not hasattr(pipeline.scheduler, "init_noise_sigma"):
        raise InputError("scheduler", type(pipeline.scheduler).__name__, "be one of diffusion, not of flow matching")
    check_whole("num_frames", num_frames)
    check_whole("num_inference_steps", num_inference_steps)
    most = pipeline.scheduler.config.num_train_timesteps
    if num_inference_steps > most:
        raise InputError("num_inference_steps", num_inference_steps, f"be at most {most}, the steps of training")
    check_divisible("height", height, size_factor(pipeline))
    check_divisible("width", width, size_factor(pipeline))


def check_steps(num_inference_steps: Any, timesteps: Any, sigmas: Any) -> None:
    """Raises `InputError` unless steps are given as their number, or as a list of numbers, or not at all."""
    for name, steps in (("timesteps", timesteps), ("sigmas", sigmas)):
        if steps is None:
            continue
        if not hasattr(steps, "__len__") or not len(steps) or not all(map(is_number, steps)):
            raise InputError(name, steps, "be a list of numbers")
        if num_inference_steps is not None:
            raise InputError("num_inference_steps", num_inference_steps, f"be left out where {name} are given")


def check_guidance(
    guidance_scale: float | None, motion_guidance: float | None, guidance_interval: Sequence[float] | None
) -> None:
    """Raises `InputError` for guidance out of range; None is the model's own.

    Args:
        guidance_scale: a finite number.
        motion_guidance: the share of it that acts on motion, in [0, 1].
        guidance_interval: where it starts and stops, in shares of the steps, 0 <= start < stop <= 1.
    """
    if guidance_scale is not None:
        check_number("guidance_scale", guidance_scale)
    if motion_guidance is not None and not (is_number(motion_guidance) and 0 <= motion_guidance <= 1):
        raise InputError("motion_guidance", motion_guidance, "be in [0, 1]")
    if guidance_interval is not None:
        check_interval("guidance_interval", guidance_interval)


def check_boundary(boundary: Any) -> None:
    """Raises `InputError` unless a U-Net knows it."""
    if not isinstance(boundary, str | None) or boundary not in ("default", "zero", "circular", None):
        raise InputError("boundary", boundary, "be default, zero, circular or None")


def check_noise(
    generator: Any, latents: Tensor | None, noise_correlation: float | None, shape: tuple[int, ...]
) -> None:
    """Raises `InputError` unless clips of this shape have noise: that of their generators, or latents.

    Args:
        generator: one for all clips, or a sequence with one for each.
        latents: the noise itself.
        noise_correlation: of neighbouring frames' noise, in [0, 1); None is the model's own.
        shape: of the latents of all clips.
    """
    if noise_correlation is not None and not (is_number(noise_correlation) and 0 <= noise_correlation < 1):
        raise InputError("noise_correlation", noise_correlation, "be in [0, 1)")
    for one in generator if isinstance(generator, Sequence) else [generator]:
        if not isinstance(one, torch.Generator | None):
            raise InputError("generator", one, "be a torch.Generator, or a list of them")
    if isinstance(generator, Sequence) and len(generator) != shape[0]:
        raise InputError("generator", len(generator), f"be one, or one for each of {shape[0]} clips")
    if latents is not None and noise_correlation is not None:
        raise InputError(
            "noise_correlation", noise_correlation, "be left out where latents are given, which are the noise"
        )
    if latents is None:
        return
    check_tensor("latents", latents)
    if tuple(latents.shape) != shape:
        raise InputError("latents", tuple(latents.shape), f"have the shape {shape}")


def callback_tensors(callback: Any, names: Any, known: Sequence[str]) -> list[str]:
    """Which tensors a callback gets: of diffusers' own those that it says, else those that a call names.

    Raises:
        InputError: it cannot be called, or one of them is not known.
    """
    if callback is not None and not callable(callback):
        raise InputError("callback_on_step_end", callback, "be a function")
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        names = callback.tensor_inputs
    asked = [names] if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
    for name in asked:
        if name not in known:
            raise InputError("callback_on_step_end_tensor_inputs", name, f"be among {', '.join(known)}")
    return asked


def check_attention(cross_attention_kwargs: Any) -> None:
    """Raises `InputError` unless the attention processors can be given them."""
    if not isinstance(cross_attention_kwargs, Mapping | None):
        raise InputError("cross_attention_kwargs", cross_attention_kwargs, "be a dict, or None")


def check_output_type(output_type: str, known: tuple[str, ...] = get_args(OutputType)) -> None:
    """Raises `InputError` unless it is one of those known."""
    if not isinstance(output_type, str) or output_type not in known:
        raise InputError("output_type", output_type, f"be one of {', '.join(known)}")


def one_each(negative_prompt: str | Sequence[str] | None, count: int) -> list[str]:
    """Negative prompts, one for each of `count` prompts; empty where there is none.

    Raises:
        InputError: there are others than one, or one for each.
    """
    if isinstance(negative_prompt, str | None):
        return [negative_prompt or ""] * count
    if len(negative_prompt) != count:
        expected = f"be a sentence, or a list with one for each of {count} prompts"
        raise InputError("negative_prompt", len(negative_prompt), expected)
    return list(negative_prompt)
