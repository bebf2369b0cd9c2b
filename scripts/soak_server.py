"""Many clients at one server for minutes, killed in the middle: every promise that it makes is checked.

    python scripts/soak_server.py
    python scripts/soak_server.py --clients 8 --seconds 20 --max-growth 25 -- --preset tiny

Each client creates short clips of the default model, polls them or follows their events, downloads them, and cancels
one in five. Half way the server is killed (SIGKILL) and started again. Before and after, while nobody else asks,
running jobs are cancelled and it is measured when the device is free; at the end the queue is filled.

The promises: no job is lost, none is there twice or made twice, every one ends as done, failed or cancelled, and none
fails; no 5xx; what was completed or cancelled before the kill stays so, with the same bytes; memory is flat after the
warm-up, before the kill and after it; a cancelled job frees its device within a step; a full queue is answered 429 with
Retry-After. Prints the figures as JSON, and to stderr a line for each broken promise; then exits with 1.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

CLIP = {"steps": 2, "frames": 4, "size": "64x64"}
PROBE_STEPS = 8
PROBES_CANCELLED_AFTER = (1, 3, 5, 7)
"""Steps."""
ROUND_TRIPS_S = 0.15
"""What two requests and the 10 ms between two looks may add to a step on a busy machine."""
SAMPLES = 60
"""Of memory, in each phase."""
WARM_UP = 1 / 3
"""Of a phase; its samples do not count."""
MOST_POSTS = 2000
UNENDED = ("queued", "in_progress")


@dataclass
class Seen:
    """What the clients saw."""

    broken: list[str] = field(default_factory=list)
    answers: Counter[int] = field(default_factory=Counter)
    prompts: dict[str, str] = field(default_factory=dict)
    """Of every accepted job, by its id."""
    deleted: set[str] = field(default_factory=set)
    """Jobs that were finished before their DELETE came: they are gone."""
    cancelled: set[str] = field(default_factory=set)
    results: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the MP4 of completed jobs, by their ids."""
    ended_before_kill: int = 0
    cut_off: int = 0
    """Requests that met no server: it was just killed."""
    refused: int = 0
    """Answers 429."""
    request_s: list[float] = field(default_factory=list)
    delete_s: list[float] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    """Times of steps of the jobs that are cancelled while nobody else asks."""
    free_s: list[float] = field(default_factory=list)
    """From the DELETE of such a job until its device is free."""

    def promise(self, kept: bool, otherwise: str) -> None:
        """Notes a promise that was not kept."""
        if not kept:
            self.broken.append(otherwise)

    def note(self, answer: httpx.Response, *expected: int) -> None:
        """Counts an answer, and judges its status."""
        self.answers[answer.status_code] += 1
        self.request_s.append(answer.elapsed.total_seconds())
        request = f"{answer.request.method} {answer.request.url.path}"
        self.promise(
            answer.status_code in expected, f"{request} was answered {answer.status_code}: {answer.text[:200]}"
        )
        if answer.status_code == 429:
            self.refused += 1
            seconds = answer.headers.get("Retry-After", "")
            self.promise(seconds.isdigit() and int(seconds) > 0, f"429 came with Retry-After {seconds!r}")


