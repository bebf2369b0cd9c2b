"""Movie files through PyAV (FFmpeg): clips, from the keyframe before them on and only what they need, or all of it.

Pictures are shown as a player shows them: turned upright, with pixels as wide as the file says; not mirrored.
"""

from __future__ import annotations

import bisect
import contextlib
import re
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from latent_shift.core.errors import DataError

from ._pyav import EXACT
from ._reader import ROUNDING_S, VideoInfo, VideoReader
from .video import Frames, Video, metadata_from_json

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer
    from av.video.reformatter import VideoReformatter

_HOLD_S = 1.0
_SEEK_BACK_S = (0.0, 3.0, 15.0)
_MICROSECONDS = 1_000_000
_MAX_ASPECT = 8


class MovieReader(VideoReader):
    """Whatever FFmpeg reads. Decodes on one thread: a loader has many workers, each with a file of its own."""

    def __init__(self, path: Path) -> None:
        """Opens the file and finds its first video stream (a cover picture is none).

        Raises:
            DataError: there is none, it lasts no time, or the file cannot be read. Names it.
        """
        from av.video.reformatter import VideoReformatter

        self.path = path
        self.decoded_frames = 0
        self._reformatter = VideoReformatter()
        self._open()
        try:
            self._origin = self._stream.start_time or 0
            self.duration_s = self._duration()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """See `VideoReader`."""
        self._container.close()

    def info(self) -> VideoInfo:
        """See `VideoReader`; the frame tells which way is up."""
        with contextlib.closing(self._decode([0.0])) as frames:
            first = next(frames, None)
        if first is None:
            raise DataError(f"{self.path} has no frames")
        height, width = _upright_size(first, _aspect(self._stream))
        return VideoInfo(self.duration_s, height, width, self._rate(), self._stream.frames or None)

    def _frames_at(self, times_s: Sequence[float], size: tuple[int, int] | None) -> Frames:
        chosen: list[VideoFrame] = []
        shown: VideoFrame | None = None
        shown_s = 0.0
        with contextlib.closing(self._decode(times_s)) as frames:
            for frame in frames:
                frame_s = self._time(frame, after=shown_s)
                while shown is not None and len(chosen) < len(times_s) and frame_s > times_s[len(chosen)] + ROUNDING_S:
                    chosen.append(shown)
                if len(chosen) == len(times_s):
                    break
                shown, shown_s = frame, frame_s
        if shown is None:
            raise DataError(f"{self.path} has no frames at {times_s[0]:.2f} s and after")
        if len(chosen) < len(times_s) and times_s[-1] > shown_s + self._length(shown) + _HOLD_S:
            raise DataError(f"{self.path} ends at {shown_s:.2f} s, but its header says {self.duration_s:.2f} s")
        chosen += [shown] * (len(times_s) - len(chosen))
        return _stack(self.path, chosen, size, _aspect(self._stream), self._reformatter)

    def _decode(self, times_s: Sequence[float]) -> Generator[VideoFrame, None, None]:
        """The frames shown at these times, the one after them, and others between that those are made of.

        Packets say when their frames are shown before anything is decoded, so frames that nobody refers to (most of
        H.264's B-frames) are skipped unless they are wanted.
        """
        with _naming(self.path):
            packets = self._packets(times_s)
            codec = self._stream.codec_context
            wanted = self._wanted(packets, times_s)
            for packet in packets:
                codec.skip_frame = "DEFAULT" if wanted is None or packet.pts in wanted else "NONREF"
                for frame in packet.decode():
                    self.decoded_frames += 1
                    yield frame
            for frame in codec.decode(None) if packets and packets[-1].size else ():
                self.decoded_frames += 1
                yield frame

    def _packets(self, times_s: Sequence[float]) -> list[Packet]:
        """From the last keyframe before the first time to the first packet after the last time.

        Some containers have no index and land too late: then from earlier, and at last from the start of the file.
        """
        import av

        for earlier_s in _SEEK_BACK_S if times_s[0] > 0 else ():
            with contextlib.suppress(av.FFmpegError):
                self._at_start = False
                ticks = self._origin + int(max(0.0, times_s[0] - earlier_s) / self._tick())
                self._container.seek(ticks, stream=self._stream, backward=True)
                packets = self._read_until(times_s[-1])
                if packets and self._seconds(packets[0]) <= times_s[0] + ROUNDING_S:
                    return packets
        if not self._at_start:
            self.close()
            self._open()
        return self._read_until(times_s[-1], from_keyframe=False)

    def _read_until(self, end_s: float, *, from_keyframe: bool = True) -> list[Packet]:
        packets: list[Packet] = []
        self._at_start = False
        for packet in self._container.demux(self._stream):
            if packets or packet.is_keyframe or not from_keyframe:
                packets.append(packet)
            # What comes later is decoded later, and shown later still.
            if packet.dts is not None and (packet.dts - self._origin) * self._tick() > end_s + ROUNDING_S:
                break
        return packets

    def _seconds(self, packet: Packet) -> float:
        ticks = packet.pts if packet.pts is not None else packet.dts
        return 0.0 if ticks is None else (ticks - self._origin) * self._tick()

    def _wanted(self, packets: Sequence[Packet], times_s: Sequence[float]) -> set[int] | None:
        """When the frames at these times are shown, and the one after them, in ticks; None if packets do not say."""
        if any(packet.pts is None for packet in packets if packet.size):
            return None
        shown = sorted(packet.pts for packet in packets if packet.pts is not None)
        places = [bisect.bisect(shown, self._origin + (time + ROUNDING_S) / self._tick()) for time in times_s]
        return {shown[place - 1] for place in places if place} | {
            shown[place] for place in places[-1:] if shown[place:]
        }

    def _open(self) -> None:
        self._container, self._stream = _open_movie(self.path)
        self._stream.thread_type = "NONE"
        self._at_start = True

    def _duration(self) -> float:
        tagged_s = _tagged_seconds(self._stream)
        if self._stream.duration:
            duration_s = float(self._stream.duration * self._tick())
        elif tagged_s is not None:
            duration_s = tagged_s - self._origin * self._tick()
        elif self._container.duration and len(self._container.streams) == 1:  # it is the longest stream's: sound's, say
            duration_s = self._container.duration / _MICROSECONDS
        else:
            with _naming(self.path):
                ends = [p.pts + (p.duration or 0) for p in self._container.demux(self._stream) if p.pts is not None]
            duration_s = float((max(ends, default=self._origin) - self._origin) * self._tick())
            self._container.close()
            self._open()
        if duration_s <= 0:
            raise DataError(f"{self.path} lasts no time")
        return duration_s

    def _tick(self) -> float:
        return float(self._stream.time_base or 0) or 1 / _MICROSECONDS

    def _rate(self) -> float:
        return float(self._stream.average_rate or self._stream.guessed_rate or 0)

    def _length(self, frame: VideoFrame) -> float:
        return frame.duration * self._tick() if frame.duration else 1 / (self._rate() or 1.0)

    def _time(self, frame: VideoFrame, after: float) -> float:
        """When a frame is shown, seconds; one that does not say is shown after the one before it."""
        ticks = frame.pts if frame.pts is not None else frame.dts
        return after + self._length(frame) if ticks is None else (ticks - self._origin) * self._tick()


