"""`latent-shift train`: runs a recipe."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[Path, typer.Argument(help="A TOML recipe, for example recipes/emoji-video.toml.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a setting: --set optimizer.learning_rate=1e-4")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved recipe and stop.")] = False,
) -> None:
    """Train a stage of a model; the same command goes on after Ctrl-C or a kill.

    Examples:
      latent-shift train recipes/emoji-image.toml

      latent-shift train recipes/emoji-video.toml --set steps=2000 --set output=runs/longer
    """
    from latent_shift.core.config import load_config
    from latent_shift.training.config import Recipe

    resolved = load_config(Recipe, recipe, settings or ())
    typer.echo(json.dumps(resolved.model_dump(mode="json"), indent=2))
    if dry_run:
        return

    from rich.progress import BarColumn, Progress, TextColumn

    from latent_shift.training import train as run

    from ._quiet import quiet_libraries

    quiet_libraries()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    columns = TextColumn("step {task.completed}/{task.total}"), BarColumn(), TextColumn("{task.description}")
    with Progress(*columns) as bar:
        task = bar.add_task("preparing", total=resolved.steps)

        def show(done: int, _total: int, loss: float, seconds_left: float) -> None:
            left = f"{seconds_left / 60:.0f} min left" if seconds_left >= 90 else f"{seconds_left:.0f} s left"
            bar.update(task, completed=done, description=f"loss {loss:.4f}, {left}")

        model = run(resolved, show)
    typer.echo(f"model: {model}")
