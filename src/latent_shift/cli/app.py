"""`latent-shift`: the verbs, and how errors are shown."""

from __future__ import annotations

import inspect
import sys
from typing import Annotated

import typer

from latent_shift import __version__
from latent_shift.core.errors import DataError, InputError, LatentShiftError

from ._command import Command
from .benchmark import benchmark
from .convert import convert
from .data import data
from .evaluate import evaluate
from .generate import generate
from .info import info
from .reproduce import reproduce
from .serve import serve
from .study import study
from .train import train

app = typer.Typer(
    name="latent-shift",
    help="Text to video by a parameter-free temporal shift (Latent-Shift, arXiv:2304.08477).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
app.command(cls=Command)(generate)
app.command(short_help="Train a model; a rerun goes on.")(train)
app.command(cls=Command, short_help="Image models to video models, and back.")(convert)
app.command(cls=Command, short_help="Versions, backends, and sizes of models.")(info)
app.command(cls=Command, short_help="Measure size and speed beside other networks.")(benchmark)
app.command(cls=Command, short_help="A web page, and an HTTP API.")(serve)
app.add_typer(data)
app.add_typer(evaluate)
app.add_typer(reproduce, name="reproduce", short_help="Test the paper's claims, and what the shift needs.")
app.add_typer(study)


def _keep_examples(verbs: typer.Typer) -> None:
    """Marks the examples as text that click does not wrap: broken across lines they could not be copied."""
    for verb in verbs.registered_commands:
        text = inspect.getdoc(verb.callback) or ""
        verb.help = text.replace("Examples:\n", "\b\nExamples:\n").replace("\n\n  ", "\n\n\b\n  ")
    for group in verbs.registered_groups:
        if group.typer_instance:
            _keep_examples(group.typer_instance)


_keep_examples(app)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"latent-shift {__version__}")
        raise typer.Exit


def main() -> None:
    """Runs the command line: 0 done, 2 wrong input, 130 stopped by Ctrl-C, 1 for anything else that went wrong."""
    try:
        app()
    except (InputError, DataError) as error:
        _fail(error, 2)
    except LatentShiftError as error:
        _fail(error, getattr(error, "exit_code", 1))
    except KeyboardInterrupt:
        _fail("stopped", 130)
    except SystemExit as end:
        if end.code == 130:  # typer's own answer to Ctrl-C
            _fail("stopped", 130)
        raise


def _fail(message: object, code: int) -> None:
    typer.echo(f"latent-shift: error: {message}", err=True)
    sys.exit(code)
