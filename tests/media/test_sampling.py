"""Covers `latent_shift.media.sampling`."""

from __future__ import annotations

from itertools import pairwise

import pytest

from latent_shift.core.errors import InputError
from latent_shift.media import even_frame_indices, loop_frame_indices


def test_a_loop_of_72_gives_every_third() -> None:
    assert loop_frame_indices(72, 24) == list(range(0, 72, 3))


@pytest.mark.parametrize(("source", "wanted"), [(72, 16), (73, 24), (7, 7), (1, 5), (3, 8)])
def test_steps_round_the_loop_differ_by_one_at_most(source: int, wanted: int) -> None:
    indices = loop_frame_indices(source, wanted)
    steps = [later - earlier for earlier, later in pairwise([*indices, indices[0] + source])]
    assert len(indices) == wanted
    assert all(0 <= index < source for index in indices)
    assert max(steps) - min(steps) <= 1


def test_a_window_keeps_its_ends() -> None:
    assert even_frame_indices(9, 3) == [0, 4, 8]
    assert even_frame_indices(10, 10) == list(range(10))
    assert even_frame_indices(9, 1) == [4]
    assert even_frame_indices(2, 4) == [0, 0, 1, 1]


@pytest.mark.parametrize("function", [loop_frame_indices, even_frame_indices])
def test_counts_below_one_are_named(function) -> None:  # noqa: ANN001
    with pytest.raises(InputError, match="num_source must be at least 1, got 0"):
        function(0, 4)
    with pytest.raises(InputError, match="num_frames must be at least 1, got 0"):
        function(4, 0)
