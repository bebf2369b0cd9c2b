"""Covers `latent_shift.server.jobs`: a disk that is full for a while, and a server that serves another model."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from latent_shift.server import jobs as module
from latent_shift.server.store import Store

from .conftest import FACTS, JSON, Connect, PretendedEngine

Fill = Callable[[str], None]


@pytest.fixture
def fail_once(monkeypatch: pytest.MonkeyPatch) -> Fill:
    """Makes the next call of a method of the store fail, as it does on a full disk."""

    def fill(method: str) -> None:
        whole = getattr(Store, method)

        def fail(*_: Any, **__: Any) -> None:
            monkeypatch.setattr(Store, method, whole)
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(Store, method, fail)

    return fill


@pytest.fixture
def client(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "_HOUSEKEEPING_SECONDS", 0.02)
    monkeypatch.setattr(module, "_KEEP_ALIVE_SECONDS", 3)
    return connect()


def create(client: Any) -> str:
    video_id: str = client.post("/v1/videos", json=JSON).json()["id"]
    return video_id


def follow(client: Any, video_id: str, status: str) -> dict[str, Any]:
    """Reads the job's events until it has a status."""
    with client.stream("GET", f"/v1/videos/{video_id}/events") as stream:
        for line in stream.iter_lines():
            assert not line.startswith(":"), f"the job does not become {status}"
            if line.startswith("data: "):
                video: dict[str, Any] = json.loads(line[6:])
                if video["status"] == status:
                    return video
    raise AssertionError(f"the job ended without having been {status}")


@pytest.mark.parametrize("method", ["_change", "complete", "get", "expire"])
def test_an_end_that_cannot_be_stored_is_stored_later(
    method: str, client: Any, engine: PretendedEngine, fail_once: Fill, caplog: pytest.LogCaptureFixture
) -> None:
    video_id = create(client)
    engine.begin(video_id)
    engine.step(video_id, 1)
    fail_once(method)
    engine.finish(video_id)
    assert follow(client, video_id, "completed")["step"] == 4
    assert client.get(f"/v1/videos/{video_id}/content").content == b"video" * 10
    assert 'jobs_total{status="completed"} 1.0' in client.get("/metrics").text
    if method != "expire":  # of which the housekeeping itself may take the failure
        assert f"job {video_id}: the change Finished could not be stored yet" in caplog.text


def test_a_failure_that_cannot_be_stored_is_stored_later(client: Any, engine: PretendedEngine, fail_once: Fill) -> None:
    video_id = create(client)
    engine.begin(video_id)
    fail_once("fail")
    engine.fail(video_id, "for a reason")
    assert follow(client, video_id, "failed")["error"]["message"] == "for a reason"


def test_a_start_that_cannot_be_stored_is_stored_later(client: Any, engine: PretendedEngine, fail_once: Fill) -> None:
    video_id = create(client)
    fail_once("start")
    engine.begin(video_id)
    engine.step(video_id, 2)
    assert follow(client, video_id, "in_progress")["step"] == 2
    engine.finish(video_id)
    assert follow(client, video_id, "completed")["started_at"]
    assert engine.cancelled == []


def test_a_clip_is_kept_though_its_start_was_never_stored(
    connect: Connect, engine: PretendedEngine, fail_once: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_KEEP_ALIVE_SECONDS", 3)
    client = connect()
    video_id = create(client)
    fail_once("start")
    engine.make(video_id)
    assert follow(client, video_id, "completed")["started_at"] is None
    assert client.get(f"/v1/videos/{video_id}/content").status_code == 200


def test_a_start_that_is_stored_twice_cancels_nothing(client: Any, engine: PretendedEngine) -> None:
    video_id = create(client)
    engine.begin(video_id)
    engine.begin(video_id)
    assert engine.cancelled == []


def test_no_error_reaches_the_engines_thread(
    client: Any, engine: PretendedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    video_id = create(client)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "start", lambda *_: 1 / 0)
        engine.begin(video_id)
    follow(client, video_id, "in_progress")


def test_an_end_that_cannot_be_stored_is_stored_when_the_server_ends(
    engine: PretendedEngine, settings: Any, fail_once: Fill
) -> None:
    from starlette.testclient import TestClient

    from latent_shift.server import create_app

    with TestClient(create_app(engine, settings)) as client:
        video_id = create(client)
        engine.begin(video_id)
        fail_once("complete")
        engine.finish(video_id)
    later = PretendedEngine()
    with TestClient(create_app(later, settings)) as client:
        assert client.get(f"/v1/videos/{video_id}").json()["status"] == "completed"
    assert later.submitted == {}


def test_a_server_of_another_model_makes_no_job_of_the_first(engine: PretendedEngine, settings: Any) -> None:
    from starlette.testclient import TestClient

    from latent_shift.server import create_app

    with TestClient(create_app(engine, settings)) as client:
        done, running, waiting = (create(client) for _ in range(3))
        engine.make(done)
        engine.begin(running)
    later = PretendedEngine()
    later.facts = FACTS.model_copy(update={"name": "another"})
    with TestClient(create_app(later, settings)) as client:
        assert later.submitted == {}
        for video_id in (running, waiting):
            video = client.get(f"/v1/videos/{video_id}").json()
            assert video["error"]["code"] == "generation_failed"
            reason = "the server was started again with the model another instead of pretended"
            assert video["error"]["message"] == reason
        assert client.get(f"/v1/videos/{done}/content").status_code == 200
        assert 'jobs_total{status="failed"} 2.0' in client.get("/metrics").text
