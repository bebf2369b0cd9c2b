"""Scores of clips. They see frames, never a model."""

from .features import EfficientNetLite0, clip_features, frame_features, load_efficientnet_lite0, unit_rows
from .match import LabelledFeatures
from .motion import frame_difference, loop_closes, motion_r2, neighbour_differences

__all__ = [
    "EfficientNetLite0",
    "LabelledFeatures",
    "clip_features",
    "frame_difference",
    "frame_features",
    "load_efficientnet_lite0",
    "loop_closes",
    "motion_r2",
    "neighbour_differences",
    "unit_rows",
]
