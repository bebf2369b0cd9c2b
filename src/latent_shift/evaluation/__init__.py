"""Protocols that join pipelines, data and metrics: who is asked for, how often, with which seeds."""

from .ablation import ablate
from .emoji import EvaluationOptions, evaluate_emoji
from .folder import FolderOptions, evaluate_folder
from .protocols import ProtocolOptions, evaluate_protocol, msrvtt, score_protocol, ucf101
from .reproduction import reproduce
from .systems import ReproduceOptions

__all__ = [
    "EvaluationOptions",
    "FolderOptions",
    "ProtocolOptions",
    "ReproduceOptions",
    "ablate",
    "evaluate_emoji",
    "evaluate_folder",
    "evaluate_protocol",
    "msrvtt",
    "reproduce",
    "score_protocol",
    "ucf101",
]
