"""The temporal shift: one op, its eager reference and, later, its fused kernels."""

from .temporal_shift import Boundary, temporal_shift, temporal_shift_folded

__all__ = ["Boundary", "temporal_shift", "temporal_shift_folded"]
