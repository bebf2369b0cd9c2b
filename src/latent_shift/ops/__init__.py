"""The temporal shift: the op, shift + GroupNorm + SiLU as one op, their eager references, C++ and a Triton kernel."""

from .shift_group_norm_silu import BACKEND_VARIABLE, Backend, Choice, choose_backend, group_norm, shift_group_norm_silu
from .temporal_shift import Boundary, temporal_shift, temporal_shift_folded

__all__ = [
    "BACKEND_VARIABLE",
    "Backend",
    "Boundary",
    "Choice",
    "choose_backend",
    "group_norm",
    "shift_group_norm_silu",
    "temporal_shift",
    "temporal_shift_folded",
]