class Server:
    """`latent-shift serve` on a folder; the same port after a kill."""

    def __init__(self, folder: str, options: list[str]) -> None:
        self._command = [sys.executable, "-m", "latent_shift", "serve", "--folder", folder, *options]
        self.port = 0
        self.start()

    def start(self) -> None:
        """Starts, and waits until it listens."""
        command = [*self._command, "--port", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line.startswith("http://"):
            raise SystemExit("the server did not start")
        self.url = line.split()[0]
        self.port = int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()


@dataclass
class Visitor:
    """The calls of a client. While there is no server they are made again and again."""

    http: httpx.AsyncClient
    seen: Seen

    async def ask(self, method: str, path: str, *expected: int, **options: Any) -> httpx.Response:
        """A request that may be made twice; 200 is expected where nothing else is."""
        while True:
            try:
                answer = await self.http.request(method, path, **options)
            except httpx.TransportError:
                await self._wait_for_a_server()
                continue
            self.seen.note(answer, 200, *expected)
            return answer

    async def create(self, prompt: str, **fields: Any) -> dict[str, Any] | None:
        """A job; None where the server takes none. After a cut-off answer it is looked for first."""
        while True:
            try:
                answer = await self.http.post("/v1/videos", json={"prompt": prompt, **fields})
            except httpx.TransportError:
                await self._wait_for_a_server()
                found = (await self.ask("GET", "/v1/videos", params={"search": prompt})).json()["data"]
                if not found:
                    continue
                video: dict[str, Any] = found[0]
            else:
                self.seen.note(answer, 200, 429)
                if answer.status_code != 200:
                    return None
                video = answer.json()
            self.seen.prompts[video["id"]] = prompt
            return video

    async def cancel(self, video_id: str) -> bool:
        """DELETE; whether it was cancelled, and not finished already."""
        # 404: the server had deleted it, and was killed before it could say so.
        cut_off = self.seen.cut_off
        answer = await self.ask("DELETE", f"/v1/videos/{video_id}", 404)
        gone = answer.status_code == 404
        self.seen.promise(not gone or self.seen.cut_off > cut_off, f"{video_id} was lost before its DELETE")
        if gone or answer.json()["deleted"]:
            self.seen.deleted.add(video_id)
            return False
        self.seen.delete_s.append(answer.elapsed.total_seconds())
        self.seen.cancelled.add(video_id)
        return True

    async def poll(self, video: dict[str, Any]) -> dict[str, Any]:
        """Asks until the job has ended."""
        while video["status"] in UNENDED:
            await asyncio.sleep(0.5)
            video = (await self.ask("GET", f"/v1/videos/{video['id']}")).json()
        return video

    async def follow(self, video: dict[str, Any]) -> dict[str, Any]:
        """Reads the job's events until it has ended."""
        while True:
            try:
                async with self.http.stream("GET", f"/v1/videos/{video['id']}/events") as stream:
                    async for line in stream.aiter_lines():
                        video = json.loads(line[6:]) if line.startswith("data: ") else video
                self.seen.answers[stream.status_code] += 1
            except httpx.TransportError:
                await self._wait_for_a_server()
                continue
            complete = stream.status_code == 200 and video["status"] not in UNENDED
            self.seen.promise(complete, f"the events of {video['id']} ended while it was {video['status']}")
            return video

    async def download(self, video_id: str) -> str:
        """SHA-256 of the MP4."""
        content = (await self.ask("GET", f"/v1/videos/{video_id}/content")).content
        self.seen.promise(content[4:8] == b"ftyp", f"the content of {video_id} is no MP4")
        return hashlib.sha256(content).hexdigest()

    async def metric(self, name: str) -> float:
        """A number of /metrics; 0 where it was never counted."""
        lines = (await self.ask("GET", "/metrics")).text.splitlines()
        return next((float(line.split()[-1]) for line in lines if line.startswith(f"{name} ")), 0.0)

    async def free(self, deadline: float) -> bool:
        """Waits until no device is busy and nothing waits; False where that is not so at the deadline (monotonic)."""
        while True:
            health = (await self.ask("GET", "/health")).json()
            if not health["queued"] + health["running"] + health["busy"]:
                return True
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.01)

    async def list_all(self) -> list[dict[str, Any]]:
        """Every job that the server knows."""
        listed: list[dict[str, Any]] = []
        page: dict[str, Any] = {"has_more": True, "last_id": None}
        while page["has_more"]:
            query = {"limit": 100, **({"after": page["last_id"]} if page["last_id"] else {})}
            page = (await self.ask("GET", "/v1/videos", params=query)).json()
            listed += page["data"]
        return listed

    async def _wait_for_a_server(self) -> None:
        self.seen.cut_off += 1
        await asyncio.sleep(1)


async def client(number: int, visitor: Visitor, over: asyncio.Event) -> None:
    """One client: a clip after the other, each of a prompt of its own."""
    chance = random.Random(number)
    for count in itertools.count():
        if over.is_set():
            return
        video = await visitor.create(f"a heart, client {number:03} clip {count:05}", **CLIP)
        if video is None:
            await asyncio.sleep(2)
            continue
        if chance.random() < 0.2:
            await asyncio.sleep(chance.uniform(0, 3))
            await visitor.cancel(video["id"])
            continue
        video = await (visitor.follow(video) if number % 3 == 0 else visitor.poll(video))
        if video["status"] == "completed":
            visitor.seen.results[video["id"]] = await visitor.download(video["id"])


