from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import pytest
from disk import full_disk
from PIL import Image

from latent_shift.core.errors import DataError
from latent_shift.training import report
from latent_shift.training.report import plot_losses, read_log


def write(path: Path, count: int) -> None:
    rows = [{"step": 10 * n, "seconds": 2.0 * n, "loss": 1 / n, "learning_rate": 0.1} for n in range(1, count + 1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_line_cut_off_by_a_kill_is_dropped(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    write(log, 3)
    log.write_text(log.read_text()[:-5])
    assert [row["step"] for row in read_log(log)] == [10, 20]
    assert read_log(tmp_path / "none.jsonl") == []


def test_the_curve_is_a_picture_that_changes_with_the_log(tmp_path: Path) -> None:
    log, picture = tmp_path / "log.jsonl", tmp_path / "loss.png"
    plot_losses(log, picture)
    assert not picture.exists()
    contents = []
    for count in (1, 20):
        write(log, count)
        plot_losses(log, picture)
        with Image.open(picture) as image:
            assert image.format == "PNG"
            contents.append(image.tobytes())
    assert contents[0] != contents[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "loss.png"]


def test_without_matplotlib_there_is_no_picture_and_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The base install, which `make demo` makes, has none; a run must not end for a picture."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    report._can_plot.cache_clear()
    write(tmp_path / "log.jsonl", 3)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            plot_losses(tmp_path / "log.jsonl", tmp_path / "loss.png")
    report._can_plot.cache_clear()
    expected = "the loss is not drawn: matplotlib is not installed; run: pip install 'latent-shift[train]'"
    assert caplog.messages == [expected]
    assert not (tmp_path / "loss.png").exists()


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / "log.jsonl", 3)
    with full_disk() as limit:
        limit(100)
        with pytest.raises(DataError) as caught:
            plot_losses(tmp_path / "log.jsonl", tmp_path / "loss.png")
    assert str(caught.value) == f"{tmp_path / 'loss.png'} cannot be written (File too large)"
