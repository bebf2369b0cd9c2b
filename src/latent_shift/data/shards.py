"""WebDataset shards: tar files of samples, each a video and its caption under one key, on a disk or behind a URL.

A sample is the members `KEY.mp4` (or another video or image) and `KEY.json` (`caption`, if wanted `captions` and
`metadata`), or `KEY.txt` (the caption). `index.jsonl` beside the shards, which `write_shards` makes, says where each
sample is; without it the headers of the tar files are read once, when the source is opened. Samples are then read one
by one, at any position: of remote shards (any URL that fsspec knows) only their own bytes are fetched.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Any

from latent_shift.core.disk import clear_write_errors
from latent_shift.core.errors import DataError, InputError
from latent_shift.core.files import atomic_path

from ._collect import MEDIA_SUFFIXES, CollectedSource, Source
from .identity import content_keys
from .records import ArchiveMember, CaptionedVideo, record_bytes
from .remote import beside, is_remote, open_place, read_all, read_failures, shown_path, without_query

INDEX_FILE = "index.jsonl"

_TEXT_SUFFIXES = (".json", ".txt")
_SAMPLE_SUFFIXES = (*_TEXT_SUFFIXES, *MEDIA_SUFFIXES)


def read_shards(place: str, options: Mapping[str, str], argument: str) -> CollectedSource:
    """Every sample of the shards at `place`: a tar file, a folder of them, or a URL; `{0000..0099}` counts.

    Raises:
        InputError: there are none, or they cannot be reached.
        DataError: a shard or an index is damaged. Names it.
    """
    del options
    source = CollectedSource("shards", Path(without_query(place)))
    index, shards = _find(place, argument)
    if index is not None:
        _read_index(source, index, argument)
        return source
    for shard in shards:

        def drop(name: str, reason: str, shard: str = shard) -> None:
            source.drop(shown_path(shard, name), reason)

        for name, captions, metadata, member in _scan(shard, argument, drop):
            source.add(shown_path(shard, name), captions, metadata, member)
    return source


def write_shards(
    source: Source,
    output: Path,
    shard_mb: float = 256,
    progress: Callable[[str, int, int], None] | None = None,
) -> int:
    """Packs a source into shards; what an earlier call wrote of the same samples stays.

    Args:
        source: what is packed; files are copied as they are.
        output: the folder of the shards.
        shard_mb: a shard is closed when it holds so many megabytes.
        progress: called with "shards", what is done and of how many.

    Returns:
        How many shards there are.

    Raises:
        InputError: `shard_mb` is not above 0, the source is empty, or the folder holds shards of other samples or of
            another size, or cannot be written.
        DataError: a file of the source cannot be read, or the disk is full.
    """
    if not shard_mb > 0:
        raise InputError("shard_mb", shard_mb, "be above 0")
    if not len(source):
        raise InputError("source", str(source.path), "hold at least one video")
    groups: list[list[CaptionedVideo]] = [[]]
    filled = 0
    for record in source:
        if groups[-1] and filled + record.size > shard_mb * 1_000_000:
            groups.append([])
            filled = 0
        groups[-1].append(record)
        filled += record.size
    index = output / INDEX_FILE
    _refuse_other_shards(index, groups)
    lines: list[str] = []
    for number, group in enumerate(groups):
        shard = output / f"{number:05d}.tar"
        if not _holds(shard, group):
            with clear_write_errors(f"shard {shard}", "those before it stay"), atomic_path(shard) as temporary:
                _write_shard(temporary, group)
        for name, captions, metadata, member in _scan(str(shard)):
            row = {
                "file_name": name,
                "captions": captions,
                "metadata": metadata,
                **asdict(member),
                "archive": shard.name,
            }
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
        if progress is not None:
            progress("shards", number + 1, len(groups))
    with clear_write_errors(str(index), "the shards stay"), atomic_path(index) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")
    return len(groups)


def _refuse_other_shards(index: Path, groups: Sequence[Sequence[CaptionedVideo]]) -> None:
    """Raises `InputError` where a finished packing is another one: it may be the only copy of its samples."""
    if not index.exists():
        return
    packed = CollectedSource("shards", index)
    _read_index(packed, str(index), "output")
    found = [(Path(one.member.archive).name if one.member else "", _facts(one)) for one in packed]
    if found != [(f"{number:05d}.tar", _facts(one)) for number, group in enumerate(groups) for one in group]:
        raise InputError(
            "output", str(index.parent), "be a new folder: it holds shards of other samples, or of another size"
        )


def _facts(record: CaptionedVideo) -> str:
    """Size, captions and metadata, as they are read again."""
    captions = [" ".join(caption.split()) for caption in record.captions]
    return json.dumps([record.size, captions, record.metadata], sort_keys=True, default=str)


def _find(place: str, argument: str) -> tuple[str | None, list[str]]:
    """The index where there is one, and the shards."""
    if not is_remote(place) and Path(place).is_dir():
        index = Path(place) / INDEX_FILE
        if index.is_file():
            return str(index), []
        shards = sorted(str(file) for file in Path(place).glob("*.tar"))
    elif without_query(place).endswith(f"/{INDEX_FILE}"):
        return place, []
    else:
        shards = list(_expand(place))
    missing = [shard for shard in shards if not is_remote(shard) and not Path(shard).is_file()]
    if missing or not shards:
        expected = f"be a .tar file, a folder of them, their {INDEX_FILE} or a URL of either"
        raise InputError(argument, missing[0] if missing else place, expected)
    return None, shards


def _expand(place: str) -> Iterator[str]:
    """`a-{07..10}.tar` as four names; other names as they are."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", place)
    if match is None:
        yield place
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expand(f"{place[: match.start()]}{number:0{len(first)}d}{place[match.end() :]}")


