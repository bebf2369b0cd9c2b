"""Size and speed of the video networks and of their rivals (Table 4 of the paper)."""

from .networks import MODELS
from .report import write_report
from .run import BenchmarkOptions, benchmark

__all__ = ["MODELS", "BenchmarkOptions", "benchmark", "write_report"]
