"""Captions beside the files, or in a table: CSV, JSON lines, Parquet, and WebVid's own CSV."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from latent_shift.core.errors import DataError, InputError, MissingExtraError

from ._collect import CollectedSource, caption_texts, files_below, is_media
from .records import CAPTION_COLUMNS

logger = logging.getLogger(__name__)

TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")
VIDEO_COLUMNS = ("file_name", "video", "video_path", "path", "file", "filename")
_SEGMENT_COLUMNS = (("start", "end"), ("start_time", "end_time"))
_SEGMENTS = (
    "%s has the columns %s and %s, which select nothing: clips are taken from anywhere in a file; where captions are "
    "of such segments, cut the files first"
)
WEBVID_COLUMNS = ("videoid", "contentUrl", "duration", "page_dir", "name")
_TOO_LONG = "it has more cells than the header; put captions with commas in quotes"

Row = dict[Any, Any]
"""By column; of a CSV, None has the cells that are too many."""


def read_files(path: Path, options: Mapping[str, str], argument: str) -> CollectedSource:
    """`name.mp4` with its caption in `name.txt` beside it, anywhere below a folder; line breaks count as spaces."""
    del options
    if not path.is_dir():
        raise InputError(argument, str(path), "be a folder that exists")
    source = CollectedSource("files", path)
    for file in sorted(files_below(path, source.drop)):
        if not is_media(file):
            continue
        try:
            caption = file.with_suffix(".txt").read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            source.drop(file, f"there is no {file.stem}.txt beside it")
        except (OSError, UnicodeDecodeError) as error:
            source.drop(file, f"{file.stem}.txt cannot be read as UTF-8 text ({type(error).__name__})")
        else:
            source.add(file, [caption])
    return source


def read_table(path: Path, options: Mapping[str, str], argument: str) -> CollectedSource:
    """A CSV, JSONL or Parquet file with one row a video; whatever other columns it has become metadata.

    Options: `video` and `caption` name the columns (otherwise the first of the usual names that is there); `root`
    is the folder that paths are relative to (otherwise that of the table). A column `captions` may hold more forms.
    """
    table = find_table(path, argument)
    rows = iterate_rows(table)
    root = Path(options.get("root", table.parent))
    source = CollectedSource("table", table)
    for number, row in enumerate(rows, start=1):
        if number == 1:
            video = _column(row, options.get("video"), VIDEO_COLUMNS, table, "video")
            caption = _column(row, options.get("caption"), CAPTION_COLUMNS, table, "caption")
            for segment in _SEGMENT_COLUMNS:
                if row.keys() >= set(segment):
                    logger.warning(_SEGMENTS, table, *segment)
        if None in row:
            source.drop(f"{table}, row {number}", _TOO_LONG)
            continue
        name = row.get(video)
        if not isinstance(name, str) or not name.strip():
            source.drop(f"{table}, row {number}", f"its {video} is no path")
            continue
        metadata = {key: value for key, value in row.items() if key not in (video, caption, "captions")}
        captions = dict.fromkeys(caption_texts(row.get(caption)) + caption_texts(row.get("captions")))
        source.add(root / name, list(captions), metadata)
    return source


def read_webvid(path: Path, options: Mapping[str, str], argument: str) -> CollectedSource:
    """WebVid's CSV (videoid, contentUrl, duration, page_dir, name), the file being at `page_dir/videoid.mp4`.

    Option `root`: the folder of the page folders; otherwise `videos` beside the CSV if there is one, or the CSV's own.
    """
    table = find_table(path, argument)
    videos = table.parent / "videos"
    root = Path(options["root"]) if "root" in options else videos if videos.is_dir() else table.parent
    source = CollectedSource("webvid", table)
    for number, row in enumerate(iterate_rows(table), start=1):
        if number == 1 and not {"videoid", "page_dir", "name"} <= row.keys():
            raise InputError(argument, str(table), f"have WebVid's columns {', '.join(WEBVID_COLUMNS)}")
        if None in row:
            source.drop(f"{table}, row {number}", _TOO_LONG)
            continue
        place = PurePosixPath(str(row["page_dir"] or ""), f"{row['videoid']}.mp4")
        if place.is_absolute() or ".." in place.parts:
            source.drop(f"{table}, row {number}", f"its page_dir {row['page_dir']!r} leads out of the folder")
            continue
        source.add(root / place, [row["name"]], {"videoid": str(row["videoid"])})
    return source


def find_table(path: Path, argument: str) -> Path:
    """The table at `path`: itself, or the only one of a folder.

    Raises:
        InputError: there is none, or more than one.
    """
    if path.is_dir():
        tables = sorted(file for file in path.iterdir() if file.suffix.lower() in TABLE_SUFFIXES)
        if len(tables) != 1:
            found = ", ".join(file.name for file in tables[:5]) or "none"
            raise InputError(argument, str(path), f"be a table or hold just one {', '.join(TABLE_SUFFIXES)} ({found})")
        return tables[0]
    if not path.is_file() or path.suffix.lower() not in TABLE_SUFFIXES:
        raise InputError(argument, str(path), f"be a {', '.join(TABLE_SUFFIXES)} file that exists")
    return path


def iterate_rows(path: Path) -> Iterator[Row]:
    """The rows of a CSV, JSONL or Parquet file, one after the other.

    Raises:
        DataError: it cannot be read. Names the file and, of text, the line.
        MissingExtraError: a Parquet file, and pyarrow is not installed.
    """
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".parquet": _parquet_rows}
    try:
        yield from readers[path.suffix.lower()](path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({' '.join(str(error).split())})") from error


def _csv_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file)


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: no valid JSON ({error})") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number}: must be a JSON object, got {type(row).__name__}")
            yield row


def _parquet_rows(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtraError("pyarrow", "data") from error
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=4096):
                yield from batch.to_pylist()
    except ArrowException as error:
        raise DataError(f"{path} is no Parquet file that can be read ({' '.join(str(error).split())})") from error


def _column(row: Row, wanted: str | None, usual: Sequence[str], table: Path, what: str) -> str:
    for name in (wanted,) if wanted is not None else usual:
        if name in row:
            return name
    raise InputError(what, wanted or "/".join(usual), f"be a column of {table} ({', '.join(map(str, row))})")
