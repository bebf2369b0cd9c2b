"""Covers `latent_shift.media.changes`."""

from __future__ import annotations

import numpy as np
import pytest

from latent_shift.media.changes import changed_box, frame_durations


@pytest.mark.parametrize(("fps", "unit"), [(8, 10), (24, 10), (30, 10), (23.976, 1), (1000, 1), (0.01, 10), (50, 10)])
def test_durations_are_whole_units_and_add_up(fps: float, unit: int) -> None:
    durations = frame_durations(17, fps, unit)
    assert len(durations) == 17
    assert all(duration >= unit and duration % unit == 0 for duration in durations)
    assert abs(sum(durations) - 17000 / fps) <= unit / 2


def test_the_box_holds_what_changed() -> None:
    frames = np.zeros((4, 10, 12, 3), np.uint8)
    frames[1:, 3:5, 7:11, 2] = 9
    assert changed_box(frames, 0) == (0, 0, 12, 10)
    assert changed_box(frames, 1) == (7, 3, 11, 5)
    assert changed_box(frames, 1, align=2) == (6, 2, 11, 5)
    assert changed_box(frames, 2) == (0, 0, 1, 1)
