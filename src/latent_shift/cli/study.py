"""`latent-shift study`: the human preference study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from latent_shift.core.config import load_config
from latent_shift.core.errors import InputError, MissingExtraError

from ._listen import allowed_hosts, listen, run

_MOST_UNPAIRED = 20

study = typer.Typer(
    name="study", help="Ask people which of two clips they prefer.", no_args_is_help=True, rich_markup_mode=None
)
Folder = Annotated[Path, typer.Argument(help="The study's folder.", show_default=False)]


@study.callback()
def _study() -> None:
    """Groups the commands."""


@study.command()
def create(
    folder: Annotated[Path, typer.Argument(help="The folder to make.", show_default=False)],
    systems: Annotated[
        list[str],
        typer.Argument(help="Two or more folders of clips, as `name=folder`, or the folder alone.", show_default=False),
    ],
    baseline: Annotated[
        str | None, typer.Option(help="Compare all with this system alone. [default: each with each]")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(help="A TOML file with any of the study's settings: consent, questions, ...")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="One setting, as raters_per_pair=5; wins over the file.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides which clips become attention checks.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")] = False,
) -> None:
    """Pair the clips of two or more systems by prompt. Their names and formats are hidden from raters.

    Examples:
      latent-shift study create my-study ours=clips/ours theirs=clips/theirs

      latent-shift study create my-study a/ b/ c/ --baseline c --set pairs_per_rater=30 --set allow_ties=true
    """
    from latent_shift.study import StudySettings, create_study, find_sources

    from ._progress import progress_bars
    from ._study_clips import SheetWriter, read_prompt

    asked = load_config(StudySettings, settings, changes or [], "--settings")
    named = _named(systems)
    with progress_bars() as show:
        sources = {name: find_sources(place, read_prompt) for name, place in named.items()}
        pairs, unpaired = create_study(
            folder, sources, SheetWriter(), asked, baseline=baseline, seed=seed, progress=show
        )
    if as_json:
        rest = [{"path": str(clip.path), "reason": clip.reason} for clip in unpaired]
        typer.echo(json.dumps({"study": str(folder), "pairs": pairs, "unpaired": rest}, ensure_ascii=False))
        return
    for clip in unpaired[:_MOST_UNPAIRED]:
        typer.echo(f"not paired: {clip.path}: {clip.reason}", err=True)
    if len(unpaired) > _MOST_UNPAIRED:
        typer.echo(f"not paired: {len(unpaired) - _MOST_UNPAIRED} more; --json lists all", err=True)
    raters = -(-pairs * asked.raters_per_pair // min(pairs, asked.pairs_per_rater))
    typer.echo(f"{folder}: {pairs} pairs; {asked.raters_per_pair} votes each take {raters} raters or more")


@study.command()
def serve(
    folder: Folder,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8001,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name that this server is called by, besides localhost.")
    ] = None,
) -> None:
    """Show the pairs to raters, in their browsers. A stopped study goes on where it was.

    Examples:
      latent-shift study serve my-study

      latent-shift study serve my-study --host 0.0.0.0 --allow-host study.example.org
    """
    try:
        from latent_shift.study.app import create_app
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "study") from error
    from latent_shift.study import Store

    store = Store(folder)
    with listen(host, port) as listener:
        app = create_app(store, allowed_hosts(host, allow_host or []))
        run(app, listener, f"asks about {store.settings.title!r}", "may take part, over plain HTTP")


@study.command()
def report(
    folder: Folder,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to. [default: report/ in the study's folder]")
    ] = None,
    min_attention: Annotated[
        float, typer.Option(help="Leave out raters who passed a smaller share of their attention checks.")
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")] = False,
) -> None:
    """Write who is preferred, as Markdown, HTML and CSV; raters may still be at work.

    Examples:
      latent-shift study report my-study

      latent-shift study report my-study --min-attention 0.5 --output results/
    """
    from latent_shift.study import Store, read_report, write_report

    if not 0 <= min_attention <= 1:
        raise InputError("--min-attention", min_attention, "be from 0 to 1")
    store = Store(folder)
    try:
        result = read_report(store, min_attention)
    finally:
        store.close()
    place = output or folder / "report"
    text = write_report(result, place)
    typer.echo(result.model_dump_json(indent=2) if as_json else f"{text}\n{place}: report.md report.html and CSV files")


def _named(systems: list[str]) -> dict[str, Path]:
    """Folders by system; a name is given, or the folder's own, which may hold an equals sign."""
    named: dict[str, Path] = {}
    for system in systems:
        name, equals, place = system.partition("=")
        is_named = equals and not Path(system).is_dir()
        path = Path(place if is_named else system)
        name = (name if is_named else path.absolute().name).strip()
        if not name or name in named:
            raise InputError("systems", system, "have a name of its own, as name=folder")
        named[name] = path
    return named
