"""Many frames on one picture."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from latent_shift.core.errors import InputError
from latent_shift.core.shapes import check_at_least

from .sampling import even_frame_indices
from .video import Frames, check_frames

_GAP = 2
_FONT_SIZE = 14
_LINE_HEIGHT = 18
_MAX_LINES = 3
_MAX_COLUMNS = 8


def contact_sheet(
    videos: Frames | Sequence[Frames], columns: int | None = None, labels: Sequence[str] | None = None
) -> Frames:
    """Tiles frames on white: all frames of one clip as a grid, or one row for each of several clips.

    Args:
        videos: one clip `(frames, height, width, 3)`, uint8, or a sequence of such clips, whose sizes may differ.
        columns: tiles side by side. Of several clips, so many frames each, evenly spaced. By default as square a grid
            as it gets for one clip, and up to 8 for several.
        labels: one text a clip, drawn above it; wrapped, and cut with "..." after three lines.

    Returns:
        `(height, width, 3)`, uint8.

    Raises:
        InputError: there is no clip, one is no frames array, or there are not as many labels as clips.
    """
    clips = [videos] if isinstance(videos, np.ndarray) else list(videos)
    if not clips:
        raise InputError("videos", [], "hold at least one clip")
    for clip in clips:
        check_frames(clip)
    if labels is not None and len(labels) != len(clips):
        raise InputError("labels", len(labels), f"be as many as the clips, {len(clips)}")
    if columns is not None:
        check_at_least("columns", columns, 1)
    if len(clips) == 1:
        blocks = [_grid(clips[0], columns or math.ceil(math.sqrt(len(clips[0]))))]
    else:
        blocks = [_row(clip, columns or _MAX_COLUMNS) for clip in clips]
    width = max(block.shape[1] for block in blocks)
    parts: list[Frames] = []
    for index, block in enumerate(blocks):
        if labels is not None:
            parts.append(_label(labels[index], width))
        parts.append(_on_white(block, block.shape[0] + _GAP, width))
    return np.concatenate(parts)[:-_GAP]


def _row(clip: Frames, columns: int) -> Frames:
    count = min(columns, len(clip))
    return _grid(clip[even_frame_indices(len(clip), count)], count)


def _grid(clip: Frames, columns: int) -> Frames:
    count, height, width, _ = clip.shape
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    result = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 255, np.uint8)
    for index, frame in enumerate(clip):
        top, left = index // columns * (height + _GAP), index % columns * (width + _GAP)
        result[top : top + height, left : left + width] = frame
    return result


def _on_white(picture: Frames, height: int, width: int) -> Frames:
    result = np.full((height, width, 3), 255, np.uint8)
    result[: picture.shape[0], : picture.shape[1]] = picture
    return result


def _label(text: str, width: int) -> Frames:
    lines = wrap_text(text, width)
    image = Image.new("RGB", (width, len(lines) * _LINE_HEIGHT + _GAP), "white")
    draw = ImageDraw.Draw(image)
    for index, line in enumerate(lines):
        draw.text((0, index * _LINE_HEIGHT), line, fill="black", font=ImageFont.load_default(_FONT_SIZE))
    return np.asarray(image)


def wrap_text(text: str, width: int) -> list[str]:
    """Breaks `text` into at most three lines of at most `width` pixels; what is left out is marked with "...".

    Pillow's font knows ASCII alone: accents are dropped, and other characters stay empty boxes.
    """
    text = "".join(letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    font = ImageFont.load_default(_FONT_SIZE)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    kept = lines[:_MAX_LINES]
    if len(lines) > _MAX_LINES:
        kept[-1] += "..."
    return [_cut(line, width, font) for line in kept]


def _cut(line: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    if font.getlength(line) <= width:
        return line
    bare = line.removesuffix("...")
    while bare and font.getlength(bare + "...") > width:
        bare = bare[:-1]
    return bare.rstrip() + "..."
