"""The on-disk format of captioned video, for the emoji and for any other folder.

::

    folder/
      metadata.jsonl    one JSON object a line: file_name, caption (or text, as Hugging Face calls it, or another of
                        CAPTION_COLUMNS), and if wanted captions and metadata
      dataset.json      optional: name, licence, credits, sources, counts, heldout; written last, so it says "complete"
      clips/...         media files, anywhere below the folder; a still image is a video of one frame

`file_name` is relative to the folder; `captions` are all forms that training may use, the first being `caption`;
`metadata` is free.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from abc import abstractmethod
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, overload

from latent_shift.core.errors import DataError, InputError
from latent_shift.core.files import atomic_path, read_json_object
from latent_shift.core.shapes import is_text
from latent_shift.media import Video, VideoReader, open_video, read_video

from .remote import read_bytes

CAPTION_COLUMNS = ("caption", "text", "prompt", "sentence", "name")
METADATA_FILE = "metadata.jsonl"
MANIFEST_FILE = "dataset.json"


@dataclass(frozen=True)
class ArchiveMember:
    """Where in an uncompressed archive a file is.

    Attributes:
        archive: a path, or a URL that fsspec knows.
        offset: of its first byte.
        size: bytes.
    """

    archive: str
    offset: int
    size: int


@dataclass(frozen=True)
class CaptionedVideo:
    """One video and the sentences that describe it.

    Attributes:
        path: the media file; of a member of an archive, the archive's path and the member's name below it.
        caption: what the video shows.
        captions: every form that training may use; the first is `caption`.
        metadata: whatever the source knows besides.
        index: the position in its folder.
        member: where it is, if it is in an archive.
    """

    path: Path
    caption: str
    captions: tuple[str, ...]
    metadata: dict[str, Any] = field(default_factory=dict, hash=False)
    index: int = 0
    member: ArchiveMember | None = None

    @property
    def size(self) -> int:
        """Bytes of the media file.

        Raises:
            DataError: it is not there. Names it.
        """
        if self.member is not None:
            return self.member.size
        try:
            return self.path.stat().st_size
        except OSError as error:
            raise DataError(f"{self.path} cannot be read ({error.strerror})") from error


def record_bytes(record: CaptionedVideo) -> bytes:
    """The media file of a record, as it is.

    Raises:
        DataError: it cannot be read, or is shorter than its archive says. Names it.
    """
    member = record.member
    if member is not None:
        return read_bytes(member.archive, member.offset, member.size, str(record.path))
    try:
        return record.path.read_bytes()
    except OSError as error:
        raise DataError(f"{record.path} cannot be read ({error})") from error


@contextlib.contextmanager
def open_record(record: CaptionedVideo) -> Iterator[VideoReader]:
    """The record's video, open to read clips of it; a member of an archive is copied to a temporary file first.

    Raises:
        InputError: the file is not there.
        DataError: it is damaged. Names it.
    """
    if record.member is None:
        with open_video(record.path) as video:
            yield video
        return
    with tempfile.NamedTemporaryFile(suffix=record.path.suffix) as file:
        file.write(record_bytes(record))
        file.flush()
        try:
            with open_video(file.name) as video:
                yield video
        except DataError as error:
            raise DataError(str(error).replace(file.name, str(record.path))) from error


@dataclass(frozen=True)
class Dropped:
    """A file that is not used, and why."""

    file: str
    reason: str


class RecordSequence(Sequence[CaptionedVideo]):
    """What all sources have in common: records in a fixed order, each made when it is asked for."""

    @overload
    def __getitem__(self, index: int) -> CaptionedVideo: ...
    @overload
    def __getitem__(self, index: slice) -> list[CaptionedVideo]: ...
    def __getitem__(self, index: int | slice) -> CaptionedVideo | list[CaptionedVideo]:
        """The record at `index`, or those of a slice.

        Raises:
            IndexError: there is none.
        """
        chosen = range(len(self))[index]
        return self._record(chosen) if isinstance(chosen, int) else [self._record(each) for each in chosen]

    def __iter__(self) -> Iterator[CaptionedVideo]:
        """The records, in order."""
        return map(self._record, range(len(self)))

    @abstractmethod
    def _record(self, index: int) -> CaptionedVideo:
        """The record at `index`, which is in range."""


class PackedRecords(RecordSequence):
    """Records as text in one piece of memory: of millions of small objects each process of a run would have its own."""

    def __init__(self) -> None:
        """Empty."""
        self._text = bytearray()
        self._ends = array("Q", [0])
        self._folders: dict[str, int] = {}
        self._folder_paths: list[Path] = []
        self._unpacked: dict[int, dict[str, Any]] = {}  # metadata that JSON does not know: dates of Parquet, say

    def __len__(self) -> int:
        """The number of records."""
        return len(self._ends) - 1

    def append(self, record: CaptionedVideo) -> None:
        """Adds a record, whose `index` is its place here."""
        folder, name = os.path.split(record.path)
        if folder not in self._folders:
            self._folders[folder] = len(self._folders)
            self._folder_paths.append(Path(folder))
        member = record.member and [record.member.archive, record.member.offset, record.member.size]
        row = [self._folders[folder], name, record.captions, member]
        try:
            text = _to_json([*row, record.metadata])
        except TypeError:
            self._unpacked[len(self)] = record.metadata
            text = _to_json([*row, None])
        self._text += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._text))

    def _record(self, index: int) -> CaptionedVideo:
        text = self._text[self._ends[index] : self._ends[index + 1]].decode("utf-8", "surrogatepass")
        folder, name, captions, member, metadata = json.loads(text)
        return CaptionedVideo(
            self._folder_paths[folder] / name,
            captions[0],
            tuple(captions),
            self._unpacked[index] if metadata is None else metadata,
            index,
            member and ArchiveMember(*member),
        )


class CaptionedVideoFolder(PackedRecords):
    """A folder in the format of this module, read and checked at once; videos are decoded by `read`.

    Attributes:
        path: the folder.
        manifest: its `dataset.json`; empty where it has none.
        dropped: what it lists and does not have, unless that is an error.
    """

    kind = "folder"

    def __init__(self, path: str | Path, argument: str = "data", *, drop_missing: bool = False) -> None:
        """Reads the records.

        Args:
            path: the folder.
            argument: what the caller calls it, for messages.
            drop_missing: put listed files that are not there into `dropped`; otherwise the first is an error.

        Raises:
            InputError: there is no such folder, it is empty or it has no `metadata.jsonl`.
            DataError: a line of it is wrong, or it lists a file that is not there. Names the line or the file.
        """
        super().__init__()
        self.path = Path(path)
        if not self.path.is_dir():
            raise InputError(argument, str(path), "be a folder that exists")
        source = self.path / METADATA_FILE
        if not source.is_file():
            empty = next(self.path.iterdir(), None) is None
            raise InputError(argument, str(path), f"hold a {METADATA_FILE}" + (" (it is empty)" if empty else ""))
        manifest = self.path / MANIFEST_FILE
        self.manifest = read_json_object(manifest) if manifest.exists() else {}
        self.dropped: list[Dropped] = []
        self._read_records(source, drop_missing)
        if not len(self) and not self.dropped:
            raise InputError(argument, str(path), f"hold at least one video ({METADATA_FILE} lists none)")

    def read(self, index: int) -> Video:
        """Decodes the video of record `index`: `frames` is `(frames, height, width, 3)`, uint8.

        Raises:
            DataError: the file is truncated or no video, or has another number of frames than its record says.
        """
        record = self[index]
        return read_video(record.path, expect_frames=record.metadata.get("num_frames"))

    def _read_records(self, path: Path, drop_missing: bool) -> None:
        try:
            with path.open(encoding="utf-8-sig", newline="\n") as lines:
                for number, line in enumerate(lines, start=1):
                    if not line.strip():
                        continue
                    where = f"{path}, line {number}"
                    record = _parse_line(line, where, path.parent, len(self))
                    if record.path.exists():
                        self.append(record)
                    elif drop_missing:
                        self.dropped.append(Dropped(str(record.path.relative_to(path.parent)), "the file is missing"))
                    else:
                        raise DataError(f"{where}: the file {record.path.relative_to(path.parent)} is missing")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read as UTF-8 text ({error})") from error


def write_records(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes `metadata.jsonl` into the folder `path`, atomically.

    Args:
        path: the folder.
        records: one mapping a video, with the keys of this module's format.
    """
    with atomic_path(path / METADATA_FILE) as temporary:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        temporary.write_text(text, encoding="utf-8")


