"""Whether a source can be trained on: reads clips of it as training would, and says what it found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from latent_shift.core.errors import DataError, InputError
from latent_shift.core.seeding import derive_seed
from latent_shift.core.shapes import check_at_least
from latent_shift.media import Frames, VideoInfo

from ._collect import Source
from .clips import cut_clip
from .config import ClipConfig
from .records import Dropped, open_record

Progress = Callable[[str, int, int], None]

_SHEET_CLIPS = 12


@dataclass(frozen=True)
class Spread:
    """The least, the middle and the most of some numbers."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """None of no numbers."""
        return cls(float(min(values)), float(np.median(values)), float(max(values))) if values else None


@dataclass(frozen=True)
class SourceReport:
    """What is in a source.

    Attributes:
        source: what was opened.
        kind: the reader that opened it.
        records: videos and images listed, with a caption and a file.
        captions: captions of all records.
        checked: records of which a clip was read.
        usable: records that gave one.
        stills: those of them that are single images.
        sizes: how many have each `WIDTHxHEIGHT`, upright, the most frequent first.
        duration_s: seconds, of the videos among them.
        fps: frames a second, of the videos among them.
        caption_words: words a caption, of all records.
        dropped: every file that is not usable, with its reason: those that gave no record first.
        clips: some clips and their captions, for a look; not part of the JSON.
    """

    source: str
    kind: str
    records: int
    captions: int
    checked: int
    usable: int
    stills: int
    sizes: dict[str, int]
    duration_s: Spread | None
    fps: Spread | None
    caption_words: Spread | None
    dropped: list[Dropped]
    clips: list[tuple[Frames, str]] = field(repr=False)


def check_source(
    source: Source,
    config: ClipConfig | None = None,
    *,
    sample: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SourceReport:
    """Reads one clip of each record, or of a sample of them, and gathers what it finds.

    Args:
        source: what to look at.
        config: the clips that training would read.
        sample: how many records, drawn from `seed` without replacement; None is all.
        seed: decides the sample and where in a video the clip is.
        progress: called with what is done, how many and of how many.

    Raises:
        InputError: `sample` is below 1.
    """
    config, report = config or ClipConfig(), progress or (lambda *_: None)
    chosen = list(range(len(source)))
    if sample is not None:
        check_at_least("sample", sample, 1)
        drawn = np.random.default_rng(seed).permutation(len(source))[:sample]
        chosen = sorted(int(index) for index in drawn)
    infos: list[VideoInfo] = []
    clips: list[tuple[Frames, str]] = []
    dropped = list(source.dropped)
    for done, index in enumerate(chosen, start=1):
        record = source[index]
        try:
            with open_record(record) as video:
                info = video.info()
                frames, _ = cut_clip(video, config, derive_seed(seed, "window", index))
        except (DataError, InputError) as error:
            dropped.append(Dropped(str(record.path), str(error).removeprefix(str(record.path)).strip()))
        else:
            infos.append(info)
            if len(clips) < _SHEET_CLIPS:
                clips.append((frames, record.caption))
        report("decoding", done, len(chosen))
    moving = [info for info in infos if info.duration_s > 0]
    return SourceReport(
        source=str(source.path),
        kind=source.kind,
        records=len(source),
        captions=sum(len(record.captions) for record in source),
        checked=len(chosen),
        usable=len(infos),
        stills=len(infos) - len(moving),
        sizes=dict(Counter(f"{info.width}x{info.height}" for info in infos).most_common()),
        duration_s=Spread.of([info.duration_s for info in moving]),
        fps=Spread.of([info.fps for info in moving]),
        caption_words=Spread.of([len(caption.split()) for record in source for caption in record.captions]),
        dropped=dropped,
        clips=clips,
    )
