"""Covers `latent_shift.media.sheet`."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import ImageFont

from latent_shift.core.errors import InputError
from latent_shift.media import contact_sheet
from latent_shift.media.sheet import wrap_text

from .conftest import Moving


def test_one_clip_is_a_grid_of_all_its_frames(moving: Moving) -> None:
    frames = moving(5, 10, 20)
    sheet = contact_sheet(frames)
    assert sheet.shape == (22, 64, 3)
    assert sheet.dtype == np.uint8
    np.testing.assert_array_equal(sheet[:10, :20], frames[0])
    np.testing.assert_array_equal(sheet[12:, 22:42], frames[4])
    assert (sheet[12:, 44:] == 255).all()
    assert contact_sheet(frames, columns=5).shape == (10, 108, 3)


def test_a_single_frame_is_itself(moving: Moving) -> None:
    np.testing.assert_array_equal(contact_sheet(moving(1)), moving(1)[0])


def test_several_clips_are_rows_of_evenly_spaced_frames(moving: Moving) -> None:
    long, short = moving(9, 10, 20), moving(2, 12, 20)
    sheet = contact_sheet([long, short], columns=3)
    assert sheet.shape == (24, 64, 3)
    for column, index in enumerate((0, 4, 8)):
        np.testing.assert_array_equal(sheet[:10, column * 22 : column * 22 + 20], long[index])
    np.testing.assert_array_equal(sheet[12:, 22:42], short[1])
    assert (sheet[12:, 44:] == 255).all()


def test_labels_are_drawn_above_their_clip(moving: Moving) -> None:
    clips = [moving(3, 30, 60), moving(3, 30, 60)]
    plain, labelled = contact_sheet(clips), contact_sheet(clips, labels=["first", "second"])
    assert labelled.shape == (plain.shape[0] + 40, plain.shape[1], 3)
    assert (labelled[:20] < 128).any()
    np.testing.assert_array_equal(labelled[20:50], plain[:30])
    assert contact_sheet(clips[0], labels=["one"]).shape[0] == contact_sheet(clips[0]).shape[0] + 20


def test_long_labels_are_wrapped_and_cut() -> None:
    font = ImageFont.load_default(14)
    lines = wrap_text("a small red square that walks over a wide and very colourful field for ever and ever", 150)
    assert len(lines) == 3
    assert lines[-1].endswith("...")
    assert all(font.getlength(line) <= 150 for line in lines)
    assert wrap_text("donaudampfschifffahrtsgesellschaft", 80)[0].endswith("...")
    assert wrap_text("short", 150) == ["short"]
    assert wrap_text("über Kätzchen", 150) == ["uber Katzchen"]
    assert wrap_text("", 150) == [""]


def test_messages(moving: Moving) -> None:
    with pytest.raises(InputError, match="videos must hold at least one clip"):
        contact_sheet([])
    with pytest.raises(InputError, match="labels must be as many as the clips, 2, got 1"):
        contact_sheet([moving(1), moving(1)], labels=["one"])
    with pytest.raises(InputError, match="columns must be at least 1, got 0"):
        contact_sheet(moving(1), columns=0)
    with pytest.raises(InputError, match="frames must have the shape"):
        contact_sheet([np.zeros((4, 4, 3), np.uint8)])
