"""What is computed once a clip and read many times: latents (or pixels) of frames, and text features of captions."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from latent_shift.core.errors import DataError
from latent_shift.core.files import atomic_path, write_json

from .records import CaptionedVideo, CaptionedVideoFolder

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
EncodeFrames = Callable[[npt.NDArray[np.uint8]], Array]
EncodeText = Callable[[Sequence[str]], Sequence[Array]]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class ClipCache:
    """Encoded frames of all records in one array, and the text features of their captions in another.

    Both arrays are memory-mapped: opening a cache costs nothing and several processes share its pages.
    """

    frames: Array
    """`(frames of all records, ...)`, as `encode_frames` gave them."""
    frame_offsets: npt.NDArray[np.int64]
    """`(records + 1,)`: record `i` has the frames from `frame_offsets[i]` up to `frame_offsets[i + 1]`."""
    tokens: Array
    """`(tokens of all captions, width)`, without padding."""
    token_offsets: npt.NDArray[np.int64]
    """`(captions + 1,)`, as `frame_offsets`."""
    caption_offsets: npt.NDArray[np.int64]
    """`(records + 1,)`: record `i` has the captions from `caption_offsets[i]` up to `caption_offsets[i + 1]`."""

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


def open_or_build_cache(
    root: Path,
    folder: CaptionedVideoFolder,
    records: Sequence[CaptionedVideo],
    *,
    encode_frames: EncodeFrames,
    encode_text: EncodeText | None = None,
    fingerprint: Mapping[str, Any],
    max_frames: int | None = None,
    progress: Progress | None = None,
) -> ClipCache:
    """Opens the cache of `records` below `root`, or builds it.

    Its folder is named by a hash of the records (files, sizes, captions), of `fingerprint` and of `max_frames`, so a
    cache of other data, of another autoencoder or of another size is never read.

    Args:
        root: where caches live.
        folder: the source of the records.
        records: the records to encode, in the order in which the cache numbers them.
        encode_frames: frames `(n, height, width, 3)` uint8 to an array `(n, ...)`.
        encode_text: captions to one array `(tokens, width)` each; None where no text is needed.
        fingerprint: whatever else decides the content: model hashes, size, precision. JSON values.
        max_frames: at most so many frames of a clip, evenly spaced; None keeps all.
        progress: called with what is done, how many and of how many.

    Raises:
        DataError: a file cannot be read, or a cache on disk is damaged.
    """
    key = {
        "records": [[record.path.name, record.path.stat().st_size, list(record.captions)] for record in records],
        "fingerprint": dict(fingerprint),
        "max_frames": max_frames,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    place = root / digest[:16]
    if not (place / "cache.json").exists():
        logger.info("building the cache %s", place.name)
        _build(place, folder, records, encode_frames, encode_text, max_frames, progress)
        write_json(place / "cache.json", {"sha256": digest, "fingerprint": dict(fingerprint), "records": len(records)})
    try:
        made_of = json.loads((place / "cache.json").read_text(encoding="utf-8"))["sha256"]
        arrays = {name: np.load(place / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
        lengths = {name: len(arrays[name]) - int(arrays[f"{name[:-1]}_offsets"][-1]) for name in ("frames", "tokens")}
    except (OSError, ValueError, KeyError, TypeError, EOFError, IndexError) as error:
        raise DataError(f"cache {place} is damaged ({error}); remove it") from error
    if made_of != digest or any(lengths.values()):
        raise DataError(f"cache {place} was made of other data; remove it")
    return ClipCache(**arrays)


def _build(
    place: Path,
    folder: CaptionedVideoFolder,
    records: Sequence[CaptionedVideo],
    encode_frames: EncodeFrames,
    encode_text: EncodeText | None,
    max_frames: int | None,
    progress: Progress | None,
) -> None:
    report = progress or (lambda *_: None)
    frames: list[Array] = []
    for number, record in enumerate(records):
        clip = folder.read(record.index).frames
        if max_frames is not None and len(clip) > max_frames:
            clip = clip[np.arange(max_frames) * len(clip) // max_frames]
        frames.append(encode_frames(clip))
        report("frames", number + 1, len(records))
    captions = [caption for record in records for caption in record.captions]
    tokens: list[Array] = [np.zeros((0, 1), dtype=np.float16)]
    if encode_text is not None:
        tokens = tokens * len(captions)
        # Captions of like length together: less padding to encode.
        order = sorted(range(len(captions)), key=lambda index: len(captions[index]))
        for start in range(0, len(order), 256):
            part = order[start : start + 256]
            for index, features in zip(part, encode_text([captions[index] for index in part]), strict=True):
                tokens[index] = features
            report("captions", start + len(part), len(captions))
    with atomic_path(place) as temporary:
        temporary.mkdir()
        np.save(temporary / "frames.npy", np.concatenate(frames))
        np.save(temporary / "frame_offsets.npy", _offsets([len(clip) for clip in frames]))
        np.save(temporary / "tokens.npy", np.concatenate(tokens))
        np.save(temporary / "token_offsets.npy", _offsets([len(caption) for caption in tokens]))
        np.save(temporary / "caption_offsets.npy", _offsets([len(record.captions) for record in records]))


def _offsets(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
