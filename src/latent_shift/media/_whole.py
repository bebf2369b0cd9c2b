"""Whether a file is as long as its own header says.

Decoders stop at the end of what there is: a film cut between two frames is only shorter, with no error. MP4, Matroska
and RIFF all announce their length at the start, so that a cut is found before anything is decoded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_FILM = frozenset((b"moov", b"mdat"))
_LATER = frozenset((b"moof", b"mdat", b"mfra", b"sidx", b"styp", b"emsg", b"free", b"skip", b"wide", b"uuid", b"udta"))
"""What may follow a film, or be more of it."""
_UNKNOWN_SIZES = (0, 0xFFFFFFFF)
"""Of a RIFF file that was written as a stream."""
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"


def missing_bytes(path: Path) -> int:
    """How many bytes of the file at `path` are missing: 0 if it is whole, or of a kind that does not say."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(12)
        ends: dict[bytes, Callable[[BinaryIO, int], int]] = {b"RIFF": _riff_end, _EBML: _matroska_end}
        end = _boxes_end if head[4:8] == b"ftyp" else ends.get(head[:4])
        return max(0, end(file, size) - size) if end else 0


def _riff_end(file: BinaryIO, size: int) -> int:
    file.seek(4)
    length = int.from_bytes(file.read(4), "little")
    return size if length in _UNKNOWN_SIZES else 8 + length


def _boxes_end(file: BinaryIO, size: int) -> int:
    position, seen = 0, set[bytes]()
    while position < size:
        file.seek(position)
        head = file.read(16)
        kind = head[4:8]
        if seen >= _FILM and kind not in _LATER:  # a line break, say, or an ID3 tag
            return size
        seen.add(kind)
        length = int.from_bytes(head[:4], "big")
        if length == 0:
            return size
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        position += max(length, 8)
    return position


def _matroska_end(file: BinaryIO, size: int) -> int:
    file.seek(4)
    file.seek(_vint(file) or 0, os.SEEK_CUR)
    name = file.read(4)
    length = _vint(file)
    if name != _SEGMENT:
        return size + 1
    return size if length is None else file.tell() + length


def _vint(file: BinaryIO) -> int | None:
    """An EBML length; `None` is "unknown", as a live stream writes it."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    extra = 8 - first[0].bit_length()
    bits = 7 * (extra + 1)
    value = int.from_bytes(first + file.read(extra), "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value
