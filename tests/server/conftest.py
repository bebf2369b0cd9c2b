"""A server in this process with an engine that only pretends, and servers in processes of their own with real ones."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from latent_shift.pipelines import SCHEDULERS
from latent_shift.server.engine import VARIANTS, ClipRequest, Event, Failed, Finished, ModelFacts, Progress, Started
from latent_shift.server.settings import ServerSettings

FACTS = ModelFacts(
    name="pretended",
    num_frames=16,
    width=128,
    height=128,
    size_factor=32,
    guidance_scale=4.0,
    fps=8.0,
    schedulers={name: steps for name, (_, steps, _) in SCHEDULERS.items()},
    scheduler="dpm++",
    max_steps=1000,
    loops=False,
)
JSON = {"prompt": "a red heart", "steps": 4, "seed": 1}


class PretendedEngine:
    """Notes what it is told; the test says when a job goes on. Only for tests of what is around an engine."""

    facts = FACTS

    def __init__(self) -> None:
        self.submitted: dict[str, tuple[ClipRequest, Path]] = {}
        self.cancelled: list[str] = []
        self.alive = True
        self.report: Callable[[Event], None] = lambda _: None

    def start(self, report: Callable[[Event], None]) -> None:
        self.report = report

    def submit(self, job_id: str, request: ClipRequest, folder: Path) -> None:
        self.submitted[job_id] = (request, folder)

    def cancel(self, job_id: str) -> None:
        self.cancelled.append(job_id)

    def stop(self) -> None:
        pass

    def busy(self) -> int:
        return 1

    def healthy(self) -> bool:
        return self.alive

    def begin(self, job_id: str) -> None:
        self.report(Started(job_id))

    def step(self, job_id: str, step: int, preview: bytes | None = None) -> None:
        self.report(Progress(job_id, step, self.submitted[job_id][0].num_inference_steps, preview))

    def finish(self, job_id: str) -> None:
        folder = self.submitted[job_id][1]
        folder.mkdir()
        for variant, name in VARIANTS.items():
            (folder / name).write_bytes(variant.encode() * 10)
        self.report(Finished(job_id))

    def fail(self, job_id: str, message: str) -> None:
        self.report(Failed(job_id, message))

    def make(self, job_id: str) -> None:
        self.begin(job_id)
        self.finish(job_id)


@pytest.fixture
def engine() -> PretendedEngine:
    return PretendedEngine()


@pytest.fixture
def settings(tmp_path: Path) -> ServerSettings:
    return ServerSettings(folder=tmp_path / "jobs", allowed_hosts=frozenset({"localhost", "testserver"}))


Connect = Callable[..., Any]


@pytest.fixture
def connect(engine: PretendedEngine, settings: ServerSettings) -> Iterator[Connect]:
    """A client of a server in this process; settings can be changed."""
    from starlette.testclient import TestClient

    from latent_shift.server import create_app

    with contextlib.ExitStack() as stack:

        def open_client(**changes: Any) -> Any:
            app = create_app(engine, settings.model_copy(update=changes))
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield open_client


@pytest.fixture
def client(connect: Connect) -> Any:
    return connect()


class ServerProcess:
    """`latent-shift serve` as people start it, on a free port."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "latent_shift", "serve", "--port", "0", "--folder", str(folder), *options]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], 120)
        line = self.process.stdout.readline() if ready else ""
        assert line.startswith("http://"), f"the server did not start: {line!r}"
        self.url = line.split()[0]
        self.http = httpx.Client(base_url=self.url, timeout=30)

    def create(self, **fields: Any) -> dict[str, Any]:
        answer = self.http.post("/v1/videos", json={**JSON, **fields})
        assert answer.status_code == 200, answer.text
        video: dict[str, Any] = answer.json()
        return video

    def video(self, video_id: str) -> dict[str, Any]:
        video: dict[str, Any] = self.http.get(f"/v1/videos/{video_id}").json()
        return video

    def wait(self, video_id: str, wanted: Callable[[dict[str, Any]], bool], seconds: float = 100) -> dict[str, Any]:
        """Asks until the job is as wanted."""
        end = time.monotonic() + seconds
        while not wanted(video := self.video(video_id)):
            assert time.monotonic() < end, f"too slow: {video}"
            time.sleep(0.05)
        return video

    def kill(self) -> None:
        """As a power cut would end it."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """As Ctrl-C ends it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(60)
        finally:
            self.http.close()
            assert self.process.stdout is not None
            self.process.stdout.close()


Serve = Callable[..., ServerProcess]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts real servers on one folder, of a tiny model unless options say otherwise."""
    started: list[ServerProcess] = []

    def start(*options: str) -> ServerProcess:
        server = ServerProcess(tmp_path / "served", *(options or ("--preset", "tiny")))
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


def is_done(video: dict[str, Any]) -> bool:
    return video["status"] in ("completed", "failed")
