"""Captioned video wherever it comes from, behind one type of record. Nothing is fetched from anywhere.

==========  ==================================================================================  ====================
kind        what it reads                                                                       options
==========  ==================================================================================  ====================
`folder`    this project's format: `metadata.jsonl` (see `records`)
`files`     `name.mp4` and `name.txt` beside it, at any depth
`table`     a CSV, JSONL or Parquet file with a column of paths and one of captions             video, caption, root
`webvid`    WebVid's CSV; files at `page_dir/videoid.mp4`                                       root
`ucf101`    UCF-101's class folders; one sentence a class                                       split
`msrvtt`    MSR-VTT's JSON; about 20 captions a video                                           split, root
`shards`    WebDataset tar files: one, a folder, or URLs (see `shards`)
==========  ==================================================================================  ====================

Images are videos of one frame, in every kind. Options follow the path as in an address:
`ucf101:/data/UCF-101?split=train`, `table:clips.csv?video=path&caption=title`.
"""

from __future__ import annotations

import csv
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latent_shift.core.errors import InputError

from ._benchmarks import (
    msrvtt_captions,
    msrvtt_json,
    read_msrvtt,
    read_ucf101,
    ucf101_classes,
    ucf101_root,
    ucf101_sentences,
)
from ._collect import STILL_SUFFIXES, CollectedSource, Selection, Source, files_below, is_media
from ._tables import TABLE_SUFFIXES, read_files, read_table, read_webvid
from .records import METADATA_FILE, CaptionedVideoFolder
from .remote import is_remote, without_query
from .shards import INDEX_FILE, read_shards

__all__ = [
    "KINDS",
    "STILL_SUFFIXES",
    "Selection",
    "Source",
    "files_below",
    "find_kind",
    "is_media",
    "msrvtt_captions",
    "open_source",
    "ucf101_classes",
    "ucf101_sentences",
]


@dataclass(frozen=True)
class _Kind:
    read: Callable[[Any, Mapping[str, str], str], Source]
    options: tuple[str, ...] = ()
    takes_urls: bool = False


def _read_folder(path: Path, options: Mapping[str, str], argument: str) -> CaptionedVideoFolder:
    del options
    return CaptionedVideoFolder(path, argument, drop_missing=True)


KINDS = {
    "folder": _Kind(_read_folder),
    "files": _Kind(read_files),
    "table": _Kind(read_table, ("video", "caption", "root")),
    "webvid": _Kind(read_webvid, ("root",)),
    "ucf101": _Kind(read_ucf101, ("split",)),
    "msrvtt": _Kind(read_msrvtt, ("split", "root")),
    "shards": _Kind(read_shards, takes_urls=True),
}


def open_source(spec: str, argument: str = "source") -> Source:
    """Opens captioned video: lists it and its captions, and decodes nothing.

    Args:
        spec: a path, whose kind is found out, or `kind:path`; then, if wanted, `?option=value&option=value`. The module
            says which there are.
        argument: what the caller calls it, for messages.

    Returns:
        The records, and in `dropped` every file that gives none, with the reason. There may be no record at all.

    Raises:
        InputError: nothing is there or may be read, its kind cannot be told, or an option is unknown.
        DataError: a table of it is damaged. Names the file and the line.
        MissingExtraError: a Parquet file, and pyarrow is not installed.
    """
    try:
        return _open(spec, argument)
    except OSError as error:
        shown = error.filename or without_query(spec)
        raise InputError(argument, without_query(spec), f"be readable ({shown}: {error.strerror})") from error


def find_kind(folder: str | Path) -> str | None:
    """Which of `KINDS` a folder is, by the names in it; None where it is no captioned video.

    Raises:
        InputError: the folder may not be read.
    """
    try:
        return _kind_of_folder(Path(folder))
    except OSError as error:
        raise InputError("folder", str(folder), f"be readable ({error.strerror})") from error


def _open(spec: str, argument: str) -> Source:
    kind, place, options = _parse(spec, argument)
    if kind is None:
        kind = _detect(Path(place), argument)
    for name in options:
        if name not in KINDS[kind].options:
            known = ", ".join(KINDS[kind].options) or "none"
            raise InputError(argument, spec, f"have no option but those of {kind!r} ({known})")
    found = KINDS[kind]
    source = found.read(place if found.takes_urls else Path(place), options, argument)
    if isinstance(source, CollectedSource):
        source.finish()
    return source


def _parse(spec: str, argument: str) -> tuple[str | None, str, dict[str, str]]:
    kind, _, url = spec.partition(":")
    if is_remote(url) and kind in KINDS and KINDS[kind].takes_urls:
        return kind, url, {}  # what follows a "?" is the URL's own: a signature, say
    place, mark, tail = spec.partition("?")
    if mark and Path(spec).exists():
        place, tail = spec, ""
    options = dict(item.partition("=")[::2] for item in tail.split("&") if item)
    kind, colon, rest = place.partition(":")
    if not colon or Path(place).exists():
        return None, place, options
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(argument, spec, f"be a path that exists, or kind:path with one of {', '.join(KINDS)}{hint}")
    return kind, rest, options


def _detect(path: Path, argument: str) -> str:
    if not path.exists():
        raise InputError(argument, str(path), "be a file or folder that exists")
    if path.is_file():
        suffix = path.suffix.lower()
        if suffix == ".tar" or (path.name == INDEX_FILE and any(path.parent.glob("*.tar"))):
            return "shards"
        if suffix in TABLE_SUFFIXES:
            return "webvid" if _is_webvid(path) else "table"
        if suffix == ".json":
            return "msrvtt"
        raise InputError(argument, str(path), f"be a folder, or a {', '.join(TABLE_SUFFIXES)} or .json file")
    found = _kind_of_folder(path)
    if found is not None:
        return found
    tables = sum(file.suffix.lower() in TABLE_SUFFIXES for file in path.iterdir())
    looked_for = (
        f"{METADATA_FILE}; class folders of UCF-101; *videodatainfo*.json; just one {', '.join(TABLE_SUFFIXES)} "
        f"(it has {tables}); videos or images with a .txt of the same name"
    )
    raise InputError(argument, str(path), f"hold captioned video, which is one of: {looked_for}")


def _kind_of_folder(path: Path) -> str | None:
    tables = [file for file in path.iterdir() if file.suffix.lower() in TABLE_SUFFIXES]
    if (path / METADATA_FILE).is_file():
        return "folder"
    if ucf101_root(path) is not None:
        return "ucf101"
    if msrvtt_json(path) is not None:
        return "msrvtt"
    if any(file.suffix == ".tar" for file in path.iterdir()):
        return "shards"
    if len(tables) == 1:
        return "webvid" if _is_webvid(tables[0]) else "table"
    if any(is_media(file) and file.with_suffix(".txt").is_file() for file in files_below(path)):
        return "files"
    return None


def _is_webvid(table: Path) -> bool:
    if table.suffix.lower() != ".csv":
        return False
    with table.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        header = next(csv.reader(file), [])
    return {"videoid", "page_dir", "name"} <= set(header)
