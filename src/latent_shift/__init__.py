"""Latent-Shift: text-to-video from a text-to-image latent diffusion model by a parameter-free temporal shift.

Names are resolved when they are first used (PEP 562), so `import latent_shift` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .models import LatentShiftUNet, LatentVDMUNet, PatchAutoencoderKL
    from .ops import temporal_shift
    from .pipelines import LatentShiftPipeline, LatentShiftXLPipeline

__version__ = "0.1.0"

_ROOMS = {
    "LatentShiftPipeline": "pipelines",
    "LatentShiftUNet": "models",
    "LatentShiftXLPipeline": "pipelines",
    "LatentVDMUNet": "models",
    "PatchAutoencoderKL": "models",
    "temporal_shift": "ops",
}

__all__ = [
    "LatentShiftPipeline",
    "LatentShiftUNet",
    "LatentShiftXLPipeline",
    "LatentVDMUNet",
    "PatchAutoencoderKL",
    "__version__",
    "temporal_shift",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(importlib.import_module(f".{_ROOMS[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
