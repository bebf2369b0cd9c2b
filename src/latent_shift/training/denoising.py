"""Stages 2 and 3: the U-Net learns to denoise images, then, with the temporal shift, videos (Eqs. 2 and 5)."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from jaxtyping import Float
from torch import Tensor

from latent_shift.core.errors import InputError
from latent_shift.core.seeding import derive_seed
from latent_shift.data.cache import ClipCache, open_or_build_cache
from latent_shift.data.order import SampleOrder
from latent_shift.data.records import CaptionedVideo, CaptionedVideoFolder
from latent_shift.media import Frames, contact_sheet, write_video
from latent_shift.models import VideoUNet
from latent_shift.ops import Boundary
from latent_shift.pipelines import LatentShiftPipeline
from latent_shift.pipelines.latent_shift import latent_statistics
from latent_shift.pipelines.noise import correlate_frames
from latent_shift.pipelines.text import encode_text

from .config import DiffusionConfig, Recipe
from .sharding import full_tensors
from .sources import check_frame_size, select_records


@dataclass(frozen=True)
class Batch:
    """Rows of what one optimiser step learns from."""

    latents: Float[Tensor, "batch channels frames height width"]
    """Normalised clean latents u_0."""
    text: Float[Tensor, "batch tokens text_width"]
    """Text features, the empty caption's where the caption is dropped."""
    noise: Float[Tensor, "batch channels frames height width"]
    """Noise of unit variance."""
    timesteps: Tensor
    """`(batch,)`, uniform in [0, T)."""
    boundary: Boundary | None
    """What the shift does in this step; None in the image stage: the base model has no shift."""


class DenoisingBatches:
    """Cached latents and captions with their noise.

    A sample's caption, dropout, noise, timestep and phase follow from (seed, its position in the stream), and a
    step's kind (clips or stills, boundary) from (seed, step), so a resumed run draws what an uninterrupted one does.
    """

    def __init__(
        self,
        recipe: Recipe,
        records: Sequence[CaptionedVideo],
        cache: ClipCache,
        pipeline: LatentShiftPipeline,
        empty_caption: np.ndarray,
    ) -> None:
        """Draws nothing yet.

        Args:
            recipe: the run's.
            records: what is in the cache.
            cache: their latents and captions.
            pipeline: what encoded them.
            empty_caption: features of the empty caption.

        Raises:
            InputError: the clips have other lengths than the recipe says.
        """
        self._recipe, self._records, self._cache, self._empty = recipe, records, cache, empty_caption
        self._max_tokens = pipeline.max_prompt_tokens
        self._noise_correlation = pipeline.unet.config.noise_correlation
        self._num_train_timesteps = pipeline.scheduler.config.num_train_timesteps
        mean, std = latent_statistics(pipeline.vae, torch.device("cpu"))
        self._mean, self._std = mean.view(-1, 1, 1, 1), std.view(-1, 1, 1, 1)
        lengths = np.diff(cache.frame_offsets)
        self._stills = [index for index, length in enumerate(lengths) if length == 1]
        self._clips = [index for index, length in enumerate(lengths) if length > 1]
        self._check_lengths(lengths)
        groups = [str(record.metadata.get(recipe.data.balance_by, record.index)) for record in records]
        self._orders = {
            name: SampleOrder([groups[index] for index in indices], derive_seed(recipe.seed, name))
            for name, indices in (("stills", self._stills), ("clips", self._clips))
            if indices
        }

    def size(self, step: int) -> int:
        """The recipe's batch size for clips, for stills or for single frames."""
        stills_of_a_video_run = self._recipe.stage == "video" and self._kind(step)[0] == "still"
        return self._recipe.image_batch_size if stills_of_a_video_run else self._recipe.batch_size

    def names(self, step: int, rows: range) -> list[str]:
        """The files of the rows."""
        kind, number = self._kind(step)
        positions = (number * self.size(step) + row for row in rows)
        return [str(self._records[self._record(kind, position)].path) for position in positions]

    def draw(self, step: int, rows: range | None = None) -> Batch:
        """Rows of the batch of a step; all of them where none are named."""
        recipe, size = self._recipe, self.size(step)
        rows = rows or range(size)
        kind, number = self._kind(step)
        boundary: Boundary | None = None
        if recipe.stage == "video":
            rng = np.random.default_rng(derive_seed(recipe.seed, "boundary", kind, number))
            boundary = "circular" if rng.random() < recipe.diffusion.circular_share else "zero"
        latents, text, noises = [], [], []
        for row in rows:
            position = number * size + row
            seed = derive_seed(recipe.seed, kind, position)
            rng = np.random.default_rng(seed)
            record = self._record(kind, position)
            clip = self._frames(kind, record, rng)
            latents.append((clip - self._mean) / self._std)
            # Every second time the plain caption, else any of its forms.
            form = 0 if rng.random() < 0.5 else int(rng.integers(self._cache.num_captions(record)))
            dropped = rng.random() < recipe.diffusion.caption_dropout
            text.append(self._empty if dropped else self._cache.caption(record, form))
            noises.append(torch.randn(clip.shape, generator=torch.Generator().manual_seed(seed)))
        noise = correlate_frames(torch.stack(noises), self._noise_correlation, boundary or "zero")
        timesteps = self._timesteps(derive_seed(recipe.seed, kind, "timesteps", number), size)[rows.start : rows.stop]
        return Batch(torch.stack(latents), _pad_tokens(text, self._max_tokens), noise, timesteps, boundary)

    def _kind(self, step: int) -> tuple[str, int]:
        """What a step learns from ("still", "frame" of a clip, "clip"), and how many steps of its kind came before."""
        recipe = self._recipe
        share = recipe.diffusion.image_share if len(self._orders) == 2 else float("stills" in self._orders)
        # Steps on stills are spread evenly; each kind of step counts on its own, so that no sample is passed over.
        stills_before = math.floor(step * share)
        if math.floor((step + 1) * share) > stills_before:
            return "still", stills_before
        return "frame" if recipe.stage == "image" else "clip", step - stills_before

    def _timesteps(self, seed: int, size: int) -> Tensor:
        """Uniform in [0, T), and spread evenly over a batch, for less variance (arXiv:2107.00630, App. I.1)."""
        spread = (np.random.default_rng(seed).random() + np.arange(size) / size) % 1
        return torch.from_numpy((spread * self._num_train_timesteps).astype(np.int64))

    def _record(self, kind: str, position: int) -> int:
        name, indices = ("stills", self._stills) if kind == "still" else ("clips", self._clips)
        return indices[self._orders[name].record(position)]

    def _frames(
        self, kind: str, record: int, rng: np.random.Generator
    ) -> Float[Tensor, "channels frames height width"]:
        clip = self._cache.clip(record)
        if kind != "clip":
            clip = clip[[rng.integers(len(clip))]]
        elif self._recipe.diffusion.random_phase:
            clip = np.roll(clip, int(rng.integers(len(clip))), axis=0)
        return torch.from_numpy(np.array(clip, dtype=np.float32)).transpose(0, 1)

    def _check_lengths(self, lengths: np.ndarray) -> None:
        if self._recipe.stage != "video":
            return
        wanted = self._recipe.data.num_frames
        wrong = sorted({int(length) for length in lengths if length not in (1, wanted)})
        if wrong:
            raise InputError("data.num_frames", wanted, f"be the frames of every clip; the folder has {wrong[:5]}")
        if not self._clips:
            raise InputError("data.folder", self._recipe.data.folder, "have clips of more than one frame")


