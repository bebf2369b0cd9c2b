"""Which frames of a longer video become the clip."""

from __future__ import annotations

from latent_shift.core.shapes import check_at_least


def loop_frame_indices(num_source: int, num_frames: int) -> list[int]:
    """Frames spread evenly over an endless loop: the step from the last back to the first is as long as the others.

    Args:
        num_source: frames in the source loop.
        num_frames: frames wanted. Every step is equal where it divides `num_source`; more than `num_source` repeats.

    Returns:
        `num_frames` indices in [0, num_source), ascending: 72 to 24 gives 0, 3, 6, ..., 69.

    Raises:
        InputError: a count is below 1.
    """
    check_at_least("num_source", num_source, 1)
    check_at_least("num_frames", num_frames, 1)
    return [index * num_source // num_frames for index in range(num_frames)]


def even_frame_indices(num_source: int, num_frames: int) -> list[int]:
    """Frames spread evenly over a window, first and last included; a single frame is the middle one.

    Args:
        num_source: frames in the window.
        num_frames: frames wanted; more than `num_source` repeats some.

    Returns:
        `num_frames` indices in [0, num_source), ascending: 9 to 3 gives 0, 4, 8.

    Raises:
        InputError: a count is below 1.
    """
    check_at_least("num_source", num_source, 1)
    check_at_least("num_frames", num_frames, 1)
    if num_frames == 1:
        return [(num_source - 1) // 2]
    steps = num_frames - 1
    return [(index * (num_source - 1) * 2 + steps) // (2 * steps) for index in range(num_frames)]


def even_times(start_s: float, duration_s: float, num_frames: int) -> list[float]:
    """Moments spread evenly over a window, the first at its start; the step is `duration_s / num_frames`.

    Args:
        start_s: where the window starts, seconds.
        duration_s: how long it is, seconds.
        num_frames: how many moments.

    Returns:
        Seconds, ascending: 16 from a window of 2 s are 0.125 s apart, which is 8 frames a second.

    Raises:
        InputError: a number is out of range.
    """
    check_at_least("start_s", start_s, 0)
    check_at_least("duration_s", duration_s, 0)
    check_at_least("num_frames", num_frames, 1)
    return [start_s + index * duration_s / num_frames for index in range(num_frames)]