async def probe_cancels(visitor: Visitor, name: str) -> None:
    """Cancels running jobs while nobody else asks. How long is a step, and how long until the device is free?"""
    for after in PROBES_CANCELLED_AFTER:
        video = await visitor.create(f"a heart, {name} after {after}", steps=PROBE_STEPS)
        if video is None:
            return
        video = await watch_steps(visitor, video, after)
        asked = time.monotonic()
        if await visitor.cancel(video["id"]):
            freed = await visitor.free(asked + 60)
            visitor.seen.promise(freed, "a device was still busy a minute after its job was cancelled")
            visitor.seen.free_s.append(time.monotonic() - asked)


async def watch_steps(visitor: Visitor, video: dict[str, Any], last: int) -> dict[str, Any]:
    """Follows a job to a step, and takes the time of each but the first."""
    since, step = 0.0, 0
    async with visitor.http.stream("GET", f"/v1/videos/{video['id']}/events") as stream:
        async for line in stream.aiter_lines():
            video = json.loads(line[6:]) if line.startswith("data: ") else video
            now = time.monotonic()
            if video["step"] > step:
                if step:
                    visitor.seen.step_s.append((now - since) / (video["step"] - step))
                since, step = now, video["step"]
            if step >= last or video["status"] not in UNENDED:
                break
    return video


async def storm(server: Server, visitor: Visitor, arguments: argparse.Namespace) -> list[list[float]]:
    """All clients at once, and the kill; resident bytes of the server in each phase."""
    over = asyncio.Event()
    tasks = [asyncio.create_task(client(number, visitor, over)) for number in range(arguments.clients)]
    phases = [await phase(visitor, arguments.seconds / (2 if arguments.kill else 1))]
    if arguments.kill:
        server.kill()
        visitor.seen.ended_before_kill = len(visitor.seen.results) + len(visitor.seen.deleted)
        await asyncio.to_thread(server.start)
        phases.append(await phase(visitor, arguments.seconds / 2))
    over.set()
    done, late = await asyncio.wait(tasks, timeout=arguments.drain_seconds)
    for task in late:
        task.cancel()
    text = f"{len(late)} clients still wait for their last job {arguments.drain_seconds:g} s after the end"
    visitor.seen.promise(not late, text)
    for task in done:
        visitor.seen.promise(task.exception() is None, f"a client broke down: {task.exception()!r}")
    return phases


async def phase(visitor: Visitor, seconds: float) -> list[float]:
    """Lets the clients work for some seconds, and looks at the memory."""
    samples = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        samples.append(await visitor.metric("process_resident_memory_bytes"))
        await asyncio.sleep(seconds / SAMPLES)
    return samples


async def fill_queue(visitor: Visitor, drain_seconds: float) -> None:
    """Creates long jobs until the server refuses one, and cancels all."""
    accepted: list[str] = []
    before = visitor.seen.refused
    for start in range(0, MOST_POSTS, 20):
        prompts = [f"a heart, too many {start + number:05}" for number in range(20)]
        videos = await asyncio.gather(*(visitor.create(prompt, steps=100) for prompt in prompts))
        accepted += [video["id"] for video in videos if video]
        if visitor.seen.refused > before:
            break
    visitor.seen.promise(visitor.seen.refused > before, f"{len(accepted)} jobs were accepted at once and none refused")
    await asyncio.gather(*(visitor.cancel(video_id) for video_id in accepted))
    freed = await visitor.free(time.monotonic() + drain_seconds)
    visitor.seen.promise(freed, f"jobs still wait or run {drain_seconds:g} s after all were cancelled")


async def judge_jobs(visitor: Visitor, listed: list[dict[str, Any]]) -> None:
    """Lost, doubled, made twice, not ended, failed; results that changed."""
    seen = visitor.seen
    ids, prompts = Counter(video["id"] for video in listed), Counter(video["prompt"] for video in listed)
    lost = seen.prompts.keys() - seen.deleted - ids.keys()
    seen.promise(not lost, f"{len(lost)} accepted jobs are lost, as {min(lost, default='')}")
    twice = sum(count > 1 for counts in (ids, prompts) for count in counts.values())
    seen.promise(not twice, f"{twice} jobs are there twice")
    unknown = ids.keys() - seen.prompts.keys()
    seen.promise(not unknown, f"{len(unknown)} jobs are there that no client was told of")
    endless = [video["id"] for video in listed if video["status"] in UNENDED]
    seen.promise(not endless, f"{len(endless)} jobs did not end, as {endless[:1]}")
    codes = {video["id"]: video["error"]["code"] for video in listed if video["error"]}
    failed = [video["error"]["message"] for video in listed if codes.get(video["id"]) == "generation_failed"]
    seen.promise(not failed, f"{len(failed)} jobs failed, as with: {failed[:1]}")
    revived = [video_id for video_id in seen.cancelled if codes.get(video_id) != "cancelled"]
    seen.promise(not revived, f"{len(revived)} jobs were cancelled and are not, as {revived[:1]}")
    completed = [video["id"] for video in listed if video["status"] == "completed"]
    seen.promise(bool(completed), "no job was completed")
    for video_id in completed:
        found = await visitor.download(video_id)
        seen.promise(seen.results.get(video_id, found) == found, f"the clip of {video_id} has changed")
    made = await visitor.metric('latent_shift_jobs_total{status="completed"}')
    most = len(completed) + len(seen.deleted) - seen.ended_before_kill
    seen.promise(made <= most, f"{made:g} clips were made for {most} jobs")


