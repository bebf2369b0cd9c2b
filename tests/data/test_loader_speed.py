"""Covers `scripts/loader_speed.py`, and what it has to show: a worker keeps up with PyAV's bare decoding."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "loader_speed.py"


@pytest.mark.slow
def test_a_worker_is_at_least_four_fifths_as_fast_as_bare_decoding(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("loader_speed", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.write_films(tmp_path, 2, 300, 250)
    assert script.measure(tmp_path, 5)["ratio"] >= 0.8
