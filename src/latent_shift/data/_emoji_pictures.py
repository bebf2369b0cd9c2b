"""Pictures of the emoji packages: checked, sampled, laid on white, resized and written."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from latent_shift.core.errors import DataError, InputError
from latent_shift.media import Frames, loop_frame_indices, resize_frames, write_video

_FAILURES = (OSError, EOFError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)
_WHITE = (255, 255, 255)


class UnreadablePictureError(DataError):
    """A single picture is truncated or corrupt; the others go on."""


@dataclass(frozen=True)
class PictureJob:
    """One picture to be made.

    Attributes:
        name: the source file, for messages.
        content: its bytes.
        target: where the result goes.
        num_frames: frames of the clip; 1 for a still.
        size: height and width of the result, pixels.
        fps: frames a second of the result.
    """

    name: str
    content: bytes
    target: Path
    num_frames: int
    size: int
    fps: float


def count_frames(content: bytes, name: str) -> int:
    """Frames that the WebP container says it has; 1 for a still image. Decodes nothing.

    Raises:
        UnreadablePictureError: the file is truncated or no WebP.
    """
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        raise UnreadablePictureError(f"{name} is no WebP file")
    missing = 8 + int.from_bytes(content[4:8], "little") - len(content)
    if missing > 0:
        raise UnreadablePictureError(f"{name} is truncated: {missing} bytes are missing")
    position, frames, end = 12, 0, len(content)
    while position + 8 <= end:
        frames += content[position : position + 4] == b"ANMF"
        length = int.from_bytes(content[position + 4 : position + 8], "little")
        position += 8 + length + length % 2
    return max(frames, 1)


def decode_loop(content: bytes, num_frames: int, name: str) -> Frames:
    """Frames spread evenly over the whole loop, on white.

    Args:
        content: a WebP file.
        num_frames: how many.
        name: for messages.

    Returns:
        `(num_frames, height, width, 3)`, uint8.

    Raises:
        UnreadablePictureError: the file is truncated or corrupt.
        DataError: the decoder gives another number of frames than the file has: every file would come out wrong.
    """
    expected = count_frames(content, name)
    try:
        with Image.open(io.BytesIO(content)) as image:
            found = getattr(image, "n_frames", 1)
            if found != expected:
                raise DataError(f"{name} has {expected} frames, but {found} can be read: Pillow lacks animated WebP")
            frames = []
            for index in loop_frame_indices(expected, num_frames):
                image.seek(index)
                rgba = image.convert("RGBA")
                frames.append(np.asarray(Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba))[..., :3])
            return np.stack(frames)
    except _FAILURES as error:
        raise UnreadablePictureError(f"{name} is corrupt ({' '.join(str(error).split())})") from error


def make_picture(job: PictureJob) -> str | None:
    """Makes one clip or still, lossless.

    Returns:
        Why the source cannot be read; None if all is well.

    Raises:
        DataError: the decoder is wrong, or the target cannot be written.
    """
    try:
        frames = decode_loop(job.content, job.num_frames, job.name)
    except UnreadablePictureError as error:
        return str(error)
    frames = resize_frames(frames, job.size, background=_WHITE)
    try:
        write_video(job.target, frames, job.fps, lossless=True)
    except InputError as error:
        raise DataError(str(error)) from None  # unlike InputError, it can be sent to the parent process
    return None


def mean_luminance(content: bytes, name: str) -> float:
    """Mean brightness of what is opaque in the first frame, 0 to 255.

    Raises:
        UnreadablePictureError: the file is truncated or corrupt.
    """
    count_frames(content, name)
    try:
        with Image.open(io.BytesIO(content)) as image:
            pixels: npt.NDArray[np.float64] = np.asarray(image.convert("RGBA"), dtype=np.float64)
    except _FAILURES as error:
        raise UnreadablePictureError(f"{name} is corrupt ({' '.join(str(error).split())})") from error
    alpha = pixels[..., 3]
    luminance = pixels[..., :3] @ np.array([0.299, 0.587, 0.114])
    return float((luminance * alpha).sum() / max(float(alpha.sum()), 1.0))
