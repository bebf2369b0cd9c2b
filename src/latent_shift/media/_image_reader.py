"""Clips out of animated and still images: each frame is shown for as long as the file says."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ._images import ROUNDING_MS, check_end, even_durations, frame_count, naming, picture, shown_ms
from ._reader import ROUNDING_S, VideoInfo, VideoReader
from .resize import resize_frames
from .video import Frames


class ImageReader(VideoReader):
    """Whatever Pillow reads. Decodes all frames once for their durations, and keeps those of a clip alone."""

    rounding_s = ROUNDING_MS / 1000

    def __init__(self, path: Path) -> None:
        """Opens the file and decodes it to its end.

        Raises:
            DataError: it is truncated or corrupt. Names it.
        """
        self.path = path
        with naming(path):
            self._image = Image.open(path)
            try:
                durations = [self._load(index) for index in range(frame_count(self._image))]
                check_end(path, self._image.format)
            except BaseException:
                self.close()
                raise
        starts = itertools.accumulate(even_durations(durations)[:-1], initial=0.0)
        self._starts_s = [start / 1000 for start in starts]
        self.duration_s = sum(durations) / 1000 if len(durations) > 1 else 0.0

    def close(self) -> None:
        """See `VideoReader`."""
        self._image.close()

    def info(self) -> VideoInfo:
        """See `VideoReader`."""
        count = len(self._starts_s)
        with naming(self.path):
            height, width = picture(self._image, 0).shape[:2]
        return VideoInfo(self.duration_s, height, width, 0.0 if self.is_still else count / self.duration_s, count)

    def _frames_at(self, times_s: Sequence[float], size: tuple[int, int] | None) -> Frames:
        shown = [bisect.bisect(self._starts_s, time + ROUNDING_S) - 1 for time in times_s]
        with naming(self.path):
            pictures = {index: picture(self._image, index) for index in sorted(set(shown))}
        frames = np.stack([pictures[index] for index in shown])
        return frames if size is None else resize_frames(frames, size)

    def _load(self, index: int) -> float:
        self._image.seek(index)
        self._image.load()
        self.decoded_frames += 1
        return shown_ms(self._image)
