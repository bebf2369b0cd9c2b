"""Clips for the study, whose room reads no media: sheets in one format, without metadata."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from latent_shift.core.errors import InputError
from latent_shift.media import Frames, contact_sheet, read_video, write_video
from latent_shift.study.records import ClipFacts

_QUALITY = 95
_MAX_SHEET_PIXELS = 4096 * 4096  # what phones still decode
_MAX_SHEETS = 4
_GAP = 2  # of a contact sheet
_TILES = 6
_VISIBLE = 8  # levels of 256, on average


def read_prompt(path: Path) -> str | None:
    """The sentence that `latent-shift generate` and `evaluate` leave in a file's metadata."""
    return read_video(path).metadata.get("prompt")


class SheetWriter:
    """Writes all frames of a clip on WebP pictures, of which the page shows one frame at a time.

    Two clips can then run exactly in step, which no browser promises for two videos or two animated pictures.
    """

    def write(self, source: Path, target: Path) -> ClipFacts:
        """Writes the sheets of a clip. See `latent_shift.study.ClipWriter`."""
        video = read_video(source)
        return _write(source, target, video.frames, video.fps)

    def write_scrambled(self, source: Path, target: Path) -> ClipFacts | None:
        """The same with shuffled tiles, the same shuffle for all frames, so that nothing flashes."""
        video = read_video(source)
        mixed = _scramble(video.frames)
        change = np.abs(mixed[0].astype(np.int16) - video.frames[0]).mean()
        return _write(source, target, mixed, video.fps) if change >= _VISIBLE else None


def _write(source: Path, target: Path, frames: Frames, fps: float) -> ClipFacts:
    count, height, width, _ = frames.shape
    side = math.isqrt(_MAX_SHEET_PIXELS)
    columns = min(math.ceil(math.sqrt(count)), (side + _GAP) // (width + _GAP))
    per_sheet = min(count, columns * ((side + _GAP) // (height + _GAP)))
    if per_sheet < 1 or count > per_sheet * _MAX_SHEETS:
        got = f"{count} frames of {width}x{height}"
        raise InputError(str(source), got, f"have at most {_MAX_SHEETS} x {side}x{side} pixels in all frames together")
    facts = ClipFacts(
        frames=count, width=width, height=height, fps=fps, columns=columns, gap=_GAP, frames_per_sheet=per_sheet
    )
    for number in range(facts.num_sheets):
        part = frames[number * per_sheet : (number + 1) * per_sheet]
        write_video(f"{target}-{number}.webp", contact_sheet(part, columns)[None], 1.0, quality=_QUALITY)
    return facts


def _scramble(frames: Frames) -> Frames:
    """Cuts pictures into 6 x 6 tiles and moves each elsewhere; what is left over at the edges stays."""
    tall, wide = frames.shape[1] // _TILES, frames.shape[2] // _TILES
    mixed = frames.copy()
    order = np.random.default_rng(0).permutation(_TILES * _TILES)
    for place, origin in enumerate(order):
        (top, left), (from_top, from_left) = divmod(place, _TILES), divmod(int(origin), _TILES)
        mixed[:, top * tall : (top + 1) * tall, left * wide : (left + 1) * wide] = frames[
            :, from_top * tall : (from_top + 1) * tall, from_left * wide : (from_left + 1) * wide
        ]
    return mixed
