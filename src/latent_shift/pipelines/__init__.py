"""From a sentence to frames: one denoising loop, and the loading of whole models."""

from .convert import Conversion, convert_model
from .latent_shift import LatentShiftPipeline, LatentShiftPipelineOutput
from .latent_shift_xl import LatentShiftXLPipeline
from .loading import MODELS, load_pipeline, load_preset
from .schedulers import SCHEDULERS, find_scheduler, make_scheduler

__all__ = [
    "MODELS",
    "SCHEDULERS",
    "Conversion",
    "LatentShiftPipeline",
    "LatentShiftPipelineOutput",
    "LatentShiftXLPipeline",
    "convert_model",
    "find_scheduler",
    "load_pipeline",
    "load_preset",
    "make_scheduler",
]
