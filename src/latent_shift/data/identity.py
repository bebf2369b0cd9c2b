"""Which file is which, without reading all of it: what a cache of its content is found again by."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .records import CaptionedVideo
from .remote import is_remote, open_place

_SAMPLE_BYTES = 16384
_UNREADABLE = "unreadable"


def file_keys(records: Sequence[CaptionedVideo]) -> list[tuple[str, int, str]]:
    """For each record: its file's path below what all have in common, its size, and a hash of samples of its bytes.

    The samples are the file's head, middle and tail. Of a member of a remote archive they are the archive's, so that a
    cache costs one look at each archive and not one at each member. A folder that was moved keeps its keys.
    """
    name = _namer(records)
    return [(name(record), *content) for record, content in zip(records, content_keys(records), strict=True)]


def content_keys(records: Sequence[CaptionedVideo]) -> list[tuple[int, str]]:
    """For each record: its file's size, and a hash of samples of its bytes, as `file_keys` has them."""
    archive = functools.cache(_archive_key)
    return [_content(record, archive) for record in records]


def file_key(file: Path) -> str:
    """The size of a file and a hash of samples of its bytes: its head, middle and tail."""
    return "{}:{}".format(*_content(CaptionedVideo(file, "", ("",)), _archive_key))


def records_digest(records: Sequence[CaptionedVideo], facts: Callable[[CaptionedVideo], Sequence[Any]]) -> str:
    """SHA-256 of which files there are, in which order, of their captions and of what `facts` says of each.

    No file is opened. A folder that was moved keeps it, since paths count from what all of them have in common.
    """
    digest, name = hashlib.sha256(), _namer(records)
    for record in records:
        digest.update(json.dumps([name(record), *facts(record), *record.captions]).encode())
    return digest.hexdigest()


def _namer(records: Sequence[CaptionedVideo]) -> Callable[[CaptionedVideo], str]:
    """What gives a record's path below the folder that all of them have in common; whole paths where there is none."""
    folders = {os.path.dirname(os.path.abspath(record.path)) for record in records}
    try:
        root = os.path.commonpath(folders) if folders else ""
    except ValueError:  # of two drives
        root = ""
    return lambda record: os.path.abspath(record.path)[len(root) :].lstrip(os.sep)


def _content(record: CaptionedVideo, archive: Callable[[str], str]) -> tuple[int, str]:
    member = record.member
    if member is not None and is_remote(member.archive):
        return member.size, f"{archive(member.archive)}@{member.offset}"
    place, start, size = (record.path, 0, None) if member is None else (member.archive, member.offset, member.size)
    try:
        with open(place, "rb") as file:
            size = os.fstat(file.fileno()).st_size if size is None else size
            return size, _sample(file, start, size)
    except OSError:
        return -1, _UNREADABLE


def _archive_key(archive: str) -> str:
    with open_place(archive, "archive") as file:
        size = file.seek(0, os.SEEK_END)
        return f"{size}:{_sample(file, 0, size)}"


def _sample(file: Any, start: int, size: int) -> str:
    """SHA-256 of the head, the middle and the tail of a part of a file."""
    digest = hashlib.sha256()
    for offset in sorted({0, max(0, (size - _SAMPLE_BYTES) // 2), max(0, size - _SAMPLE_BYTES)}):
        file.seek(start + offset)
        digest.update(file.read(min(_SAMPLE_BYTES, size - offset)))
    return digest.hexdigest()
