"""`latent-shift` itself: help, version, imports, how it ends."""

from __future__ import annotations

import inspect
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import latent_shift
from latent_shift.cli import generate
from latent_shift.cli.app import app

from .conftest import Run

HELP = [[], ["generate"], ["train"], ["data"], ["data", "emoji"], ["benchmark"], ["study", "create"]]
HEAVY = ["torch", "diffusers", "transformers", "numpy", "PIL", "av", "matplotlib"]
LOADED = """
import sys
from latent_shift.cli import main
sys.argv = ["latent-shift", *sys.argv[1:]]
try:
    main()
finally:
    print("loaded", *sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


def loaded(*arguments: str | Path) -> set[str]:
    """The libraries that a fresh interpreter has loaded when the command ends."""
    command = [sys.executable, "-c", LOADED, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(result.stderr.splitlines()[-1].split()[1:])


@pytest.mark.parametrize("verb", HELP, ids=" ".join)
def test_help_explains_every_verb_with_examples(run: Run, verb: list[str]) -> None:
    result = run(*verb, "--help")
    assert result.code == 0
    assert result.err == ""
    assert result.out.startswith(f"Usage: latent-shift {' '.join(verb)}".rstrip())
    if verb in (["generate"], ["train"], ["data", "emoji"], ["benchmark"], ["study", "create"]):
        assert result.out.count(f"  latent-shift {' '.join(verb)} ") >= 2


def verbs(app: typer.Typer = app, *names: str) -> Iterator[tuple[list[str], str]]:
    """Every verb's words, and its docstring."""
    for verb in app.registered_commands:
        assert verb.callback is not None
        yield [*names, verb.name or verb.callback.__name__], inspect.getdoc(verb.callback) or ""
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from verbs(group.typer_instance, *names, group.name or group.typer_instance.info.name or "")


@pytest.mark.parametrize(("verb", "text"), [pytest.param(*verb, id=" ".join(verb[0])) for verb in verbs()])
def test_help_shows_each_example_whole(run: Run, verb: list[str], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    examples = [line.strip() for line in text.partition("Examples:")[2].splitlines() if line]
    assert len(examples) >= 2
    shown = [line.strip() for line in run(*verb, "--help").out.splitlines()]
    assert [line for line in shown if line in examples] == examples


@pytest.mark.parametrize("verb", HELP, ids=" ".join)
def test_help_loads_no_heavy_library(verb: list[str]) -> None:
    assert loaded(*verb, "--help").isdisjoint(HEAVY)


def test_help_takes_less_than_0_4_seconds() -> None:
    """Best of three, in seconds of CPU time, so that a busy machine does not matter."""
    script = Path(sys.executable).parent / "latent-shift"
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = subprocess.run([script, "--help"], capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        assert "generate" in result.stdout
    assert min(seconds) < 0.4


def test_the_script_itself_ends_with_one_line_and_code_2(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "latent-shift"
    command = [script, "generate", "a hand", "--frames", "0"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "latent-shift: error: --frames must be at least 1, got 0\n"
    assert list(tmp_path.iterdir()) == []


def test_the_version_is_the_packages(run: Run) -> None:
    result = run("--version")
    assert (result.code, result.out) == (0, f"latent-shift {latent_shift.__version__}\n")


def test_no_verb_shows_the_help(run: Run) -> None:
    result = run()
    assert "Usage: latent-shift" in result.out + result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["generat"], "generat"),
        (["generate", "a", "--frmes=3"], "--frmes"),
        (["generate", "--frames", "x"], "--frames"),
    ],
)
def test_a_mistyped_option_is_no_traceback(run: Run, arguments: list[str], named: str) -> None:
    result = run(*arguments)
    assert result.code == 2
    assert "Traceback" not in result.err
    assert f"'{named}'" in result.err.splitlines()[-1] or f" {named}" in result.err.splitlines()[-1]


def test_ctrl_c_ends_with_130_and_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "_load", stop)
    result = run("generate", "a hand", "-o", "clip.mp4")
    assert result.code == 130
    assert result.err == "latent-shift: error: stopped\n"
    assert list(Path().iterdir()) == []
