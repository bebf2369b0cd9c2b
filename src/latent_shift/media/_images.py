"""Files that Pillow reads: GIF, WebP, PNG, JPEG and their kin, animated or still.

PyAV would give one frame of an animated WebP and no error, so that these never go through it.
"""

from __future__ import annotations

import contextlib
import statistics
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from latent_shift.core.errors import DataError

from .video import Frames, Video, metadata_from_json

_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF")
_FAILURES = (
    *(OSError, EOFError, ValueError, SyntaxError, IndexError, TypeError, RuntimeError),
    *(struct.error, Image.DecompressionBombError),
)
ROUNDING_MS = 10
"""Times in a GIF are multiples of it."""
_UNSAID_MS = 100.0


def is_image(head: bytes) -> bool:
    """Whether a file that starts with these (at least 12) bytes is read by Pillow."""
    riff = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return riff or head.startswith(_STARTS) or head[4:12] in (b"ftypavif", b"ftypavis")


def read_image(path: Path) -> Video:
    """Reads every frame of an image file; a still image is one frame at 1 frame a second.

    Raises:
        DataError: it is truncated or corrupt.
    """
    with naming(path), Image.open(path) as image:
        frames, durations = [], []
        for index in range(frame_count(image)):
            frames.append(picture(image, index))
            durations.append(shown_ms(image))
        check_end(path, image.format)
        return Video(np.stack(frames), _rate(durations), _metadata(image))


def read_image_metadata(path: Path) -> dict[str, str]:
    """What `read_image` gives as metadata; of an animation no more than one frame is decoded.

    Raises:
        DataError: the file is corrupt.
    """
    with naming(path), Image.open(path) as image:
        if image.format == "PNG":
            image.load()  # text may come after the picture
        return _metadata(image)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Pillow's errors become ours, with the name of the file."""
    try:
        yield
    except _FAILURES as error:
        raise DataError(f"{path} is truncated or corrupt ({_one_line(error)})") from error


def frame_count(image: Image.Image) -> int:
    """How many frames it shows one after the other; pages, and the thumbnail in a photograph, are none."""
    return int(getattr(image, "n_frames", 1)) if image.format in _ANIMATED else 1


def picture(image: Image.Image, index: int) -> Frames:
    """Frame `index`, `(height, width, 3)`, uint8; a still one is turned upright."""
    image.seek(index)
    return _on_white(image if frame_count(image) > 1 else ImageOps.exif_transpose(image))


def shown_ms(image: Image.Image) -> float:
    """How long the file says that its loaded frame is shown, milliseconds; players take 100 where it does not."""
    return float(image.info.get("duration") or 0) or _UNSAID_MS


def json_exif(text: str) -> Image.Exif:
    """An EXIF block whose image description is `text` (ASCII)."""
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = text
    return exif


def _on_white(image: Image.Image) -> Frames:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _rate(durations: Sequence[float]) -> float:
    """Frames a second, by the median of their durations; a still image has 1."""
    return 1.0 if len(durations) < 2 else 1000 / statistics.median(even_durations(durations))


def even_durations(durations: Sequence[float]) -> list[float]:
    """Durations that differ only by rounding become their mean."""
    even = max(durations) - min(durations) <= ROUNDING_MS
    return [statistics.fmean(durations)] * len(durations) if even else list(durations)


def _metadata(image: Image.Image) -> dict[str, str]:
    text = image.info.get("comment") or image.info.get("Comment")
    if text is None:
        text = image.getexif().get(ExifTags.Base.ImageDescription, "")
    return metadata_from_json(text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text))


def check_end(path: Path, kind: str | None) -> None:
    """A GIF or PNG cut between two of its blocks reads without an error; only the missing last block tells."""
    gif_cut = kind == "GIF" and not path.read_bytes().rstrip(b"\0 \t\r\n").endswith(b";")
    png_cut = kind == "PNG" and b"IEND\xaeB`\x82" not in path.read_bytes()
    if gif_cut or png_cut:
        raise OSError("it has no end")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
