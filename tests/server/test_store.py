"""Covers `latent_shift.server.store`: no job is lost or made twice, whatever happens in between."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from latent_shift.core.errors import DataError, InputError
from latent_shift.server import store as module
from latent_shift.server.engine import ClipRequest
from latent_shift.server.store import QueueFullError, Store


def request(prompt: str = "a red heart") -> ClipRequest:
    return ClipRequest(
        model="emoji",
        prompt=prompt,
        negative_prompt="",
        seed=1,
        num_frames=4,
        width=64,
        height=64,
        num_inference_steps=2,
        guidance_scale=4.0,
        scheduler="dpm++",
        loop=False,
        fps=8.0,
    )


def add(store: Store, prompt: str = "a red heart", owner: str = "") -> str:
    return store.create(owner, request(prompt), max_queue=100).id


def write_result(store: Store, job_id: str, size: int = 10) -> None:
    store.folder(job_id).mkdir()
    (store.folder(job_id) / "clip.mp4").write_bytes(b"x" * size)


def make(store: Store, job_id: str, size: int = 10) -> None:
    assert store.start(job_id)
    write_result(store, job_id, size)
    assert store.complete(job_id)


def status(store: Store, job_id: str) -> str:
    job = store.get(job_id)
    assert job is not None
    return job.status


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path)
    yield opened
    opened.close()


def test_a_job_comes_back_as_it_was_given(store: Store) -> None:
    job = store.create("me", request(), max_queue=1)
    assert job.status == "queued"
    assert job.request == request()
    assert store.get(job.id) == store.get(job.id, "me") == job
    assert store.get(job.id, "you") is store.get("no such job") is None


def test_each_change_starts_from_one_status(store: Store) -> None:
    job_id = add(store)
    write_result(store, job_id)
    assert store.start(job_id)
    assert not store.start(job_id)
    assert store.complete(job_id)
    assert not store.cancel(job_id)
    assert not store.fail(job_id, "late")
    job = store.get(job_id)
    assert job is not None
    assert (job.status, job.bytes, job.error) == ("completed", 10, None)
    assert job.created_at <= job.started_at <= job.finished_at  # type: ignore[operator]


def test_a_result_that_comes_after_the_cancel_is_removed(store: Store) -> None:
    job_id = add(store)
    store.start(job_id)
    assert store.cancel(job_id)
    write_result(store, job_id)
    assert not store.complete(job_id)
    assert status(store, job_id) == "cancelled"
    assert not store.folder(job_id).exists()


def test_a_result_is_kept_though_its_start_was_not_stored_or_its_end_is_stored_twice(store: Store) -> None:
    job_id = add(store)
    write_result(store, job_id)
    assert store.complete(job_id)
    assert not store.complete(job_id)
    assert status(store, job_id) == "completed"
    assert store.folder(job_id).is_dir()


def test_a_job_whose_result_is_gone_fails(store: Store) -> None:
    job_id = add(store)
    store.start(job_id)
    assert not store.complete(job_id)
    job = store.get(job_id)
    assert job is not None
    assert (job.status, job.error) == ("failed", "the result is gone")
    store.delete(job_id)
    assert not store.complete(job_id)


def test_of_many_that_start_one_job_one_wins(store: Store) -> None:
    job_id = add(store)
    wins: list[bool] = []
    threads = [threading.Thread(target=lambda: wins.append(store.start(job_id))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == [False] * 7 + [True]


def test_the_queue_and_the_share_of_an_owner_are_bounded(store: Store) -> None:
    first = store.create("me", request(), max_queue=2, max_owner=1)
    with pytest.raises(QueueFullError, match="this API key has 1 unfinished jobs, its limit"):
        store.create("me", request(), max_queue=2, max_owner=1)
    store.create("you", request(), max_queue=2, max_owner=1)
    with pytest.raises(QueueFullError, match=r"the queue is full \(2 jobs wait\)"):
        store.create("they", request(), max_queue=2, max_owner=1)
    store.start(first.id)  # it does not wait any more, but is still unfinished
    with pytest.raises(QueueFullError, match="API key"):
        store.create("me", request(), max_queue=2, max_owner=1)
    store.create("they", request(), max_queue=2, max_owner=1)


def test_pages_have_every_job_of_the_owner_once(store: Store) -> None:
    ids = [add(store, owner="me") for _ in range(5)]
    add(store, owner="you")
    for newest_first, expected in ((True, ids[::-1]), (False, ids)):
        seen, after, more = [], None, True
        while more:
            page, more = store.page("me", after, 2, newest_first=newest_first)
            seen += [job.id for job in page]
            after = page[-1].number
        assert seen == expected


def test_search_ignores_case_and_knows_no_wildcards(store: Store) -> None:
    prompts = ["Ein GRÜNES Herz", "100% gold", "a_b"]
    for prompt in prompts:
        add(store, prompt)

    def found(search: str) -> list[str]:
        return [job.prompt for job in store.page("", None, 10, search=search)[0]]

    assert found("grünes herz") == prompts[:1]
    assert found("%") == prompts[1:2]
    assert found("_") == prompts[2:]
    assert found("'; DROP TABLE jobs; --") == []
    assert len(found("")) == 3


def test_after_a_kill_what_ran_is_queued_again_in_the_old_order(tmp_path: Path) -> None:
    store = Store(tmp_path)
    done, ran, waited, whole, gone = (add(store, name) for name in ("done", "ran", "waited", "whole", "gone"))
    make(store, done)
    for job_id in (ran, whole):
        store.start(job_id)
    write_result(store, whole)  # renamed into place, but the kill came before the note
    store.cancel(gone)
    write_result(store, gone)
    (tmp_path / "results" / f".{waited}.x1").mkdir()
    (tmp_path / "results" / "somebody's own").mkdir()
    store.close()

    store = Store(tmp_path)
    assert [job.id for job in store.recover()] == [ran, waited]
    assert [status(store, job_id) for job_id in (done, ran, waited, whole, gone)] == [
        "completed",
        "queued",
        "queued",
        "completed",
        "cancelled",
    ]
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == sorted([done, whole, "somebody's own"])
    store.close()


def test_a_result_whose_end_was_not_stored_before_an_ordered_end_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    job_id = add(store)
    store.start(job_id)
    write_result(store, job_id)
    store.requeue()
    store.close()
    store = Store(tmp_path)
    assert store.recover() == []
    assert status(store, job_id) == "completed"
    assert store.folder(job_id).is_dir()
    store.close()


def test_a_job_that_was_running_at_three_kills_fails(tmp_path: Path) -> None:
    job_id = ""
    for _ in range(3):
        store = Store(tmp_path)
        store.recover()
        job_id = job_id or add(store)
        assert store.start(job_id)
        store.close()
    store = Store(tmp_path)
    assert store.recover() == []
    job = store.get(job_id)
    assert job is not None
    assert job.error == "the server was killed 3 times while this job ran"
    store.close()


def test_an_ordered_end_is_no_crash(tmp_path: Path) -> None:
    job_id = ""
    for _ in range(4):
        store = Store(tmp_path)
        store.recover()
        job_id = job_id or add(store)
        assert store.start(job_id)
        store.requeue()
        store.close()
    store = Store(tmp_path)
    assert [(job.id, job.crashes) for job in store.recover()] == [(job_id, 0)]
    store.close()


def test_old_jobs_and_the_oldest_results_leave(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(module.time, "time", lambda: now)
    old, failed = add(store), add(store)
    make(store, old)
    store.fail(failed, "for a reason")
    now = 2000.0
    first, second, third, waiting = (add(store) for _ in range(4))
    for job_id in (first, second, third):
        make(store, job_id, size=100)
    assert store.expire(keep_seconds=500, keep_bytes=200) == 3
    assert [job.id for job in store.page("", None, 10, newest_first=False)[0]] == [second, third, waiting]
    assert not store.folder(old).exists()
    assert not store.folder(first).exists()
    assert store.folder(second).exists()
    assert store.expire(keep_seconds=500, keep_bytes=200) == 0


def test_one_server_uses_a_folder(tmp_path: Path, store: Store) -> None:
    with pytest.raises(InputError, match="folder must not be in use by another server, got"):
        Store(tmp_path)


def test_a_folder_that_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="folder must be a folder that can be written"):
        Store(tmp_path / "file")


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "jobs.sqlite").write_bytes(b"no database, but long enough to be read as one" * 100)
    with pytest.raises(DataError, match=r"jobs\.sqlite is no database of this server"):
        Store(tmp_path)


def test_a_kill_while_the_database_is_made_leaves_nothing_of_it(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from latent_shift.server import store\n"
        "store._SCHEMA = store._SCHEMA.replace('CREATE INDEX jobs_by_end', 'killed here')\n"
        "store.Store(Path(sys.argv[1]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert 'near "killed"' in killed.stderr
    store = Store(tmp_path)
    assert status(store, add(store)) == "queued"
    store.close()


def test_a_database_of_another_version_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "jobs.sqlite") as database:
        database.execute("PRAGMA user_version = 7")
    database.close()
    with pytest.raises(DataError, match="the jobs have version 7, this server reads version 1"):
        Store(tmp_path)


def test_an_accepted_job_survives_a_power_cut(tmp_path: Path) -> None:
    database = Store(tmp_path)._database
    found = [database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert found == ["wal", 2]  # full


def test_what_is_too_old_goes_before_what_is_too_much(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(module.time, "time", lambda: now)
    young, old = add(store), add(store)
    make(store, old, size=100)
    now = 1900.0  # the first one took longer
    make(store, young, size=100)
    now = 2000.0
    assert store.expire(keep_seconds=500, keep_bytes=100) == 1
    assert [job.id for job in store.page("", None, 10, newest_first=False)[0]] == [young]