def _read_index(source: CollectedSource, index: str, argument: str) -> None:
    for number, line in enumerate(read_all(index, argument).decode().splitlines(), start=1):
        try:
            row = json.loads(line)
            archive = beside(index, row["archive"])
            member = ArchiveMember(archive, int(row["offset"]), int(row["size"]))
            source.add(shown_path(archive, row["file_name"]), row["captions"], row["metadata"], member)
        except (ValueError, KeyError, TypeError) as error:
            expected = "must name archive, file_name, offset and size"
            raise DataError(f"{without_query(index)}, line {number}: {expected}") from error


def _scan(
    shard: str, argument: str = "output", drop: Callable[[str, str], None] | None = None
) -> Iterator[tuple[str, list[str], dict[str, Any], ArchiveMember]]:
    """Name, captions, metadata and place of each sample, in the order of the tar file; `drop` hears of the others."""
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    failures: tuple[type[Exception], ...] = (*read_failures(), tarfile.TarError, ValueError)
    try:
        with open_place(shard, argument) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                if info.isfile():
                    # WebDataset's keys end at the first dot of the name.
                    folder, _, name = info.name.rpartition("/")
                    key, _, suffix = name.partition(".")
                    samples.setdefault(f"{folder}/{key}", {})[f".{suffix.lower()}"] = info
            for parts in samples.values():
                media = next((info for suffix, info in parts.items() if suffix in MEDIA_SUFFIXES), None)
                if media is None:
                    names = [info.name for suffix, info in parts.items() if suffix.endswith(_SAMPLE_SUFFIXES)]
                    if names and drop is not None:
                        drop(names[0], "no video or image has its key, which ends at the first dot")
                    continue
                try:
                    texts = {suffix: _text(archive, parts[suffix]) for suffix in _TEXT_SUFFIXES if suffix in parts}
                    facts = json.loads(texts[".json"]) if ".json" in texts else {}
                except ValueError:  # one bad text is no bad shard: the sample has no caption
                    texts, facts = {}, {}
                facts = facts if isinstance(facts, dict) else {}
                captions = facts.get("captions") or [facts.get("caption"), texts.get(".txt")]
                captions = [caption for caption in captions if isinstance(caption, str)]
                metadata = facts.get("metadata")
                member = ArchiveMember(shard, media.offset_data, media.size)
                yield media.name, captions, metadata if isinstance(metadata, dict) else {}, member
    except InputError:
        raise
    except failures as error:
        raise DataError(f"{without_query(shard)} is damaged or no tar file ({error})") from error


def _text(archive: tarfile.TarFile, info: tarfile.TarInfo) -> str:
    file = archive.extractfile(info)
    return file.read().decode("utf-8") if file is not None else ""


def _holds(shard: Path, records: Sequence[CaptionedVideo]) -> bool:
    """Whether an earlier call wrote these records there; of files on a disk, by samples of their bytes."""
    if not shard.is_file():
        return False
    try:
        found = [
            CaptionedVideo(shard / name, captions[0] if captions else "", tuple(captions), metadata, member=member)
            for name, captions, metadata, member in _scan(str(shard))
        ]
    except DataError:
        return False
    if [_facts(one) for one in found] != [_facts(one) for one in records]:
        return False
    near = [index for index, one in enumerate(records) if one.member is None or not is_remote(one.member.archive)]
    return content_keys([found[index] for index in near]) == content_keys([records[index] for index in near])


def _write_shard(path: Path, records: Sequence[CaptionedVideo]) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for number, record in enumerate(records):
            facts = {"caption": record.caption, "captions": list(record.captions), "metadata": record.metadata}
            key = f"{number:06d}"
            suffix = PurePosixPath(record.path.name).suffix.lower()
            for name, data in (
                (f"{key}{suffix}", record_bytes(record)),
                (f"{key}.json", json.dumps(facts, ensure_ascii=False, default=str).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