class DenoisingStage:
    """Denoising of latents. The image stage sees single frames without the shift, the video stage clips with it."""

    def __init__(self, recipe: Recipe, pipeline: LatentShiftPipeline, accelerator: Accelerator) -> None:
        """Encodes the data with the frozen parts of `pipeline`, whose U-Net this stage trains."""
        self._recipe, self._accelerator, self.pipeline = recipe, accelerator, pipeline
        self.network: VideoUNet = pipeline.unet.to(device=accelerator.device, dtype=torch.float32)
        self.network.train()
        if recipe.gradient_checkpointing:
            self.network.enable_gradient_checkpointing()
        if recipe.stage == "image":  # what mixes frames is not asked
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_(name not in self.network.frame_mixing_keys)
        self._forward = torch.compile(self.network) if recipe.compile else self.network
        self._noise_schedule = DDPMScheduler.from_config(pipeline.scheduler.config)
        folder = CaptionedVideoFolder(recipe.data.folder, "data.folder")
        records = select_records(folder, recipe)
        cache = self._encode(folder, records)
        self.batches = DenoisingBatches(recipe, records, cache, pipeline, self._encode_text([""])[0])

    def loss(self, batch: Batch) -> Float[Tensor, " rows"]:
        """Mean squared error of each row's prediction, weighted by min-SNR where the recipe says so."""
        schedule, timesteps = self._noise_schedule, batch.timesteps
        noisy = schedule.add_noise(batch.latents, batch.noise, timesteps)
        target = batch.noise
        if schedule.config.prediction_type == "v_prediction":
            target = schedule.get_velocity(batch.latents, batch.noise, timesteps)
        device = self._accelerator.device
        prediction = self._forward(
            noisy.to(device), timesteps.to(device), batch.text.to(device), boundary=batch.boundary, return_dict=False
        )[0]
        per_row: Tensor = (prediction.float() - target.to(device)).square().mean(dim=(1, 2, 3, 4))
        return per_row * min_snr_weights(schedule, timesteps, self._recipe.diffusion.min_snr_gamma).to(device)

    def preview(self, folder: Path) -> None:
        """One clip (or image) for each prompt of the recipe, with fixed seeds, by the pipeline that users run.

        Each process draws its part of the prompts; where they are fewer, some are drawn twice and kept once.
        """
        options, accelerator = self._recipe.preview, self._accelerator
        if not options.prompts:
            return
        count, processes = len(options.prompts), accelerator.num_processes
        rounds = math.ceil(count / processes)
        mine = [(accelerator.process_index + turn * processes) % count for turn in range(rounds)]
        drawn = dict(pair for pairs in gather_object([self._draw_previews(mine)]) for pair in pairs)
        if not accelerator.is_main_process:
            return
        frames = np.stack([drawn[index] for index in range(count)])
        if self._recipe.stage == "image":
            sheet = contact_sheet(frames[:, 0], columns=6)
        else:
            sheet = contact_sheet([clip[::3] for clip in frames], labels=list(options.prompts))
            for index, clip in enumerate(frames):
                write_video(folder / f"{index:02d}.webp", clip, self.pipeline.config.fps)
        write_video(folder / "sheet.png", sheet[None], fps=1.0)

    def export(self, folder: Path) -> None:
        """The pipeline with the trained U-Net; its weights in fp16."""
        weights = full_tensors(self.network.state_dict())
        if not self._accelerator.is_main_process:
            return
        unet = type(self.network).from_config(self.network.config)
        unet.load_state_dict(weights)
        frozen = {name: copy.deepcopy(getattr(self.pipeline, name)).half() for name in ("vae", "text_encoder")}
        settings = {name: self.pipeline.config[name] for name in self.pipeline.settings()}
        parts = {**self.pipeline.components, **frozen, "unet": unet.half()}
        LatentShiftPipeline(**parts, **settings).save_pretrained(folder)

    def _draw_previews(self, indices: Sequence[int]) -> list[tuple[int, Frames]]:
        options, recipe = self._recipe.preview, self._recipe
        seeds = [derive_seed(recipe.seed, "preview", index) for index in indices]
        self.network.eval()
        self.pipeline.set_progress_bar_config(disable=True)
        with torch.autocast(self._accelerator.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            output: Any = self.pipeline(
                [options.prompts[index] for index in indices],
                num_frames=recipe.data.num_frames if recipe.stage == "video" else 1,
                num_inference_steps=options.num_inference_steps,
                guidance_scale=options.guidance_scale,
                boundary="default" if recipe.stage == "video" else None,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="np",
            )
        self.network.train()
        clips = (np.asarray(output.frames) * 255).round().astype(np.uint8)
        return list(zip(indices, clips, strict=True))

    def _encode(self, folder: CaptionedVideoFolder, records: Sequence[CaptionedVideo]) -> ClipCache:
        recipe, vae = self._recipe, self.pipeline.vae.to(self._accelerator.device)

        @torch.no_grad()
        def encode_frames(frames: np.ndarray) -> np.ndarray:
            check_frame_size(frames, recipe)
            pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).to(self._accelerator.device).float() / 127.5 - 1
            latents: Tensor = vae.encode(pictures).latent_dist.mean
            return latents.cpu().numpy().astype(np.float16)

        return open_or_build_cache(
            Path(recipe.data.cache),
            folder,
            records,
            encode_frames=encode_frames,
            encode_text=self._encode_text,
            fingerprint={
                "kind": "latents",
                "autoencoder": _weights_hash(vae),
                "text_encoder": _weights_hash(self.pipeline.text_encoder),
                "max_tokens": self.pipeline.max_prompt_tokens,
                "size": recipe.data.size,
            },
            max_frames=recipe.data.max_frames_per_clip if recipe.stage == "image" else None,
        )

    def _encode_text(self, captions: Sequence[str]) -> list[np.ndarray]:
        pipeline = self.pipeline
        features = encode_text(
            pipeline.tokenizer,
            pipeline.text_encoder,
            captions,
            pipeline.max_prompt_tokens,
            pipeline.config.mask_padding,
        )
        rows = features.float().cpu().numpy().astype(np.float16)
        kept = np.abs(rows).sum(axis=2) > 0
        return [row[: int(mask.nonzero()[0].max()) + 1] for row, mask in zip(rows, kept, strict=True)]


def noise_schedule(options: DiffusionConfig) -> DDPMScheduler:
    """The noise process of a recipe; the defaults are the paper's (Table 6, "quad" = `scaled_linear`)."""
    return DDPMScheduler(
        num_train_timesteps=options.num_train_timesteps,
        beta_start=options.beta_start,
        beta_end=options.beta_end,
        beta_schedule="scaled_linear",
        prediction_type=options.prediction_type,
        rescale_betas_zero_snr=options.zero_terminal_snr,
        clip_sample=False,
        timestep_spacing="trailing" if options.zero_terminal_snr else "linspace",
    )


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


def _weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 of a module's weights: what a cache of its outputs depends on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def _pad_tokens(rows: Sequence[np.ndarray], length: int) -> Float[Tensor, "batch tokens width"]:
    padded = np.zeros((len(rows), length, rows[0].shape[1]), dtype=np.float32)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    return torch.from_numpy(padded)
