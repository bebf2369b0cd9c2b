"""What GIF and WebP share: whole units of time, and the part of a frame that is new."""

from __future__ import annotations

from .video import Frames


def frame_durations(num_frames: int, fps: float, unit_ms: int) -> list[int]:
    """How long each frame is shown, in milliseconds, as multiples of `unit_ms`; the total is right to half a unit."""
    edges = [round(index * 1000 / (fps * unit_ms)) for index in range(num_frames + 1)]
    return [(later - earlier) * unit_ms for earlier, later in zip(edges, edges[1:], strict=False)]


def changed_box(frames: Frames, index: int, align: int = 1) -> tuple[int, int, int, int]:
    """The rectangle that holds every pixel of frame `index` that differs from the frame before it.

    Args:
        frames: `(frames, height, width, 3)`, uint8.
        index: which frame; the first one is wholly new.
        align: left and top are multiples of it.

    Returns:
        `(left, top, right, bottom)` in pixels, never empty: one corner pixel where nothing changed.
    """
    height, width = frames.shape[1:3]
    if index == 0:
        return 0, 0, width, height
    changed = (frames[index] != frames[index - 1]).any(axis=-1)
    rows, columns = changed.any(axis=1).nonzero()[0], changed.any(axis=0).nonzero()[0]
    if not len(rows):
        return 0, 0, 1, 1
    left, top = int(columns[0]) // align * align, int(rows[0]) // align * align
    return left, top, int(columns[-1]) + 1, int(rows[-1]) + 1
