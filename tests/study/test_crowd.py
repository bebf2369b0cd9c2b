"""A hundred raters at once, over HTTP, at a server of its own; and a server that is killed among them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from latent_shift.study import Store, StudySettings, create_study

from .conftest import CopyWriter, StudyProcess, both, sources

pytestmark = pytest.mark.slow


def make_study(folder: Path, pairs: int, **settings: int) -> Path:
    systems = {name: sources(folder / "clips", name, pairs) for name in ("a", "b")}
    create_study(folder / "study", systems, CopyWriter(), StudySettings(**settings))
    return folder / "study"


def crowd(size: int, work: Callable[[int], None]) -> None:
    """Runs so many at once; the first failure is raised."""
    start, failures = threading.Barrier(size), list[BaseException]()

    def run(number: int) -> None:
        try:
            start.wait()
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class Caller:
    """A rater over HTTP, who asks again when the server is not there."""

    def __init__(self, url: Callable[[], str]) -> None:
        self.url, self.http = url, httpx.Client(timeout=60)

    def call(self, method: str, path: str, body: object = None) -> httpx.Response:
        for _ in range(300):
            try:
                return self.http.request(method, self.url() + path, json=body)
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError("the server did not come back")

    def join(self) -> None:
        token = self.call("POST", "/api/raters", {"consent": True}).json()["token"]
        self.http.headers["Authorization"] = f"Bearer {token}"
        for side in ("left", "right"):
            self.call("POST", "/api/training", both(side))

    def rate_all(self) -> dict[str, object]:
        state: dict[str, object] = self.call("GET", "/api/state").json()
        while isinstance(item := state["item"], dict):
            answer = self.call("PUT", f"/api/items/{item['position']}", both("left"))
            assert answer.status_code == 200, answer.text
            state = answer.json()
        self.http.close()
        return state


def check_votes(folder: Path, pairs: int, each: int) -> None:
    """Each pair has so many votes, each by another rater."""
    store = Store(folder)
    real = {pair.id for pair in store.pairs() if pair.kind == "pair"}
    votes = [vote for vote in store.votes() if vote.pair in real]
    store.close()
    assert Counter(vote.pair for vote in votes) == dict.fromkeys(real, each)
    assert len(real) == pairs
    assert len({(vote.rater, vote.pair) for vote in votes}) == len(votes) == pairs * each


def test_a_hundred_raters_at_once_finish_three_hundred_pairs(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = make_study(tmp_path, 300, raters_per_pair=5, pairs_per_rater=20, checks_per_rater=2)
    server = StudyProcess(folder)
    request.addfinalizer(server.stop)
    done: list[str] = []

    def work(_: int) -> None:
        rater = Caller(lambda: server.url)
        rater.join()
        done.append(str(rater.rate_all()["status"]))

    crowd(100, work)
    server.stop()
    assert set(done) <= {"ready", "wait", "full"}
    check_votes(folder, 300, 5)


def test_a_killed_server_loses_no_vote(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = make_study(tmp_path, 40, raters_per_pair=5, pairs_per_rater=20, checks_per_rater=0)
    servers = [StudyProcess(folder)]
    request.addfinalizer(lambda: servers[-1].stop())
    answered: list[int] = []

    def work(_: int) -> None:
        rater = Caller(lambda: servers[-1].url)
        rater.join()
        rater.rate_all()
        answered.append(1)

    def kill() -> None:
        store = Store(folder)
        for votes in (30, 110):
            while len(store.votes()) < votes:
                time.sleep(0.02)
            servers[-1].kill()
            servers.append(StudyProcess(folder))
        store.close()

    killer = threading.Thread(target=kill)
    killer.start()
    crowd(20, work)
    killer.join()
    servers[-1].stop()
    assert len(servers) == 3
    assert len(answered) == 20
    check_votes(folder, 40, 5)
