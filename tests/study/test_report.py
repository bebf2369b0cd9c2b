"""`study/report.py` and `study/pages.py`: what is counted, and what is written."""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from latent_shift.core.errors import InputError
from latent_shift.study import Store, create_study, read_report, write_report
from latent_shift.study.settings import StudySettings
from latent_shift.study.statistics import wilson_interval

from .conftest import CopyWriter, Make, begin, sources

Choose = Callable[[str, bool], dict[str, str]]
"""From the sentence, and whether it is a check, the system preferred for each question; `same` for neither."""


def rate(store: Store, choose: Choose) -> str:
    """A rater who looks at the clips, which say in their bytes whose they are."""
    token = begin(store)
    state = store.state(token)
    while state.item is not None:
        seen = {side: store.files[getattr(state.item, side).file_name(0)].read_bytes() for side in ("left", "right")}
        whole = {side: data.decode().split()[0] for side, data in seen.items() if data[:1] in b"ab"}
        side_of = {name: side for side, name in whole.items()} | {"same": "same"}
        is_check = len(whole) == 1
        (only,) = whole if is_check else ("",)
        wanted = choose(state.item.prompt, is_check)
        answers = {name: (only if is_check else side_of[system]) for name, system in wanted.items()}
        if is_check and "wrong" in wanted.values():
            answers = dict.fromkeys(answers, "left" if only == "right" else "right")
        state = store.answer(token, state.item.position, answers)
    store.finish(token)
    return token


def both(system: str) -> dict[str, str]:
    return {"quality": system, "faithfulness": system}


def number(prompt: str) -> int:
    return int(prompt.split()[-1])


def test_majorities_ties_intervals_and_agreement(make: Make) -> None:
    """Four sentences, three raters. Quality: a, a, b and a tie of three. Faithfulness: all for b."""
    store = make(4, spare=2, raters_per_pair=3, checks_per_rater=1, allow_ties=True)
    quality = [["a", "a", "b", "a"], ["a", "a", "b", "b"], ["a", "b", "a", "same"]]
    for of_rater in quality:
        rate(store, lambda prompt, _, own=of_rater: {"quality": own[number(prompt) % 4], "faithfulness": "b"})
    report = read_report(store)
    (comparison,) = report.comparisons
    assert (comparison.first, comparison.second) == ("a", "b")
    assert (comparison.pairs, comparison.rated, comparison.complete) == (4, 4, 4)
    first, second = comparison.questions
    assert (first.question, first.wins, first.losses, first.ties) == ("quality", 2, 1, 1)
    assert first.preferred == pytest.approx(2 / 3)
    assert (first.low, first.high) == pytest.approx(wilson_interval(2, 3))
    assert first.p == 1
    assert (first.votes_first, first.votes_second, first.votes_same) == (7, 4, 1)
    # By hand: P_i = 1, 1/3, 1/3, 0; shares 7/12, 4/12, 1/12
    observed, expected = (1 + 1 / 3 + 1 / 3 + 0) / 4, (7**2 + 4**2 + 1) / 144
    assert first.kappa == pytest.approx((observed - expected) / (1 - expected))
    assert (second.wins, second.losses, second.preferred, second.p, second.kappa) == (0, 4, 0, 0.125, None)
    # Rater 3 is with the others on sentence 0, against them on 1 and 2, and on 3 they have no majority
    third = report.raters[2]
    assert third.agreement == pytest.approx((1 + 0 + 0 + 4) / 7)
    assert [rater.checks_passed for rater in report.raters] == [1, 1, 1]


def test_who_fails_the_checks_can_be_left_out(make: Make) -> None:
    store = make(6, spare=3, raters_per_pair=3, checks_per_rater=2, pairs_per_rater=6)
    rate(store, lambda _, __: both("a"))
    for _ in range(2):
        rate(store, lambda _, is_check: both("wrong" if is_check else "b"))
    everybody = read_report(store)
    assert everybody.comparisons[0].questions[0].losses == 6
    assert [(rater.checks_passed, rater.checks, rater.counted) for rater in everybody.raters] == [
        (2, 2, True),
        (0, 2, True),
        (0, 2, True),
    ]
    strict = read_report(store, 0.5)
    assert strict.comparisons[0].questions[0].wins == 6
    assert strict.comparisons[0].complete == 0
    assert [rater.counted for rater in strict.raters] == [True, False, False]


def test_who_passed_just_enough_checks_counts(make: Make) -> None:
    """0.28 * 25 is more than 7 in floating point."""
    store = make(25, spare=27, raters_per_pair=1, checks_per_rater=25, pairs_per_rater=25, min_attention=0.28)
    answered = itertools.count()
    rate(store, lambda _, is_check: both("wrong" if is_check and next(answered) >= 7 else "a"))
    (rater,) = read_report(store, 0.28).raters
    assert (rater.checks_passed, rater.checks, rater.counted) == (7, 25, True)
    assert read_report(store).rejected == 0


def test_an_empty_study_has_a_report(make: Make, tmp_path: Path) -> None:
    report = read_report(make(3))
    (comparison,) = report.comparisons
    assert comparison.rated == 0
    for question in comparison.questions:
        assert (question.preferred, question.low, question.high, question.p, question.kappa) == (None, 0, 1, 1, None)
    assert "| - | 0.0 to 100.0 | 0 | 0 | 0 | 1.000 | - |" in write_report(report, tmp_path / "report")


class Tags(HTMLParser):
    """Checks that all tags are closed in order, and keeps addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str | None] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "rect", "line"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "line"):
            assert self.open.pop() == tag


def test_files_keep_strange_names_harmless(tmp_path: Path) -> None:
    systems = {"<b>|a": sources(tmp_path, "a", 2), '=1+"b"': sources(tmp_path, "b", 2)}
    create_study(tmp_path / "study", systems, CopyWriter(), StudySettings(title="<script>alert(1)</script>"))
    store = Store(tmp_path / "study")
    store.join("=cmd")
    text = write_report(read_report(store), tmp_path / "out")
    store.close()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.md",
        "report.html",
        "summary.csv",
        "pairs.csv",
        "raters.csv",
    }
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<script" not in page
    assert "http" not in page
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert tags.addresses == []
    assert "\\<b\\>\\|a" in text
    for line in text.splitlines():
        if line.startswith("| \\<b"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (8, 11)
    with (tmp_path / "out" / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["prompt"] for row in rows] == ["sentence 0", "sentence 1"]
    assert rows[0]["second"] == '\'=1+"b"'
    assert "'=cmd" in (tmp_path / "out" / "raters.csv").read_text()
    assert "cmd" not in page + text


def test_a_place_that_cannot_be_written(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="output must be in a folder that can be written"):
        write_report(read_report(make(1, checks_per_rater=1)), tmp_path / "file")
