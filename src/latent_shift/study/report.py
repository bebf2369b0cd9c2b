"""What the raters said: majority votes, how sure they are, and how good the raters are."""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

from latent_shift.core.config import Config
from latent_shift.core.files import atomic_path

from .pages import to_html, to_markdown
from .records import Pair, Rater, Vote
from .settings import QUESTIONS
from .statistics import fleiss_kappa, sign_test, wilson_interval
from .store import Store

Choice = Literal["first", "second", "same"]
_CHOICES: tuple[Choice, ...] = ("first", "second", "same")


class QuestionResult(Config):
    """One question of one comparison. A pair is won by what most of its raters chose; nobody's majority is a tie."""

    question: str
    wins: int
    """Pairs whose majority is for the first system."""
    losses: int
    """Pairs whose majority is for the second system."""
    ties: int
    """Pairs without a majority for either."""
    preferred: float | None
    """Share of the decided pairs (wins and losses) that the first system won, in [0, 1]; the paper's Table 3."""
    low: float
    """Lower end of the 95 % Wilson interval of `preferred`."""
    high: float
    """Upper end."""
    p: float
    """Exact two-sided sign test over the decided pairs."""
    kappa: float | None
    """Fleiss' kappa over the pairs that have all their votes; None where it is not defined."""
    votes_first: int
    """Single votes for the first system."""
    votes_second: int
    """Single votes for the second system."""
    votes_same: int
    """Single votes for no difference."""


class ComparisonResult(Config):
    """Two systems."""

    first: str
    second: str
    pairs: int
    """Pairs of clips."""
    rated: int
    """Pairs with at least one vote that counts."""
    complete: int
    """Pairs with as many votes as were asked for."""
    questions: tuple[QuestionResult, ...]


class PairResult(Config):
    """One pair of clips; `outcome` is `first`, `second` or `tie` for each question, None without votes."""

    prompt: str
    first: str
    second: str
    votes: dict[str, dict[str, int]]
    outcome: dict[str, str | None]


class RaterResult(Config):
    """One rater. Shares are in [0, 1], None where there is nothing to divide."""

    rater: int
    worker: str | None
    code: str
    finished: bool
    counted: bool
    """Whether this rater's votes are in the results."""
    pairs: int
    """Pairs answered."""
    checks: int
    """Attention checks answered."""
    checks_passed: int
    """Of these, those where both answers are right."""
    median_seconds: float | None
    """From seeing a pair to answering it."""
    agreement: float | None
    """Share of answers that are the majority of the others, where the others have one."""
    left: float | None
    """Share of left among all answers for a side; far from a half hints at clicking without looking."""


class Report(Config):
    """All results of a study, as far as it has come."""

    title: str
    raters_per_pair: int
    min_attention: float
    """Asked for by whoever reads the report, beside what the study asks for."""
    rejected: int
    """Raters who finished, or left, and do not count, because they failed the study's attention checks."""
    comparisons: tuple[ComparisonResult, ...]
    pairs: tuple[PairResult, ...]
    raters: tuple[RaterResult, ...]


def read_report(store: Store, min_attention: float = 0.0) -> Report:
    """Computes the results of what was answered up to now.

    Args:
        store: the study.
        min_attention: raters who passed a smaller share of the attention checks that they met are left out, in [0, 1];
            those whom the study itself rejected always are.
    """
    everything = {pair.id: pair for pair in store.pairs()}
    votes = store.votes()
    attention = _attention(everything, votes)
    rejected = {rater.id for rater in store.raters() if rater.rejected}
    left_out = rejected | {rater for rater, (passed, met) in attention.items() if passed / met < min_attention}
    by_pair: dict[int, list[Vote]] = {pair.id: [] for pair in everything.values() if pair.kind == "pair"}
    for vote in votes:
        if vote.pair in by_pair and vote.rater not in left_out:
            by_pair[vote.pair].append(vote)
    pairs = {number: _pair_result(everything[number], chosen) for number, chosen in by_pair.items()}
    groups: dict[tuple[str, str], list[PairResult]] = defaultdict(list)
    for pair in pairs.values():
        groups[pair.first, pair.second].append(pair)
    needed = store.settings.raters_per_pair
    of_rater: dict[int, list[Vote]] = defaultdict(list)
    for vote in votes:
        of_rater[vote.rater].append(vote)
    return Report(
        title=store.settings.title,
        raters_per_pair=needed,
        min_attention=min_attention,
        rejected=len(rejected),
        comparisons=tuple(_comparison(first, second, group, needed) for (first, second), group in groups.items()),
        pairs=tuple(pairs.values()),
        raters=tuple(
            _rater_result(rater, of_rater[rater.id], by_pair, attention[rater.id], rater.id not in left_out)
            for rater in store.raters()
        ),
    )


