"""Movie files through PyAV (FFmpeg): MP4 and WebM are written, whatever FFmpeg knows is read."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from latent_shift.core.errors import DataError

from .video import Frames, Video, metadata_from_json, metadata_to_json

if TYPE_CHECKING:
    from av import VideoStream

_CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9"}
_BT709, _LIMITED_RANGE = 1, 1
# swscale's bicubic with exact rounding and whole chroma (4 + 0x40000 + 0x2000 + 0x4000): its quick default darkens
# every pixel by one level on the way there and back.
EXACT = 0x46004


def read_movie(path: Path) -> Video:
    """Reads every frame of the first video stream, turned upright where the file says so.

    Raises:
        DataError: there is no video stream, or it cannot be decoded to its end.
    """
    import av
    from av.video.reformatter import VideoReformatter

    try:
        with av.open(str(path), options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise DataError(f"{path} has no video stream")
            stream = container.streams.video[0]
            frames, reformatter = [], VideoReformatter()
            for frame in container.decode(stream):
                pixels = reformatter.reformat(frame, format="rgb24", interpolation=EXACT).to_ndarray()
                frames.append(np.rot90(pixels, frame.rotation // 90) if frame.rotation else pixels)
            rate = stream.average_rate or stream.guessed_rate
            comments = [text for key, text in container.metadata.items() if key.lower() == "comment"]
    except (av.FFmpegError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is truncated, corrupt or no video ({type(error).__name__})") from error
    if not frames or not rate:
        raise DataError(f"{path} has no frames")
    if any(frame.shape != frames[0].shape for frame in frames):
        raise DataError(f"{path} changes its frame size on the way")
    return Video(np.stack(frames).astype(np.uint8, copy=False), float(rate), metadata_from_json("".join(comments[:1])))


def write_movie(path: Path, kind: str, frames: Frames, fps: float, metadata: Mapping[str, str], crf: int) -> None:
    """Writes H.264 in MP4 or VP9 in WebM, as browsers play it: 4:2:0, BT.709, the index before the pictures.

    Args:
        path: where to.
        kind: `.mp4` or `.webm`.
        frames: `(frames, height, width, 3)`, uint8, of even height and width.
        fps: frames a second; written as an exact fraction.
        metadata: each entry becomes a tag of its own, and all of them one JSON in the tag `comment`.
        crf: constant rate factor.
    """
    import av
    from av.video.reformatter import VideoReformatter

    rate = exact_rate(fps)
    flags = {"movflags": "use_metadata_tags+faststart"} if kind == ".mp4" else {}
    with av.open(str(path), "w", format=kind[1:], options=flags) as container:
        if metadata:
            # Control characters would end a tag early; the JSON escapes them.
            container.metadata.update({key: value for key, value in metadata.items() if (key + value).isprintable()})
            container.metadata["comment"] = metadata_to_json(metadata)
        options = {"crf": str(crf)} | ({"b": "0"} if kind == ".webm" else {})
        stream = cast("VideoStream", container.add_stream(_CODECS[kind], rate=rate, options=options))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        codec = stream.codec_context
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED_RANGE
        reformatter = VideoReformatter()  # one for all frames: each new one takes milliseconds to set up
        for index, pixels in enumerate(frames):
            frame = reformatter.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24"),
                format="yuv420p",
                dst_colorspace=_BT709,
                dst_color_range=_LIMITED_RANGE,
                interpolation=EXACT,
            )
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def exact_rate(fps: float) -> Fraction:
    """The rate as a fraction: 8 is 8/1, and 23.976 is what is meant by it, 24000/1001."""
    film = Fraction(round(fps * 1.001) * 1000, 1001)
    if fps != round(fps) and abs(float(film) - fps) < 5e-4:
        return film
    return Fraction(fps).limit_denominator(1001)
