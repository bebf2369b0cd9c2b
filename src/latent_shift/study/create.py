"""A study folder from folders of clips."""

from __future__ import annotations

import itertools
import os
import random
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias, runtime_checkable

from latent_shift.core.errors import InputError
from latent_shift.core.files import atomic_path

from .pairing import Source, Unpaired, pair_sources
from .records import Clip, ClipFacts, NewPair
from .settings import StudySettings
from .store import CLIPS_FOLDER, Store

System: TypeAlias = tuple[str, Sequence[Source]]
"""A name and the clips of it."""
Progress: TypeAlias = Callable[[str, int, int | None], None]

_MOST_CHECKS = 20


@runtime_checkable
class ClipWriter(Protocol):
    """Turns a clip into the one neutral format of the study. The command line brings it; this room reads no media."""

    def write(self, source: Path, target: Path) -> ClipFacts:
        """Writes the sheets of `source` as `target` with `-0.webp`, `-1.webp`, ... appended to its name."""

    def write_scrambled(self, source: Path, target: Path) -> ClipFacts | None:
        """The same with the picture's tiles shuffled; writes nothing and gives None where that would hardly show."""


def create_study(
    folder: Path,
    systems: Mapping[str, Sequence[Source]],
    writer: ClipWriter,
    settings: StudySettings,
    *,
    baseline: str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[int, list[Unpaired]]:
    """Pairs the clips by sentence, copies them under names that say nothing, and writes the study's database.

    Args:
        folder: the study to make; must not exist, or be empty.
        systems: two or more; the clips of each, by name.
        writer: writes clips in one format for all, so that neither format nor metadata tells whose they are.
        settings: what raters are asked for.
        baseline: compare every system with this one alone (the paper's Table 3); by default each with each.
        seed: decides which clips become attention checks.
        progress: told how many clips are written.

    Returns:
        The number of pairs, and the clips that are not among them.

    Raises:
        InputError: fewer than two systems, an unknown baseline, no pairs, or a folder that is in use.
        DataError: a clip is damaged. Names it.
    """
    report = progress or (lambda _what, _done, _total: None)
    if len(systems) < 2:
        raise InputError("folders", list(systems), "be two or more, with different names")
    if baseline is not None and baseline not in systems:
        raise InputError("--baseline", baseline, f"be one of {', '.join(systems)}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError("study", str(folder), "be new: votes are never overwritten")
    groups, unpaired = pair_sources(systems)
    comparisons = [tuple(sorted(two, key=lambda name: name == baseline)) for two in itertools.combinations(systems, 2)]
    wanted = [
        (prompt, first, second, clips[first], clips[second])
        for (prompt, _), clips in groups.items()
        for first, second in comparisons
        if first in clips and second in clips and baseline in (None, second)
    ]
    used = {source for *_, one, other in wanted for source in (one, other)}
    unpaired += [
        Unpaired(source.path, f"the baseline, {baseline}, has no clip for {prompt!r} to compare it with")
        for (prompt, _), clips in groups.items()
        for source in clips.values()
        if source not in used
    ]
    if not wanted:
        reason = unpaired[0].reason if unpaired else "no sentence is shared"
        raise InputError("folders", list(systems), f"share prompts ({reason})")

    with atomic_path(folder) as temporary:
        copies = _Copies(temporary / CLIPS_FOLDER, writer)
        pairs = []
        for done, (prompt, first, second, one, other) in enumerate(wanted):
            report("clips", done, len(wanted))
            pairs.append(NewPair("pair", prompt, first, second, copies.copy(one.path), copies.copy(other.path)))
        spare = [source for clips in systems.values() for source in clips if source.prompt and source not in used]
        candidates = _candidates(spare, wanted, random.Random(seed))
        count = 1 + (max(settings.checks_per_rater, min(_MOST_CHECKS, len(wanted))) if settings.checks_per_rater else 0)
        pairs += _checks(candidates, count, copies, settings)
        Store.create(temporary, settings, pairs)
    report("clips", len(wanted), len(wanted))
    return len(wanted), unpaired


class _Copies:
    """The clips of a study; each file is written once, however many pairs it is in."""

    def __init__(self, folder: Path, writer: ClipWriter) -> None:
        folder.mkdir(parents=True)
        self._folder, self._writer = folder, writer
        self._made: dict[Path, Clip] = {}

    def copy(self, source: Path) -> Clip:
        if source not in self._made:
            name = secrets.token_hex(16)
            self._made[source] = self._note(name, self._writer.write(source, self._folder / name))
        return self._made[source]

    def scramble(self, source: Path) -> Clip | None:
        name = secrets.token_hex(16)
        facts = self._writer.write_scrambled(source, self._folder / name)
        return None if facts is None else self._note(name, facts)

    def _note(self, name: str, facts: ClipFacts) -> Clip:
        clip = Clip(name=name, **facts.model_dump())
        for number in range(clip.num_sheets):  # when a file was written tells which system came first
            os.utime(self._folder / clip.file_name(number), (0, 0))
        return clip


def _candidates(
    spare: Sequence[Source], wanted: Sequence[tuple[str, str, str, Source, Source]], draw: random.Random
) -> list[tuple[str, Path]]:
    """Clips to make checks of: in no pair first, since a clip is shown once to a rater; then one of each sentence."""
    alone = sorted({(source.prompt or "", source.path) for source in spare})
    paired = sorted({(prompt, source.path) for prompt, _, _, *clips in wanted for source in clips})
    draw.shuffle(alone)
    draw.shuffle(paired)
    met: Counter[str] = Counter()
    rounds = []
    for prompt, path in paired:
        rounds.append((met[prompt], prompt, path))
        met[prompt] += 1
    return alone + [(prompt, path) for _, prompt, path in sorted(rounds, key=lambda one: one[0])]


def _checks(
    candidates: Sequence[tuple[str, Path]], count: int, copies: _Copies, settings: StudySettings
) -> list[NewPair]:
    """The training example and the attention checks: a clip beside the same clip with its tiles shuffled."""
    made: list[NewPair] = []
    for prompt, path in candidates:
        scrambled = copies.scramble(path) if len(made) < count else None
        if scrambled is not None:
            made.append(
                NewPair("check" if made else "training", prompt, "whole", "scrambled", copies.copy(path), scrambled)
            )
    if not made:
        raise InputError("folders", len(candidates), "hold a clip that can be told from a scrambled copy")
    if len(made) <= settings.checks_per_rater:
        expected = f"be at most {len(made) - 1}: so many of the clips can be told from a scrambled copy"
        raise InputError("checks_per_rater", settings.checks_per_rater, expected)
    return made
