"""Frames become a file, or a folder of PNG frames; the name says which."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, PngImagePlugin

from latent_shift.core.errors import InputError
from latent_shift.core.files import atomic_path

from ._folder import write_folder
from ._gif import write_gif
from ._images import json_exif
from ._pyav import write_movie
from ._webp import write_webp
from .changes import frame_durations
from .output import FOLDER, check_output_path, output_kind
from .sheet import contact_sheet
from .video import Frames, check_fps, check_frames, metadata_to_json

_MAX_CRF = {".mp4": 51, ".webm": 63}
_MAX_SIDE = {".webp": 16383, ".gif": 65535}
_MAX_GIF_FPS = 50


def write_video(
    path: str | os.PathLike[str],
    frames: Frames,
    fps: float,
    metadata: Mapping[str, str] | None = None,
    *,
    crf: int = 16,
    quality: int = 90,
    lossless: bool = False,
) -> None:
    """Writes a clip in the format that the name asks for; a reader never sees half of it.

    ========  ==========================================================================================
    `.mp4`    H.264, 4:2:0, plays everywhere; needs even sizes
    `.webm`   VP9, 4:2:0; needs even sizes
    `.gif`    one palette of 256 colours, loops for ever; at most 50 frames a second, in steps of 10 ms
    `.webp`   animated, loops for ever, in steps of 1 ms; `lossless` keeps every bit
    `.png`    the picture if there is one frame, otherwise a contact sheet; lossless
    `.jpg`    the same, lossy
    `/`       or no suffix: a folder of PNG frames and a `video.json`; lossless
    ========  ==========================================================================================

    Args:
        path: where to; what stands there is replaced.
        frames: `(frames, height, width, 3)`, uint8, RGB. Never resized.
        fps: frames a second, from 0.01 to 1000.
        metadata: kept in the file, and given back by `read_video`.
        crf: constant rate factor of `.mp4` (0 to 51) and `.webm` (0 to 63); lower is better and larger.
        quality: 0 to 100 of `.webp` and `.jpg`; higher is better and larger.
        lossless: for `.webp`: keep every bit and ignore `quality`.

    Raises:
        InputError: an argument is wrong or does not suit the format, or the place cannot be written.
    """
    check_frames(frames)
    check_fps(fps)
    check_output_path(path)
    kind, metadata = output_kind(path), metadata or {}
    metadata_to_json(metadata)
    _check_fit(kind, frames, fps, crf, quality, lossless=lossless)
    try:
        with atomic_path(path) as temporary:
            if kind in _MAX_CRF:
                write_movie(temporary, kind, frames, fps, metadata, crf)
            elif kind == FOLDER:
                write_folder(temporary, frames, fps, metadata)
            elif kind == ".webp":
                durations = frame_durations(len(frames), fps, 1)
                write_webp(temporary, frames, durations, _exif_bytes(metadata), quality, lossless=lossless)
            elif kind == ".gif":
                comment = metadata_to_json(metadata, ascii_only=True).encode() if metadata else b""
                write_gif(temporary, frames, frame_durations(len(frames), fps, 10), comment)
            else:
                _write_picture(temporary, kind, frames, metadata, quality)
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())
        raise InputError("output", os.fspath(path), f"be a place that can be written ({reason})") from error


def _check_fit(kind: str, frames: Frames, fps: float, crf: int, quality: int, *, lossless: bool) -> None:
    height, width = frames.shape[1:3]
    if kind in _MAX_CRF and (height % 2 or width % 2):
        raise InputError("frames", f"{width}x{height}", f"have an even width and height for {kind}")
    if max(height, width) > _MAX_SIDE.get(kind, math.inf):
        raise InputError("frames", f"{width}x{height}", f"be at most {_MAX_SIDE[kind]} pixels wide and high for {kind}")
    if kind in _MAX_CRF and not 0 <= crf <= _MAX_CRF[kind]:
        raise InputError("crf", crf, f"be from 0 to {_MAX_CRF[kind]} for {kind}")
    if not 0 <= quality <= 100:
        raise InputError("quality", quality, "be from 0 to 100")
    if kind == ".gif" and fps > _MAX_GIF_FPS:
        raise InputError("fps", fps, f"be at most {_MAX_GIF_FPS} for .gif: players slow down what is faster")
    if lossless and kind not in (".webp", ".png", FOLDER):
        raise InputError("lossless", lossless, f"be false for {kind}; .webp, .png and a folder can be lossless")


def _write_picture(path: Path, kind: str, frames: Frames, metadata: Mapping[str, str], quality: int) -> None:
    image = Image.fromarray(frames[0] if len(frames) == 1 else contact_sheet(frames))
    if kind == ".jpg":
        image.save(path, "JPEG", quality=quality, exif=_exif_bytes(metadata))
        return
    text = PngImagePlugin.PngInfo()
    if metadata:
        text.add_text("Comment", metadata_to_json(metadata))
    image.save(path, "PNG", pnginfo=text)


def _exif_bytes(metadata: Mapping[str, str]) -> bytes:
    return json_exif(metadata_to_json(metadata, ascii_only=True)).tobytes() if metadata else b""
