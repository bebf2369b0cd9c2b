"""Frames at the size that a model or a data set wants."""

from __future__ import annotations

import numpy as np
from PIL import Image

from latent_shift.core.errors import InputError
from latent_shift.core.shapes import check_at_least

from .video import Frames, check_frames


def resize_frames(
    frames: Frames, size: int | tuple[int, int], background: tuple[int, int, int] | None = None
) -> Frames:
    """Antialiased (Lanczos) resize that keeps the picture's proportions.

    Args:
        frames: `(frames, height, width, 3)`, uint8.
        size: `(height, width)` in pixels; one number is a square.
        background: `None` fills the new size and crops what sticks out, evenly on both sides; an RGB colour fits the
            whole picture inside and paints the margins with it.

    Returns:
        `(frames, size[0], size[1], 3)`, uint8; `frames` itself, not a copy, where the size is already right.

    Raises:
        InputError: `frames` is no frames array, `size` is below 1 or `background` is no colour.
    """
    check_frames(frames)
    height, width = (size, size) if isinstance(size, int) else size
    check_at_least("size", min(height, width), 1)
    if background is not None and (len(background) != 3 or not all(0 <= value <= 255 for value in background)):
        raise InputError("background", background, "be three numbers from 0 to 255")
    source_height, source_width = frames.shape[1:3]
    if (source_height, source_width) == (height, width):
        return frames
    if background is None:
        return _fill(frames, height, width)
    scale = min(height / source_height, width / source_width)
    inner_height, inner_width = max(1, round(source_height * scale)), max(1, round(source_width * scale))
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    result = np.empty((len(frames), height, width, 3), np.uint8)
    result[:] = background
    result[:, top : top + inner_height, left : left + inner_width] = _fill(frames, inner_height, inner_width)
    return result


def _fill(frames: Frames, height: int, width: int) -> Frames:
    source_height, source_width = frames.shape[1:3]
    scale = max(height / source_height, width / source_width)
    crop_height, crop_width = height / scale, width / scale
    left, top = (source_width - crop_width) / 2, (source_height - crop_height) / 2
    box = (left, top, min(left + crop_width, source_width), min(top + crop_height, source_height))
    resized = [Image.fromarray(f).resize((width, height), Image.Resampling.LANCZOS, box=box) for f in frames]
    return np.stack([np.asarray(image) for image in resized])
