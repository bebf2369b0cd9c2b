"""Protocols that join pipelines, data and metrics: who is asked for, how often, with which seeds."""

from .emoji import EvaluationOptions, evaluate_emoji
from .folder import FolderOptions, evaluate_folder

__all__ = ["EvaluationOptions", "FolderOptions", "evaluate_emoji", "evaluate_folder"]
