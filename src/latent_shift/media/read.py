"""A file, or a folder of PNG frames, becomes frames."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

from latent_shift.core.errors import DataError, InputError

from ._folder import read_folder, read_manifest
from ._images import is_image, read_image, read_image_metadata
from ._movie_reader import read_movie, read_movie_metadata
from ._whole import missing_bytes
from .video import Video

MediaKind: TypeAlias = Literal["folder", "image", "movie"]


def read_video(path: str | os.PathLike[str], *, expect_frames: int | None = None) -> Video:
    """Reads a whole video, GIF, animated or still image, or a folder of PNG frames.

    The file's first bytes decide how it is read, not its name. Transparency of images is laid on white.

    Args:
        path: a file, or a folder as `write_video` writes it.
        expect_frames: how many frames there have to be; another count is an error.

    Returns:
        The video: `frames` is `(frames, height, width, 3)`, uint8.

    Raises:
        InputError: nothing is there, or it may not be read.
        DataError: it is empty, truncated, no video, or has not `expect_frames` frames. Names the file.
    """
    path = Path(path)
    readers: dict[MediaKind, Callable[[Path], Video]] = {
        "folder": read_folder,
        "image": read_image,
        "movie": read_movie,
    }
    video = readers[media_kind(path)](path)
    if expect_frames is not None and len(video.frames) != expect_frames:
        raise DataError(f"{path} has {len(video.frames)} frames, expected {expect_frames}")
    return video


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The metadata of a video as `read_video` gives them, without its frames.

    Raises:
        InputError: nothing is there, or it may not be read.
        DataError: it is empty, truncated or no video. Names the file; damage further inside is not seen.
    """
    path = Path(path)
    kind = media_kind(path)
    if kind == "folder":
        return read_manifest(path)[2]
    return read_image_metadata(path) if kind == "image" else read_movie_metadata(path)


def media_kind(path: Path) -> MediaKind:
    """How what is at `path` has to be read; its first bytes decide, and a file that was cut short is refused.

    Returns:
        `folder` (of PNG frames), `image` (what Pillow reads, still or animated) or `movie` (what FFmpeg reads).

    Raises:
        InputError: nothing is there, or it may not be read.
        DataError: it is empty or shorter than its own header says. Names the file.
    """
    if path.is_dir():
        return "folder"
    try:
        with path.open("rb") as file:
            head = file.read(32)
    except OSError as error:
        raise InputError("video", str(path), f"be a file or folder that can be read ({error.strerror})") from error
    if not head:
        raise DataError(f"{path} is empty")
    if missing := missing_bytes(path):
        raise DataError(f"{path} is truncated: {missing} bytes are missing")
    return "image" if is_image(head) else "movie"
