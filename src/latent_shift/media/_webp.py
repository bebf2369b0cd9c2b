"""Animated WebP with exactly the frames it was given.

libwebp's animation encoder merges equal neighbours into one longer frame, so that a clip of 24 frames may come back as
23. Here each frame is its own image (cropped to what changed), and the container around them is written by hand:
https://developers.google.com/speed/webp/docs/riff_container
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from .changes import changed_box
from .video import Frames

_HAS_ANIMATION, _HAS_EXIF = 0x02, 0x08
_DO_NOT_BLEND = 0x02
_METHOD = 1


def write_webp(
    path: Path, frames: Frames, durations: Sequence[int], exif: bytes, quality: int, *, lossless: bool
) -> None:
    """Writes an animated WebP that loops for ever.

    Args:
        path: where to.
        frames: `(frames, height, width, 3)`, uint8.
        durations: milliseconds each frame is shown.
        exif: a TIFF block, or nothing.
        quality: 0 to 100 of a lossy file.
        lossless: keep every bit.
    """
    height, width = frames.shape[1:3]
    chunks = [
        _chunk(b"VP8X", struct.pack("<I", _HAS_ANIMATION | (_HAS_EXIF if exif else 0)) + _u24(width - 1, height - 1)),
        _chunk(b"ANIM", struct.pack("<IH", 0xFFFFFFFF, 0)),
    ]
    for index, duration in enumerate(durations):
        left, top, right, bottom = changed_box(frames, index, align=2)
        still = io.BytesIO()
        Image.fromarray(frames[index, top:bottom, left:right]).save(
            still, "WEBP", lossless=lossless, quality=20 if lossless else quality, method=_METHOD
        )
        place = _u24(left // 2, top // 2, right - left - 1, bottom - top - 1, duration)
        chunks.append(_chunk(b"ANMF", place + bytes([_DO_NOT_BLEND]) + still.getvalue()[12:]))
    if exif:
        chunks.append(_chunk(b"EXIF", exif.removeprefix(b"Exif\0\0")))
    path.write_bytes(_chunk(b"RIFF", b"WEBP" + b"".join(chunks)))


def _chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _u24(*values: int) -> bytes:
    return b"".join(struct.pack("<I", value)[:3] for value in values)
