"""`latent-shift data emoji`: what it refuses. What it builds is tested in `tests/data`."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Refused


@pytest.mark.parametrize("exists", [False, True])
def test_packages_that_are_not_there_are_one_line(refused: Refused, tmp_path: Path, exists: bool) -> None:
    packages = tmp_path / "packages"
    if exists:
        packages.mkdir()
    message = refused("data", "emoji", "--packages", packages, "--output", "data")
    assert message.startswith("packages must hold ")
    assert ".tgz (npm pack " in message
    assert message.endswith(f"got {str(packages)!r}")


def test_a_folder_of_something_else_is_not_overwritten(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter.txt").write_text("dear")
    message = refused("data", "emoji", "--packages", tmp_path, "--output", tmp_path / "letters")
    assert message.startswith(("packages must hold ", "output must be empty or begun by this command; it has letter"))


def test_no_workers_are_one_line(refused: Refused) -> None:
    assert refused("data", "emoji", "--workers", "0") == "workers must be at least 1, got 0"
