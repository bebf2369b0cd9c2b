"""Stages 2 and 3: the U-Net learns to denoise images, then, with the temporal shift, videos (Eqs. 2 and 5)."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor

from latent_shift.core.files import atomic_path
from latent_shift.core.seeding import derive_seed
from latent_shift.media import contact_sheet, to_uint8, write_video
from latent_shift.models import VideoUNet
from latent_shift.pipelines import LatentShiftPipeline
from latent_shift.pipelines.components import text_encoders
from latent_shift.pipelines.latent_shift import latent_statistics
from latent_shift.pipelines.schedulers import DEFAULT_STEPS
from latent_shift.pipelines.text import logger as text_logger

from .batches import Batch, CachedSamples, DenoisingBatches, LiveSamples, Samples
from .checkpoint import has_checkpoints
from .config import DiffusionConfig, Recipe
from .encoding import encode_captions, encode_moments, open_clip_cache
from .lora import add_lora, load_lora, save_lora
from .networks import DTYPES, UNETS, autocast
from .report import FirstAlone
from .sharding import full_tensors
from .sources import TrainingData, check_balance


class DenoisingStage:
    """Denoising of latents. The image stage sees single frames without the shift, the video stage clips with it."""

    def __init__(
        self, recipe: Recipe, pipeline: LatentShiftPipeline, accelerator: Accelerator, data: TrainingData
    ) -> None:
        """Encodes the data with the frozen parts of `pipeline`, whose U-Net this stage trains."""
        self._recipe, self._accelerator, self.pipeline = recipe, accelerator, pipeline
        self.network: VideoUNet = pipeline.unet.to(device=accelerator.device, dtype=torch.float32)
        self.network.train()
        if recipe.gradient_checkpointing:
            self.network.enable_gradient_checkpointing()
        if recipe.lora.rank:
            torch.manual_seed(derive_seed(recipe.seed, "lora"))
            add_lora(self.network, recipe.lora)
            if recipe.lora.init and not has_checkpoints(Path(recipe.output) / "checkpoints"):
                load_lora(self.network, Path(recipe.lora.init))
        if recipe.stage == "image":  # what mixes frames is not asked, nor what low-rank updates add to it
            for name in self.network.frame_mixing_keys:
                self.network.get_parameter(name).requires_grad_(False)
        # Clips and stills, zeros and circles are few shapes, a graph each; one graph for all breaks PyTorch's compiler.
        self._forward = torch.compile(self.network, dynamic=False) if recipe.compile else self.network
        self._noise_schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
        mean, std = latent_statistics(pipeline.vae, accelerator.device)
        self._mean, self._std = mean[:, :, None], std[:, :, None]
        self._cut_captions = FirstAlone("further captions that are cut are not told of")
        source = data.records
        check_balance(source, recipe.data.balance_by)
        self.data_digest = data.digest
        samples: Samples
        if recipe.data.cache:
            cache = open_clip_cache(pipeline, source, recipe.data, recipe.seed)
            samples = CachedSamples(recipe, source, cache, encode_captions(pipeline, [""])[0])
        else:
            samples = LiveSamples(recipe, source)
        side = recipe.data.size // pipeline.vae_scale_factor
        shape = (int(pipeline.vae.config.latent_channels), side, side)
        text_shape = (pipeline.max_prompt_tokens, int(self.network.config.cross_attention_dim))
        self.batches = DenoisingBatches(recipe, samples, shape, text_shape, self._noise_correlation)

    @property
    def _noise_correlation(self) -> float:
        return float(self.network.config.noise_correlation)

    def loss(self, batch: Batch) -> Float[Tensor, " rows"]:
        """Mean squared error of each row's prediction, weighted by min-SNR where the recipe says so."""
        schedule, device = self._noise_schedule, self._accelerator.device
        latents = self.encode(batch)
        text, added = self.encode_text(batch)
        noise, timesteps = batch.noise.to(device), batch.timesteps.to(device)
        noisy = schedule.add_noise(latents, noise, timesteps)
        target = noise
        if schedule.config.prediction_type == "v_prediction":
            target = schedule.get_velocity(latents, noise, timesteps)
        conditions = {"boundary": batch.boundary, "added_cond_kwargs": added}
        prediction = self._forward(noisy, timesteps, text, **conditions, return_dict=False)[0]
        error = weigh_motion(prediction.float() - target, self._recipe.diffusion.motion_weight)
        per_row: Tensor = error.square().mean(dim=(1, 2, 3, 4))
        return per_row * min_snr_weights(schedule, batch.timesteps, self._recipe.diffusion.min_snr_gamma).to(device)

    @torch.no_grad()
    def encode(self, batch: Batch) -> Float[Tensor, "rows channels frames height width"]:
        """Normalised clean latents u_0, drawn from the autoencoder's posterior; on the device.

        What the cache does not hold is computed by the frozen parts, in fp32 whatever the recipe's precision.
        """
        device, moments = self._accelerator.device, batch.moments
        if moments is None:
            assert batch.frames is not None
            with torch.autocast(device.type, enabled=False):
                encoded = encode_moments(self.pipeline, batch.frames.flatten(0, 1))
            moments = encoded.view(*batch.frames.shape[:2], *encoded.shape[1:]).transpose(1, 2)
        mean, log_variance = moments.to(device).chunk(2, dim=1)
        latents = mean + (0.5 * log_variance).exp() * batch.posterior_noise.to(device)
        return (latents - self._mean) / self._std

    @torch.no_grad()
    def encode_text(self, batch: Batch) -> tuple[Float[Tensor, "rows tokens text_width"], dict[str, Tensor] | None]:
        """Text features and added conditions (SDXL), on the device; computed as `encode` does."""
        device, text, added = self._accelerator.device, batch.text, None
        if text is None:
            assert batch.captions is not None
            side = self._recipe.data.size
            with torch.autocast(device.type, enabled=False), self._cut_captions.of(text_logger):
                text, added = self.pipeline.encode_captions(batch.captions, (side, side))
        text = text.to(device)
        if batch.text_noise is not None:
            text = blur_text(text, batch.text_noise.to(device))
        return text, None if added is None else {name: one.to(device) for name, one in added.items()}

    def preview(self, folder: Path) -> list[str]:
        """One clip (or image) for each prompt of the recipe, with fixed seeds, by the pipeline that users run.

        Each process draws its part of the prompts; where they are fewer, some are drawn twice and kept once.

        Returns:
            The prompts whose clips are not of finite numbers.
        """
        options, accelerator = self._recipe.preview, self._accelerator
        if not options.prompts:
            return []
        count, processes = len(options.prompts), accelerator.num_processes
        rounds = math.ceil(count / processes)
        mine = [(accelerator.process_index + turn * processes) % count for turn in range(rounds)]
        with self._whole_network():
            drawn = dict(pair for pairs in gather_object([self._draw_previews(mine)]) for pair in pairs)
        if not accelerator.is_main_process:
            return []
        clips = np.stack([drawn[index] for index in range(count)])
        frames = to_uint8(np.nan_to_num(clips))  # the pipeline has clamped them: what is not finite is NaN
        if self._recipe.stage == "image":
            sheet = contact_sheet(frames[:, 0], columns=6)
        else:
            sheet = contact_sheet([clip[::3] for clip in frames], labels=list(options.prompts))
            for index, clip in enumerate(frames):
                write_video(folder / f"{index:02d}.webp", clip, self.pipeline.config.fps)
        write_video(folder / "sheet.png", sheet[None], fps=1.0)
        return [prompt for prompt, clip in zip(options.prompts, clips, strict=True) if not np.isfinite(clip).all()]

    def export(self, folder: Path) -> None:
        """The pipeline with the trained U-Net; LoRA is merged into it, and written to `lora/` beside it."""
        weights = full_tensors(self.network.state_dict())
        if not self._accelerator.is_main_process:
            return
        unet = self._network_of(weights)
        if self._recipe.lora.rank:
            with atomic_path(folder.with_name("lora")) as temporary:
                save_lora(unet, temporary)
            unet.fuse_lora()
            unet.unload_lora()
        dtype, names = DTYPES[self._recipe.export_dtype], ("vae", *text_encoders(self.pipeline.components))
        frozen = {name: copy.deepcopy(getattr(self.pipeline, name)).to(dtype) for name in names}
        settings = {name: self.pipeline.config[name] for name in self.pipeline.settings()}
        parts = {**self.pipeline.components, **frozen, "unet": unet.to(dtype)}
        type(self.pipeline)(**parts, **settings).save_pretrained(folder)

    def _network_of(self, weights: Mapping[str, Tensor]) -> VideoUNet:
        """Another network of the same kind, with these whole weights."""
        unet: VideoUNet = UNETS[self._recipe.model.video].from_config(self.network.config)
        if self._recipe.lora.rank:
            add_lora(unet, self._recipe.lora)
        unet.load_state_dict(weights)
        return unet

    @contextlib.contextmanager
    def _whole_network(self) -> Iterator[None]:
        """The pipeline draws with whole tensors: a network that is sharded (FSDP2) computes inside its root alone."""
        if not any(isinstance(parameter, DTensor) for parameter in self.network.parameters()):
            yield
            return
        weights = full_tensors(self.network.state_dict())
        self.pipeline.register_modules(unet=self._network_of(weights).to(self._accelerator.device))
        try:
            yield
        finally:
            self.pipeline.register_modules(unet=self.network)

    def _draw_previews(self, indices: Sequence[int]) -> list[tuple[int, npt.NDArray[np.float32]]]:
        options, recipe = self._recipe.preview, self._recipe
        seeds = [derive_seed(recipe.seed, "preview", index) for index in indices]
        self.pipeline.unet.eval()
        self.pipeline.set_progress_bar_config(disable=True)
        with autocast(self._accelerator.device, recipe.precision):
            output: Any = self.pipeline(
                [options.prompts[index] for index in indices],
                num_frames=recipe.data.num_frames if recipe.stage == "video" else 1,
                num_inference_steps=options.num_inference_steps or DEFAULT_STEPS,
                guidance_scale=options.guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="np",
            )
        self.pipeline.unet.train()
        return list(zip(indices, output.frames, strict=True))


