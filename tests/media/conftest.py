"""Clips made up on the spot: a square that moves one pixel a frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from latent_shift.media import Frames

Moving = Callable[..., Frames]


def make_moving(num_frames: int = 12, height: int = 48, width: int = 64) -> Frames:
    """A grey-green square on a smooth background of many colours: `(num_frames, height, width, 3)`, uint8."""
    rows, columns = np.mgrid[:height, :width]
    background = np.stack([60 + rows, 80 + columns, 100 + (rows + columns) // 2], axis=-1).astype(np.uint8)
    frames = np.repeat(background[None], num_frames, axis=0)
    for index in range(num_frames):
        frames[index, 10:26, 4 + index : 20 + index] = (150, 170, 160)
    return frames


@pytest.fixture
def moving() -> Moving:
    return make_moving


@pytest.fixture
def metadata() -> dict[str, str]:
    return {"prompt": 'ein Kätzchen 🐱 «läuft»\n"weiter" über 猫', "seed": "7", "model": "tiny", "version": "0.1.0"}
