"""Schemathesis over the OpenAPI document: whatever it sends, no 5xx, and every answer is what the document says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
import schemathesis.specs.openapi.checks as openapi_checks
import uvicorn
from hypothesis import HealthCheck
from schemathesis.checks import not_a_server_error

from latent_shift.server import ServerSettings, create_app

from .conftest import JSON, PretendedEngine

CHECKS = [
    not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.response_headers_conformance,
]
OPERATIONS = [
    "POST /v1/videos",
    "GET /v1/videos",
    "GET /v1/videos/{video_id}",
    "DELETE /v1/videos/{video_id}",
    "GET /v1/videos/{video_id}/content",
    "GET /v1/videos/{video_id}/events",
    "GET /v1/models",
    "GET /v1/models/{model_id}",
    "GET /health",
    "GET /metrics",
]


@pytest.fixture
def live(tmp_path: Path) -> Iterator[tuple[str, PretendedEngine]]:
    """The address of a server in a thread, and its engine."""
    engine = PretendedEngine()
    app = create_app(engine, ServerSettings(folder=tmp_path, allowed_hosts=None, max_queue=3))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=[[listener]])
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", engine
        server.should_exit = True
        thread.join()


def fuzz(operation: Any, url: str, video_id: str) -> set[int]:
    """Sends what fits the document and what does not; the statuses that came back."""
    seen: set[int] = set()
    cases = operation.as_strategy() | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)

    @hypothesis.settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @hypothesis.given(case=cases, known=hypothesis.strategies.booleans())
    def send(case: Any, known: bool) -> None:
        if known and case.method == "GET" and "video_id" in case.path_parameters:
            case.path_parameters["video_id"] = video_id
        answer = case.call(base_url=url)
        seen.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    send()
    return seen


@pytest.mark.slow
def test_schemathesis(live: tuple[str, PretendedEngine]) -> None:
    url, engine = live
    video_id = httpx.post(f"{url}/v1/videos", json=JSON).json()["id"]
    engine.make(video_id)
    schema = schemathesis.openapi.from_dict(httpx.get(f"{url}/openapi.json").json())
    operations = [result.ok() for result in schema.get_all_operations()]
    seen = {operation.label: fuzz(operation, url, video_id) for operation in operations}
    assert sorted(seen) == sorted(OPERATIONS)
    assert seen["POST /v1/videos"] >= {200, 400, 429}
    assert seen["GET /v1/videos/{video_id}/content"] >= {200, 400, 404}
