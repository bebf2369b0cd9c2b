"""WebDataset shards: tar files of samples, each a video and its caption under one key, on a disk or behind a URL.

A sample is the members `KEY.mp4` (or another video or image) and `KEY.json` (`caption`, if wanted `captions` and
`metadata`, which all other keys become part of), or `KEY.txt` (the caption). `index.jsonl` beside the shards, which
`write_shards` makes, says where each sample is; without it the headers of the tar files are read once, when the source
is opened. Samples are then read one by one, at any position: of remote shards (any URL that fsspec knows) only their
own bytes are fetched.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock, Timeout

from latent_shift.core.disk import clear_write_errors
from latent_shift.core.errors import DataError, InputError
from latent_shift.core.files import atomic_path, read_json_object, write_json

from ._collect import MEDIA_SUFFIXES, CollectedSource, Source, caption_texts
from .identity import content_keys
from .records import ArchiveMember, CaptionedVideo, record_bytes
from .remote import beside, is_remote, open_place, read_all, read_failures, shown_path, without_query

INDEX_FILE = "index.jsonl"
PACKING_FILE = "packing.json"

_TEXT_SUFFIXES = (".json", ".txt")
_KEYS = ("caption", "captions", "metadata")
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

    `packing.json`, written first, says whose shards the folder has.

    Args:
        source: what is packed; files are copied as they are.
        output: the folder of the shards.
        shard_mb: a shard is closed when it holds so many megabytes.
        progress: called with "shards", what is done and of how many.

    Returns:
        How many shards there are.

    Raises:
        InputError: `shard_mb` is not above 0, the source is empty, or the folder is that of its shards, holds shards
            of other samples or of another size, is written by another call at this moment, or cannot be written.
        DataError: a file of the source cannot be read, or the disk is full.
    """
    if not shard_mb > 0:
        raise InputError("shard_mb", shard_mb, "be above 0")
    if not len(source):
        raise InputError("source", str(source.path), "hold at least one video")
    starts, packing = _plan(source, output, shard_mb)
    with _alone(output):
        _begin(output, packing)
        _write_all(source, output, starts, progress)
    return len(starts)


def _plan(source: Source, output: Path, shard_mb: float) -> tuple[list[int], dict[str, Any]]:
    """The first record of each shard, and what tells this packing from others."""
    starts, filled, digest, folders = [0], 0, hashlib.sha256(), set()
    for index, record in enumerate(source):
        size = record.size
        if index > starts[-1] and filled + size > shard_mb * 1_000_000:
            starts.append(index)
            filled = 0
        filled += size
        digest.update(_facts(record).encode())
        if record.member is not None:
            folders.add(os.path.dirname(record.member.archive))
    if os.path.realpath(output) in map(os.path.realpath, folders):
        raise InputError("output", str(output), "be another folder than that of the source's own shards")
    return starts, {"samples": digest.hexdigest(), "shard_mb": shard_mb}


@contextlib.contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Keeps other packings out of the folder meanwhile."""
    lock = FileLock(output / ".lock")
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise InputError("output", str(output), "be a folder that no other run is packing into") from error
    except OSError as error:
        raise InputError("output", str(output), f"be a folder that can be written ({error.strerror})") from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _begin(output: Path, packing: Mapping[str, Any]) -> None:
    """Notes in the folder what is packed there, and removes what a killed packing left half written.

    Raises:
        InputError: it holds shards of another packing, or of others: they may be the only copies of their samples.
    """
    note = output / PACKING_FILE
    if not note.exists() or read_json_object(note) != packing:
        if any(output.glob("*.tar")):
            raise InputError(
                "output", str(output), "be a new folder: it holds shards of other samples, or of another size"
            )
        with clear_write_errors(str(note), "nothing was written"):
            write_json(note, packing)
    for half_written in (path for name in ("*.tar", INDEX_FILE) for path in output.glob(f".{name}.*")):
        shutil.rmtree(half_written, ignore_errors=True)


def _write_all(
    source: Source, output: Path, starts: Sequence[int], progress: Callable[[str, int, int], None] | None
) -> None:
    index = output / INDEX_FILE
    with (
        clear_write_errors(str(index), "the shards stay"),
        atomic_path(index) as temporary,
        temporary.open("w", encoding="utf-8") as lines,
    ):
        for number, (start, end) in enumerate(itertools.pairwise([*starts, len(source)])):
            shard, group = output / f"{number:05d}.tar", [source[each] for each in range(start, end)]
            if not _holds(shard, group):
                with clear_write_errors(f"shard {shard}", "those before it stay"), atomic_path(shard) as shard_file:
                    _write_shard(shard_file, group)
            for name, captions, metadata, member in _scan(str(shard)):
                place = {"archive": shard.name, "offset": member.offset, "size": member.size}
                row = {"file_name": name, "captions": captions, "metadata": metadata, **place}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            if progress is not None:
                progress("shards", number + 1, len(starts))


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
    try:
        text = read_all(index, argument).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{without_query(index)} cannot be read as UTF-8 text ({error})") from error
    for number, line in enumerate(text.split("\n"), start=1):  # texts may hold other line breaks, U+2028 say
        if not line.strip():
            continue
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
                single = caption_texts(facts.get("caption")) + caption_texts(texts.get(".txt"))
                captions = caption_texts(facts.get("captions")) or list(dict.fromkeys(single))
                metadata = {key: value for key, value in facts.items() if key not in _KEYS}
                metadata |= facts["metadata"] if isinstance(facts.get("metadata"), dict) else {}
                yield media.name, captions, metadata, ArchiveMember(shard, media.offset_data, media.size)
    except InputError:
        raise
    except read_failures(tarfile.TarError, ValueError) as error:
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
