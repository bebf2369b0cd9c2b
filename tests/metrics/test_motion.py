import numpy as np
import pytest

from latent_shift.core.errors import InputError
from latent_shift.metrics import flicker, frame_difference, loop_closes, motion_r2, neighbour_differences

RNG = np.random.default_rng(0)


def loop(frames: int = 24, size: int = 64, radius: float = 14.0, phase: int = 0) -> np.ndarray:
    """A dark disc on a circle around the middle, once around."""
    y, x = np.mgrid[0:size, 0:size]
    clip = np.full((frames, size, size, 3), 255, np.uint8)
    for index in range(frames):
        angle = 2 * np.pi * (index + phase) / frames
        row, column = size / 2 + radius * np.sin(angle), size / 2 + radius * np.cos(angle)
        clip[index, (x - column) ** 2 + (y - row) ** 2 < 10**2] = (20, 60, 90)
    return clip


def r2_by_the_formula(generated: np.ndarray, real: np.ndarray) -> float:
    """The measure as it is stated, loops and all."""

    def pool(clip: np.ndarray) -> np.ndarray:
        step = clip.shape[1] // 16
        pooled = np.zeros((len(clip), 16, 16, 3))
        for row in range(16):
            for column in range(16):
                cell = clip[:, row * step : (row + 1) * step, column * step : (column + 1) * step].astype(float)
                pooled[:, row, column] = cell.mean(axis=(1, 2))
        return pooled

    g, r = pool(generated), pool(real)
    g, r = g - g.mean(axis=0), r - r.mean(axis=0)
    best = -np.inf
    for shift in range(len(r)):
        error = sum(np.square(g[t] - r[(t + shift) % len(r)]).sum() for t in range(len(r)))
        best = max(best, 1 - error / np.square(r).sum())
    return float(best)


def test_r2_is_the_stated_formula() -> None:
    for generated in (loop(phase=5), loop(radius=8), RNG.integers(0, 256, (24, 64, 64, 3), dtype=np.uint8)):
        assert motion_r2(generated, loop()) == pytest.approx(r2_by_the_formula(generated, loop()), abs=1e-9)


def test_r2_tells_motion_from_its_imitations() -> None:
    real = loop()
    frozen = np.repeat(real[:1], 24, axis=0)
    noise = RNG.integers(-6, 7, real.shape)
    assert motion_r2(real, real) == pytest.approx(1)
    assert motion_r2(np.roll(real, 7, axis=0), real) == pytest.approx(1)
    assert motion_r2(frozen, real) == 0
    assert motion_r2(np.clip(frozen + noise, 0, 255).astype(np.uint8), real) == pytest.approx(0, abs=0.02)
    assert motion_r2(real[RNG.permutation(24)], real) < 0
    # The still part of the picture does not count.
    assert motion_r2((real // 2) + 40, real) == pytest.approx(0.75, abs=0.01)


def test_r2_of_what_cannot_be_compared(as_users_run: None) -> None:
    still = np.zeros((4, 32, 32, 3), np.uint8)
    assert np.isnan(motion_r2(still, still))
    with pytest.raises(InputError, match="generated"):
        motion_r2(still[:2], still)
    with pytest.raises(InputError, match="16 divides"):
        motion_r2(np.zeros((4, 24, 32, 3), np.uint8), np.zeros((4, 24, 32, 3), np.uint8))


def test_frame_difference_counts_levels() -> None:
    clip = np.zeros((3, 16, 16, 3), np.uint8)
    clip[1], clip[2] = 200, 190  # differences of unsigned bytes must not wrap
    assert neighbour_differences(clip).tolist() == [200, 10]
    assert frame_difference(clip) == 105
    assert frame_difference(clip[:1]) == 0


def test_a_loop_closes_and_a_cut_does_not() -> None:
    clip = loop()
    assert loop_closes(clip)
    assert loop_closes(np.roll(clip, 9, axis=0))
    assert not loop_closes(clip[:12])
    assert loop_closes(levels(7, 7, 7))  # nothing moves, and nothing jumps


def levels(*values: int) -> np.ndarray:
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), 4, 4, 3)).copy()


def test_flicker_is_the_distance_from_the_middle_of_the_neighbours() -> None:
    assert flicker(levels(0, 200, 100)) == 150
    assert flicker(levels(0, 255, 0, 255)) == 255
    assert flicker(levels(0, 100, 200)) == 0  # steady change is none
    assert flicker(levels(0, 200)) == 0


def test_one_cut_in_a_clip_does_not_make_its_ends_meet() -> None:
    assert not loop_closes(levels(0, 1, 2, 60, 61, 11, 10))  # neighbours are 1 apart, but for two cuts
