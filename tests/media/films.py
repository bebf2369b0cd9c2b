"""Films made up on the spot by PyAV, as other programs write them: any frame times, keyframes, turns and sound."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

CLOCK = Fraction(1, 12800)


def numbered(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A frame with its number in eight bars, white for a one: readable after any coding, scaling and cropping."""
    bits = [index >> place & 1 for place in range(8)]
    row = np.repeat(np.array(bits, np.uint8) * 235 + 10, width // 8)
    return np.broadcast_to(row[None, :, None], (height, width, 3)).copy()


def number_of(frame: np.ndarray) -> int:
    """The reverse of `numbered`."""
    row = frame[frame.shape[0] // 2, :, 1]
    middles = row[row.size // 16 :: row.size // 8]
    return sum(int(level > 128) << place for place, level in enumerate(middles))


def write_film(
    path: Path,
    times_s: Sequence[float] | int,
    *,
    fps: float = 25,
    frames: Sequence[np.ndarray] | None = None,
    keyframe_every: int = 12,
    codec: str = "libx264",
    aspect: Fraction = Fraction(1),
) -> Path:
    """A film whose frame `i` is `numbered(i)` (or `frames[i]`) and is shown at `times_s[i]`, or evenly at `fps`.

    Its pixels are `aspect` times as wide as high.
    """
    times = [index / fps for index in range(times_s)] if isinstance(times_s, int) else list(times_s)
    pictures = frames if frames is not None else [numbered(index) for index in range(len(times))]
    even = isinstance(times_s, int)
    clock = Fraction(1, round(fps)) if even else CLOCK
    options = {"bf": "2" if even else "0", "sc_threshold": "0", "qp": "0"} if codec == "libx264" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=round(fps), options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = keyframe_every
        stream.codec_context.time_base = clock
        stream.codec_context.sample_aspect_ratio = aspect
        for time, pixels in zip(times, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time / clock), clock
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path, seconds: float = 1.0) -> Path:
    """A film with sound and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for start in range(0, int(seconds * 16000), 1024):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = 16000, start, Fraction(1, 16000)
            container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return path


def write_talkie(path: Path, picture_s: float, sound_s: float) -> Path:
    """A film of `numbered` frames, 25 a second, whose sound lasts otherwise."""
    webm = path.suffix == ".webm"
    rate, step = (48000, 960) if webm else (16000, 1024)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9" if webm else "libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        track = container.add_stream("libopus" if webm else "aac", rate=rate, layout="mono")
        for index in range(round(picture_s * 25)):
            frame = av.VideoFrame.from_ndarray(numbered(index), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        for start in range(0, round(sound_s * rate), step):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, step), np.float32), format="fltp", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = rate, start, Fraction(1, rate)
            container.mux(track.encode(sound))
        container.mux(track.encode())
    return path


def write_cover(path: Path) -> Path:
    """A song with a cover picture, which is no film."""
    with av.open(str(path), "w") as container:
        track = container.add_stream("aac", rate=16000, layout="mono")
        stream = container.add_stream("mjpeg", rate=1)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuvj420p"
        stream.disposition = Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(numbered(3), format="rgb24").reformat(format="yuvj420p")
        frame.pts, frame.time_base = 0, Fraction(1)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = 16000, 0, Fraction(1, 16000)
        container.mux(track.encode(sound))
        container.mux(track.encode())
    return path


def turn(path: Path, degrees: float) -> Path:
    """Writes a turn against the clock into an MP4's header, as a phone does that was held so."""
    content = path.read_bytes()
    sine, cosine = (
        round(65536 * value) for value in (math.sin(math.radians(degrees)), math.cos(math.radians(degrees)))
    )
    matrix = struct.pack(">5i", cosine, -sine, 0, sine, cosine)
    place = content.index(struct.pack(">5i", 65536, 0, 0, 0, 65536), content.index(b"tkhd"))
    path.write_bytes(content[:place] + matrix + content[place + 20 :])
    return path


def turn_clockwise(path: Path) -> Path:
    """Writes a quarter turn into an MP4's header, as a phone held upright does."""
    content = path.read_bytes()
    one, none, minus = b"\0\1\0\0", b"\0\0\0\0", b"\xff\xff\0\0"
    plain, clockwise = one + none * 3 + one, none + one + none + minus + none
    place = content.index(plain, content.index(b"tkhd"))
    path.write_bytes(content[:place] + clockwise + content[place + 20 :])
    return path


def cut(path: Path, share: float) -> Path:
    """Keeps the first share of a file's bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path
