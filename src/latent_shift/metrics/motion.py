"""How a clip moves, against how the real one moves."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64, UInt8

from latent_shift.core.errors import InputError

Clip = UInt8[np.ndarray, "frames height width 3"]

_GRID = 16


def motion_r2(generated: Clip, real: Clip) -> float:
    """How much of the real clip's motion the generated one has: a coefficient of determination.

    Both are pooled to 16 x 16 and freed of their mean frame; over all cyclic shifts s in time, the largest
    1 - sum |g_t - r_(t+s)|^2 / sum |r_t|^2. A real clip against itself gives 1, a frozen one 0, noise less than 0.

    Returns:
        At most 1. NaN where the real clip does not move at all.

    Raises:
        InputError: the clips differ in shape, or 16 does not divide their size.
    """
    if generated.shape != real.shape:
        raise InputError("generated", generated.shape, f"have the real clip's shape, {real.shape}")
    g, r = _motion(generated), _motion(real)
    energy = float(np.square(r).sum())
    if energy == 0:
        return float("nan")
    # The squared distance is |g|^2 + |r|^2 - 2 g.r, and only the product depends on the shift.
    products = [float((g * np.roll(r, -shift, axis=0)).sum()) for shift in range(len(r))]
    return (2 * max(products) - float(np.square(g).sum())) / energy


def frame_difference(clip: Clip) -> float:
    """Mean absolute difference of neighbouring frames, in [0, 255]."""
    return float(neighbour_differences(clip).mean()) if len(clip) > 1 else 0.0


def neighbour_differences(clip: Clip) -> npt.NDArray[np.float64]:
    """Mean absolute difference of each frame to the next, `(frames - 1,)`, in [0, 255]."""
    return np.array([_difference(a, b) for a, b in zip(clip[:-1], clip[1:], strict=True)], dtype=np.float64)


def flicker(clip: Clip) -> float:
    """Mean absolute distance of each frame from the middle of its two neighbours, in [0, 255].

    Steady change gives 0, as far as it is linear from frame to frame; what comes and goes gives much. 0 of fewer than
    three frames.
    """
    if len(clip) < 3:
        return 0.0
    frames = clip.astype(np.int16)
    return float(np.abs(2 * frames[1:-1] - frames[:-2] - frames[2:]).mean()) / 2


def loop_closes(clip: Clip, tolerance: float = 1.5) -> bool:
    """Whether the last frame leads to the first: they differ by at most `tolerance` median neighbour differences."""
    return _difference(clip[-1], clip[0]) <= tolerance * float(np.median(neighbour_differences(clip)))


def _difference(a: UInt8[np.ndarray, "height width 3"], b: UInt8[np.ndarray, "height width 3"]) -> float:
    return float(np.abs(a.astype(np.int16) - b).mean())


def _motion(clip: Clip) -> Float64[np.ndarray, "frames rows columns 3"]:
    frames, height, width, channels = clip.shape
    if height % _GRID or width % _GRID:
        raise InputError("frames", clip.shape, f"have a height and width that {_GRID} divides")
    cells = clip.reshape(frames, _GRID, height // _GRID, _GRID, width // _GRID, channels)
    pooled: npt.NDArray[np.float64] = cells.mean(axis=(2, 4), dtype=np.float64)
    motion: npt.NDArray[np.float64] = pooled - pooled.mean(axis=0)
    return motion