def read_movie(path: Path) -> Video:
    """Reads every frame of a film, as `MovieReader` shows them.

    Raises:
        DataError: there is no video stream, or it cannot be decoded to its end.
    """
    from av.video.reformatter import VideoReformatter

    container, stream = _open_movie(path)
    with container, _naming(path):
        frames = list(container.decode(stream))
        rate = stream.average_rate or stream.guessed_rate
        aspect = _aspect(stream)
        metadata = _metadata(container)
    if not frames or not rate:
        raise DataError(f"{path} has no frames")
    pixels = _stack(path, frames, None, aspect, VideoReformatter())
    return Video(pixels, float(rate), metadata)


def read_movie_metadata(path: Path) -> dict[str, str]:
    """What `read_movie` gives as metadata; decodes nothing.

    Raises:
        DataError: there is no video stream, or the file cannot be opened.
    """
    container, _ = _open_movie(path)
    with container, _naming(path):
        return _metadata(container)


def _metadata(container: InputContainer) -> dict[str, str]:
    comments = [text for key, text in container.metadata.items() if key.lower() == "comment"]
    return metadata_from_json("".join(comments[:1]))


def _open_movie(path: Path) -> tuple[InputContainer, VideoStream]:
    import av
    from av.stream import Disposition

    with _naming(path):
        container = av.open(str(path), options={"protocol_whitelist": "file"})
        pictures = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if pictures and pictures[0].codec_context is not None:
            return container, pictures[0]
        container.close()
        raise DataError(
            f"{path} has " + ("pictures of a kind that FFmpeg cannot read" if pictures else "no video stream")
        )


