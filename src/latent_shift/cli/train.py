"""`latent-shift train`: runs a recipe."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from latent_shift.training import Recipe


def _print_settings(wanted: bool) -> bool:
    if not wanted:
        return False
    from latent_shift.core.config import describe_settings
    from latent_shift.training.config import Recipe

    for setting, meaning in describe_settings(Recipe):
        typer.echo(f"{setting}\n{textwrap.fill(meaning, 100, initial_indent='    ', subsequent_indent='    ')}")
    raise typer.Exit


def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe, for example recipes/emoji-video.toml.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: --set optimizer.learning_rate=1e-4")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved recipe and what it needs (JSON), and stop.")
    ] = False,
    _settings: Annotated[
        bool,
        typer.Option(
            "--settings",
            help="Print every setting of a recipe, its default and what it means, and stop.",
            callback=_print_settings,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Train a stage of a model; the same command goes on after Ctrl-C or a kill.

    Examples:
      latent-shift train recipes/emoji-image.toml

      latent-shift train recipes/emoji-video.toml --set steps=2000 --set output=runs/longer

      torchrun --nproc-per-node 8 -m latent_shift train recipes/paper-webvid.toml
    """
    from latent_shift.core.config import load_config
    from latent_shift.training.config import Recipe

    first = os.environ.get("RANK", "0") == "0"  # of the processes that `accelerate launch` or `torchrun` started
    given = load_config(Recipe, recipe, settings or ())
    if dry_run:
        typer.echo(json.dumps(_dry_run(given), indent=2))
        return

    from rich.progress import BarColumn, Progress, TextColumn

    from latent_shift.training import train as run
    from latent_shift.training.noise import resolve_noise

    from ._quiet import quiet_libraries

    quiet_libraries()
    resolved, _ = resolve_noise(given)
    if first:
        typer.echo(json.dumps(resolved.model_dump(mode="json"), indent=2))
    logging.basicConfig(level=logging.INFO if first else logging.WARNING, format="%(message)s")
    columns = TextColumn("step {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}")
    with Progress(*columns, disable=not first) as bar:
        task = bar.add_task("preparing", total=resolved.steps)

        def show(done: int, _total: int, loss: float, seconds_left: float) -> None:
            left = f"{seconds_left / 60:.0f} min left" if seconds_left >= 90 else f"{seconds_left:.0f} s left"
            bar.update(task, completed=done, description=f"loss {loss:.4f}, {left}")

        model = run(resolved, show)
    if first:
        typer.echo(f"model: {model}")


def _dry_run(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe, where it leaves its model's noise process, its data, and what a run needs.

    Of data that cannot be opened here, or parts of the model that are not here, why. What else a run would refuse
    before its first step is raised.
    """
    from latent_shift.core.errors import InputError, LatentShiftError
    from latent_shift.training.estimate import estimate_run
    from latent_shift.training.noise import resolve_noise
    from latent_shift.training.run import absent_parts, check_run
    from latent_shift.training.sources import check_balance, is_still, open_records

    from ._quiet import quiet_libraries

    quiet_libraries()
    notes: list[str] = []
    absent = absent_parts(recipe)
    data: dict[str, Any] | str
    estimate: dict[str, Any] | str
    try:
        recipe, notes = resolve_noise(recipe)
        check_run(recipe)
    except InputError as error:
        if error.argument not in absent:
            raise
    try:
        estimate = dataclasses.asdict(estimate_run(recipe))
    except InputError as error:
        if error.argument not in (*absent, "stage"):  # the autoencoder's has no estimate
            raise
        estimate = f"not known: {error}"
    try:
        records = open_records(recipe.data.source, recipe.stage)
        check_balance(records, recipe.data.balance_by)
        stills = sum(is_still(record) for record in records)
        data = {"records": len(records), "stills": stills, "dropped": len(records.dropped)}
    except LatentShiftError as error:
        data = f"not known: {error}"
    return {"recipe": recipe.model_dump(mode="json"), "notes": notes, "data": data, "estimate": estimate}
