"""What a video is once it has been read: frames, their rate, and words about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from latent_shift.core.errors import InputError

Frames: TypeAlias = npt.NDArray[np.uint8]
"""`(frames, height, width, 3)`, uint8, RGB in [0, 255]. A single image is `(height, width, 3)`."""


_MAX_METADATA = 60_000


@dataclass(frozen=True, eq=False)
class Video:
    """A video in memory.

    Attributes:
        frames: `(frames, height, width, 3)`, uint8, RGB.
        fps: frames a second; 1.0 for a still image.
        metadata: what the file says about itself, for example its prompt and seed.
    """

    frames: Frames
    fps: float
    metadata: dict[str, str] = field(default_factory=dict)


def check_frames(frames: npt.NDArray[Any]) -> Frames:
    """Returns `frames` if they are `(frames, height, width, 3)`, uint8, with at least one frame.

    Raises:
        InputError: the shape or the dtype is another.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or 0 in frames.shape:
        raise InputError("frames", tuple(frames.shape), "have the shape (frames, height, width, 3)")
    if frames.dtype != np.uint8:
        raise InputError("frames", str(frames.dtype), "be uint8")
    return frames


def to_uint8(frames: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
    """Values in [0, 1], of any shape, rounded to [0, 255]."""
    return (frames * 255).round().astype(np.uint8)


def check_fps(fps: float) -> None:
    """Raises `InputError` unless `fps` is in [0.01, 1000]: files count in milliseconds."""
    if not 0.01 <= fps <= 1000:
        raise InputError("fps", fps, "be from 0.01 to 1000 frames a second")


def metadata_to_json(metadata: Mapping[str, str], *, ascii_only: bool = False) -> str:
    r"""One line of JSON. `ascii_only` escapes the rest as `\uXXXX`, for containers that hold ASCII alone.

    Raises:
        InputError: a key or a value is no text, or no text that UTF-8 can hold, or all is too long for an EXIF block.
    """
    for key, value in metadata.items():
        try:
            key.encode(), value.encode()
        except (AttributeError, UnicodeEncodeError) as error:
            raise InputError("metadata", {key: value}, "map text to text") from error
    text = json.dumps(dict(metadata), ensure_ascii=ascii_only)
    if len(text) > _MAX_METADATA:
        raise InputError("metadata", f"{len(text)} characters", f"be at most {_MAX_METADATA} characters of JSON")
    return text


def metadata_from_json(text: str) -> dict[str, str]:
    """The reverse of `metadata_to_json`; a comment that is not ours comes back as `{"comment": text}`."""
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if isinstance(value, dict) and all(isinstance(item, str) for item in value.values()):
        return value
    return {"comment": text} if text else {}
