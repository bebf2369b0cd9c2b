"""Clips out of longer videos, without reading them from the start."""

from __future__ import annotations

import os
from pathlib import Path

from ._folder import read_folder
from ._image_reader import ImageReader
from ._movie_reader import MovieReader
from ._reader import LoadedReader, VideoInfo, VideoReader
from .read import media_kind
from .video import Frames

__all__ = ["VideoInfo", "VideoReader", "open_video", "probe_video", "read_clip"]


def open_video(path: str | os.PathLike[str]) -> VideoReader:
    """Opens a video to read clips of it; to be used in a `with` statement.

    Movies are decoded from the keyframe before a clip, on one thread. Images, animated ones too, are decoded to their
    end when they are opened, and folders of PNG frames are read as a whole.

    Args:
        path: a video, an image or a folder as `write_video` writes it; its first bytes decide, not its name.

    Raises:
        InputError: nothing is there, or it may not be read.
        DataError: it is empty, truncated, has sound alone, or is no video. Names the file.
    """
    path = Path(path)
    kind = media_kind(path)
    if kind == "movie":
        return MovieReader(path)
    return ImageReader(path) if kind == "image" else LoadedReader(path, read_folder(path))


def read_clip(
    path: str | os.PathLike[str],
    start_s: float,
    duration_s: float,
    num_frames: int,
    size: int | tuple[int, int] | None = None,
) -> Frames:
    """Reads `num_frames` frames, evenly spaced in time, of the window that starts at `start_s`.

    Frames are chosen by the times at which they are shown, so a variable frame rate is no matter, and turned upright.

    Args:
        path: as for `open_video`.
        start_s: seconds after the first frame.
        duration_s: seconds.
        num_frames: how many.
        size: as for `VideoReader.clip`.

    Returns:
        `(num_frames, height, width, 3)`, uint8, RGB; one frame of a still image.

    Raises:
        InputError: nothing is there, the window is not inside the video, or a number is out of range.
        DataError: the file is damaged or no video. Names the file.
    """
    with open_video(path) as video:
        return video.clip(start_s, duration_s, num_frames, size)


def probe_video(path: str | os.PathLike[str]) -> VideoInfo:
    """Says how long a video is, how large and how fast; decodes at most one frame of a movie.

    Raises:
        InputError: nothing is there, or it may not be read.
        DataError: the file is damaged or no video. Names the file.
    """
    with open_video(path) as video:
        return video.info()
