"""A folder of PNG frames: `frame_0000.png`, `frame_0001.png`, ... and `video.json` with the rate and the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from latent_shift.core.errors import DataError
from latent_shift.core.files import write_json

from ._images import read_image
from .video import Frames, Video

_MANIFEST = "video.json"


def read_folder(path: Path) -> Video:
    """Reads what `write_folder` wrote.

    Raises:
        DataError: the manifest or a frame is missing, broken or of another size.
    """
    count, fps, metadata = read_manifest(path)
    files = [path / _name(index) for index in range(count)]
    found = sum(file.is_file() for file in files)
    if found != count or not count:
        raise DataError(f"{path} has {found} of {count} frames")
    frames = [read_image(file).frames[0] for file in files]
    if any(frame.shape != frames[0].shape for frame in frames):
        raise DataError(f"{path} has frames of different sizes")
    return Video(np.stack(frames), fps, metadata)


def read_manifest(path: Path) -> tuple[int, float, dict[str, str]]:
    """How many frames the folder at `path` says that it has, how many of them a second, and its metadata.

    Raises:
        DataError: the manifest is missing or broken.
    """
    manifest = path / _MANIFEST
    try:
        facts = json.loads(manifest.read_text(encoding="utf-8"))
        return int(facts["frames"]), float(facts["fps"]), dict(facts["metadata"])
    except OSError as error:
        raise DataError(f"{path} is no video: it has no {_MANIFEST} that can be read") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{manifest} is corrupt ({' '.join(str(error).split())})") from error


def write_folder(path: Path, frames: Frames, fps: float, metadata: Mapping[str, str]) -> None:
    """Writes one PNG a frame, the manifest last."""
    path.mkdir()
    for index, frame in enumerate(frames):
        Image.fromarray(frame).save(path / _name(index))
    write_json(path / _MANIFEST, {"fps": fps, "frames": len(frames), "metadata": dict(metadata)})


def is_replaceable(path: Path) -> bool:
    """Whether the folder at `path` is empty or holds such a video and nothing else, so that it may be replaced."""
    names = {entry.name for entry in path.iterdir()}
    return not names or (_MANIFEST in names and all(_is_ours(name) for name in names))


def _name(index: int) -> str:
    return f"frame_{index:04d}.png"


def _is_ours(name: str) -> bool:
    return name == _MANIFEST or (name.startswith("frame_") and name.endswith(".png"))
