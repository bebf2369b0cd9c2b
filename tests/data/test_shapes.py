from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from latent_shift.core.errors import InputError
from latent_shift.data import CaptionedVideoFolder
from latent_shift.data.shapes import DIRECTIONS, SHAPES, draw_shape, write_shapes


@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("direction", list(DIRECTIONS))
def test_a_shape_crosses_the_middle_half(shape: str, direction: str) -> None:
    frames = draw_shape(shape, direction, size=48, num_frames=5)
    assert frames.shape == (5, 48, 48, 3)
    places = []
    for frame in frames:
        y, x = np.nonzero(frame.min(axis=2) < 128)
        places.append((y.mean(), x.mean()))
        area = 16 * 16 if shape == "square" else np.pi * 8 * 8
        assert len(y) == pytest.approx(area, rel=0.05)
        assert tuple(frame[int(y.mean()), int(x.mean())]) == SHAPES[shape][1]
    steps = np.diff(places, axis=0)
    np.testing.assert_allclose(steps, np.tile(np.array(DIRECTIONS[direction]) * 6.0, (4, 1)), atol=0.6)
    np.testing.assert_allclose(np.mean(places, axis=0), [23.5, 23.5], atol=0.5)


def test_the_folder_holds_every_shape_in_every_direction(tmp_path: Path) -> None:
    assert write_shapes(tmp_path / "shapes", size=32, num_frames=3) == 8
    folder = CaptionedVideoFolder(tmp_path / "shapes")
    assert {record.caption for record in folder} == {
        f"a {color} {shape} moves {direction}" for shape, (color, _) in SHAPES.items() for direction in DIRECTIONS
    }
    for record in folder:
        shape, direction = record.metadata["label"].split()
        assert (folder.read(record.index).frames == draw_shape(shape, direction, 32, 3)).all()


def test_what_cannot_be_made_is_named_and_nothing_is_lost(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(InputError, match="output must be a new or an empty folder"):
        write_shapes(tmp_path)
    with pytest.raises(InputError, match="size must be at least 16, got 8"):
        write_shapes(tmp_path / "small", size=8)
    with pytest.raises(InputError, match="num_frames must be at least 2, got 1"):
        write_shapes(tmp_path / "short", num_frames=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
