"""Files of archives, on a disk or behind a URL that fsspec knows: one clear line each for what can go wrong there."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

import fsspec

from latent_shift.core.errors import DataError, InputError

logger = logging.getLogger(__name__)

_ATTEMPTS = 4
_FIRST_WAIT_S = 0.5
_LASTING = (FileNotFoundError, PermissionError, IsADirectoryError)
"""What another attempt does not mend."""


def is_remote(place: str) -> bool:
    """Whether a place is a URL."""
    return "://" in place


def without_query(place: str) -> str:
    """A place as it may be shown: a signed URL without its signature."""
    return place.partition("?")[0] if is_remote(place) else place


def open_place(place: str, argument: str) -> Any:
    """Opens a file or a URL to read bytes.

    Args:
        place: where it is.
        argument: what the caller calls it, for messages.

    Raises:
        InputError: nothing is there, it may not be read, or fsspec does not know such URLs or needs a library for them.
    """
    shown = without_query(place)
    try:
        return fsspec.open(place, "rb").open()
    except ImportError as error:
        raise InputError(argument, shown, f"be of a kind whose library is installed ({_line(error)})") from error
    except ValueError as error:
        raise InputError(argument, shown, f"be a file or a URL that fsspec knows ({_line(error)})") from error
    except read_failures() as error:
        raise InputError(argument, shown, f"be a file or a URL that can be read ({_line(error)})") from error


def read_all(place: str, argument: str) -> bytes:
    """Everything that a file or a URL holds.

    Raises:
        InputError: see `open_place`.
        DataError: it cannot be read to its end.
    """
    with open_place(place, argument) as file:
        try:
            content: bytes = file.read()
        except read_failures() as error:
            raise DataError(f"{without_query(place)} cannot be read ({_line(error)})") from error
    return content


def read_bytes(place: str, offset: int, size: int, name: str) -> bytes:
    """Bytes of a file or a URL; of a URL with some more attempts where the network fails.

    Args:
        place: where they are.
        offset: of the first.
        size: how many.
        name: what they are, for messages.

    Raises:
        DataError: they cannot be read, or are fewer.
    """
    attempts = _ATTEMPTS if is_remote(place) else 1
    for attempt in range(1, attempts + 1):
        try:
            system, path = fsspec.url_to_fs(place)
            data: bytes = system.cat_file(path, start=offset, end=offset + size)
            if len(data) == size:
                return data
            problem = DataError(f"{name} is truncated: {size - len(data)} bytes are missing")
            if len(data) > size:
                problem = DataError(f"{name} cannot be read (its server sends whole files, and no parts of them)")
                break
        except read_failures(ImportError, ValueError) as error:
            problem = DataError(f"{name} cannot be read ({_line(error)})")
            problem.__cause__ = error
        if attempt == attempts or isinstance(problem.__cause__, (*_LASTING, ImportError)):
            break
        logger.info("%s; attempt %d of %d follows", problem, attempt + 1, attempts)
        time.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1))
    raise problem


def read_failures(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """Of disks and networks, and others; to be asked for in the `except` clause.

    fsspec's HTTP library has some of its own, and is loaded when the first URL is opened.
    """
    http = sys.modules.get("aiohttp")
    return (OSError, *others) if http is None else (OSError, http.ClientError, *others)


def _line(error: Exception) -> str:
    """Its text on one line; a signed URL in it is cut at its signature."""
    if isinstance(error, FileNotFoundError):
        return "nothing is there"
    words = (without_query(word) for word in str(error).split())
    return " ".join(words) or type(error).__name__


def beside(place: str, name: str) -> str:
    """The place of a file in the folder of another; what follows a URL's "?", a signature say, is for both."""
    place, mark, query = place.partition("?") if is_remote(place) else (place, "", "")
    root = place.rpartition("/")[0] if "/" in place else "."
    return f"{root}/{name}{mark}{query}"


def shown_path(place: str, name: str) -> Path:
    """What a member of an archive is called."""
    return Path(without_query(place)) / name
