"""Loops of a model whose clips have ends: the zeros there tell a frame when it is, and a loop has none."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def seam_weights(num_frames: int, seam_frames: int) -> Float[Tensor, "frames 1 1"]:
    """How far a frame's prediction is that of the closed loop, and not that of the clip with its ends.

    1 for the first and the last frame, falling by 1 / `seam_frames` a frame towards the middle, 0 from there on. So the
    frames in the middle keep the motion that the ends give them, and those at the seam see each other. No paper's: see
    "Loops" in docs/architecture.md.

    Args:
        num_frames: of the clip.
        seam_frames: so many frames at each end see the loop, at least 1.

    Returns:
        fp32, to be multiplied with `(batch, channels, frames, height, width)`.
    """
    index = torch.arange(num_frames, dtype=torch.float32)
    distance = torch.minimum(index, num_frames - 1 - index)
    return (1 - distance / seam_frames).clamp(0, 1)[:, None, None]
