"""Which clips a folder has, for which sentences, and which of them go together."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from latent_shift.core.errors import DataError, InputError
from latent_shift.core.files import is_hidden

METADATA_FILE = "metadata.jsonl"
_SUFFIXES = (".webp", ".gif", ".mp4", ".webm", ".mov", ".mkv")
_FRAMES_FILE = "video.json"
"""In a folder of PNG frames, which is one clip (`latent_shift.media.write_video`)."""


@dataclass(frozen=True)
class Source:
    """A clip before it is part of a study.

    Attributes:
        path: its file, or its folder of PNG frames.
        prompt: the sentence that it was made from, with single spaces; None where nobody knows.
    """

    path: Path
    prompt: str | None


@dataclass(frozen=True)
class Unpaired:
    """A clip that is not in the study, and why."""

    path: Path
    reason: str


def find_sources(folder: Path, read_prompt: Callable[[Path], str | None]) -> list[Source]:
    """The clips of a folder and of the folders below it, in the order of their names.

    Sentences are those of `metadata.jsonl` (one JSON object a line with `file_name` and `caption` or `prompt`), if the
    folder has one; otherwise each file is asked for its own.

    Args:
        folder: what `latent-shift generate` or `evaluate` wrote, or any folder with a `metadata.jsonl`.
        read_prompt: reads the sentence that a media file carries; None where it carries none.

    Raises:
        InputError: it is no folder, or it holds no clips.
        DataError: its `metadata.jsonl` is damaged or lists a file that is not there. Names the line.
    """
    if not folder.is_dir():
        raise InputError("folder", str(folder), "be a folder of clips")
    table = folder / METADATA_FILE
    if table.is_file():
        found = _read_table(table)
    else:
        visible = (path for path in folder.rglob("*") if not is_hidden(path.relative_to(folder)))
        files = sorted(path for path in visible if _is_clip(path))
        found = [Source(path, _clean(read_prompt(path))) for path in files]
    if not found:
        raise InputError("folder", str(folder), f"hold clips ({' '.join(_SUFFIXES)}, or folders of frames)")
    return found


def pair_sources(
    systems: Mapping[str, Sequence[Source]],
) -> tuple[dict[tuple[str, int], dict[str, Source]], list[Unpaired]]:
    """Brings together the clips of one sentence. The second clip of a sentence pairs with the second of others.

    Args:
        systems: the clips of each system.

    Returns:
        For each sentence and number, the clip of each system that has one, where at least two have; and the rest.
    """
    groups: dict[tuple[str, int], dict[str, Source]] = defaultdict(dict)
    alone: list[Unpaired] = []
    for name, sources in systems.items():
        seen: dict[str, int] = defaultdict(int)
        for source in sources:
            if source.prompt is None:
                alone.append(Unpaired(source.path, f"it carries no prompt, and there is no {METADATA_FILE}"))
                continue
            groups[source.prompt, seen[source.prompt]][name] = source
            seen[source.prompt] += 1
    together = {}
    for key, clips in groups.items():
        if len(clips) > 1:
            together[key] = clips
        else:
            (source,) = clips.values()
            alone.append(Unpaired(source.path, _reason(*key)))
    return together, alone


def _reason(prompt: str, number: int) -> str:
    if number == 0:
        return f"no other system has a clip for {prompt!r}"
    return f"no other system has so many clips for {prompt!r}: this is number {number + 1}"


def _read_table(table: Path) -> list[Source]:
    try:
        lines = table.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{table} is no text that can be read ({error})") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            name, prompt = row["file_name"], row.get("caption", row.get("prompt"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{table}:{number} must be a JSON object with file_name and caption") from error
        if not isinstance(name, str) or not isinstance(prompt, str):
            raise DataError(f"{table}:{number} must have a text as file_name and as caption")
        path = table.parent / name
        if not path.is_file() and not _is_clip(path):
            raise DataError(f"{table}:{number} names {name}, which is not there")
        found.append(Source(path, _clean(prompt)))
    return found


def _is_clip(path: Path) -> bool:
    return (path.suffix.lower() in _SUFFIXES and path.is_file()) or (path / _FRAMES_FILE).is_file()


def _clean(prompt: str | None) -> str | None:
    """Single spaces; None for a sentence without words."""
    return " ".join((prompt or "").split()) or None
