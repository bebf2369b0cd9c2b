"""Covers `latent_shift.server.api` and `guard`: every route, its errors and limits, with an engine that pretends."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from httpx import Response

from latent_shift.server.jobs import Jobs

from .conftest import FACTS, JSON, Connect, PretendedEngine

KEYS = {"api_keys": frozenset({"first-key", "second-key"})}
FIRST, SECOND = {"Authorization": "Bearer first-key"}, {"Authorization": "Bearer second-key"}


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One server for all the tests that it refuses something, and that so leave nothing behind."""
    from starlette.testclient import TestClient

    from latent_shift.server import ServerSettings, create_app

    settings = ServerSettings(folder=tmp_path_factory.mktemp("jobs"), allowed_hosts=None)
    with TestClient(create_app(PretendedEngine(), settings), raise_server_exceptions=False) as client:
        yield client


def create(client: Any, headers: dict[str, str] | None = None, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/videos", json={**JSON, **fields}, headers=headers)
    assert answer.status_code == 200, answer.text
    video: dict[str, Any] = answer.json()
    return video


def error(answer: Response, status: int) -> dict[str, Any]:
    """The error of an answer; all have one shape."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert 0 < len(body["error"]["message"]) <= 503
    detail: dict[str, Any] = body["error"]
    return detail


def get(client: Any, video: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = client.get(f"/v1/videos/{video['id']}").json()
    return found


def test_the_life_of_a_job(client: Any, engine: PretendedEngine) -> None:
    video = create(client, size="64x96", seconds="0.5", negative_prompt="blue", fps=4, guidance_scale=2, loop=True)
    assert video == {
        "id": video["id"],
        "object": "video",
        "model": "pretended",
        "status": "queued",
        "progress": 0,
        "created_at": video["created_at"],
        "started_at": None,
        "completed_at": None,
        "expires_at": None,
        "error": None,
        "prompt": "a red heart",
        "remixed_from_video_id": None,
        "seconds": "0.5",
        "size": "64x96",
        "queue_position": 0,
        "step": 0,
        "negative_prompt": "blue",
        "seed": 1,
        "frames": 2,
        "fps": 4.0,
        "steps": 4,
        "guidance_scale": 2.0,
        "scheduler": "dpm++",
        "loop": True,
    }
    asked = engine.submitted[video["id"]][0]
    assert (asked.width, asked.height, asked.num_frames, asked.num_inference_steps) == (64, 96, 2, 4)
    assert create(client)["queue_position"] == 1

    engine.begin(video["id"])
    engine.step(video["id"], 1)
    engine.step(video["id"], 3)
    now = get(client, video)
    assert (now["status"], now["progress"], now["step"], now["queue_position"]) == ("in_progress", 75, 3, None)
    error(client.get(f"/v1/videos/{video['id']}/content"), 404)

    engine.finish(video["id"])
    now = get(client, video)
    assert (now["status"], now["progress"], now["step"]) == ("completed", 100, 4)
    assert now["created_at"] <= now["started_at"] <= now["completed_at"]
    assert now["expires_at"] - now["completed_at"] == 30 * 86400


@pytest.mark.parametrize(
    ("variant", "kind", "ending"),
    [
        ("video", "video/mp4", "mp4"),
        ("webp", "image/webp", "webp"),
        ("gif", "image/gif", "gif"),
        ("thumbnail", "image/png", "png"),
        ("spritesheet", "image/jpeg", "jpg"),
    ],
)
def test_content(client: Any, engine: PretendedEngine, variant: str, kind: str, ending: str) -> None:
    video = create(client, prompt='../../etc/passwd\n"; \U0001f600 Ä')
    engine.make(video["id"])
    answer = client.get(f"/v1/videos/{video['id']}/content", params={"variant": variant})
    assert answer.status_code == 200
    assert answer.content == variant.encode() * 10
    assert answer.headers["content-type"] == kind
    assert answer.headers["content-disposition"] == f'inline; filename="etc-passwd-1.{ending}"'
    part = client.get(answer.url, headers={"Range": "bytes=2-3"})
    assert (part.status_code, part.content) == (206, (variant * 10).encode()[2:4])
    head = client.head(answer.url)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(answer.content)))


@pytest.mark.parametrize(
    ("given", "status", "start", "end"),
    [
        ("bytes=0-", 206, 0, 50),
        ("bytes=-3", 206, 47, 50),
        ("bytes=40-999", 206, 40, 50),
        ("bytes=-999", 206, 0, 50),
        ("bytes=50-", 416, 0, 0),
        ("bytes=60-70", 416, 0, 0),
        ("bytes=5-2", 400, 0, 0),
        ("bytes=a-b", 400, 0, 0),
        ("bytes", 400, 0, 0),
        ("frames=1-2", 400, 0, 0),
        ("\xff", 400, 0, 0),
    ],
)
def test_parts_of_content(client: Any, engine: PretendedEngine, given: str, status: int, start: int, end: int) -> None:
    video = create(client)
    engine.make(video["id"])
    headers = {"Range": given.encode("latin-1")}
    answer = client.get(f"/v1/videos/{video['id']}/content", headers=headers)
    if status == 206:
        assert (answer.status_code, answer.content) == (206, (b"video" * 10)[start:end])
        assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/50"
        return
    message = {400: "Range must be bytes=FIRST-LAST", 416: "Range must lie within the file"}
    assert error(answer, status)["message"] == message[status]
    assert answer.headers.get("content-range") == (None if status == 400 else "bytes */50")


def test_several_parts_of_content(client: Any, engine: PretendedEngine) -> None:
    video = create(client)
    engine.make(video["id"])
    answer = client.get(f"/v1/videos/{video['id']}/content", headers={"Range": "bytes=0-4,10-14"})
    assert answer.status_code == 206
    assert answer.content.count(b"video") == 4  # twice the words video/mp4
    assert answer.headers["content-type"].startswith("multipart/byteranges")


@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-3"}, {"Range": "bytes=0-3,8-9"}])
def test_a_clip_that_is_deleted_while_it_is_asked_for(
    headers: dict[str, str], client: Any, engine: PretendedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import anyio

    video = create(client)
    engine.make(video["id"])
    open_file = anyio.open_file

    async def too_late(path: Path, mode: Any) -> Any:
        path.unlink()
        return await open_file(path, mode)

    monkeypatch.setattr(anyio, "open_file", too_late)
    detail = error(client.get(f"/v1/videos/{video['id']}/content", headers=headers), 404)
    assert detail["message"] == "this video has no content: it is not completed"


def test_heads_are_answered(client: Any) -> None:
    for path in ("/", "/docs", "/health", "/static/app.js"):
        answer = client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-length"] == str(len(client.get(path).content))
    assert client.head("/v1/videos/none/content").status_code == 404
    assert 'http_requests_total{method="HEAD",route="/health",status="200"} 1.0' in client.get("/metrics").text


def test_defaults_are_the_models_and_the_seed_is_drawn(client: Any) -> None:
    drawn = {client.post("/v1/videos", json={"prompt": "x"}).json()["seed"] for _ in range(5)}
    assert len(drawn) == 5
    video = client.post("/v1/videos", json={"prompt": "x", "scheduler": "ddim"}).json()
    assert (video["frames"], video["size"], video["steps"], video["seconds"]) == (16, "128x128", 50, "2")
    assert (video["fps"], video["guidance_scale"], video["loop"]) == (8.0, 4.0, False)


def test_a_form_is_as_good_as_json(client: Any) -> None:
    fields = {"prompt": "é", "seconds": "4", "size": "64x64", "seed": "7", "loop": "true", "guidance_scale": "1.5"}
    video = client.post("/v1/videos", files={name: (None, value) for name, value in fields.items()}).json()
    assert (video["prompt"], video["frames"], video["size"]) == ("é", 32, "64x64")
    assert (video["seed"], video["loop"], video["guidance_scale"]) == (7, True, 1.5)


def test_pages(client: Any) -> None:
    ids = [create(client, prompt=f"number {number}")["id"] for number in range(5)]
    first = client.get("/v1/videos", params={"limit": 2}).json()
    assert [video["id"] for video in first["data"]] == ids[:2:-1]
    assert (first["object"], first["first_id"], first["last_id"], first["has_more"]) == ("list", ids[4], ids[3], True)
    rest = client.get("/v1/videos", params={"limit": 3, "after": first["last_id"]}).json()
    assert [video["id"] for video in rest["data"]] == ids[2::-1]
    assert not rest["has_more"]
    oldest = client.get("/v1/videos", params={"order": "asc", "limit": 1}).json()
    assert oldest["data"][0]["id"] == ids[0]
    found = client.get("/v1/videos", params={"search": "NUMBER 3"}).json()
    assert [video["id"] for video in found["data"]] == [ids[3]]
    nothing = client.get("/v1/videos", params={"search": "no such"}).json()
    assert nothing == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "NaN"}, "limit"),
        ({"limit": "9" * 400}, "limit"),
        ({"order": "up"}, "order"),
        ({"after": "video_0"}, "after"),
        ({"after": "\x00"}, "after"),
        ({"search": "x" * 201}, "search"),
    ],
)
def test_wrong_queries(refusing: Any, query: dict[str, str], param: str) -> None:
    assert error(refusing.get("/v1/videos", params=query), 400)["param"] == param


def test_delete_cancels_and_then_removes(client: Any, engine: PretendedEngine) -> None:
    waiting, running, done = (create(client) for _ in range(3))
    engine.begin(running["id"])
    engine.make(done["id"])
    for video in (waiting, running):
        answer = client.delete(f"/v1/videos/{video['id']}").json()
        assert answer == {"id": video["id"], "object": "video.deleted", "deleted": False}
        now = get(client, video)
        assert (now["status"], now["error"]["code"]) == ("failed", "cancelled")
    assert engine.cancelled == [waiting["id"], running["id"]]
    engine.begin(waiting["id"])  # the engine took it before it heard: it is told again
    assert engine.cancelled[2:] == [waiting["id"]]
    engine.finish(running["id"])  # too late
    assert get(client, running)["status"] == "failed"
    assert not engine.submitted[running["id"]][1].exists()
    assert engine.submitted[done["id"]][1].exists()
    for video in (waiting, running, done):
        assert client.delete(f"/v1/videos/{video['id']}").json()["deleted"]
        assert error(client.get(f"/v1/videos/{video['id']}"), 404)["code"] == "not_found"
        error(client.delete(f"/v1/videos/{video['id']}"), 404)
    assert not engine.submitted[done["id"]][1].exists()


def test_a_failure_says_why(client: Any, engine: PretendedEngine) -> None:
    video = create(client)
    engine.begin(video["id"])
    engine.fail(video["id"], "the clip could not be made (ValueError)")
    now = get(client, video)
    assert now["status"] == "failed"
    assert now["error"] == {"code": "generation_failed", "message": "the clip could not be made (ValueError)"}


def test_events_show_every_state_to_the_end(client: Any, engine: PretendedEngine) -> None:
    video = create(client)
    engine.make(video["id"])
    with client.stream("GET", f"/v1/videos/{video['id']}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        (event,) = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
    assert event["status"] == "completed"
    error(client.get("/v1/videos/none/events"), 404)


async def watch(engine: PretendedEngine, jobs: Jobs, job_id: str) -> list[tuple[str, int, bytes | None]]:
    seen = []
    async for now in jobs.watch(job_id, ""):
        assert now is not None
        seen.append((now.job.status, now.step, now.preview))
        what: list[Any] = [
            lambda: engine.begin(job_id),
            lambda: engine.step(job_id, 1, b"one"),
            lambda: engine.step(job_id, 2),
            lambda: engine.finish(job_id),
        ]
        if len(seen) <= len(what):
            what[len(seen) - 1]()
    return seen


def test_a_watcher_is_woken_at_each_change(engine: PretendedEngine, tmp_path: Path, settings: Any) -> None:
    import asyncio

    from latent_shift.server.metrics import Metrics
    from latent_shift.server.schemas import VideoRequest, resolve_request
    from latent_shift.server.store import Store

    async def live() -> list[tuple[str, int, bytes | None]]:
        jobs = Jobs(Store(tmp_path), engine, settings, Metrics())
        async with jobs.running():
            accepted = jobs.submit("", resolve_request(VideoRequest(prompt="x"), engine.facts, settings), limited=False)
            return await asyncio.wait_for(watch(engine, jobs, accepted.job.id), 10)

    assert asyncio.run(live()) == [
        ("queued", 0, None),
        ("running", 0, None),
        ("running", 1, b"one"),
        ("running", 2, b"one"),
        ("completed", 0, None),
    ]


def test_a_watcher_of_a_queued_job_sees_its_place(engine: PretendedEngine, tmp_path: Path, settings: Any) -> None:
    import asyncio

    from latent_shift.server.metrics import Metrics
    from latent_shift.server.schemas import VideoRequest, resolve_request
    from latent_shift.server.store import Store

    async def live() -> list[int | None]:
        jobs = Jobs(Store(tmp_path), engine, settings, Metrics())
        async with jobs.running(), asyncio.timeout(10):
            request = resolve_request(VideoRequest(prompt="x"), engine.facts, settings)
            first, second, third = (jobs.submit("", request, limited=False).job for _ in range(3))
            what = [lambda: jobs.remove(first), lambda: engine.begin(second.id), jobs.end_streams]
            places = []
            async for now in jobs.watch(third.id, ""):
                assert now is not None
                places.append(now.position)
                what[len(places) - 1]()
            return places

    assert asyncio.run(live()) == [2, 1, 0]


def test_models(client: Any) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"], model["frames"], model["steps"]) == ("pretended", "model", 16, 15)
    assert (model["max_side"], model["max_steps"], model["max_frames"]) == (256, 100, 96)
    assert client.get("/v1/models/pretended").json() == model
    for scheduler, steps in model["schedulers"].items():
        assert client.post("/v1/videos", json={"prompt": "x", "scheduler": scheduler}).json()["steps"] == steps
    error(client.get("/v1/models/sora-2"), 404)


def test_health_and_metrics(client: Any, engine: PretendedEngine) -> None:
    video = create(client)
    create(client)
    engine.make(video["id"])
    assert client.get("/health").json() == {"status": "ok", "version": "0.1.0", "queued": 1, "running": 0, "busy": 1}
    text = client.get("/metrics").text
    assert 'latent_shift_jobs_total{status="completed"} 1.0' in text
    assert "latent_shift_jobs_queued 1.0" in text
    assert 'latent_shift_http_requests_total{method="POST",route="/v1/videos",status="200"} 2.0' in text
    assert "latent_shift_clip_seconds_count 1.0" in text
    engine.alive = False
    answer = client.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "failing")


def test_labels_of_metrics_come_from_no_client(client: Any) -> None:
    for name in ("a", "b"):
        client.get(f"/{name}")
        client.request(name.upper(), f"/v1/videos/{name}")
    routes = set(re.findall(r'route="([^"]*)"', client.get("/metrics").text))
    assert routes == {"other", "/v1/videos/{video_id}"}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt"),
    ({"prompt": " \n"}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": ["a"]}, "prompt"),
    ({"prompt": "a\x00b"}, "prompt"),
    ({"prompt": "\x1b[31m"}, "prompt"),
    ({"prompt": "x" * 1001}, "prompt"),
    ({"negative_prompt": "x" * 1001}, "negative_prompt"),
    ({"negative_prompt": "blue", "guidance_scale": 1}, "negative_prompt"),
    ({"model": "sora-2"}, "model"),
    ({"model": "../../secrets"}, "model"),
    ({"steps": 0}, "steps"),
    ({"steps": -1}, "steps"),
    ({"steps": 101}, "steps"),
    ({"steps": 10**400}, "steps"),
    ({"steps": "4"}, "steps"),
    ({"steps": 1.5}, "steps"),
    ({"steps": True}, "steps"),
    ({"frames": 0}, "frames"),
    ({"frames": 97}, "frames"),
    ({"frames": 4, "seconds": "1"}, "frames"),
    ({"seconds": "13"}, "seconds"),
    ({"seconds": "0"}, "seconds"),
    ({"seconds": "NaN"}, "seconds"),
    ({"seconds": "1e3"}, "seconds"),
    ({"seconds": -1}, "seconds"),
    ({"seconds": {}}, "seconds"),
    ({"size": "64"}, "size"),
    ({"size": "0x0"}, "size"),
    ({"size": "100x100"}, "size"),
    ({"size": "288x64"}, "size"),
    ({"size": "99999x99999"}, "size"),
    ({"size": "٦٤x٦٤"}, "size"),
    ({"size": "64x64/../x"}, "size"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**53}, "seed"),
    ({"seed": 1e300}, "seed"),
    ({"fps": 0}, "fps"),
    ({"fps": 51}, "fps"),
    ({"guidance_scale": 101}, "guidance_scale"),
    ({"guidance_scale": "high"}, "guidance_scale"),
    ({"scheduler": "../x"}, "scheduler"),
    ({"scheduler": ""}, "scheduler"),
    ({"loop": "yes"}, "loop"),
    ({"input_reference": {"image_url": "http://127.0.0.1/"}}, "input_reference"),
]


@pytest.mark.parametrize(("fields", "param"), WRONG)
def test_a_wrong_field_is_named(refusing: Any, fields: dict[str, Any], param: str) -> None:
    detail = error(refusing.post("/v1/videos", json={**JSON, **fields}), 400)
    assert (detail["param"], detail["type"]) == (param, "invalid_request_error")
    assert refusing.get("/v1/videos").json()["data"] == []


def test_messages(client: Any) -> None:
    def message(**fields: Any) -> str:
        text: str = error(client.post("/v1/videos", json={**JSON, **fields}), 400)["message"]
        return text

    assert message(promt="x") == "key must be a known key; did you mean 'prompt'?, got 'promt'"
    assert message(size="100x96") == "size must be a positive multiple of 32, got 100"
    assert message(size="64x512") == "size must be at most 256 pixels a side, got 512"
    assert message(seconds="20") == "seconds must be at most 96 frames, got 160"
    assert message(model="sora-2") == "model must be pretended, the model of this server, got 'sora-2'"
    offered = "dpm++, unipc, ddim, euler, ddim-trailing, ddpm"
    assert message(scheduler="heun") == f"scheduler must be one of {offered}, got 'heun'"
    assert message(prompt="a\x07") == r"prompt must hold no control characters, got '\x07'"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"prompt"',
        b'{"prompt": NaN}',
        b'{"prompt": "a", "guidance_scale": NaN}',
        b'{"prompt": "a", "guidance_scale": Infinity}',
        b'{"prompt": "a", "guidance_scale": 1e999}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\xff\xfe"}',
        b"[" * 60_000,
        b'{"prompt": ' * 5_000,
        b'{"steps": 1' + b"0" * 5_000 + b', "prompt": "a"}',
    ],
)
def test_malformed_json(refusing: Any, body: bytes) -> None:
    error(refusing.post("/v1/videos", content=body, headers={"Content-Type": "application/json"}), 400)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"Content-Type": "multipart/form-data"}, b"x"),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b"x"),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b'--b\r\nContent-Disposition: form-data; name="prompt"'),
        (
            {"Content-Type": "multipart/form-data; boundary=b"},
            b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--",
        ),
        ({"Content-Type": "multipart/form-data; boundary=b"}, b""),
    ],
)
def test_malformed_forms(refusing: Any, headers: dict[str, str], body: bytes) -> None:
    error(refusing.post("/v1/videos", content=body, headers=headers), 400)


def test_files_repeated_fields_and_other_kinds_of_body_are_refused(client: Any) -> None:
    reference = {"prompt": (None, "a"), "input_reference": ("../../x.png", b"\x89PNG", "image/png")}
    assert error(client.post("/v1/videos", files=reference), 400)["param"] == "input_reference"
    twice = [("prompt", (None, "a")), ("prompt", (None, "b"))]
    assert error(client.post("/v1/videos", files=twice), 400)["param"] == "prompt"
    many = [(f"field{number}", (None, "a")) for number in range(60)]
    error(client.post("/v1/videos", files=many), 400)
    error(client.post("/v1/videos", data={"prompt": "a"}), 415)
    error(client.post("/v1/videos", content=b"prompt: a", headers={"Content-Type": "text/yaml"}), 415)


def test_a_large_body_is_refused_whatever_it_says_of_itself(client: Any) -> None:
    large = b'{"prompt": "' + b"a" * 70_000 + b'"}'
    kind = {"Content-Type": "application/json"}
    assert error(client.post("/v1/videos", content=large, headers=kind), 413)["code"] == "body_too_large"
    chunks = (large[start : start + 1000] for start in range(0, len(large), 1000))
    error(client.post("/v1/videos", content=chunks, headers=kind), 413)
    error(client.post("/v1/videos", content=b"{}", headers={**kind, "Content-Length": "-5"}), 400)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/videos/..%2f..%2fetc%2fpasswd",
        "/v1/videos/%2e%2e",
        "/v1/videos/%00/content",
        "/v1/videos/%ff%fe/content",
        "/v1/videos/" + "a" * 5000,
        "/v1/videos/..%2fjobs.sqlite/content",
        "/static/..%2f..%2fapi.py",
        "/static/%2e%2e/api.py",
        "/static/",
        "/static/%00",
        "/nothing",
        "/v1/models/..%2f..%2f",
    ],
)
def test_paths_that_try_tricks(refusing: Any, path: str) -> None:
    error(refusing.get(path), 404)


def test_other_methods(client: Any) -> None:
    error(client.put("/v1/videos"), 405)
    error(client.post("/health"), 405)


def test_a_full_queue_says_when_to_come_back(connect: Connect, engine: PretendedEngine) -> None:
    client = connect(max_queue=2)
    first = create(client)
    create(client)
    answer = client.post("/v1/videos", json=JSON)
    detail = error(answer, 429)
    assert (detail["message"], detail["type"]) == ("the queue is full (2 jobs wait)", "rate_limit_error")
    assert 1 <= int(answer.headers["Retry-After"]) <= 600
    engine.begin(first["id"])
    create(client)


def test_keys_open_the_door_and_share_nothing(connect: Connect, engine: PretendedEngine, settings: Any) -> None:
    client = connect(**KEYS)
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic first-key"}):
        for path in ("/v1/videos", "/v1/models", "/metrics", "/v1/videos/x", "/v1/videos/x/content"):
            answer = client.get(path, headers=headers)
            detail = error(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert (detail["type"], detail["code"]) == ("authentication_error", "invalid_api_key")
        error(client.post("/v1/videos", json=JSON, headers=headers), 401)
    video = create(client, FIRST)
    engine.make(video["id"])
    path = f"/v1/videos/{video['id']}"
    assert client.get(path, headers=FIRST).status_code == 200
    for end in ("", "/content", "/events"):
        error(client.get(f"{path}{end}", headers=SECOND), 404)
    error(client.delete(path, headers=SECOND), 404)
    error(client.get("/v1/videos", params={"after": video["id"]}, headers=SECOND), 400)
    assert client.get("/v1/videos", headers=SECOND).json()["data"] == []
    assert client.get("/").status_code == client.get("/health").status_code == 200
    assert b"first-key" not in b"".join(file.read_bytes() for file in settings.folder.glob("jobs.sqlite*"))


def test_limits_of_a_key(connect: Connect, engine: PretendedEngine) -> None:
    client = connect(**KEYS, max_jobs_per_key=2, max_requests_per_minute=3)
    jobs = [create(client, FIRST) for _ in range(2)]
    answer = client.post("/v1/videos", json=JSON, headers=FIRST)
    assert error(answer, 429)["message"] == "this API key has 2 unfinished jobs, its limit"
    engine.make(jobs[0]["id"])
    create(client, FIRST)  # the refused one does not count
    answer = client.post("/v1/videos", json=JSON, headers=FIRST)
    assert error(answer, 429)["message"] == "this API key created 3 jobs in a minute, its limit"
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    create(client, SECOND)


def test_pages_of_other_sites_are_kept_out(client: Any) -> None:
    for origin in ("https://evil.example", "null", "http://testserver.evil.example", "http://["):
        answer = client.post("/v1/videos", json=JSON, headers={"Origin": origin})
        assert error(answer, 403)["code"] == "origin_not_allowed"
        assert "access-control-allow-origin" not in client.get("/v1/models", headers={"Origin": origin}).headers
    assert client.post("/v1/videos", json=JSON, headers={"Origin": "http://testserver"}).status_code == 200


def test_names_of_other_hosts_are_not_answered(client: Any, connect: Connect) -> None:
    for host in ("evil.example", "testserver.evil.example", "", "[", "evil.example:80@localhost"):
        assert error(client.get("/v1/models", headers={"Host": host}), 403)["code"] == "host_not_allowed"
    for host in ("localhost", "LOCALHOST:8000", "testserver."):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200


def test_origins_can_be_allowed(connect: Connect) -> None:
    client = connect(allowed_origins=("https://site.example",))
    origin = {"Origin": "https://site.example"}
    answer = client.post("/v1/videos", json=JSON, headers=origin)
    assert answer.headers["access-control-allow-origin"] == "https://site.example"
    wanted = "authorization, content-type, x-stainless-lang, x-stainless-poll-helper"
    asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": wanted}
    preflight = client.options("/v1/videos", headers=asked)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-headers"] == wanted
    shown = client.get(f"/v1/videos/{answer.json()['id']}", headers=origin).headers
    assert "openai-poll-after-ms" in shown
    assert shown["access-control-expose-headers"] == "Retry-After, openai-poll-after-ms"
    error(client.post("/v1/videos", json=JSON, headers={"Origin": "https://other.example"}), 403)


def test_answers_carry_a_strict_policy_and_no_foreign_asset(client: Any) -> None:
    for path in ("/", "/docs", "/static/app.js", "/v1/models", "/nothing"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-cache"  # else old files of the page would meet a newer server
    page = Path(str(__import__("latent_shift").__file__)).parent / "server/page"
    for file in page.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.[a-z]", text), f"{file.name} names another host"
        assert not re.search(r"<script(?![^>]*src=)|\sstyle=|\son\w+=", text), f"{file.name} has inline code"


def test_a_bug_is_answered_in_the_same_shape(client: Any, engine: PretendedEngine, monkeypatch: Any) -> None:
    monkeypatch.setattr(Jobs, "page", lambda *_, **__: 1 / 0)
    detail = error(client.get("/v1/videos"), 500)
    assert (detail["type"], "ZeroDivision" in detail["message"]) == ("server_error", False)
    assert 'route="/v1/videos",status="500"' in client.get("/metrics").text


def test_what_waited_is_given_to_the_next_server(connect: Connect, engine: PretendedEngine, settings: Any) -> None:
    from starlette.testclient import TestClient

    from latent_shift.server import create_app

    with TestClient(create_app(engine, settings)) as client:
        running, waiting = create(client), create(client)
        engine.begin(running["id"])
    later = PretendedEngine()
    with TestClient(create_app(later, settings)) as client:
        assert list(later.submitted) == [running["id"], waiting["id"]]
        assert later.submitted[running["id"]] == engine.submitted[running["id"]]
        later.make(running["id"])
        assert get(client, running)["status"] == "completed"


def test_the_openapi_document_is_whole(client: Any) -> None:
    document = client.get("/openapi.json").json()
    assert "422" not in json.dumps(document["paths"])
    body = document["paths"]["/v1/videos"]["post"]["requestBody"]["content"]
    assert body.keys() == {"application/json", "multipart/form-data"}
    for reference in set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))):
        assert reference in document["components"]["schemas"]
    assert document["components"]["schemas"]["VideoRequest"]["properties"]["prompt"]["description"]


def test_all_steps_done_is_not_yet_completed(client: Any, engine: PretendedEngine) -> None:
    video = create(client)
    engine.begin(video["id"])
    engine.step(video["id"], 4)
    now = get(client, video)
    assert (now["status"], now["progress"], now["step"]) == ("in_progress", 99, 4)


def test_a_model_of_few_steps_is_asked_for_no_more(connect: Connect, engine: PretendedEngine) -> None:
    engine.facts = FACTS.model_copy(update={"max_steps": 8})
    client = connect()
    assert client.get("/v1/models").json()["data"][0]["max_steps"] == 8
    assert error(client.post("/v1/videos", json={**JSON, "steps": 9}), 400)["param"] == "steps"
