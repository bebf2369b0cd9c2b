"""`latent-shift serve` in a process of its own: the official client, kills, ends, limits of the command line."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from openai import NotFoundError, OpenAI

from latent_shift.media import read_video

from .conftest import Serve, is_done


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_the_official_client_with_the_default_model(serve: Serve, tmp_path: Path) -> None:
    server = serve("--model", "emoji")
    client = OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()] == ["emoji"]
    odd: Any = {"seconds": "0.5", "size": "64x96"}  # neither is in the client's lists
    video = client.videos.create(prompt="a red heart", model="emoji", extra_body={"steps": 3, "seed": 5}, **odd)
    assert (video.status, video.seconds, video.size) == ("queued", "0.5", "64x96")
    video = client.videos.poll(video.id)
    assert (video.status, video.progress, video.error) == ("completed", 100, None)
    other = client.videos.create_and_poll(prompt="wave", extra_body={"steps": 1, "frames": 1})
    kinds = {"video": "mp4", "webp": "webp", "gif": "gif", "thumbnail": "png", "spritesheet": "jpg"}
    for variant, kind in kinds.items():
        path = tmp_path / f"clip.{kind}"
        client.videos.download_content(video.id, variant=variant).write_to_file(path)  # type: ignore[arg-type]
        clip = read_video(path)
        assert clip.metadata["prompt"] == "a red heart"
        assert (len(clip.frames), clip.frames.shape[2]) == (4, 64) if kind in ("mp4", "webp", "gif") else True
    assert [item.id for item in client.videos.list(limit=1)] == [other.id, video.id]  # it fetches every page
    assert client.videos.delete(video.id).deleted
    with pytest.raises(NotFoundError, match="there is no video of this id"):
        client.videos.retrieve(video.id)
    assert [item.id for item in client.videos.list(order="asc")] == [other.id]

    long: Any = {"steps": 100, "frames": 64}
    video = client.videos.create(prompt="a red heart", extra_body=long)
    server.wait(video.id, lambda video: video["step"] > 0)
    assert not client.videos.delete(video.id).deleted
    video = client.videos.poll(video.id)
    assert video.error is not None
    assert (video.status, video.error.code) == ("failed", "cancelled")
    assert client.videos.delete(video.id).deleted

    left = client.videos.create(prompt="a red heart", extra_body=long)
    client.close()
    assert server.stop() == 130
    server = serve("--preset", "tiny")
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        video = client.videos.poll(left.id)
    assert video.error is not None
    assert (video.status, video.error.code) == ("failed", "generation_failed")
    assert video.error.message == "the server was started again with the model tiny instead of emoji"


@pytest.mark.slow
def test_a_kill_loses_no_job_and_makes_none_twice(serve: Serve, tmp_path: Path) -> None:
    server = serve("--preset", "tiny", "--max-batch", "1")
    first = server.create(steps=1)
    server.wait(first["id"], is_done)
    jobs = [server.create(steps=30, seed=seed) for seed in range(2)] + [server.create(steps=2, seed=9)]
    cancelled = server.create()
    server.http.delete(f"/v1/videos/{cancelled['id']}")
    server.wait(jobs[0]["id"], lambda video: video["step"] > 1)
    content = server.http.get(f"/v1/videos/{first['id']}/content").content
    server.kill()

    server = serve("--preset", "tiny", "--max-batch", "1")
    for job in jobs:
        assert server.wait(job["id"], is_done)["status"] == "completed"
    assert server.video(cancelled["id"])["error"]["code"] == "cancelled"
    assert server.http.get(f"/v1/videos/{first['id']}/content").content == content
    listed = server.http.get("/v1/videos", params={"order": "asc"}).json()["data"]
    assert [video["id"] for video in listed] == [video["id"] for video in (first, *jobs, cancelled)]
    assert 'jobs_total{status="completed"} 3.0' in server.http.get("/metrics").text
    assert server.stop() == 130
    with sqlite3.connect(tmp_path / "served/jobs.sqlite") as database:
        rows = database.execute("SELECT status, crashes FROM jobs ORDER BY number").fetchall()
    database.close()
    assert rows == [("completed", 0), ("completed", 1), ("completed", 0), ("completed", 0), ("cancelled", 0)]
    results = {path.name for path in (tmp_path / "served/results").iterdir()}
    assert results == {video["id"] for video in (first, *jobs)}


@pytest.mark.slow
def test_an_end_in_order_with_a_job_running_and_somebody_watching(
    serve: Serve, capfd: pytest.CaptureFixture[str]
) -> None:
    server = serve()
    job = server.create(steps=30)
    long = server.create(steps=100, frames=16, size="128x128")  # more than the seconds that a stop waits for streams
    server.wait(job["id"], lambda video: video["step"] > 0)
    with server.http.stream("GET", f"/v1/videos/{long['id']}/events") as stream:
        lines = stream.iter_lines()  # while it is kept the stream is open
        next(lines)
        assert server.stop() == 130
    assert capfd.readouterr().err == "latent-shift: error: stopped\n"
    server = serve()
    assert server.wait(job["id"], is_done)["status"] == "completed"
    assert server.http.delete(f"/v1/videos/{long['id']}").json()["deleted"] is False


@pytest.mark.slow
def test_the_soak_with_few_clients_and_a_kill() -> None:
    script = Path(__file__).parents[2] / "scripts/soak_server.py"
    command = [sys.executable, str(script), "--clients", "8", "--seconds", "20", "--max-growth", "50"]
    done = subprocess.run([*command, "--", "--preset", "tiny"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert figures["broken"] == []
    assert figures["killed"]
    assert figures["endings"].keys() == {"completed", "cancelled"}
    assert figures["cut_off"] >= 1
    assert figures["refused"] >= 1
    assert len(figures["free_after_cancel_seconds"]) >= 1
    assert figures["memory_growth_percent"].keys() == {"before the kill", "after the kill"}
