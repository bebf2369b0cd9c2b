"""Protocols that join pipelines, data and metrics: who is asked for, how often, with which seeds."""

from .emoji import EvaluationOptions, evaluate_emoji

__all__ = ["EvaluationOptions", "evaluate_emoji"]
