"""A report as Markdown and as one HTML file that needs no other."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from .settings import QUESTIONS

if TYPE_CHECKING:
    from .report import ComparisonResult, PairResult, QuestionResult, RaterResult, Report

_METHOD = (
    "A pair is won by the clip that most of its raters chose; a pair without such a clip is a tie. Preferred is the "
    "share of the decided pairs that the first system won, with its 95 % Wilson interval. p is the exact two-sided "
    "sign test over the decided pairs, not corrected for several comparisons. Kappa is Fleiss' over the pairs that "
    "have all their votes: 1 is full agreement of the raters, 0 what chance gives."
)
_STYLE = """
:root { color-scheme: light dark; --back: light-dark(#f6f5fa, #15141b); --card: light-dark(#fff, #201f29);
  --text: light-dark(#1c1a27, #efedf7); --quiet: light-dark(#5d596d, #aaa6bd); --soft: light-dark(#e4e1ee, #353344);
  --first: light-dark(#5b3fd6, #a596ff); --second: light-dark(#b25c00, #f0a44b); }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 24px 16px 48px; max-width: 860px; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 4px; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 20px 0 6px; }
p { margin: 0 0 8px; }
.quiet { color: var(--quiet); font-size: .9rem; }
section { background: var(--card); border: 1px solid var(--soft); border-radius: 14px; padding: 18px;
  margin-top: 16px; }
.first { color: var(--first); } .second { color: var(--second); }
.share { font-size: 1.5rem; font-weight: 650; }
svg { display: block; width: 100%; height: 28px; margin: 6px 0; }
svg .won { fill: var(--first); } svg .lost { fill: var(--second); } svg .tied { fill: var(--soft); }
svg .half { stroke: var(--text); stroke-width: 1; stroke-dasharray: 3 3; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: 8px 16px; margin: 8px 0 0; }
dt { color: var(--quiet); font-size: .85rem; } dd { margin: 0; }
.scroll { overflow-x: auto; margin-top: 10px; } summary { cursor: pointer; font-weight: 600; }
table { border-collapse: collapse; font-size: .9rem; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0; border-top: 1px solid var(--soft); }
th { border: 0; color: var(--quiet); font-weight: 500; } td.text { min-width: 180px; overflow-wrap: anywhere; }
"""


def to_markdown(report: Report) -> str:
    """The report as Markdown."""
    lines = [f"# {_cell(report.title)}", "", _lead(report), ""]
    lines += _table(
        ["first", "second", "question", "preferred (%)", "95 % interval", "wins", "losses", "ties", "p", "kappa"],
        [
            [
                *(_cell(name) for name in (comparison.first, comparison.second)),
                *(question.question, _percent(question.preferred), _interval(question)),
                *(str(count) for count in (question.wins, question.losses, question.ties)),
                *(_probability(question.p), _number(question.kappa)),
            ]
            for comparison in report.comparisons
            for question in comparison.questions
        ],
    )
    lines += ["", _METHOD, "", "## Pairs and votes", ""]
    lines += _table(
        ["first", "second", "pairs", "rated", "complete", *(f"votes, {name}" for name in QUESTIONS)],
        [
            [
                *(_cell(name) for name in (comparison.first, comparison.second)),
                *(str(count) for count in (comparison.pairs, comparison.rated, comparison.complete)),
                *(_votes(question) for question in comparison.questions),
            ]
            for comparison in report.comparisons
        ],
    )
    lines += ["", "Votes are for the first, for the second, and for neither.", "", "## Raters", ""]
    lines += _table(_RATER_HEADS, [_rater_cells(rater) for rater in report.raters if rater.pairs])
    return "\n".join(lines) + "\n"


def to_html(report: Report) -> str:
    """The report as one HTML file: no script, nothing from elsewhere; light and dark, wide and narrow."""
    title = escape(report.title)
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><main><h1>{title}</h1>"
        f'<p class="quiet">{escape(_lead(report))}</p>',
        *(_comparison(comparison) for comparison in report.comparisons),
        f"<section><h2>How to read this</h2><p>{escape(_METHOD)}</p></section>",
        _details("Raters", _RATER_HEADS, [_rater_cells(rater) for rater in report.raters if rater.pairs]),
        _details("Pairs", _PAIR_HEADS, [_pair_cells(pair) for pair in report.pairs]),
    ]
    return "\n".join(parts) + "</main></body></html>\n"


def _lead(report: Report) -> str:
    working = [rater for rater in report.raters if rater.pairs]
    votes = sum(rater.pairs for rater in working)
    complete = sum(comparison.complete for comparison in report.comparisons)
    lead = (
        f"{len(working)} raters gave {votes} votes on {len(report.pairs)} pairs; {complete} pairs have all "
        f"{report.raters_per_pair} votes."
    )
    if report.rejected:
        lead += (
            f" Of the raters {report.rejected} failed the study's attention checks and do not count; others were asked "
            "about their pairs."
        )
    left_out = sum(not rater.counted for rater in working)
    if report.min_attention:
        lead += (
            f" Raters who passed fewer than {_percent(report.min_attention)} % of their attention checks are left out: "
            f"{left_out}."
        )
    return lead


def _comparison(comparison: ComparisonResult) -> str:
    questions = "".join(_question(comparison, question) for question in comparison.questions)
    return (
        f'<section><h2><span class="first">{escape(comparison.first)}</span> or '
        f'<span class="second">{escape(comparison.second)}</span></h2><p class="quiet">{comparison.pairs} pairs, '
        f"{comparison.rated} rated, {comparison.complete} with all votes</p>{questions}</section>"
    )


def _question(comparison: ComparisonResult, question: QuestionResult) -> str:
    facts = {
        "95 % interval": f"{_interval(question)} %",
        "Won, lost, tied": f"{question.wins}, {question.losses}, {question.ties}",
        "Sign test": f"p = {_probability(question.p)}",
        "Fleiss' kappa": _number(question.kappa),
        "Votes: first, second, neither": _votes(question),
    }
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    share = f"{_percent(question.preferred)} %" if question.preferred is not None else "None"
    return (
        f'<h3>{escape(question.question.capitalize())}</h3><p><span class="share">{share}</span> of the decided pairs '
        f"prefer {escape(comparison.first)}</p>{_bar(question)}<dl>{listed}</dl>"
    )


def _bar(question: QuestionResult) -> str:
    """Wins, ties and losses beside each other, and where the middle is."""
    total = question.wins + question.ties + question.losses or 1
    won, tied, lost = (100 * count / total for count in (question.wins, question.ties, question.losses))
    label = f"{question.wins} won, {question.ties} tied, {question.losses} lost"
    return (
        f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f'<rect class="won" width="{won:.2f}" height="10"/><rect class="tied" x="{won:.2f}" width="{tied:.2f}" '
        f'height="10"/><rect class="lost" x="{won + tied:.2f}" width="{lost:.2f}" height="10"/>'
        '<line class="half" x1="50" x2="50" y2="10" vector-effect="non-scaling-stroke"/></svg>'
    )


def _details(title: str, heads: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>"
        + "".join(f"<td{_class(name)}>{escape(cell)}</td>" for name, cell in zip(heads, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<section><details><summary>{title} ({len(rows)})</summary><div class="scroll" tabindex="0"><table><thead>'
        f"<tr>{head}</tr></thead><tbody>{body}</tbody></table></div></details></section>"
    )


def _class(head: str) -> str:
    return ' class="text"' if head == "prompt" else ""


_RATER_HEADS = ["rater", "pairs", "checks passed", "seconds a pair", "agrees (%)", "left (%)", "counts"]
_PAIR_HEADS = ["prompt", "first", "second", *QUESTIONS]


def _rater_cells(rater: RaterResult) -> list[str]:
    return [
        str(rater.rater),
        str(rater.pairs),
        f"{rater.checks_passed} of {rater.checks}",
        "-" if rater.median_seconds is None else f"{rater.median_seconds:.1f}",
        _percent(rater.agreement),
        _percent(rater.left),
        "yes" if rater.counted else "no",
    ]


def _pair_cells(pair: PairResult) -> list[str]:
    cells = [pair.prompt, pair.first, pair.second]
    for name in QUESTIONS:
        winner = {"first": pair.first, "second": pair.second, "tie": "tie"}.get(pair.outcome[name] or "", "-")
        cells.append(f"{winner} ({', '.join(str(count) for count in pair.votes[name].values())})")
    return cells


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def _cell(text: str) -> str:
    """A text in a Markdown table, where it cannot begin markup."""
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#" else letter for letter in " ".join(text.split()))


def _interval(question: QuestionResult) -> str:
    return f"{_percent(question.low)} to {_percent(question.high)}"


def _votes(question: QuestionResult) -> str:
    return f"{question.votes_first}, {question.votes_second}, {question.votes_same}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _probability(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"
