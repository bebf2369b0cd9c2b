"""`LatentShiftXLPipeline`: the same denoising loop for SDXL, with two text encoders and added conditions.

Source of the conditions: SDXL, arXiv:2307.01952, Sec. 2.2, as diffusers' `StableDiffusionXLPipeline` gives them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, SchedulerMixin
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from jaxtyping import Float
from torch import Tensor

from latent_shift.core.errors import InputError
from latent_shift.models import LatentShiftUNet, LatentVDMUNet, PatchAutoencoderKL

from .inputs import OutputType, one_each
from .latent_shift import LatentShiftPipeline
from .text import tokenize


class LatentShiftXLPipeline(StableDiffusionXLLoraLoaderMixin, LatentShiftPipeline):  # type: ignore[misc]
    """Text to video, and to images, with the U-Net of Stable Diffusion XL and the temporal shift.

    Args:
        vae: as in `LatentShiftPipeline`, as are all arguments that are not named here.
        text_encoder: a `CLIPTextModel`.
        text_encoder_2: a `CLIPTextModelWithProjection`.
        tokenizer: of the first encoder.
        tokenizer_2: of the second.
        unet: a `LatentShiftUNet` or a `LatentVDMUNet`.
        scheduler: a diffusers scheduler.
        force_zeros_for_empty_prompt: whether features of a negative prompt that is missing or empty are zeros.
        max_tokens: see `LatentShiftPipeline`.
        default_frames: see `LatentShiftPipeline`.
        default_size: see `LatentShiftPipeline`.
        default_guidance_scale: see `LatentShiftPipeline`.
        default_motion_guidance: see `LatentShiftPipeline`.
        default_guidance_start: see `LatentShiftPipeline`.
        default_guidance_stop: see `LatentShiftPipeline`.
        default_noise_correlation: see `LatentShiftPipeline`.
        default_seam_frames: see `LatentShiftPipeline`.
        distilled_steps: see `LatentShiftPipeline`.
        fps: see `LatentShiftPipeline`.
    """

    parts: ClassVar[tuple[str, ...]] = (
        "vae",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "unet",
        "scheduler",
    )
    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _callback_tensor_inputs: tuple[str, ...] = (
        *LatentShiftPipeline._callback_tensor_inputs,
        "add_text_embeds",
        "add_time_ids",
        "negative_add_text_embeds",
        "negative_add_time_ids",
    )

    def __init__(
        self,
        vae: AutoencoderKL | AutoencoderTiny | PatchAutoencoderKL,
        text_encoder: Any,
        text_encoder_2: Any,
        tokenizer: Any,
        tokenizer_2: Any,
        unet: LatentShiftUNet | LatentVDMUNet,
        scheduler: SchedulerMixin,
        force_zeros_for_empty_prompt: bool = True,
        max_tokens: int | None = None,
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
        DiffusionPipeline.__init__(self)  # and not the parent's: its config would list what is no argument here
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=unet,
            scheduler=scheduler,
        )
        self.register_to_config(
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
            max_tokens=max_tokens,
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

    def encode_pooled_prompt(
        self, captions: Sequence[str]
    ) -> tuple[Float[Tensor, "captions tokens width"], Float[Tensor, "captions pooled_width"]]:
        """Features of the layer before the last of both encoders, side by side, and the pooled ones of the second."""
        features: list[Tensor] = []
        for tokenizer, encoder in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)):
            tokens = tokenize(tokenizer, captions, self.max_prompt_tokens, "max_length")
            with torch.no_grad():
                output = encoder(tokens.input_ids.to(self._execution_device), output_hidden_states=True)
            features.append(output.hidden_states[-2])
        return torch.cat(features, dim=-1), output[0]

    def encode_captions(
        self, captions: Sequence[str], size: tuple[int, int]
    ) -> tuple[Float[Tensor, "captions tokens width"], dict[str, Tensor] | None]:
        """As in `LatentShiftPipeline`; a dropped caption is what sampling has for a missing negative prompt."""
        features, pooled = self._encode_or_zero(captions)
        return features, _added_conditions(pooled, size)

    def _encode_or_zero(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """As `encode_pooled_prompt`, but zeros for empty captions where the model has it so."""
        features, pooled = self.encode_pooled_prompt(captions)
        if self.config.force_zeros_for_empty_prompt:
            given = torch.tensor([bool(caption) for caption in captions], device=features.device)
            features, pooled = features * given[:, None, None], pooled * given[:, None]
        return features, pooled

    def _conditions(
        self,
        prompt: str | Sequence[str] | None,
        negative_prompt: str | Sequence[str] | None,
        num_videos_per_prompt: int,
        embeds: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
        size: tuple[int, int],
        guided: bool = True,
    ) -> dict[str, Tensor]:
        pair = _pair("pooled_prompt_embeds", embeds[0], embeds[2])
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        positive, pooled = pair or self.encode_pooled_prompt(prompts)
        pair = _pair("negative_pooled_prompt_embeds", embeds[1], embeds[3])
        negatives = one_each(negative_prompt, len(positive))
        zeros = not guided or (self.config.force_zeros_for_empty_prompt and not any(negatives))
        if pair is None and zeros:
            pair = torch.zeros_like(positive), torch.zeros_like(pooled)
        negative, negative_pooled = pair or self._encode_or_zero(negatives)
        positive, negative = self.encode_prompt(None, None, num_videos_per_prompt, positive, negative)
        conditions = {"prompt_embeds": positive, "negative_prompt_embeds": negative}
        for prefix, rows in (("", pooled), ("negative_", negative_pooled)):
            rows = rows.to(positive).repeat_interleave(num_videos_per_prompt, dim=0)
            added = _added_conditions(rows, size)
            conditions |= {f"{prefix}add_{name}": value for name, value in added.items()}
        return conditions

    def decode_latents(self, latents: Tensor, chunk_size: int = 8, output_type: OutputType = "np") -> Any:
        """Frames of normalised latents, as in `LatentShiftPipeline`."""
        # In fp16 this autoencoder overflows (its config says force_upcast), as in diffusers' own pipeline.
        if self.vae.dtype != torch.float16 or not getattr(self.vae.config, "force_upcast", False):
            return super().decode_latents(latents, chunk_size, output_type)
        self.vae.to(torch.float32)
        try:
            return super().decode_latents(latents, chunk_size, output_type)
        finally:
            self.vae.to(torch.float16)


def _added_conditions(pooled: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
    """Of pictures of this size that were not cropped: original size, crop, target size."""
    sizes = torch.tensor([[*size, 0, 0, *size]], device=pooled.device, dtype=pooled.dtype).repeat(len(pooled), 1)
    return {"text_embeds": pooled, "time_ids": sizes}


def _pair(name: str, tokens: Tensor | None, pooled: Tensor | None) -> tuple[Tensor, Tensor] | None:
    if (tokens is None) != (pooled is None):
        expected = f"be given together with {name.replace('pooled_', '')}, or not at all"
        raise InputError(name, pooled if pooled is None else tuple(pooled.shape), expected)
    return None if tokens is None or pooled is None else (tokens, pooled)