def judge_times(seen: Seen) -> None:
    """Cancels within a step."""
    seen.promise(bool(seen.free_s and seen.step_s), "no cancel of a running job could be measured")
    limit, slowest = max(seen.step_s, default=0) + ROUND_TRIPS_S, max(seen.free_s, default=0)
    text = f"a device was free {slowest:.3f} s after its job was cancelled; a step and two requests take {limit:.3f} s"
    seen.promise(slowest <= limit, text)


def growth(samples: list[float]) -> float:
    """Percent from the first to the last quarter of what follows the warm-up; 0 of too few samples."""
    samples = samples[round(len(samples) * WARM_UP) :]
    quarter = len(samples) // 4
    if not quarter:
        return 0.0
    return 100 * (sum(samples[-quarter:]) / sum(samples[:quarter]) - 1)


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum."""
    ordered = sorted(seconds) or [0.0]
    places = {"median": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(ordered[round(place * (len(ordered) - 1))], 3) for name, place in places.items()}


async def soak(server: Server, arguments: argparse.Namespace) -> dict[str, Any]:
    """Runs everything; the figures."""
    seen = Seen()
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=httpx.Limits(max_connections=None)) as http:
        visitor = Visitor(http, seen)
        await probe_cancels(visitor, "first")
        phases = await storm(server, visitor, arguments)
        drained = await visitor.free(time.monotonic() + arguments.drain_seconds)
        seen.promise(drained, f"jobs still wait or run {arguments.drain_seconds:g} s after the last client left")
        await probe_cancels(visitor, "last")
        await fill_queue(visitor, arguments.drain_seconds)
        listed = await visitor.list_all()
        await judge_jobs(visitor, listed)
    judge_times(seen)
    seen.promise(arguments.kill or not seen.cut_off, f"{seen.cut_off} requests met no server")
    names = ("before the kill", "after the kill") if arguments.kill else ("all the time",)
    grown = {name: round(growth(samples), 2) for name, samples in zip(names, phases, strict=True)}
    for name, percent in grown.items():
        seen.promise(percent < arguments.max_growth, f"memory grew by {percent} % {name}")
    return {
        "clients": arguments.clients,
        "seconds": arguments.seconds,
        "killed": arguments.kill,
        "accepted": len(seen.prompts),
        "deleted": len(seen.deleted),
        "endings": dict(Counter((video["error"] or {}).get("code") or video["status"] for video in listed)),
        "answers": {str(status): count for status, count in sorted(seen.answers.items())},
        "cut_off": seen.cut_off,
        "refused": seen.refused,
        "step_seconds": spread(seen.step_s),
        "free_after_cancel_seconds": [round(seconds, 3) for seconds in seen.free_s],
        "cancels": len(seen.delete_s),
        "cancel_seconds": spread(seen.delete_s),
        "request_seconds": spread(seen.request_s),
        "memory_mb": [[round(sample / 1e6, 1) for sample in samples] for samples in phases],
        "memory_growth_percent": grown,
        "broken": seen.broken,
    }


def main() -> None:
    """Parses, runs, prints, judges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=300, help="of the clients, both phases together")
    parser.add_argument("--kill", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--max-growth", type=float, default=2, help="percent of memory, in a phase after its warm-up")
    parser.add_argument("--drain-seconds", type=float, default=120, help="until the last job must have ended")
    parser.add_argument("options", nargs="*", help="of `latent-shift serve`, after --")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(folder, arguments.options)
        try:
            result = asyncio.run(soak(server, arguments))
        finally:
            server.kill()
    print(json.dumps(result, indent=2))
    for line in result["broken"]:
        print(f"broken: {line}", file=sys.stderr)
    sys.exit(1 if result["broken"] else 0)


if __name__ == "__main__":
    main()
