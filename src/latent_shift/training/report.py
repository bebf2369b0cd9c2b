"""What a run tells about itself in its folder: the loss log as rows and as a picture, and what could not be read."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from latent_shift.core.disk import clear_write_errors
from latent_shift.core.errors import MissingExtraError
from latent_shift.core.files import atomic_path

logger = logging.getLogger(__name__)


class Clock:
    """Seconds of training over all stretches of a run."""

    def __init__(self, before: float) -> None:
        """Starts; `before` are the seconds of the stretches before this one."""
        self._start = time.monotonic() - before

    @property
    def seconds(self) -> float:
        """So far."""
        return time.monotonic() - self._start


class TrainingLog:
    """Averages losses and appends them to a JSONL file, from which a resumed run first drops what it will redo."""

    def __init__(self, path: Path, start: int, unwritten: Iterable[float] = ()) -> None:
        """Args: path: the file. start: steps done. unwritten: losses since the last row, of the checkpoint.

        Raises:
            DataError: the disk is full, or fails.
        """
        self._path = path
        self._losses = list(unwritten)
        self._row: dict[str, int | float] = {}
        _write_rows(path, [row for row in read_log(path) if row["step"] <= start])

    @property
    def unwritten(self) -> list[float]:
        """Losses since the last row; a checkpoint keeps them, so that a resumed run writes the same rows."""
        return list(self._losses)

    def add(self, step: int, loss: float, seconds: float) -> None:
        """Notes the loss of a step."""
        self._losses.append(loss)
        self._row = {"step": step, "seconds": round(seconds, 2)}

    def write(self, rate: float) -> dict[str, int | float]:
        """Appends a row with the mean of the losses since the last one, and returns it.

        Raises:
            DataError: the disk is full, or fails.
        """
        loss = sum(self._losses) / len(self._losses)
        row = {**self._row, "loss": round(loss, 6), "learning_rate": rate}
        _append(self._path, [row])
        self._losses.clear()
        return row


class FirstAlone(logging.Filter):
    """Of what a logger says inside `of`, over all blocks, the first message alone is passed on, with a note."""

    def __init__(self, note: str) -> None:
        """Args: note: what is added to it."""
        super().__init__()
        self._note, self._told = note, False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is the first one."""
        if self._told:
            return False
        record.msg = f"{record.msg}; {self._note}"
        self._told = True
        return True

    @contextlib.contextmanager
    def of(self, source: logging.Logger) -> Iterator[None]:
        """The block in which `source` is listened to."""
        source.addFilter(self)
        try:
            yield
        finally:
            source.removeFilter(self)


class Quarantine:
    """The files of a run that could not be read, over all its processes, workers and stretches, in a JSONL file."""

    def __init__(self, path: Path) -> None:
        """Reads what earlier stretches of the run found."""
        self.path = path
        rows = _read_rows(path)
        self._files = {str(row["file"]) for row in rows}
        if path.exists():
            _write_rows(path, rows)  # without a last line that was cut off

    def __len__(self) -> int:
        return len(self._files)

    def add(self, found: Mapping[str, str]) -> None:
        """Appends files that are not there yet, with their reasons.

        Raises:
            DataError: the disk is full, or fails.
        """
        new = {file: reason for file, reason in found.items() if file not in self._files}
        if new:
            _append(self.path, [{"file": file, "reason": reason} for file, reason in new.items()])
            self._files.update(new)


def read_log(path: Path) -> list[dict[str, int | float]]:
    """Rows of a `log.jsonl`: step, seconds, loss, learning_rate. A last line cut off by a kill is dropped."""
    return _read_rows(path)


def _read_rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


def _write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with clear_write_errors(str(path)), atomic_path(path) as temporary:
        temporary.write_text(_lines(rows), encoding="utf-8")


def _append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with clear_write_errors(str(path), "the last checkpoint stays"), path.open("a", encoding="utf-8") as file:
        file.write(_lines(rows))


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@functools.cache
def _can_plot() -> bool:
    found = importlib.util.find_spec("matplotlib") is not None
    if not found:
        logger.info("the loss is not drawn: %s", MissingExtraError("matplotlib", "train"))
    return found


def plot_losses(log: Path, picture: Path) -> None:
    """Draws the loss of `log` over the steps, raw and smoothed, as PNG; says so where matplotlib is not installed.

    Raises:
        DataError: the disk is full, or fails.
    """
    if not _can_plot():
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_log(log)
    if not rows:
        return
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    smooth: list[float] = []
    for loss in losses:
        smooth.append(loss if not smooth else 0.9 * smooth[-1] + 0.1 * loss)
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="#9db4d0", linewidth=0.8, label="loss")
    axes.plot(steps, smooth, color="#1f4e8c", linewidth=1.8, label="smoothed")
    axes.set(xlabel=f"optimiser step ({rows[-1]['seconds'] / 60:.0f} minutes)", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    with clear_write_errors(str(picture)), atomic_path(picture) as temporary:
        figure.savefig(temporary, dpi=120)
