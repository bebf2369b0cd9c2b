"""What is computed once a clip and read many times: latents (or pixels) of frames, and text features of captions.

A cache is built in parts of some records each, which stay when the build is stopped: the next one goes on after them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from latent_shift.core.disk import clear_write_errors
from latent_shift.core.errors import DataError, InputError
from latent_shift.core.files import atomic_path, read_json_object, write_json

from .identity import file_keys
from .records import CaptionedVideo

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
ReadFrames = Callable[[CaptionedVideo], npt.NDArray[np.uint8]]
EncodeFrames = Callable[[npt.NDArray[np.uint8]], Array]
EncodeText = Callable[[Sequence[str]], Sequence[Array]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ClipCache:
    """Encoded frames of all records in one array, and the text features of their captions in another.

    Both arrays are memory-mapped: opening a cache costs nothing and several processes share its pages. It is pickled as
    its folder's name: a worker process opens the files again.
    """

    place: Path
    """Its folder."""
    frames: Array
    """`(frames of all records, ...)`, as `encode_frames` gave them."""
    frame_offsets: npt.NDArray[np.int64]
    """`(records + 1,)`: record `i` has the frames from `frame_offsets[i]` up to `frame_offsets[i + 1]`; none if bad."""
    tokens: Array
    """`(tokens of all captions, width)`, without padding."""
    token_offsets: npt.NDArray[np.int64]
    """`(captions + 1,)`, as `frame_offsets`."""
    caption_offsets: npt.NDArray[np.int64]
    """`(records + 1,)`: record `i` has the captions from `caption_offsets[i]` up to `caption_offsets[i + 1]`."""
    bad: Mapping[str, str] = field(default_factory=dict)
    """Files that could not be read when the cache was built, and why."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _open, (self.place, dict(self.bad))

    def clip(self, record: int) -> Array:
        """The encoded frames of a record, `(frames, ...)`."""
        return self.frames[self.frame_offsets[record] : self.frame_offsets[record + 1]]

    def num_captions(self, record: int) -> int:
        """How many caption forms a record has."""
        return int(self.caption_offsets[record + 1] - self.caption_offsets[record])

    def caption(self, record: int, form: int) -> Array:
        """Text features of one caption form of a record, `(tokens, width)`."""
        caption = int(self.caption_offsets[record]) + form
        return self.tokens[self.token_offsets[caption] : self.token_offsets[caption + 1]]


_ARRAYS = ("frames", "frame_offsets", "tokens", "token_offsets", "caption_offsets")
_FORMAT = 3
"""Of what a cache's files mean; another one is another cache."""
_PART = 64
"""Records of a part."""
_PARTS_STAY = "its finished parts stay"
_SHOWN_REASONS = 3


