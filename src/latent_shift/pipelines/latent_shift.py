"""`LatentShiftPipeline`: the denoising loop of Latent-Shift (arXiv:2304.08477, Sec. 3.3), as a diffusers pipeline."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, SchedulerMixin
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from latent_shift.core.errors import InputError
from latent_shift.core.shapes import check_number, check_whole
from latent_shift.media import to_uint8
from latent_shift.models import LatentShiftUNet, LatentVDMUNet, PatchAutoencoderKL
from latent_shift.ops import Boundary

from .components import scale_factor
from .folder import FolderPipeline
from .guidance import guide
from .inputs import (
    OutputType,
    callback_tensors,
    check_attention,
    check_boundary,
    check_clip,
    check_guidance,
    check_noise,
    check_output_type,
    check_prompts,
    check_steps,
    one_each,
)
from .looping import seam_weights
from .noise import correlate_frames, scheduler_step
from .schedulers import clean_latents, set_timesteps, usual_steps
from .text import encode_text

logger = logging.getLogger(__name__)

_MOST_TOKENS = 2**20
"""A tokenizer that has no maximum says 10^30."""


@dataclass
class LatentShiftPipelineOutput(BaseOutput):  # type: ignore[misc]
    """What the pipeline returns."""

    frames: list[list[Image.Image]] | npt.NDArray[np.float32] | Tensor
    """For "pil": a list of frames for each clip. "np": `(batch, frames, height, width, 3)` float32 in [0, 1]. "pt":
    `(batch, frames, 3, height, width)` in [0, 1]. "latent": normalised latents `(batch, channels, frames, h, w)`."""


class LatentShiftPipeline(FolderPipeline, StableDiffusionLoraLoaderMixin):  # type: ignore[misc]
    """Text to video, and to images, with a text-to-image U-Net and the temporal shift.

    LoRA files made for the text-to-image model load with diffusers' `load_lora_weights` (extra `lora`).

    Args:
        vae: an autoencoder of pictures, of diffusers or a `PatchAutoencoderKL`; used frame by frame (Sec. 3.3).
        text_encoder: a transformers encoder.
        tokenizer: its tokenizer.
        unet: a `LatentShiftUNet` or a `LatentVDMUNet`.
        scheduler: a scheduler of diffusers, none for flow matching; its noise schedule must be the one of training.
        max_tokens: caption length in tokens; the tokenizer's own where None.
        mask_padding: whether padding is hidden from the text encoder, see `encode_text`.
        default_frames: `num_frames` where it is not given.
        default_size: height and width where they are not given, in pixels.
        default_guidance_scale: `guidance_scale` where it is not given.
        default_motion_guidance: `motion_guidance` where it is not given.
        default_guidance_start: the first number of `guidance_interval` where it is not given.
        default_guidance_stop: the second.
        default_noise_correlation: `noise_correlation` where it is not given; the U-Net's of training where None.
        default_seam_frames: `seam_frames` where it is not given.
        distilled_steps: `num_inference_steps` where it is not given, of a U-Net that is distilled to so many steps;
            None for all others.
        fps: frames a second that the model was trained at.

    Example:
        >>> from latent_shift import LatentShiftPipeline  # doctest: +SKIP
        >>> pipe = LatentShiftPipeline.from_pretrained("path/to/model")  # doctest: +SKIP
        >>> frames = pipe("a waving hand").frames[0]  # doctest: +SKIP
    """

    parts: ClassVar[tuple[str, ...]] = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    model_cpu_offload_seq = "text_encoder->unet->vae"
    guides_in_halves: bool = False
    """Whether guidance takes two calls of the U-Net a step, for half its memory, and not one of twice the batch. Turns
    itself on when a GPU has no memory left."""
    # What callbacks of diffusers read and set
    _guidance_scale: float = 1.0
    _cross_attention_kwargs: dict[str, Any] | None = None
    _num_timesteps: int = 0
    _interrupt: bool = False
    _callback_tensor_inputs: tuple[str, ...] = ("latents", "prompt_embeds", "negative_prompt_embeds", "clean_latents")

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny | PatchAutoencoderKL,
        text_encoder: Any,
        tokenizer: Any,
        unet: LatentShiftUNet | LatentVDMUNet,
        scheduler: SchedulerMixin,
        max_tokens: int | None = None,
        mask_padding: bool = False,
        default_frames: int = 16,
        default_size: int | None = None,
        default_guidance_scale: float = 7.5,
        default_motion_guidance: float = 1.0,
        default_guidance_start: float = 0.0,
        default_guidance_stop: float = 1.0,
        default_noise_correlation: float | None = None,
        default_seam_frames: int | None = None,
        distilled_steps: int | None = None,
        fps: float = 8.0,
    ) -> None:
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self.register_to_config(
            max_tokens=max_tokens,
            mask_padding=mask_padding,
            default_frames=default_frames,
            default_size=default_size,
            default_guidance_scale=default_guidance_scale,
            default_motion_guidance=default_motion_guidance,
            default_guidance_start=default_guidance_start,
            default_guidance_stop=default_guidance_stop,
            default_noise_correlation=default_noise_correlation,
            default_seam_frames=default_seam_frames,
            distilled_steps=distilled_steps,
            fps=fps,
        )

    @property
    def is_fast(self) -> bool:
        """Whether the U-Net is distilled to few steps (`make_fast`)."""
        return self.config.distilled_steps is not None

    @property
    def guidance_scale(self) -> float:
        """Of the call that runs."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether the call that runs has guidance."""
        return self._guidance_scale > 1

    @property
    def cross_attention_kwargs(self) -> dict[str, Any] | None:
        """Of the call that runs."""
        return self._cross_attention_kwargs

    @property
    def num_timesteps(self) -> int:
        """Steps of the call that runs."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether a callback set `_interrupt`: then no further step is done."""
        return self._interrupt

    @property
    def vae_scale_factor(self) -> int:
        """F of Sec. 3.1: pixels a latent pixel, in each direction."""
        return scale_factor(self.vae.config)

    @property
    def max_prompt_tokens(self) -> int:
        """Caption length in tokens."""
        length = int(self.config.max_tokens or self.tokenizer.model_max_length)
        if length > _MOST_TOKENS:
            raise InputError("max_tokens", self.config.max_tokens, "be given: the tokenizer has no maximum")
        return length

    @property
    def noise_correlation(self) -> float:
        """How far the initial noise of neighbouring frames correlates where a call does not say."""
        own = self.config.default_noise_correlation
        return float(self.unet.config.noise_correlation if own is None else own)

    @property
    def guidance_interval(self) -> tuple[float, float]:
        """In which share of the steps there is guidance where a call does not say."""
        return self.config.default_guidance_start, self.config.default_guidance_stop

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | Sequence[str] | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        motion_guidance: float | None = None,
        guidance_interval: Sequence[float] | None = None,
        noise_correlation: float | None = None,
        num_videos_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        boundary: Boundary | Literal["default"] | None = "default",
        seam_frames: int | None = None,
        eta: float = 0.0,
        cross_attention_kwargs: dict[str, Any] | None = None,
        output_type: OutputType = "pil",
        decode_chunk_size: int = 8,
        callback_on_step_end: Callable[[Any, int, Any, dict[str, Tensor]], dict[str, Tensor] | None] | None = None,
        callback_on_step_end_tensor_inputs: str | Sequence[str] = ("latents",),
        return_dict: bool = True,
    ) -> LatentShiftPipelineOutput | tuple[Any]:
        """Makes clips.

        Args:
            prompt: one or several sentences; or give `prompt_embeds`.
            negative_prompt: what guidance leads away from; one for all, or one a prompt; empty where None.
            num_frames: frames of a clip; 1 makes an image, as a one-frame video with the shift on.
            height: in pixels, divisible by the autoencoder's factor times the U-Net's.
            width: as `height`.
            num_inference_steps: denoising steps; the default is the model's where it is distilled to few, else the
                scheduler's usual number, see `SCHEDULERS`.
            timesteps: those of the steps, falling, instead of `num_inference_steps`; for schedulers that take them.
            sigmas: noise levels of the steps, likewise, as the scheduler takes them.
            guidance_scale: s of classifier-free guidance; 1 or less turns it off.
            motion_guidance: how much of guidance acts on what differs between the frames, in [0, 1]: the scale there is
                1 + `motion_guidance` (s - 1). 1 is the paper; where guidance makes motion too large, less is better.
            guidance_interval: where guidance starts and stops, in shares of the steps, as `start` and `stop` of
                diffusers' guiders (arXiv:2404.07724): the other steps follow the sentence alone, in half the time.
                (0, 1) is the paper.
            noise_correlation: of the initial noise of neighbouring frames, in [0, 1); 0 is the paper. Above that of
                training, motion has less noise to start from: it is calmer, and more as the sentence says.
            num_videos_per_prompt: clips for each prompt.
            generator: one for all clips, or one a clip: then a clip does not depend on its neighbours in the batch. A
                list is used as it is, so a callback that drops a clip from the batch drops its generator there.
            latents: initial noise of unit variance `(batch, channels, frames, height / f, width / f)`, instead of
                `generator` and `noise_correlation`.
            prompt_embeds: text features `(prompts, tokens, width)` instead of `prompt`.
            negative_prompt_embeds: text features instead of `negative_prompt`.
            pooled_prompt_embeds: pooled features that belong to `prompt_embeds` (SDXL only) `(prompts, width)`.
            negative_pooled_prompt_embeds: those that belong to `negative_prompt_embeds` (SDXL only).
            boundary: `"zero"`, `"circular"` for a seamless loop, None turns the shift (of Latent-VDM, the temporal
                attention) off (Figs. 6 and 7); the default is the U-Net's.
            seam_frames: of a loop, how many frames at each end see it closed; the others see the ends of the clip as
                zeros, and so know when they are (`seam_weights`). A step then takes both predictions: twice the time.
                Where neither this nor the model's own is given, all frames see a loop.
            eta: for the schedulers that have it (DDIM, TCD). The noise that it, or a scheduler of noise (DDPM, those
                of ancestral sampling, `sde-dpmsolver++`, LCM, SA), adds in each step follows the frames as that of
                training did, unless the scheduler clips.
            cross_attention_kwargs: for the attention processors, as in diffusers; `scale` is that of LoRA layers.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`.
            decode_chunk_size: frames decoded at once; fewer need less memory.
            callback_on_step_end: called as in diffusers, with (pipeline, step index, timestep, tensors). It may return
                others, of fewer clips, too; it may set `pipeline._interrupt`, so that no step follows. diffusers' own
                that end guidance early work, too: `SDCFGCutoffCallback`, of one clip `SDXLCFGCutoffCallback`.
            callback_on_step_end_tensor_inputs: which tensors it gets, where it is none of diffusers' own: latents,
                prompt_embeds, negative_prompt_embeds (zeros where guidance is off), clean_latents (what the solver now
                takes the finished latents to be, where it says so; else latents); of SDXL add_text_embeds,
                add_time_ids, negative_add_text_embeds, negative_add_time_ids, too.
            return_dict: whether to return `LatentShiftPipelineOutput` or a tuple.

        Raises:
            InputError: a `ValueError`, for an argument out of range; names it.
        """
        self._interrupt = False
        height, width = self.resolve_size(height, width)
        num_frames = self.config.default_frames if num_frames is None else num_frames
        scale = self.config.default_guidance_scale if guidance_scale is None else guidance_scale
        share = self.config.default_motion_guidance if motion_guidance is None else motion_guidance
        interval = self.guidance_interval if guidance_interval is None else guidance_interval
        check_steps(num_inference_steps, timesteps, sigmas)
        if num_inference_steps is None:
            num_inference_steps = self.config.distilled_steps or usual_steps(self.scheduler)
        check_guidance(scale, share, interval)
        check_number("eta", eta, 0)
        generator = list(generator) if isinstance(generator, tuple) else generator
        check_boundary(boundary)
        embeds = (prompt_embeds, negative_prompt_embeds, pooled_prompt_embeds, negative_pooled_prompt_embeds)
        count = check_prompts(prompt, negative_prompt, *embeds)
        check_clip(self, num_frames, height, width, num_inference_steps)
        check_output_type(output_type)
        check_attention(cross_attention_kwargs)
        names = callback_tensors(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)
        check_whole("num_videos_per_prompt", num_videos_per_prompt)
        check_whole("decode_chunk_size", decode_chunk_size)

        device = self._execution_device
        seam = self._seam(boundary, num_frames, seam_frames, device)
        channels = self.unet.config.in_channels
        shape = (count * num_videos_per_prompt, channels, num_frames, *self._latent_size(height, width))
        latents = self.prepare_latents(shape, generator, latents, boundary, noise_correlation)
        set_timesteps(self.scheduler, device, num_inference_steps, timesteps, sigmas)
        conditions = self._conditions(
            prompt, negative_prompt, num_videos_per_prompt, embeds, (height, width), guided=scale > 1
        )
        latents = latents * self.scheduler.init_noise_sigma
        step_options = self._step_options(generator, eta)
        correlation = float(self.unet.config.noise_correlation)
        step = scheduler_step(self.scheduler, eta, num_frames, correlation, self._edges(boundary))

        self._guidance_scale, self._num_timesteps = scale, len(self.scheduler.timesteps)
        self._cross_attention_kwargs = cross_attention_kwargs
        start, stop = (int(part * self.num_timesteps) for part in interval)
        with self.progress_bar(total=len(self.scheduler.timesteps)) as progress:
            for index, timestep in enumerate(self.scheduler.timesteps):
                if self.interrupt:
                    break
                given = (latents, timestep, conditions, share if start <= index < stop else None)
                prediction = self._predict(*given, "zero" if seam is not None else boundary)
                if seam is not None:
                    prediction = torch.lerp(prediction, self._predict(*given, "circular"), seam)
                stepped = step(prediction, timestep, latents, **step_options, return_dict=False)
                latents = stepped[0]
                if callback_on_step_end is not None:
                    tensors = {
                        **conditions,
                        "latents": latents,
                        "clean_latents": clean_latents(self.scheduler, stepped),
                    }
                    shown = {name: tensors[name] for name in names}
                    changed = callback_on_step_end(self, index, timestep, shown) or {}
                    latents = changed.get("latents", latents)
                    conditions = {name: changed.get(name, value) for name, value in conditions.items()}
                progress.update()

        frames: Any = (
            latents if output_type == "latent" else self.decode_latents(latents, decode_chunk_size, output_type)
        )
        self.maybe_free_model_hooks()
        return LatentShiftPipelineOutput(frames=frames) if return_dict else (frames,)

    def encode_prompt(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None = None,
        num_videos_per_prompt: int = 1,
        prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        do_classifier_free_guidance: bool = True,
    ) -> tuple[Float[Tensor, "batch tokens width"], Float[Tensor, "batch tokens width"]]:
        """Text features of the prompts and of the negative prompts, one row a clip.

        Where there is no guidance, the negative prompts have zeros that nothing reads.
        """
        if prompt_embeds is None:
            prompt_embeds = self._encode([prompt] if isinstance(prompt, str) else list(prompt or ()))
        negatives = one_each(negative_prompt, len(prompt_embeds))
        if negative_prompt_embeds is None:
            guided = do_classifier_free_guidance
            negative_prompt_embeds = self._encode(negatives) if guided else torch.zeros_like(prompt_embeds)
        if negative_prompt_embeds.shape != prompt_embeds.shape:
            expected = f"have the shape of the prompt's, {tuple(prompt_embeds.shape)}"
            raise InputError("negative_prompt_embeds", tuple(negative_prompt_embeds.shape), expected)
        dtype, device = self.unet.dtype, self._execution_device
        positive, negative = (
            embeds.to(device, dtype).repeat_interleave(num_videos_per_prompt, dim=0)
            for embeds in (prompt_embeds, negative_prompt_embeds)
        )
        return positive, negative

    def encode_captions(
        self, captions: Sequence[str], size: tuple[int, int]
    ) -> tuple[Float[Tensor, "captions tokens width"], dict[str, Tensor] | None]:
        """What a U-Net learns from of each caption; a dropped one is "".

        Args:
            captions: of the clips.
            size: height and width of their frames.

        Returns:
            Text features, and added conditions where the network takes some (SDXL).
        """
        del size
        return self.encode_prompt(captions, do_classifier_free_guidance=False)[0], None

    def prepare_latents(
        self,
        shape: tuple[int, int, int, int, int],
        generator: torch.Generator | Sequence[torch.Generator] | None,
        latents: Tensor | None = None,
        boundary: Boundary | Literal["default"] | None = "default",
        noise_correlation: float | None = None,
    ) -> Float[Tensor, "batch channels frames height width"]:
        """Initial noise of unit variance, fp32 as everything that the scheduler computes.

        Neighbouring frames have a part of it in common by `noise_correlation`, or by the pipeline's own where None.
        """
        check_noise(generator, latents, noise_correlation, shape)
        device = self._execution_device
        if latents is not None:
            return latents.to(device, torch.float32)
        correlation = self.noise_correlation if noise_correlation is None else noise_correlation
        generators = list(generator) if isinstance(generator, Sequence) else generator
        noise: Tensor = randn_tensor(shape, generator=generators, device=device, dtype=torch.float32)
        return correlate_frames(noise, correlation, self._edges(boundary))

    def _conditions(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None,
        num_videos_per_prompt: int,
        embeds: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
        size: tuple[int, int],
        guided: bool = True,
    ) -> dict[str, Tensor]:
        """What the U-Net is told, one row a clip, by the names that callbacks know; see there."""
        del size
        for name, given in zip(("pooled_prompt_embeds", "negative_pooled_prompt_embeds"), embeds[2:], strict=True):
            if given is not None:
                raise InputError(name, tuple(given.shape), "be left out: this model has one text encoder")
        features = self.encode_prompt(prompt, negative_prompt, num_videos_per_prompt, *embeds[:2], guided)
        return dict(zip(("prompt_embeds", "negative_prompt_embeds"), features, strict=True))

    def _predict(
        self,
        latents: Tensor,
        timestep: Tensor,
        conditions: Mapping[str, Tensor],
        motion_guidance: float | None,
        boundary: Any,
    ) -> Tensor:
        """With guidance where that is on; without it where `motion_guidance` is None."""
        sample = self.scheduler.scale_model_input(latents, timestep).to(self.unet.dtype)

        def run(*prefixes: str) -> Tensor:
            """For the prompts (""), the negative ones ("negative_"), or one after the other in one batch."""
            rows = {
                name: torch.cat([conditions[prefix + name] for prefix in prefixes])
                for name in ("prompt_embeds", "add_text_embeds", "add_time_ids")
                if name in conditions
            }
            arguments: Any = (torch.cat([sample] * len(prefixes)), timestep, rows.pop("prompt_embeds"))
            out = self.unet(
                *arguments,
                boundary=boundary,
                added_cond_kwargs={name.removeprefix("add_"): value for name, value in rows.items()} or None,
                cross_attention_kwargs=self.cross_attention_kwargs,
                return_dict=False,
            )
            return cast("Tensor", out[0].float())

        if not self.do_classifier_free_guidance or motion_guidance is None:
            return run("")
        if not self.guides_in_halves:
            try:
                unconditional, conditional = run("negative_", "").chunk(2)
                return guide(unconditional, conditional, self.guidance_scale, motion_guidance)
            except torch.OutOfMemoryError:
                logger.warning("no memory for guidance in one batch: from here on in two halves")
                self.guides_in_halves = True
        return guide(run("negative_"), run(""), self.guidance_scale, motion_guidance)

    def _encode(self, captions: Sequence[str]) -> Tensor:
        return encode_text(
            self.tokenizer,
            self.text_encoder,
            captions,
            self.max_prompt_tokens,
            self.config.mask_padding,
            self._execution_device,  # weights that are offloaded are elsewhere
        )

    def resolve_size(self, height: int | None = None, width: int | None = None) -> tuple[int, int]:
        """Height and width in pixels; the model's own where they are None."""
        sides = self.unet.config.sample_size
        sides = sides if isinstance(sides, list | tuple) else (sides, sides)
        defaults = (self.config.default_size or (side and side * self.vae_scale_factor) for side in sides)
        sizes = [default if size is None else size for size, default in zip((height, width), defaults, strict=True)]
        if any(size is None for size in sizes):
            raise InputError("height and width", None, "be given: the model has no size of its own")
        return sizes[0], sizes[1]

    def _latent_size(self, height: int, width: int) -> tuple[int, int]:
        return height // self.vae_scale_factor, width // self.vae_scale_factor

    def _edges(self, boundary: Boundary | Literal["default"] | None) -> Boundary:
        """Of the noise. With the shift off, too, it is that of the clip with the shift."""
        own = boundary is None or boundary == "default"
        return cast("Boundary", (self.unet.default_boundary if own else boundary) or "zero")

    def _seam(
        self, boundary: Boundary | Literal["default"] | None, num_frames: int, seam_frames: int | None, device: Any
    ) -> Tensor | None:
        """`seam_weights` of a loop that is closed near its ends alone; None for all else."""
        looping = boundary is not None and self._edges(boundary) == "circular"
        frames = self.config.default_seam_frames if seam_frames is None else seam_frames
        if frames is not None:
            check_whole("seam_frames", frames)
        if seam_frames is not None and not looping:
            raise InputError("seam_frames", seam_frames, "be left out where the boundary is not circular")
        if not looping or frames is None or num_frames == 1:
            return None
        return seam_weights(num_frames, frames).to(device)

    def _step_options(self, generator: Any, eta: float) -> dict[str, Any]:
        accepted = inspect.signature(self.scheduler.step).parameters
        options = {"eta": eta, "generator": generator}
        return {name: value for name, value in options.items() if name in accepted}

    @torch.no_grad()
    def decode_latents(self, latents: Tensor, chunk_size: int = 8, output_type: OutputType = "np") -> Any:
        """Frames of normalised latents.

        Args:
            latents: `(batch, channels, frames, h, w)`.
            chunk_size: frames decoded at once.
            output_type: `"pil"`, `"np"` or `"pt"`.

        Returns:
            As in `LatentShiftPipelineOutput`.

        Raises:
            InputError: another form is asked for.
        """
        check_output_type(output_type, ("pil", "np", "pt"))
        mean, std = latent_statistics(self.vae, latents.device)
        batch = latents.shape[0]
        folded = (latents.float() * std[:, :, None] + mean[:, :, None]).transpose(1, 2).flatten(0, 1)
        parts = torch.split(folded, chunk_size)
        decoded = torch.cat([self.vae.decode(part.to(self.vae.dtype)).sample.float() for part in parts])
        frames = (decoded / 2 + 0.5).clamp(0, 1).view(batch, -1, *decoded.shape[1:])
        if output_type == "pt":
            return frames
        array = frames.permute(0, 1, 3, 4, 2).cpu().numpy()
        if output_type == "np":
            return array
        return [[Image.fromarray(frame) for frame in clip] for clip in to_uint8(array)]


def latent_statistics(vae: Any, device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the raw latents, `(1, channels, 1, 1)`: normalised = (raw - mean) / std.

    As in diffusers: raw = normalised * latents_std / scaling_factor + latents_mean. Autoencoders without the two have
    standard deviation 1 and mean shift_factor, or 0.
    """
    config = vae.config
    channels = config.latent_channels
    mean = getattr(config, "latents_mean", None) or [getattr(config, "shift_factor", None) or 0.0] * channels
    std = [one / config.scaling_factor for one in getattr(config, "latents_std", None) or [1.0] * channels]
    return tuple(torch.tensor(row, device=device).view(1, -1, 1, 1) for row in (mean, std))  # type: ignore[return-value]
