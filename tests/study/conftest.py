"""Studies of tiny clips, made on the spot; the clips are written without a media library."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from latent_shift.study import Source, Store, StudySettings, create_study
from latent_shift.study.records import ClipFacts

FACTS = ClipFacts(frames=4, width=32, height=32, fps=8, columns=2, gap=2, frames_per_sheet=4)


class CopyWriter:
    """Copies the bytes; for tests of what does not look at pictures."""

    def write(self, source: Path, target: Path) -> ClipFacts:
        Path(f"{target}-0.webp").write_bytes(source.read_bytes())
        return FACTS

    def write_scrambled(self, source: Path, target: Path) -> ClipFacts | None:
        Path(f"{target}-0.webp").write_bytes(source.read_bytes()[::-1])
        return FACTS


def sources(folder: Path, system: str, count: int) -> list[Source]:
    """Clips of sentences 0, 1, ..."""
    (folder / system).mkdir(parents=True)
    made = []
    for number in range(count):
        path = folder / system / f"{number:04d}.webp"
        path.write_bytes(f"{system} {number}".encode())
        made.append(Source(path, f"sentence {number}"))
    return made


class Clock:
    """Tells the time that a test wants."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., Store]


@pytest.fixture
def make(tmp_path: Path, clock: Clock) -> Any:
    """A study of so many pairs of two systems, `a` and `b`; of `spare` sentences `a` alone has a clip."""
    stores: list[Store] = []

    def create(pairs: int = 6, spare: int = 0, **settings: Any) -> Store:
        systems = {name: sources(tmp_path / "clips", name, pairs + more) for name, more in (("a", spare), ("b", 0))}
        create_study(tmp_path / "study", systems, CopyWriter(), StudySettings(**settings))
        stores.append(Store(tmp_path / "study", clock))
        return stores[-1]

    yield create
    for store in stores:
        store.close()


def both(side: str) -> Mapping[str, Any]:
    """One side for both questions."""
    return {"quality": side, "faithfulness": side}


def begin(store: Store, worker: str | None = None) -> str:
    """A rater who has passed the training."""
    token = store.join(worker)
    assert store.train(token, both("left")) != store.train(token, both("right"))
    return token


class StudyProcess:
    """`latent-shift study serve` as people start it, on a free port."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "latent_shift", "study", "serve", str(folder), "--port", "0"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 60)
        line = self.process.stdout.readline() if ready else ""
        assert line.startswith("http://"), f"the server did not start: {line!r}"
        self.url = line.split()[0]

    def kill(self) -> None:
        """As a power cut would end it."""
        self.process.kill()
        self.process.wait()
        self._close()

    def stop(self) -> None:
        """As Ctrl-C ends it."""
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(30) == 130
        self._close()

    def _close(self) -> None:
        assert self.process.stdout is not None
        self.process.stdout.close()
