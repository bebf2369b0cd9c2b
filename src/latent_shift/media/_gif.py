"""GIF with exactly the frames it was given, one palette for all of them, and their part that changed.

Pillow's own writer merges equal neighbours into one longer frame; so the container is written here, and Pillow packs
the pixels.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import GifImagePlugin, Image

from .changes import changed_box
from .sampling import even_frame_indices
from .video import Frames

_COLORS = 256
_PALETTE_FRAMES = 8
_LOOP_FOREVER = b"!\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00"
_KEEP = 1


def write_gif(path: Path, frames: Frames, durations: Sequence[int], comment: bytes) -> None:
    """Writes a GIF that loops for ever; clips of at most 256 colours lose nothing.

    Args:
        path: where to.
        frames: `(frames, height, width, 3)`, uint8.
        durations: milliseconds each frame is shown, multiples of 10.
        comment: for the comment block, or nothing.
    """
    height, width = frames.shape[1:3]
    indexed, palette = _index_colors(frames)
    parts = [b"GIF89a", struct.pack("<HHBBB", width, height, 0xF7, 0, 0), palette, _LOOP_FOREVER]
    if comment:
        pieces = [comment[start : start + 255] for start in range(0, len(comment), 255)]
        parts += [b"!\xfe", *(bytes([len(piece)]) + piece for piece in pieces), b"\0"]
    for index, duration in enumerate(durations):
        left, top, right, bottom = changed_box(frames, index)
        part = Image.fromarray(np.ascontiguousarray(indexed[index, top:bottom, left:right]))
        parts += GifImagePlugin.getdata(part, (left, top), duration=duration, disposal=_KEEP)
    path.write_bytes(b"".join([*parts, b";"]))


def _index_colors(frames: Frames) -> tuple[npt.NDArray[np.uint8], bytes]:
    """`(frames, height, width)` indices into a palette of 256 x 3 bytes."""
    packed = frames.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colors, inverse = np.unique(packed, return_inverse=True)
    if len(colors) <= _COLORS:
        table = np.zeros((_COLORS, 3), np.uint8)
        table[: len(colors)] = np.stack([colors >> 16, colors >> 8 & 255, colors & 255], axis=1)
        return inverse.reshape(packed.shape).astype(np.uint8), table.tobytes()
    picked = frames[even_frame_indices(len(frames), min(len(frames), _PALETTE_FRAMES))]
    sample = Image.fromarray(picked.reshape(-1, picked.shape[2], 3)).quantize(_COLORS, Image.Quantize.MEDIANCUT)
    indexed = [np.asarray(Image.fromarray(frame).quantize(palette=sample)) for frame in frames]
    return np.stack(indexed), bytes(sample.getpalette() or ()).ljust(3 * _COLORS, b"\0")