def _stack(
    path: Path,
    chosen: Sequence[VideoFrame],
    size: tuple[int, int] | None,
    aspect: float,
    reformatter: VideoReformatter,
) -> Frames:
    first = chosen[0]
    result = np.empty((len(chosen), *(size or _upright_size(first, aspect)), 3), np.uint8)
    with _naming(path):
        for index, frame in enumerate(chosen):
            if frame.is_corrupt:
                raise DataError(f"{path} is damaged inside")
            if size is None and (frame.height, frame.width) != (first.height, first.width):
                raise DataError(f"{path} changes its frame size on the way")
            if index and frame is chosen[index - 1]:
                result[index] = result[index - 1]
            else:
                _draw(frame, aspect, result[index], reformatter)
    return result


def _draw(frame: VideoFrame, aspect: float, target: Frames, reformatter: VideoReformatter) -> None:
    """Writes a frame, upright, scaled to fill `target` `(height, width, 3)` and cropped evenly."""
    target = np.rot90(target, -_quarter_turns(frame))  # a view that lies as the frame does
    height, width = target.shape[:2]
    shown_width = frame.width * aspect
    scale = max(height / frame.height, width / shown_width)
    inner_height, inner_width = max(height, round(frame.height * scale)), max(width, round(shown_width * scale))
    top, left = (inner_height - height) // 2, (inner_width - width) // 2
    # Planar RGB (green, blue, red) is three times as fast as packed RGB, and as exact.
    scaled = reformatter.reformat(frame, width=inner_width, height=inner_height, format="gbrp", interpolation=EXACT)
    for channel, plane in zip((1, 2, 0), scaled.planes, strict=True):
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        target[..., channel] = rows[top : top + height, left : left + width]


def _upright_size(frame: VideoFrame, aspect: float) -> tuple[int, int]:
    """Height and width as a player shows them."""
    size = frame.height, max(1, round(frame.width * aspect))
    return size[::-1] if _quarter_turns(frame) % 2 else size


def _aspect(stream: VideoStream) -> float:
    """How wide a pixel is, by its height; what no camera has is damage in a header."""
    aspect = float(stream.sample_aspect_ratio or 1)
    return aspect if 1 / _MAX_ASPECT <= aspect <= _MAX_ASPECT else 1.0


def _quarter_turns(frame: VideoFrame) -> int:
    return round(float(frame.rotation) / 90)


def _tagged_seconds(stream: VideoStream) -> float | None:
    """Matroska's tag of when a stream ends, `00:00:04.000000000`; its name may have a language, `DURATION-eng`."""
    tag = next((text for key, text in stream.metadata.items() if key.startswith("DURATION")), "")
    match = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", tag)
    if match is None:
        return None
    hours, minutes, seconds = map(float, match.groups())
    return 3600 * hours + 60 * minutes + seconds


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """FFmpeg's errors become ours, with the name of the file."""
    import av

    try:
        yield
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is truncated, corrupt or no video ({type(error).__name__})") from error
