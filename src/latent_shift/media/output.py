"""Where a video may be written, and in what format: the name says it. Checked before any long work starts."""

from __future__ import annotations

import os
from pathlib import Path

from latent_shift.core.errors import InputError

from ._folder import is_replaceable

_SUFFIXES = {suffix: suffix for suffix in (".mp4", ".webm", ".gif", ".webp", ".png", ".jpg")} | {".jpeg": ".jpg"}
FOLDER = "/"


def output_kind(path: str | os.PathLike[str]) -> str:
    """The format that the name asks for: `.mp4 .webm .gif .webp .png .jpg`, or `/` for a folder of PNG frames.

    Raises:
        InputError: the name ends in something else, or is an ending alone.
    """
    name = os.fspath(path)
    suffix = Path(name).suffix.lower()
    is_folder = name.endswith(("/", os.sep)) or not suffix
    if (not is_folder and suffix not in _SUFFIXES) or Path(name).name.lower() in ("", "..", *_SUFFIXES):
        expected = "end in one of .mp4 .webm .gif .webp .png .jpg or / (a folder of PNG frames)"
        raise InputError("output", name, expected)
    return FOLDER if is_folder else _SUFFIXES[suffix]


def check_output_path(path: str | os.PathLike[str]) -> None:
    """Raises early what `write_video` would raise late; makes and changes nothing.

    Raises:
        InputError: the name ends in no known format, its place cannot be written, or something that is no such video
            stands there and would be lost.
    """
    kind, place, name = output_kind(path), Path(path), os.fspath(path)
    try:
        if place.is_dir():
            if kind != FOLDER:
                raise InputError("output", name, "be a file; a folder of that name exists")
            if not is_replaceable(place):
                raise InputError("output", name, "be new, empty or a folder of PNG frames; it holds other files")
        elif place.exists() and kind == FOLDER:
            raise InputError("output", name, "be a folder; a file of that name exists")
        parent = place.absolute().parent
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise InputError("output", name, f"be in a folder that can be written ({parent} cannot)")
    except OSError as error:
        raise InputError("output", name, f"be a place that can be written ({error.strerror})") from error
