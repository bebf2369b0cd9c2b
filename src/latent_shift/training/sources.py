"""Which records a stage may see, and their frames."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

from latent_shift.core.errors import DataError, InputError
from latent_shift.core.seeding import derive_seed
from latent_shift.data.clips import cut_clip
from latent_shift.data.heldout import stage_filter, verify_heldout
from latent_shift.data.identity import records_digest
from latent_shift.data.records import CaptionedVideo, CaptionedVideoFolder, open_record
from latent_shift.data.sources import STILL_SUFFIXES, Selection, Source, open_source
from latent_shift.media import Frames

from .config import DataConfig, Recipe

logger = logging.getLogger(__name__)

_SHOWN_REASONS = 3
_MAY_MOVE = frozenset((".webp", ".gif", ".avif"))
"""Of these files the record says whether they move; what a table says of others is the user's own business."""


def open_records(spec: str, stage: str) -> Selection:
    """The records of a source that a stage may see, by the held-out list of the emoji; of other data, all.

    Args:
        spec: as in `latent_shift.data.sources`.
        stage: autoencoder, image or video.

    Raises:
        InputError: the folder carries a held-out list that this version does not know, or nothing is left.
        DataError: a table of the source is damaged.
    """
    source: Source = open_source(spec, "data.source")
    if isinstance(source, CaptionedVideoFolder):
        verify_heldout(source.manifest, source.path)
    _log_dropped(source)
    may_see = stage_filter(stage)
    selection = Selection(source, (index for index, record in enumerate(source) if may_see(record)))
    if not selection:
        raise InputError("data.source", spec, f"have records for the {stage} stage")
    return selection


class TrainingData:
    """The records of a run: opened when they are first asked for, and once."""

    def __init__(self, recipe: Recipe) -> None:
        """Opens nothing yet."""
        self._recipe = recipe

    @functools.cached_property
    def records(self) -> Selection:
        """Those that the stage may see; raises as `open_records` does."""
        return open_records(self._recipe.data.source, self._recipe.stage)

    @functools.cached_property
    def digest(self) -> str:
        """Of all that decides which record comes when: a run goes on with the same alone, wherever they are."""
        by = self._recipe.data.balance_by
        return records_digest(self.records, lambda record: (str(record.metadata.get(by)), is_still(record)))


def _log_dropped(source: Source) -> None:
    reasons = Counter(entry.reason for entry in source.dropped)
    if reasons:
        shown = ", ".join(f"{count:,} x {reason}" for reason, count in reasons.most_common(_SHOWN_REASONS))
        logger.info("%s: %d records, %d dropped (%s)", source.path, len(source), len(source.dropped), shown)


def check_balance(records: Iterable[CaptionedVideo], key: str) -> None:
    """Raises `InputError` where `data.balance_by` is in no record's metadata."""
    if not key or any(key in record.metadata for record in records):
        return
    known = ", ".join(sorted({name for record in records for name in record.metadata})) or "of which there is none"
    raise InputError("data.balance_by", key, f"be among the metadata of the records, {known}")


def balance_groups(records: Iterable[CaptionedVideo], key: str) -> list[str]:
    """What should come equally often: records with the same value of `key` together, each of the others alone."""
    return [str(record.metadata.get(key, record.index)) for record in records]


def is_still(record: CaptionedVideo) -> bool:
    """Whether a record is one picture, as far as can be told without opening it."""
    known, suffix = record.metadata.get("num_frames"), record.path.suffix.lower()
    return known == 1 if isinstance(known, int) and suffix in _MAY_MOVE else suffix in STILL_SUFFIXES


def clip_fingerprint(data: DataConfig, seed: int) -> dict[str, Any]:
    """What decides which clips `read_clip_once` reads."""
    options = data.model_dump(include={"num_frames", "duration_s", "size", "short"})
    return options | ({} if data.duration_s == "whole" else {"seed": seed})


def read_clip_once(record: CaptionedVideo, data: DataConfig, seed: int) -> Frames:
    """The clip of a record that a cache keeps: at a moment drawn from (seed, the file's name).

    Raises:
        InputError: the file is not there.
        DataError: it is damaged, too short, or has not as many frames as its record says. Names it.
    """
    with open_record(record) as video:
        frames, _ = cut_clip(video, data, derive_seed(seed, "window", record.path.name))
    known = record.metadata.get("num_frames")
    if isinstance(known, int) and len(frames) < min(known, data.num_frames):
        raise DataError(f"{record.path} is a single image, and its record says that it moves")
    return frames