def open_or_build_cache(
    root: Path,
    records: Sequence[CaptionedVideo],
    *,
    read_frames: ReadFrames,
    encode_frames: EncodeFrames,
    encode_text: EncodeText | None = None,
    fingerprint: Mapping[str, Any],
    max_bad_share: float = 0.0,
    progress: Progress | None = None,
) -> ClipCache:
    """Opens the cache of `records` below `root`, or builds it.

    Its folder is named by a hash of the records (relative paths, sizes, samples of their bytes, captions) and of
    `fingerprint`, so a cache of other data, of another autoencoder or of other clips is never read.

    Args:
        root: where caches live.
        records: the records to encode, in the order in which the cache numbers them.
        read_frames: a record's frames, `(n, height, width, 3)` uint8.
        encode_frames: frames to an array `(n, ...)`.
        encode_text: captions to one array `(tokens, width)` each; None where no text is needed.
        fingerprint: whatever else decides the content: model hashes, what is cut out of a video. JSON values.
        max_bad_share: share of the records that `read_frames` may fail on (with `DataError` or `InputError`); they are
            logged and get no frames.
        progress: called with "records", what is done and of how many.

    Raises:
        DataError: more records are bad, a cache on disk is damaged, or the disk is full.
    """
    key = {
        "format": _FORMAT,
        "records": [[*key, list(record.captions)] for key, record in zip(file_keys(records), records, strict=True)],
        "fingerprint": dict(fingerprint),
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    place = root / digest[:16]
    with _missing(place) as missing:
        if missing:
            logger.info("building the cache %s", place.name)
            parts = _parts_of(place)
            bad = _build_parts(parts, records, read_frames, encode_frames, encode_text, max_bad_share, progress)
            with clear_write_errors(f"cache {place}", _PARTS_STAY):
                _join_parts(place, records)
                facts = {"sha256": digest, "fingerprint": dict(fingerprint), "records": len(records), "bad": bad}
                write_json(place / "cache.json", facts)
            shutil.rmtree(parts, ignore_errors=True)
    try:
        manifest = read_json_object(place / "cache.json")
        made_of, cache = manifest["sha256"], _open(place, dict(manifest.get("bad", {})))
        ends = int(cache.frame_offsets[-1]), int(cache.token_offsets[-1])
    except (DataError, OSError, ValueError, KeyError, TypeError, EOFError, IndexError) as error:
        raise DataError(f"cache {place} is damaged ({error}); remove it") from error
    if made_of != digest or ends != (len(cache.frames), len(cache.tokens)):
        raise DataError(f"cache {place} was made of other data; remove it")
    return cache


def _open(place: Path, bad: Mapping[str, str]) -> ClipCache:
    return ClipCache(place, **{name: np.load(place / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}, bad=bad)


@contextlib.contextmanager
def _missing(place: Path) -> Iterator[bool]:
    """Whether the cache has yet to be built, by this process alone: another one that builds it is waited for."""
    manifest = place / "cache.json"
    if manifest.exists():
        yield False
        return
    with clear_write_errors(f"cache {place}", "nothing was written"):
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place.with_name(f"{place.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("waiting for another run, which is building the cache %s", place.name)
            lock.acquire()
    try:
        for half_joined in place.parent.glob(f".{place.name}.*"):  # by a build that was killed
            shutil.rmtree(half_joined, ignore_errors=True)
        yield not manifest.exists()
        Path(lock.lock_file).unlink(missing_ok=True)  # who waits for it still gets it, and finds the cache
    finally:
        lock.release()


def _parts_of(place: Path) -> Path:
    return place.with_name(f"{place.name}.parts")


def _part_files(parts: Path, count: int) -> list[Path]:
    return [parts / f"{start:09d}.npz" for start in range(0, count, _PART)]


def _build_parts(
    parts: Path,
    records: Sequence[CaptionedVideo],
    read_frames: ReadFrames,
    encode_frames: EncodeFrames,
    encode_text: EncodeText | None,
    max_bad_share: float,
    progress: Progress | None,
) -> dict[str, str]:
    """Writes the parts that are not there yet; returns the bad records' files and their reasons, of all parts.

    A part in which something could not be read is made again: perhaps a disk or a network was away.
    """
    bad: dict[str, str] = {}
    count = 0
    for file, start in zip(_part_files(parts, len(records)), range(0, len(records), _PART), strict=True):
        chunk = records[start : start + _PART]
        if not _is_whole(file):
            frames, reasons = _encode_clips(chunk, read_frames, encode_frames)
            tokens = _encode_captions([caption for record in chunk for caption in record.captions], encode_text)
            with clear_write_errors(f"cache {file}", _PARTS_STAY), atomic_path(file) as temporary:
                np.savez(
                    temporary,
                    frames=np.concatenate([clip for clip in frames if len(clip)] or [np.zeros((0, 1), np.float16)]),
                    frame_counts=[len(clip) for clip in frames],
                    tokens=np.concatenate(tokens),
                    token_counts=[len(caption) for caption in tokens],
                    bad=json.dumps(reasons),
                )
            bad |= reasons
            count += sum(not len(clip) for clip in frames)  # records may share a file
            if count > max_bad_share * len(records):
                raise _too_many(bad, count, len(records), max_bad_share)
        if progress is not None:
            progress("records", start + len(chunk), len(records))
    return bad


def _is_whole(file: Path) -> bool:
    """Whether a part is there, and all of its records could be read."""
    try:
        with np.load(file) as part:
            return not json.loads(str(part["bad"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return False


def _encode_clips(
    records: Sequence[CaptionedVideo], read_frames: ReadFrames, encode_frames: EncodeFrames
) -> tuple[list[Array], dict[str, str]]:
    frames: list[Array] = []
    bad: dict[str, str] = {}
    for record in records:
        try:
            clip = read_frames(record)
        except (DataError, InputError) as error:
            bad[str(record.path)] = str(error).removeprefix(str(record.path)).strip()
            logger.warning("quarantined %s: %s", record.path, bad[str(record.path)])
            frames.append(np.zeros((0, 1), dtype=np.float16))
        else:
            frames.append(encode_frames(clip))
    return frames, bad


def _encode_captions(captions: Sequence[str], encode_text: EncodeText | None) -> list[Array]:
    tokens: list[Array] = [np.zeros((0, 1), dtype=np.float16)] * len(captions)
    # Captions of like length together: less padding to encode.
    order = sorted(range(len(captions)), key=lambda index: len(captions[index])) if encode_text is not None else []
    for start in range(0, len(order), 256):
        some = order[start : start + 256]
        assert encode_text is not None
        for index, features in zip(some, encode_text([captions[index] for index in some]), strict=True):
            tokens[index] = features
    return tokens


def _too_many(bad: Mapping[str, str], count: int, records: int, max_bad_share: float) -> DataError:
    shown = "; ".join(f"{file} {reason}" for file, reason in list(bad.items())[:_SHOWN_REASONS])
    share = f"more than max_bad_share = {max_bad_share:g}"
    return DataError(f"{count} of {records} videos are bad, {share}: {shown}")


def _join_parts(place: Path, records: Sequence[CaptionedVideo]) -> None:
    """All parts in one array each, part by part: a cache may be larger than the memory.

    Not through a memory map, on which a full disk is no error but a signal (SIGBUS) that ends the process.
    """
    files = _part_files(_parts_of(place), len(records))
    with atomic_path(place) as temporary:
        temporary.mkdir()
        for name in ("frame", "token"):
            counts: list[int] = []
            widest: Array = np.zeros((0, 1), dtype=np.float16)
            for file in files:
                with np.load(file) as part:
                    counts += part[f"{name}_counts"].tolist()
                    rows = part[f"{name}s"]  # each look reads it from the disk
                    widest = rows[:0].copy() if len(rows) else widest
            shape = (sum(counts), *widest.shape[1:])
            with (temporary / f"{name}s.npy").open("wb") as joined:
                header = {"descr": np.lib.format.dtype_to_descr(widest.dtype), "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(joined, header)
                for file in files:
                    with np.load(file) as part:
                        joined.write(part[f"{name}s"].astype(widest.dtype, copy=False).tobytes())
            np.save(temporary / f"{name}_offsets.npy", _offsets(counts))
        np.save(temporary / "caption_offsets.npy", _offsets([len(record.captions) for record in records]))


def _offsets(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