_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def is_caption(value: object) -> bool:
    """Whether it is text with a word in it; no tokenizer takes what is no `is_text`, which JSON may hold."""
    return is_text(value) and bool(str(value).strip())


def _parse_line(line: str, where: str, folder: Path, index: int) -> CaptionedVideo:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: no valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: must be a JSON object, got {type(value).__name__}")
    name = value.get("file_name")
    caption = next((value[column] for column in CAPTION_COLUMNS if column in value), None)
    captions, metadata = value.get("captions") or [caption], value.get("metadata") or {}
    if not isinstance(name, str) or not name:
        raise DataError(f"{where}: file_name must be a relative path, got {name!r}")
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DataError(f"{where}: file_name must stay inside the folder, got {name!r}")
    if not is_caption(caption):
        raise DataError(f"{where}: caption must be text, got {caption!r}")
    if not isinstance(captions, list) or not all(map(is_caption, captions)):
        raise DataError(f"{where}: captions must be a list of texts, got {captions!r}")
    if captions[0] != caption:
        raise DataError(f"{where}: the first of captions must be the caption {caption!r}, got {captions[0]!r}")
    if not isinstance(metadata, dict):
        raise DataError(f"{where}: metadata must be an object, got {metadata!r}")
    return CaptionedVideo(folder / name, caption, tuple(captions), metadata, index)
