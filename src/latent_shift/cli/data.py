"""`latent-shift data`: makes and looks at captioned-video folders."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import typer

data = typer.Typer(name="data", help="Make captioned-video folders.", no_args_is_help=True, rich_markup_mode=None)


@data.callback()
def _data() -> None:
    """Keeps `emoji` a subcommand even while it is the only one."""


@data.command()
def emoji(
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")] = Path("data/emoji"),
    packages: Annotated[
        Path | None, typer.Option(help="Folder with the npm tarballs, if they were fetched before.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes. [default: one a core]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON, for programs.")] = False,
) -> None:
    """Fetch Microsoft's animated Fluent emoji (MIT) through npm and write captioned clips; a rerun goes on.

    Examples:
      latent-shift data emoji --output data/emoji

      latent-shift data emoji --packages downloads/ --workers 4
    """
    from latent_shift.data.emoji import build_emoji

    from ._progress import progress_bars

    with progress_bars() as show:
        summary = build_emoji(output, packages=packages, workers=workers, progress=show)
    values = dataclasses.asdict(summary)
    typer.echo(json.dumps(values, default=str, ensure_ascii=False) if as_json else _lines(values))


def _lines(values: dict[str, object]) -> str:
    return "\n".join(f"{name}: {value}" for name, value in values.items())
