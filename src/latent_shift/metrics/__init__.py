"""Scores of clips. They see frames, never a model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bootstrap import bootstrap_interval
    from .extractors import EXTRACTORS, FeatureExtractor, FeatureInfo, load_extractor
    from .features import EfficientNetLite0, clip_features, frame_features, load_efficientnet_lite0, unit_rows
    from .frechet import frechet_distance, moments_distance
    from .kernel import ClipKernelDistance, kernel_distance
    from .match import LabelledFeatures
    from .moments import Moments
    from .motion import flicker, frame_difference, loop_closes, motion_r2, neighbour_differences
    from .result import MetricResult
    from .score import METRICS, ScoreOptions, score_features
    from .scores import InceptionScore, clip_similarity, inception_score
    from .stream import extract_features

# Resolved when first used: the arithmetic needs no torch.
_MODULES = {
    "EXTRACTORS": "extractors",
    "ClipKernelDistance": "kernel",
    "METRICS": "score",
    "EfficientNetLite0": "features",
    "FeatureExtractor": "extractors",
    "FeatureInfo": "extractors",
    "InceptionScore": "scores",
    "LabelledFeatures": "match",
    "MetricResult": "result",
    "Moments": "moments",
    "ScoreOptions": "score",
    "bootstrap_interval": "bootstrap",
    "clip_features": "features",
    "clip_similarity": "scores",
    "extract_features": "stream",
    "flicker": "motion",
    "frame_difference": "motion",
    "frame_features": "features",
    "frechet_distance": "frechet",
    "inception_score": "scores",
    "kernel_distance": "kernel",
    "load_efficientnet_lite0": "features",
    "load_extractor": "extractors",
    "loop_closes": "motion",
    "moments_distance": "frechet",
    "motion_r2": "motion",
    "neighbour_differences": "motion",
    "score_features": "score",
    "unit_rows": "features",
}

__all__ = [
    "EXTRACTORS",
    "ClipKernelDistance",
    "METRICS",
    "EfficientNetLite0",
    "FeatureExtractor",
    "FeatureInfo",
    "InceptionScore",
    "LabelledFeatures",
    "MetricResult",
    "Moments",
    "ScoreOptions",
    "bootstrap_interval",
    "clip_features",
    "clip_similarity",
    "extract_features",
    "flicker",
    "frame_difference",
    "frame_features",
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "load_efficientnet_lite0",
    "load_extractor",
    "loop_closes",
    "moments_distance",
    "motion_r2",
    "neighbour_differences",
    "score_features",
    "unit_rows",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
