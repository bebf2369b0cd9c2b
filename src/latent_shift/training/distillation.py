"""A model of few steps without guidance, learned from a model of many (`latent-shift generate --fast`).

One step of the student covers several of its teacher, as in progressive distillation (arXiv:2202.00512), and learns
the teacher's guidance with them (arXiv:2210.03142). Each step starts where the student's own steps before it lead from
pure noise, so training sees what sampling sees; it needs captions, and no videos.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor

from latent_shift.pipelines import LatentShiftPipeline
from latent_shift.pipelines.guidance import guide

from .batches import Batch
from .config import Recipe
from .denoising import DenoisingStage, weigh_motion
from .networks import DTYPES
from .sources import TrainingData

Latents = Float[Tensor, "rows channels frames height width"]
Times = Int[Tensor, " rows"]


class DistillationStage(DenoisingStage):
    """The network of a video model learns to take `distillation.steps` steps as its former self takes many."""

    def __init__(
        self,
        recipe: Recipe,
        pipeline: LatentShiftPipeline,
        accelerator: Accelerator,
        data: TrainingData,
        guidance_scale: float,
        motion_guidance: float,
        guidance_interval: Sequence[float],
    ) -> None:
        """Keeps a copy of the U-Net of `pipeline` as the teacher, which has guidance by these as in sampling."""
        teacher = copy.deepcopy(pipeline.unet).requires_grad_(False).eval()
        self._teacher = teacher.to(device=accelerator.device, dtype=DTYPES[recipe.precision])
        self._guidance = guidance_scale, motion_guidance, guidance_interval
        super().__init__(recipe, pipeline, accelerator, data)
        schedule, options = self._noise_schedule, recipe.distillation
        kept = torch.cat([schedule.alphas_cumprod, torch.ones(1)]).to(accelerator.device)
        self._alphas, self._sigmas = kept.sqrt(), (1 - kept).sqrt()  # index -1, after the last step, is no noise
        steps, count = schedule.config.num_train_timesteps, options.steps * options.teacher_steps
        times = np.round(np.arange(steps, 0, -steps / count)).astype(np.int64) - 1  # "trailing", arXiv:2305.08891
        self._times = torch.from_numpy(np.append(times, -1)).to(accelerator.device)
        self._empty = pipeline.encode_prompt("")[0]

    @property
    def _noise_correlation(self) -> float:
        return self.pipeline.noise_correlation  # that of sampling

    def loss(self, batch: Batch) -> Float[Tensor, " rows"]:
        """Mean squared error of each row's prediction, against that which leads in one step where the teacher goes."""
        device, options = self._accelerator.device, self._recipe.distillation
        (text, _), latents = self.encode_text(batch), batch.noise.to(device)
        # Which of the student's steps each row learns: those of pure noise are 0.
        share = batch.timesteps.to(device) / self._noise_schedule.config.num_train_timesteps
        steps = ((1 - share) * options.steps).ceil().long() - 1
        # Every process takes as many, since all of them gather the weights of a network that is sharded.
        most = int(self._accelerator.gather(steps.max().view(1)).max())
        with torch.no_grad():
            for step in range(most):
                rows = steps > step
                if not rows.any():
                    self._student_step(latents[:1], step, text[:1], batch.boundary)
                    continue
                moved = self._student_step(latents[rows], step, text[rows], batch.boundary)
                latents = latents.masked_scatter(rows.view(-1, 1, 1, 1, 1), moved)
            target = self._target(latents, steps, text, batch.boundary)
        torch.clear_autocast_cache()  # casts from above have no graph in older PyTorch (pytorch#165068)
        start = self._times[steps * options.teacher_steps]
        prediction = self._forward(latents, start, text, boundary=batch.boundary, return_dict=False)[0]
        error = weigh_motion(prediction.float() - target, self._recipe.diffusion.motion_weight)
        return error.square().mean(dim=(1, 2, 3, 4))

    def _student_step(self, latents: Latents, step: int, text: Tensor, boundary: Any) -> Latents:
        each = self._recipe.distillation.teacher_steps
        start, end = (self._times[index].expand(len(latents)) for index in (step * each, (step + 1) * each))
        prediction = self._forward(latents, start, text, boundary=boundary, return_dict=False)[0]
        return self._move(latents, self._clean(latents, prediction.float(), start), start, end)

    def _target(self, latents: Latents, steps: Tensor, text: Tensor, boundary: Any) -> Latents:
        """What the network should predict, for the student's one step to end where the teacher's several do."""
        each = self._recipe.distillation.teacher_steps
        times = [self._times[steps * each + index] for index in range(each + 1)]
        end = self._teacher_steps(latents, times, text, boundary)
        # The clean latents x with end = alpha_s x + sigma_s (z - alpha_t x) / sigma_t (arXiv:2202.00512, App. G)
        alpha, sigma = self._level(times[0])
        alpha_end, sigma_end = self._level(times[-1])
        ratio = sigma_end / sigma
        clean = (end - ratio * latents) / (alpha_end - ratio * alpha)
        if self._noise_schedule.config.prediction_type == "v_prediction":
            return (alpha * latents - clean) / sigma
        return (latents - alpha * clean) / sigma

    def _teacher_steps(self, latents: Latents, times: list[Times], text: Tensor, boundary: Any) -> Latents:
        """Guided steps of DPM-Solver++(2M) (arXiv:2211.01095, Alg. 2), from one time to the next."""
        texts = torch.cat([self._empty.to(text).expand_as(text), text]).to(self._teacher.dtype)
        before: tuple[Tensor, Tensor] | None = None  # the last step's clean latents, and its length in log-SNR
        for start, end in zip(times, times[1:], strict=False):
            doubled = torch.cat([latents, latents]).to(self._teacher.dtype)
            prediction: Tensor = self._teacher(
                doubled, torch.cat([start, start]), texts, boundary=boundary, return_dict=False
            )[0]
            unconditional, conditional = prediction.float().chunk(2)
            clean = self._clean(latents, self._guide(unconditional, conditional, start), start)
            length = self._log_snr(end) - self._log_snr(start)
            extrapolated = clean
            if before is not None:
                share = length / (2 * before[1])
                share = torch.where(share.isfinite(), share, 0)  # the step to no noise is of the first order
                extrapolated = clean + share * (clean - before[0])
            latents, before = self._move(latents, extrapolated, start, end), (clean, length)
        return latents

    def _guide(self, unconditional: Latents, conditional: Latents, time: Times) -> Latents:
        scale, motion_guidance, (start, stop) = self._guidance
        share = 1 - (time + 1) / self._noise_schedule.config.num_train_timesteps
        is_guided = ((start <= share) & (share < stop)).view(-1, 1, 1, 1, 1)
        return torch.where(is_guided, guide(unconditional, conditional, scale, motion_guidance), conditional)

    def _clean(self, latents: Latents, prediction: Latents, time: Times) -> Latents:
        alpha, sigma = self._level(time)
        if self._noise_schedule.config.prediction_type == "v_prediction":
            return alpha * latents - sigma * prediction
        return (latents - sigma * prediction) / alpha

    def _move(self, latents: Latents, clean: Latents, start: Times, end: Times) -> Latents:
        """A step of DDIM: the noise that is left is that of the latents (arXiv:2010.02502, Eq. 12)."""
        (alpha, sigma), (alpha_end, sigma_end) = self._level(start), self._level(end)
        return alpha_end * clean + sigma_end / sigma * (latents - alpha * clean)

    def _log_snr(self, time: Times) -> Float[Tensor, "rows 1 1 1 1"]:
        alpha, sigma = self._level(time)
        return alpha.clamp(min=2**-12).log() - sigma.log()  # the last step of training as in diffusers' solvers

    def _level(self, time: Times) -> tuple[Tensor, Tensor]:
        """Alpha and sigma of Eq. 4, one a row."""
        return self._alphas[time].view(-1, 1, 1, 1, 1), self._sigmas[time].view(-1, 1, 1, 1, 1)
