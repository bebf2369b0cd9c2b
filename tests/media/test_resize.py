"""Covers `latent_shift.media.resize`."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from latent_shift.core.errors import InputError
from latent_shift.media import resize_frames

from .conftest import Moving


def test_a_wide_clip_is_cropped_at_its_centre(moving: Moving) -> None:
    frames = moving(2, 20, 60)
    resized = resize_frames(frames, 10)
    assert resized.shape == (2, 10, 10, 3)
    assert resized.dtype == np.uint8
    whole = np.asarray(Image.fromarray(frames[1]).resize((30, 10), Image.Resampling.LANCZOS))
    np.testing.assert_allclose(resized[1].astype(int), whole[:, 10:20], atol=1)


def test_equals_pillow_where_nothing_is_cropped(moving: Moving) -> None:
    frames = moving(2, 48, 64)
    expected = np.asarray(Image.fromarray(frames[1]).resize((32, 24), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(resize_frames(frames, (24, 32))[1], expected)


def test_a_background_keeps_the_whole_picture() -> None:
    frames = np.full((1, 20, 40, 3), 10, np.uint8)
    resized = resize_frames(frames, 20, background=(255, 0, 255))
    assert (resized[0, 5:15] == 10).all()
    assert (resized[0, :5] == (255, 0, 255)).all()
    assert (resized[0, 15:] == (255, 0, 255)).all()


def test_the_right_size_is_not_touched(moving: Moving) -> None:
    frames = moving(1, 16, 16)
    assert resize_frames(frames, 16) is frames


def test_fine_stripes_are_averaged_not_picked() -> None:
    frames = np.zeros((1, 64, 64, 3), np.uint8)
    frames[:, :, ::2] = 255
    assert abs(resize_frames(frames, 16).astype(int) - 127).max() < 20


@pytest.mark.usefixtures("as_users_run")
def test_messages(moving: Moving) -> None:
    with pytest.raises(InputError, match="size must be at least 1, got 0"):
        resize_frames(moving(1), 0)
    with pytest.raises(InputError, match="background must be three numbers"):
        resize_frames(moving(1), 8, background=(0, 0, 256))
    with pytest.raises(InputError, match=r"frames must have the shape \(frames, height, width, 3\), got \(4, 4, 3\)"):
        resize_frames(np.zeros((4, 4, 3), np.uint8), 8)
    with pytest.raises(InputError, match="frames must be uint8, got 'float32'"):
        resize_frames(np.zeros((1, 4, 4, 3), np.float32), 8)  # type: ignore[arg-type]


def test_a_tall_clip_is_cropped_at_its_centre(moving: Moving) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 60, 20, 3), dtype=np.uint8)
    whole = np.asarray(Image.fromarray(frames[1]).resize((10, 30), Image.Resampling.LANCZOS))
    np.testing.assert_allclose(resize_frames(frames, 10)[1].astype(int), whole[10:20], atol=1)


def test_a_background_is_on_both_sides_of_a_tall_picture() -> None:
    frames = np.full((1, 40, 20, 3), 10, np.uint8)
    resized = resize_frames(frames, 20, background=(255, 0, 255))
    assert (resized[0, :, 5:15] == 10).all()
    assert (resized[0, :, :5] == (255, 0, 255)).all()
    assert (resized[0, :, 15:] == (255, 0, 255)).all()
