"""What a study is made of: clips, pairs, and what raters see and say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from latent_shift.core.config import Config

Side: TypeAlias = Literal["left", "right", "same"]
Answers: TypeAlias = Mapping[str, Side]
"""A side for each of `QUESTIONS`; `same` where the study allows ties."""
Status: TypeAlias = Literal["training", "rate", "wait", "ready", "finished", "full"]


class ClipFacts(Config):
    """How a clip lies on its sheets: pictures with the frames in rows, from left to right and from top to bottom."""

    frames: int
    """Frames of the clip."""
    width: int
    """Of a frame, pixels."""
    height: int
    """Of a frame, pixels."""
    fps: float
    """Frames a second."""
    columns: int
    """Frames side by side on a sheet."""
    gap: int
    """Pixels between two frames of a sheet."""
    frames_per_sheet: int
    """Frames of each sheet but the last, which has the rest."""

    @property
    def num_sheets(self) -> int:
        """Pictures that hold the clip."""
        return -(-self.frames // self.frames_per_sheet)


class Clip(ClipFacts):
    """A clip of a study, under a name that says nothing about whose it is."""

    name: str
    """32 random hexadecimal digits."""

    def file_name(self, sheet: int) -> str:
        """The name of a sheet's file, in the study's folder of clips and in its address."""
        return f"{self.name}-{sheet}.webp"


@dataclass(frozen=True)
class NewPair:
    """Two clips of one sentence. `kind` is `pair`, `check` (the first is the right answer) or `training` (as well)."""

    kind: Literal["pair", "check", "training"]
    prompt: str
    first: str
    second: str
    first_clip: Clip
    second_clip: Clip


@dataclass(frozen=True)
class Shown:
    """Two clips as one rater sees them.

    Attributes:
        position: counts from 1 what this rater was shown; 0 is the training example.
        prompt: the sentence.
        left: the clip on the left.
        right: the clip on the right.
        answers: what the rater said; None before it said anything.
    """

    position: int
    prompt: str
    left: Clip
    right: Clip
    answers: dict[str, Side] | None


@dataclass(frozen=True)
class State:
    """Where a rater stands.

    Attributes:
        status: `training` (see the example first), `rate` (answer `item`), `wait` (others are at all pairs that are
            left), `ready` (all done; may go back, or finish), `finished`, or `full` (nothing was left for this rater).
        done: pairs and checks answered.
        total: of how many.
        item: what to answer now, where there is something.
        code: the completion code, once finished; `full_code` where nothing was done and there is nothing to do.
    """

    status: Status
    done: int
    total: int
    item: Shown | None = None
    code: str | None = None


@dataclass(frozen=True)
class Pair:
    """A pair or check as a report reads it; `id` is its row."""

    id: int
    kind: str
    prompt: str
    first: str
    second: str


@dataclass(frozen=True)
class Vote:
    """What one rater said about one pair: `first`, `second` or `same` for each question, and how long it took."""

    rater: int
    pair: int
    flipped: bool
    answers: dict[str, str]
    seconds: float


@dataclass(frozen=True)
class Rater:
    """A rater as a report reads it. Times are seconds since 1970."""

    id: int
    worker: str | None
    code: str
    joined_at: float
    finished_at: float | None
    rejected: bool
    """Finished or left, and failed the attention checks."""
