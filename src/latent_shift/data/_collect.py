"""What every reader of captioned video gives: records, and what was dropped on the way."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from .records import ArchiveMember, CaptionedVideo, Dropped, PackedRecords, RecordSequence, is_caption

MEDIA_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv")
    + (".gif", ".webp", ".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".avif")
)


@runtime_checkable
class Source(Protocol):
    """Captioned video from anywhere: a sequence of records, in a fixed order."""

    @property
    def kind(self) -> str:
        """Which reader it is."""

    @property
    def path(self) -> Path:
        """What was opened."""

    @property
    def dropped(self) -> Sequence[Dropped]:
        """Files that give no record, and why; whether a file can be decoded is found out when it is."""

    def __len__(self) -> int:
        """The number of records."""

    def __getitem__(self, index: int) -> CaptionedVideo:
        """The record at `index`."""

    def __iter__(self) -> Iterator[CaptionedVideo]:
        """The records, in order."""


class CollectedSource(PackedRecords):
    """A `Source` that its reader fills, record by record."""

    def __init__(self, kind: str, path: Path) -> None:
        """Args: kind: which reader it is. path: what was opened."""
        super().__init__()
        self.kind, self.path = kind, path
        self.dropped: list[Dropped] = []
        self._listings: dict[str, frozenset[str]] = {}

    def add(
        self,
        file: Path,
        captions: object,
        metadata: Mapping[str, Any] | None = None,
        member: ArchiveMember | None = None,
    ) -> None:
        """Keeps a file, or a member of an archive, with the `caption_texts` of its captions; or drops it, and why."""
        texts = tuple(caption_texts(captions))
        if not texts:
            self.drop(file, "it has no caption")
        elif member is None and not self._exists(file):
            self.drop(file, "the file is missing")
        else:
            self.append(CaptionedVideo(file, texts[0], texts, dict(metadata or {}), len(self), member))

    def drop(self, file: Path | str, reason: str) -> None:
        """Notes a file that gives no record."""
        self.dropped.append(Dropped(str(file), reason))

    def finish(self) -> None:
        """Forgets what only `add` needs."""
        self._listings.clear()

    def _exists(self, file: Path) -> bool:
        """One listing a folder instead of one question a file: sources have millions of files."""
        folder, name = os.path.split(file)
        if folder not in self._listings:
            try:
                self._listings[folder] = frozenset(os.listdir(folder or "."))
            except OSError:
                self._listings[folder] = frozenset()
        return name in self._listings[folder]


def caption_texts(value: object) -> list[str]:
    """The captions that a value is, on a line each: a text is one, a list may hold more, else (`is_caption`) none."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [" ".join(str(item).split()) for item in values if is_caption(item)]


class Selection(RecordSequence):
    """Some records of a source, as a `Source`."""

    def __init__(self, source: Source, indices: Iterable[int] | npt.NDArray[np.int64]) -> None:
        """Args: source: where they are from. indices: their places there."""
        self.kind, self.path, self.dropped = source.kind, source.path, source.dropped
        self._source, self._indices = source, np.fromiter(indices, dtype=np.int64)

    def __len__(self) -> int:
        """The number of records."""
        return len(self._indices)

    def _record(self, index: int) -> CaptionedVideo:
        return self._source[int(self._indices[index])]


STILL_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"))
"""Of files that have one picture. GIF, WebP and AVIF may move."""


def files_below(folder: Path, unread: Callable[[str, str], None] | None = None) -> Iterator[Path]:
    """All files at any depth, each folder once, also behind links; `unread` hears of folders that may not be read."""

    def tell(error: OSError) -> None:
        if unread is not None:
            unread(str(error.filename), f"the folder cannot be read ({error.strerror})")

    met = {os.path.realpath(folder)}
    for place, names, files in os.walk(folder, followlinks=True, onerror=tell):
        new = {name: os.path.realpath(os.path.join(place, name)) for name in sorted(names)}
        names[:] = [name for name, real in new.items() if real not in met]
        met.update(new.values())
        yield from (Path(place, name) for name in sorted(files))


def is_media(path: Path) -> bool:
    """Whether a file is called as videos and images are. Hidden files are none."""
    return path.suffix.lower() in MEDIA_SUFFIXES and not path.name.startswith(".")