def write_report(report: Report, folder: Path) -> str:
    """Writes `report.md`, `report.html`, `summary.csv`, `pairs.csv` and `raters.csv`; returns the Markdown.

    `raters.csv` alone names workers and completion codes: the others can be published.

    Raises:
        InputError: the folder cannot be written.
    """
    markdown = to_markdown(report)
    summary = [
        {"first": comparison.first, "second": comparison.second, **question.model_dump()}
        for comparison in report.comparisons
        for question in comparison.questions
    ]
    files = {
        "report.md": markdown,
        "report.html": to_html(report),
        "summary.csv": _csv(summary),
        "pairs.csv": _csv([_pair_row(pair) for pair in report.pairs]),
        "raters.csv": _csv([rater.model_dump() for rater in report.raters]),
    }
    for name, text in files.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8", newline="")
    return markdown


def _comparison(first: str, second: str, pairs: Sequence[PairResult], needed: int) -> ComparisonResult:
    totals = [sum(pair.votes[QUESTIONS[0]].values()) for pair in pairs]
    return ComparisonResult(
        first=first,
        second=second,
        pairs=len(pairs),
        rated=sum(total > 0 for total in totals),
        complete=sum(total >= needed for total in totals),
        questions=tuple(_question(name, pairs, needed) for name in QUESTIONS),
    )


def _question(name: str, pairs: Sequence[PairResult], needed: int) -> QuestionResult:
    outcomes = Counter(pair.outcome[name] for pair in pairs)
    wins, losses = outcomes["first"], outcomes["second"]
    low, high = wilson_interval(wins, wins + losses)
    counts = [[pair.votes[name][choice] for choice in _CHOICES] for pair in pairs]
    votes = [sum(column) for column in zip(*counts, strict=True)]
    return QuestionResult(
        question=name,
        wins=wins,
        losses=losses,
        ties=outcomes["tie"],
        preferred=wins / (wins + losses) if wins + losses else None,
        low=low,
        high=high,
        p=sign_test(wins, losses),
        kappa=fleiss_kappa([row for row in counts if sum(row) == needed]),
        votes_first=votes[0],
        votes_second=votes[1],
        votes_same=votes[2],
    )


def _pair_result(pair: Pair, votes: Sequence[Vote]) -> PairResult:
    counts = {name: Counter(vote.answers[name] for vote in votes) for name in QUESTIONS}
    return PairResult(
        prompt=pair.prompt,
        first=pair.first,
        second=pair.second,
        votes={name: {choice: count[choice] for choice in _CHOICES} for name, count in counts.items()},
        outcome={name: _majority(count) for name, count in counts.items()},
    )


def _majority(counts: Mapping[str, int]) -> str | None:
    """What most chose: `first`, `second`, or `tie` if that is `same` or several; None without votes."""
    most = max(counts.values(), default=0)
    if most == 0:
        return None
    ahead = [choice for choice, count in counts.items() if count == most]
    return ahead[0] if len(ahead) == 1 and ahead[0] != "same" else "tie"


def _attention(pairs: Mapping[int, Pair], votes: Iterable[Vote]) -> defaultdict[int, tuple[int, int]]:
    """For each rater the attention checks passed, and met. The first clip of a check is the right one."""
    counts: defaultdict[int, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for vote in votes:
        if pairs[vote.pair].kind == "check":
            passed, met = counts[vote.rater]
            counts[vote.rater] = passed + all(answer == "first" for answer in vote.answers.values()), met + 1
    return counts


def _rater_result(
    rater: Rater,
    votes: Sequence[Vote],
    by_pair: Mapping[int, Sequence[Vote]],
    attention: tuple[int, int],
    counted: bool,
) -> RaterResult:
    own = [vote for vote in votes if vote.pair in by_pair]
    agreed: list[bool] = []
    sides: list[bool] = []
    for vote in own:
        for name in QUESTIONS:
            others = Counter(other.answers[name] for other in by_pair[vote.pair] if other.rater != rater.id)
            majority = _majority(others)
            if majority not in (None, "tie"):
                agreed.append(vote.answers[name] == majority)
            if vote.answers[name] != "same":
                sides.append((vote.answers[name] == "first") != vote.flipped)
    return RaterResult(
        rater=rater.id,
        worker=rater.worker,
        code=rater.code,
        finished=rater.finished_at is not None,
        counted=counted,
        pairs=len(own),
        checks=attention[1],
        checks_passed=attention[0],
        median_seconds=round(median(vote.seconds for vote in own), 1) if own else None,
        agreement=sum(agreed) / len(agreed) if agreed else None,
        left=sum(sides) / len(sides) if sides else None,
    )


def _pair_row(pair: PairResult) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": pair.prompt, "first": pair.first, "second": pair.second}
    for name in QUESTIONS:
        row |= {f"{name}_{choice}": count for choice, count in pair.votes[name].items()}
        row[f"{name}_outcome"] = pair.outcome[name]
    return row


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table; a text that a spreadsheet would take for a formula gets an apostrophe before it."""
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows({key: _harmless(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
