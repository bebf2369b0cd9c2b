"""What is common to the readers of clips, and the one for folders of frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from latent_shift.core.errors import InputError

from .resize import resize_frames
from .sampling import even_times
from .video import Frames, Video

ROUNDING_S = 1e-3
"""A frame counts as shown a millisecond early: containers round the times of frames."""


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about its pictures.

    Attributes:
        duration_s: how long it lasts, seconds; 0 for a still image.
        height: pixels, upright.
        width: pixels, upright.
        fps: frames a second, on average; 0 for a still image.
        num_frames: how many there are; None where the container does not say.
    """

    duration_s: float
    height: int
    width: int
    fps: float
    num_frames: int | None


class VideoReader(ABC):
    """An open video of which clips can be read, in any order. A context manager; one thread at a time.

    Attributes:
        path: the file.
        duration_s: how long it lasts, seconds; 0 for a still image.
        decoded_frames: frames decoded so far, those before a clip's start and between its frames included.
        rounding_s: the file may say that it lasts so much less than it was made to last, seconds.
    """

    path: Path
    duration_s: float
    decoded_frames: int = 0
    rounding_s: float = ROUNDING_S

    def __enter__(self) -> VideoReader:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Closes the file."""
        self.close()

    @property
    def is_still(self) -> bool:
        """Whether it is a single image."""
        return self.duration_s == 0

    def clip(
        self, start_s: float, duration_s: float, num_frames: int, size: int | tuple[int, int] | None = None
    ) -> Frames:
        """Reads frames evenly spaced in time, each the one that a player would show then.

        Args:
            start_s: where the window starts, seconds after the first frame.
            duration_s: how long it is, seconds; the last frame is `duration_s / num_frames` before its end.
            num_frames: how many. Where there are fewer in the window, some are repeated.
            size: height and width in pixels (one number is a square): the picture is scaled to fill it, and what sticks
                out is cropped evenly; None keeps the file's size.

        Returns:
            `(num_frames, height, width, 3)`, uint8, RGB; `(1, height, width, 3)` of a still image, whatever the window.

        Raises:
            InputError: the window is not inside the video, or a number is out of range.
            DataError: the file is damaged. Names it.
        """
        times = even_times(start_s, duration_s, num_frames)
        if self.is_still:
            return self._frames_at([0.0], _pair(size))
        if start_s + duration_s > self.duration_s + ROUNDING_S:
            expected = f"leave {duration_s:g} s of the {self.duration_s:.3f} s that {self.path} lasts"
            raise InputError("start_s", start_s, expected)
        return self._frames_at(times, _pair(size))

    @abstractmethod
    def info(self) -> VideoInfo:
        """What the file says about its pictures; decodes at most one frame.

        Raises:
            DataError: the file is damaged. Names it.
        """

    @abstractmethod
    def _frames_at(self, times_s: Sequence[float], size: tuple[int, int] | None) -> Frames:
        """The frames shown at these times (ascending)."""

    @abstractmethod
    def close(self) -> None:
        """Gives the file back."""


def _pair(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    height, width = size if isinstance(size, tuple) else (size, size)
    if height is None or width is None:
        return None
    if min(height, width) < 1:
        raise InputError("size", size, "be at least 1")
    return height, width


class LoadedReader(VideoReader):
    """A folder of frames, read as a whole."""

    def __init__(self, path: Path, video: Video) -> None:
        """Args: path: where it is from. video: what it holds."""
        self.path, self._video = path, video
        self.decoded_frames = len(video.frames)
        self.duration_s = len(video.frames) / video.fps if len(video.frames) > 1 else 0.0

    def info(self) -> VideoInfo:
        """See `VideoReader`."""
        count, height, width, _ = self._video.frames.shape
        return VideoInfo(self.duration_s, height, width, 0.0 if self.is_still else self._video.fps, count)

    def _frames_at(self, times_s: Sequence[float], size: tuple[int, int] | None) -> Frames:
        last = len(self._video.frames) - 1
        frames = self._video.frames[[min(last, int((time + ROUNDING_S) * self._video.fps)) for time in times_s]]
        return frames if size is None else resize_frames(frames, size)

    def close(self) -> None:
        """See `VideoReader`."""
