"""Clips whose frames tell their number."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from latent_shift.media import write_video

FRAMES, SIZE = 6, 16


def clip(number: int, frames: int = FRAMES, size: int = SIZE) -> np.ndarray:
    """Every frame is of a colour of its own, so that a frame tells its number."""
    result = np.empty((frames, size, size, 3), np.uint8)
    for index in range(frames):
        result[index] = (10 * index, 40 * (number % 6), 255 - 10 * index)
    return result


def write_clips(folder: Path, count: int, suffix: str = ".webp", **shape: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        name = folder / f"clip{number:02}{suffix}"
        write_video(name, clip(number, **shape), 8.0, {"prompt": f"number {number}"}, lossless=suffix != ".mp4")
    return folder
