"""Clips for training, as in the paper: short windows at random moments, a few frames of each, resized and cropped."""

from __future__ import annotations

import itertools
import logging
import operator
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import numpy as np

from latent_shift.core.errors import DataError, InputError
from latent_shift.core.seeding import derive_seed
from latent_shift.media import Frames, VideoReader

from ._collect import Source
from .config import ClipConfig
from .order import SampleOrder
from .records import CaptionedVideo, Dropped, open_record

logger = logging.getLogger(__name__)

_JUDGED_OVER = 100
_SHOWN_REASONS = 3


@dataclass(frozen=True, eq=False)
class Clip:
    """A clip and what it shows.

    Attributes:
        frames: `(frames, size, size, 3)`, uint8, RGB in [0, 255]; one frame of a still image. Training scales them to
            [-1, 1].
        caption: one of the record's captions.
        start_s: where in the video it starts, seconds.
        record: where it is from.
    """

    frames: Frames
    caption: str
    start_s: float
    record: CaptionedVideo


def cut_clip(video: VideoReader, config: ClipConfig, seed: int) -> tuple[Frames, float]:
    """Cuts one clip at a moment drawn from `seed`; uniform over all where the window fits.

    Args:
        video: an open video.
        config: what to cut.
        seed: decides the moment, together with the length of the video.

    Returns:
        The frames, `(frames, size, size, 3)`, uint8, and the start, seconds.

    Raises:
        DataError: the video is damaged, or shorter than the window and `config.short` is `drop`. Names the file.
    """
    if config.num_frames == 1:
        window_s = 0.0
    else:
        window_s = video.duration_s if config.duration_s == "whole" else config.duration_s
    if not video.is_still and video.duration_s < window_s:
        if config.short == "drop":
            raise DataError(f"{video.path} lasts {video.duration_s:.2f} s, less than the clip's {window_s:g} s")
        window_s = video.duration_s
    spare_s = max(0.0, video.duration_s - window_s)
    start_s = spare_s * float(np.random.default_rng(seed).random())
    try:
        return video.clip(start_s, window_s, config.num_frames, config.size), start_s
    except DataError as error:
        if not spare_s:
            raise
        raise _DamagedWindow(str(error)) from error


class _DamagedWindow(DataError):
    """A video is damaged where a clip was cut; others of its clips may be whole."""


class ClipLoader:
    """An endless stream of clips by position; a map that any number of workers can share, each with a copy.

    The clip at a position depends on (seed, position) and the files alone: neither on which were read before nor by
    whom. A file that cannot be read is quarantined: logged with its reason, counted in `bad`, and never opened again
    (unless it is damaged in some places alone); another record, drawn from (seed, position), takes its place. When more
    than `max_bad_share` is bad, the run stops.

    Attributes:
        bad: what was quarantined so far, by record index.
    """

    def __init__(
        self,
        source: Source,
        config: ClipConfig | None = None,
        *,
        seed: int = 0,
        groups: Sequence[Hashable] | None = None,
    ) -> None:
        """Draws nothing yet.

        Args:
            source: where records come from.
            config: what is cut of them.
            seed: the run's seed.
            groups: for each record, what should be seen equally often; by default each record is its own group.

        Raises:
            InputError: the source has no records, or `groups` is of another length.
        """
        if not len(source):
            raise InputError(
                "source", str(source.path), f"hold at least one video ({len(source.dropped)} were dropped)"
            )
        if groups is not None and len(groups) != len(source):
            raise InputError("groups", f"{len(groups)} of them", f"be one for each of the {len(source)} records")
        self.source, self.config = source, config or ClipConfig()
        self.bad: dict[int, Dropped] = {}
        self._unusable: set[int] = set()
        self._seed = seed
        self._order = SampleOrder(groups if groups is not None else range(len(source)), seed)
        self._tried = np.zeros(len(source), dtype=bool)

    def __getitem__(self, position: SupportsIndex) -> Clip:
        """The clip at `position` of the stream, from 0.

        Raises:
            DataError: more than the share `max_bad_share` of the videos is bad. Names the share and some files.
        """
        number = operator.index(position)  # NumPy's integers would draw other seeds
        for index in self._candidates(number):
            self._tried[index] = True
            try:
                return self.read(self.source[index], number)
            except (DataError, InputError) as error:
                self._quarantine(index, error)
        raise AssertionError("candidates have no end")

    def record(self, position: SupportsIndex) -> CaptionedVideo:
        """The record of the clip at `position`, as far as is known: for those of no use at all, another stands in."""
        return self.source[next(self._candidates(operator.index(position)))]

    def _candidates(self, position: int) -> Iterator[int]:
        """Records for `position`, in a fixed order and without end, but for those found to be of no use at all."""
        for attempt in itertools.count():
            instead = derive_seed(self._seed, "instead", position, attempt) % len(self.source)
            index = instead if attempt else self._order.record(position)
            if index not in self._unusable:
                yield index

    def read(self, record: CaptionedVideo, position: int) -> Clip:
        """The clip of one record that belongs to `position`.

        Raises:
            InputError: the file is not there.
            DataError: it is damaged, no video, or too short. Names the file.
        """
        with open_record(record) as video:
            frames, start_s = cut_clip(video, self.config, derive_seed(self._seed, "window", position))
        form = derive_seed(self._seed, "caption", position) % len(record.captions)
        return Clip(frames, record.captions[form], start_s, record)

    def _quarantine(self, index: int, error: Exception) -> None:
        file = str(self.source[index].path)
        if not isinstance(error, _DamagedWindow):
            self._unusable.add(index)
        if index not in self.bad:
            self.bad[index] = Dropped(file, str(error).removeprefix(file).strip())
            logger.warning("quarantined %s: %s", file, self.bad[index].reason)
        judged = max(int(self._tried.sum()), min(len(self.source), _JUDGED_OVER))
        if len(self.bad) > self.config.max_bad_share * judged or len(self.bad) == len(self.source):
            shown = "; ".join(f"{bad.file}: {bad.reason}" for bad in list(self.bad.values())[:_SHOWN_REASONS])
            share = f"more than max_bad_share = {self.config.max_bad_share:g}"
            raise DataError(f"{len(self.bad)} of {judged} videos of {self.source.path} are bad, {share}; {shown}")
