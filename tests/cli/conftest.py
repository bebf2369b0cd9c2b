"""Runs the command line in this process, and checks what a refusal looks like."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from latent_shift.cli import main


@dataclass
class Result:
    """What a command gave back."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]
Refused = Callable[..., str]


@pytest.fixture(autouse=True)
def _loud_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The command line silences the libraries for its whole process; other tests want to hear them."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries: list[Any] = [diffusers_logging, transformers_logging]
    before = [library.get_verbosity() for library in libraries]
    yield
    for library, level in zip(libraries, before, strict=True):
        library.set_verbosity(level)
        library.enable_progress_bar()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs `latent-shift` with arguments, in an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["latent-shift", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return call


@pytest.fixture
def refused(run: Run, tmp_path: Path) -> Refused:
    """The one line of a command that must fail with code 2 and leave nothing behind."""

    def call(*arguments: str | Path) -> str:
        before = sorted(tmp_path.rglob("*"))
        result = run(*arguments)
        assert sorted(tmp_path.rglob("*")) == before
        assert result.code == 2
        assert result.err.startswith("latent-shift: error: ")
        assert result.err.count("\n") == 1
        assert result.err.endswith("\n")
        assert "Traceback" not in result.out + result.err
        return result.err.removeprefix("latent-shift: error: ").rstrip("\n")

    return call
