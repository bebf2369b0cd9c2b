"""The three stages, end to end, on squares that move."""

from __future__ import annotations
from pathlib import Path


def test_x(road: Path) -> None:
    for p in sorted(road.rglob("*")):
        print(p)
