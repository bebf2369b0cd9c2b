"""Eight clips of a shape that moves: data that need no download, to try a training run on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from latent_shift.core.errors import InputError
from latent_shift.core.files import atomic_path
from latent_shift.core.shapes import check_at_least
from latent_shift.media import Frames, write_video

from .records import write_records

SHAPES = {"square": ("red", (220, 40, 40)), "disc": ("blue", (40, 80, 220))}
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
"""Each with its step along (y, x), downwards and to the right."""


def draw_shape(shape: str, direction: str, size: int = 64, num_frames: int = 8) -> Frames:
    """A shape on white that crosses the middle half of the picture at a steady pace.

    Args:
        shape: one of `SHAPES`.
        direction: one of `DIRECTIONS`.
        size: height and width, pixels.
        num_frames: frames.

    Returns:
        `(num_frames, size, size, 3)`, uint8.
    """
    y, x = np.mgrid[:size, :size] + 0.5
    step, radius, frames = np.array(DIRECTIONS[direction]), size / 6, []
    for moment in np.linspace(-0.25, 0.25, num_frames):
        centre = size * (0.5 + moment * step)
        away = np.stack([y - centre[0], x - centre[1]])
        distance = np.abs(away).max(axis=0) if shape == "square" else np.hypot(*away)
        cover = np.clip(radius - distance + 0.5, 0, 1)[..., None]
        frames.append((1 - cover) * 255 + cover * np.array(SHAPES[shape][1]))
    return np.round(frames).astype(np.uint8)


def write_shapes(output: Path, size: int = 64, num_frames: int = 8, fps: float = 8.0) -> int:
    """Makes a captioned-video folder of every shape in every direction.

    Args:
        output: a folder that does not exist yet, or is empty.
        size: height and width, pixels; at least 16.
        num_frames: frames of a clip, at least 2.
        fps: frames a second.

    Returns:
        How many clips there are.

    Raises:
        InputError: a number is out of range, or the folder holds something or cannot be written.
    """
    check_at_least("size", size, 16)
    check_at_least("num_frames", num_frames, 2)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError("output", str(output), "be a new or an empty folder")
    records = []
    with atomic_path(output) as temporary:
        for shape, (color, _) in SHAPES.items():
            for direction in DIRECTIONS:
                name = f"clips/{color}_{shape}_{direction}.webp"
                write_video(temporary / name, draw_shape(shape, direction, size, num_frames), fps, lossless=True)
                captions = [f"a {color} {shape} moves {direction}", f"{shape} {direction}", f"{color} {direction}"]
                facts = {"label": f"{shape} {direction}", "num_frames": num_frames}
                records.append({"file_name": name, "caption": captions[0], "captions": captions, "metadata": facts})
        write_records(temporary, records)
    return len(records)
