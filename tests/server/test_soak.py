"""Covers `scripts/soak_server.py`: each promise that a server breaks is a line. `test_serve.py` has a real one."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Callable, Coroutine
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

CLIP = b"0000ftyp and so on"


@pytest.fixture(scope="module")
def soak() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts/soak_server.py"
    spec = importlib.util.spec_from_file_location("soak_server", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


Answer = Callable[[httpx.Request], httpx.Response]
Call = Callable[[Any], Coroutine[Any, Any, Any]]


def visit(soak: ModuleType, answer: Answer, call: Call, **seen: Any) -> Any:
    """What a visitor has seen after a call on a server that answers as it is told."""

    async def run() -> Any:
        def timed(request: httpx.Request) -> httpx.Response:
            answered = answer(request)
            answered.elapsed = timedelta(0)
            return answered

        async with httpx.AsyncClient(base_url="http://server", transport=httpx.MockTransport(timed)) as http:
            visitor = soak.Visitor(http, soak.Seen(**seen))
            await call(visitor)
            return visitor.seen

    return asyncio.run(run())


def video(video_id: str, status: str = "completed", code: str | None = None) -> dict[str, Any]:
    error = code and {"code": code, "message": "for a reason"}
    return {"id": video_id, "prompt": f"prompt of {video_id}", "status": status, "error": error}


def judge(soak: ModuleType, listed: list[dict[str, Any]], made: int = 1, **seen: Any) -> list[str]:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/metrics":
            return httpx.Response(200, text=f'latent_shift_jobs_total{{status="completed"}} {made}.0\n')
        return httpx.Response(200, content=CLIP)

    ids = {"prompts": {video_id: f"prompt of {video_id}" for video_id in ("a", "b")}}
    broken: list[str] = visit(soak, answer, lambda it: soak.judge_jobs(it, listed), **{**ids, **seen}).broken
    return broken


def test_a_good_server_breaks_no_promise(soak: ModuleType) -> None:
    good = [video("a"), video("b", "failed", "cancelled")]
    assert judge(soak, good, cancelled={"b"}) == []
    assert judge(soak, [video("a")], deleted={"b"}, made=2) == []


def test_each_broken_promise_of_the_jobs_is_a_line(soak: ModuleType) -> None:
    a, b = video("a"), video("b", "failed", "cancelled")
    assert judge(soak, [a]) == ["1 accepted jobs are lost, as b"]
    assert judge(soak, [a, b, {**b, "id": "c"}]) == [
        "1 jobs are there twice",
        "1 jobs are there that no client was told of",
    ]
    assert judge(soak, [a, a, b], made=2) == ["2 jobs are there twice"]
    assert judge(soak, [a, video("b", "in_progress")]) == ["1 jobs did not end, as ['b']"]
    assert judge(soak, [a, video("b", "failed", "generation_failed")]) == ["1 jobs failed, as with: ['for a reason']"]
    assert judge(soak, [a, video("b")], made=2, cancelled={"b"}) == ["1 jobs were cancelled and are not, as ['b']"]
    assert judge(soak, [b, {**b, "id": "a", "prompt": "other"}], made=0) == ["no job was completed"]
    assert judge(soak, [a, b], results={"a": "of other bytes"}) == ["the clip of a has changed"]
    assert judge(soak, [a, b], made=2) == ["2 clips were made for 1 jobs"]
    assert judge(soak, [a, b], made=1, ended_before_kill=1) == ["1 clips were made for 0 jobs"]


def test_each_wrong_answer_is_a_line(soak: ModuleType) -> None:
    def ask(status: int, headers: dict[str, str] | None = None) -> list[str]:
        def create(visitor: Any) -> Any:
            return visitor.create("a heart")

        seen = visit(soak, lambda _: httpx.Response(status, headers=headers, json={"id": "a"}), create)
        broken: list[str] = seen.broken
        return broken

    assert ask(200) == []
    assert ask(500) == ['POST /v1/videos was answered 500: {"id":"a"}']
    assert ask(429, {"Retry-After": "3"}) == []
    assert ask(429, {"Retry-After": "soon"}) == ["429 came with Retry-After 'soon'"]


def test_a_job_whose_answer_was_cut_off_is_not_made_again(soak: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    posts: list[int] = []
    sleep = asyncio.sleep
    monkeypatch.setattr(soak.asyncio, "sleep", lambda _: sleep(0))

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            posts.append(1)
            raise httpx.ReadError("cut off")
        assert dict(request.url.params) == {"search": "a heart"}
        return httpx.Response(200, json={"data": [video("a")]})

    seen = visit(soak, answer, lambda it: it.create("a heart"))
    assert (seen.prompts, seen.cut_off, len(posts)) == ({"a": "a heart"}, 1, 1)


def test_a_cancel_that_takes_more_than_a_step_is_a_line(soak: ModuleType) -> None:
    def lines(**seen: Any) -> list[str]:
        judged = soak.Seen(**seen)
        soak.judge_times(judged)
        broken: list[str] = judged.broken
        return broken

    assert lines(step_s=[0.5], free_s=[0.6]) == []
    assert lines(step_s=[0.5], free_s=[0.6, 2.0]) == [
        "a device was free 2.000 s after its job was cancelled; a step and two requests take 0.650 s"
    ]
    assert lines() == ["no cancel of a running job could be measured"]


def test_memory_grows_from_the_end_of_the_warm_up(soak: ModuleType) -> None:
    assert soak.growth([1.0] * 20 + [100.0] * 40) == 0
    assert soak.growth([1.0] * 20 + [100.0] * 20 + [103.0] * 20) == pytest.approx(3)
    assert soak.growth([1.0]) == 0