def noise_schedule(options: DiffusionConfig) -> DDPMScheduler:
    """The noise process of a recipe; the defaults are the paper's (Table 6, "quad" = `scaled_linear`)."""
    return DDPMScheduler(
        num_train_timesteps=options.num_train_timesteps,
        beta_start=options.beta_start,
        beta_end=options.beta_end,
        beta_schedule=options.beta_schedule,
        prediction_type=options.prediction_type,
        rescale_betas_zero_snr=options.zero_terminal_snr,
        clip_sample=False,
        timestep_spacing="trailing" if options.zero_terminal_snr else "linspace",
    )


def blur_text(
    text: Float[Tensor, "rows tokens width"], noise: Float[Tensor, "rows tokens width"]
) -> Float[Tensor, "rows tokens width"]:
    """Text features with noise, which is in units of each row's root mean square; padding (zeros) stays."""
    tokens = text.abs().amax(dim=2, keepdim=True) > 0
    count = tokens.sum(dim=(1, 2), keepdim=True).clamp(min=1) * text.shape[2]
    scale = (text.float().square().sum(dim=(1, 2), keepdim=True) / count).sqrt()
    return text + (noise * scale * tokens).to(text.dtype)


def weigh_motion(
    error: Float[Tensor, "rows channels frames height width"], weight: float
) -> Float[Tensor, "rows channels frames height width"]:
    """The error, with what differs from the mean over frames grown so that its square counts `weight` times."""
    if weight == 1:
        return error
    mean = error.mean(dim=2, keepdim=True)
    return mean + (error - mean) * math.sqrt(weight)


def min_snr_weights(schedule: DDPMScheduler, timesteps: Tensor, gamma: float | None) -> Float[Tensor, " batch"]:
    """min(SNR, gamma) as a weight of the loss on x_0, expressed for the network's target (arXiv:2303.09556).

    With None every step weighs 1, as in the paper.
    """
    if gamma is None:
        return torch.ones(len(timesteps))
    snr: Tensor = compute_snr(schedule, timesteps)
    clipped = snr.clamp(max=gamma)
    if schedule.config.prediction_type == "v_prediction":
        return clipped / (snr + 1)
    return clipped / snr
