"""MP4 and WebM, written through PyAV (FFmpeg)."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from latent_shift.core.errors import InputError

from .video import Frames, metadata_to_json

if TYPE_CHECKING:
    from av import VideoStream

_CODECS = {".mp4": "libx264", ".webm": "libvpx-vp9"}
_BT709, _LIMITED_RANGE = 1, 1
# swscale's bicubic with exact rounding and whole chroma (4 + 0x40000 + 0x2000 + 0x4000): its quick default darkens
# every pixel by one level on the way there and back.
EXACT = 0x46004


def write_movie(path: Path, kind: str, frames: Frames, fps: float, metadata: Mapping[str, str], crf: int) -> None:
    """Writes H.264 in MP4 or VP9 in WebM, as browsers play it: 4:2:0, BT.709, the index before the pictures.

    Args:
        path: where to.
        kind: `.mp4` or `.webm`.
        frames: `(frames, height, width, 3)`, uint8, of even height and width.
        fps: frames a second; written as an exact fraction.
        metadata: each entry becomes a tag of its own, and all of them one JSON in the tag `comment`.
        crf: constant rate factor.

    Raises:
        InputError: the encoder writes no frames of this size.
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
        try:
            codec.open()
        except av.FFmpegError as error:
            size = f"{stream.width}x{stream.height}"
            raise InputError("frames", size, f"have a size that {_CODECS[kind]} can write") from error
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
