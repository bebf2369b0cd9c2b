"""From a sentence to frames: one denoising loop, and the loading of whole models."""

from .latent_shift import LatentShiftPipeline, LatentShiftPipelineOutput
from .loading import MODELS, load_pipeline, load_preset
from .schedulers import SCHEDULERS, make_scheduler

__all__ = [
    "MODELS",
    "SCHEDULERS",
    "LatentShiftPipeline",
    "LatentShiftPipelineOutput",
    "load_pipeline",
    "load_preset",
    "make_scheduler",
]
