"""Jobs in SQLite and results in folders beside it. A kill at any moment loses no job and makes none twice.

The statuses: queued -> running -> completed | failed | cancelled. Each change is one statement that names the status
it starts from, so of two that race one wins and the other is told so.
"""

from __future__ import annotations

import re
import secrets
import shutil
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, Literal

from latent_shift.core.errors import DataError, InputError, LatentShiftError

from .engine import ClipRequest

Status = Literal["queued", "running", "completed", "failed", "cancelled"]
UNFINISHED = ("queued", "running")

_VERSION = 1
_MOST_CRASHES = 3
_RESULT = re.compile(r"\.?video_[0-9a-f]{32}(\..*)?")
"""Names of results, and of what a kill left half written (`core.files.atomic_path`)."""
_SCHEMA = f"""
BEGIN;
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    status TEXT NOT NULL,
    request TEXT NOT NULL,
    prompt TEXT NOT NULL,
    created_at REAL NOT NULL,
    started_at REAL,
    finished_at REAL,
    error TEXT,
    bytes INTEGER NOT NULL DEFAULT 0,
    crashes INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX jobs_of_status ON jobs (status, number);
CREATE INDEX jobs_of_owner ON jobs (owner, number);
CREATE INDEX jobs_by_end ON jobs (finished_at);
PRAGMA user_version = {_VERSION};
COMMIT;
"""


class QueueFullError(LatentShiftError):
    """The queue, or the share of one API key in it, is full."""


@dataclass(frozen=True)
class Job:
    """A row of the table. Times are seconds since 1970."""

    number: int
    id: str
    owner: str
    status: Status
    request: ClipRequest
    prompt: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    error: str | None
    bytes: int
    crashes: int


class Store:
    """The jobs of one server. Safe to use from any thread.

    Args:
        folder: holds `jobs.sqlite` and `results/`; made where it is not there.

    Raises:
        InputError: the folder cannot be used, or another server uses it.
        DataError: the database is damaged or of another version.
    """

    def __init__(self, folder: Path) -> None:
        self._results = folder / "results"
        self._lock = RLock()
        try:
            self._results.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                folder / "jobs.sqlite", timeout=1, isolation_level=None, check_same_thread=False
            )
            self._prepare()
        except (OSError, sqlite3.OperationalError) as error:
            if "locked" in str(error):
                raise InputError("folder", str(folder), "not be in use by another server") from error
            raise InputError("folder", str(folder), f"be a folder that can be written ({error})") from error
        except sqlite3.DatabaseError as error:
            raise DataError(f"{folder / 'jobs.sqlite'} is no database of this server ({error})") from error

    def _prepare(self) -> None:
        self._database.row_factory = sqlite3.Row
        self._database.create_function("casefold", 1, str.casefold, deterministic=True)
        # Exclusive: a second server on this folder finds it locked. Full: an accepted job survives a power cut.
        self._database.executescript(
            "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;"
            "BEGIN IMMEDIATE; COMMIT;"
        )
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._database.executescript(_SCHEMA)
        elif version != _VERSION:
            raise DataError(f"the jobs have version {version}, this server reads version {_VERSION}")

    def close(self) -> None:
        """Gives the folder free."""
        with self._lock:
            self._database.close()

    def folder(self, job_id: str) -> Path:
        """Where the result of a job lies. `job_id` is one that this store gave out, never a client's text."""
        return self._results / job_id

    def create(self, owner: str, request: ClipRequest, max_queue: int, max_owner: int | None = None) -> Job:
        """Accepts a job: when this returns it is on the disk.

        Args:
            owner: whose it is.
            request: what is to be made.
            max_queue: jobs that may wait, this one among them.
            max_owner: unfinished jobs that the owner may have, this one among them.

        Raises:
            QueueFullError: one of the two is exceeded.
        """
        job_id = f"video_{secrets.token_hex(16)}"
        with self._lock:
            if self.count("queued") >= max_queue:
                raise QueueFullError(f"the queue is full ({max_queue} jobs wait)")
            if max_owner is not None and self.count(*UNFINISHED, owner=owner) >= max_owner:
                raise QueueFullError(f"this API key has {max_owner} unfinished jobs, its limit")
            self._database.execute(
                "INSERT INTO jobs (id, owner, status, request, prompt, created_at) VALUES (?, ?, 'queued', ?, ?, ?)",
                (job_id, owner, request.model_dump_json(), request.prompt, time.time()),
            )
            (job,) = self._select("id = ?", job_id)
        return job

    def get(self, job_id: str, owner: str | None = None) -> Job | None:
        """The job of this id, if there is one and it is the owner's; None as the owner stands for everybody."""
        jobs = self._select("id = ? AND (? IS NULL OR owner = ?)", job_id, owner, owner)
        return jobs[0] if jobs else None

    def page(
        self, owner: str, after: int | None, limit: int, *, newest_first: bool = True, search: str = ""
    ) -> tuple[list[Job], bool]:
        """Jobs of an owner in the order of creation, and whether there are more.

        Args:
            owner: whose.
            after: `number` of the last job of the page before; None for the first page.
            limit: jobs of a page.
            newest_first: the order.
            search: text that the prompt must hold, upper and lower case alike.
        """
        sign, order = ("<", "DESC") if newest_first else (">", "ASC")
        jobs = self._select(
            f"owner = ? AND (? IS NULL OR number {sign} ?) AND instr(casefold(prompt), ?) > 0 "
            f"ORDER BY number {order} LIMIT ?",
            *(owner, after, after, search.casefold(), limit + 1),
        )
        return jobs[:limit], len(jobs) > limit

    def count(self, *statuses: Status | str, owner: str | None = None, before: int | None = None) -> int:
        """How many jobs have one of the statuses; those of an owner, and those created before job number `before`."""
        marks = ", ".join("?" * len(statuses))
        with self._lock:
            (found,) = self._database.execute(
                f"SELECT count(*) FROM jobs WHERE status IN ({marks}) AND (? IS NULL OR owner = ?) "
                "AND (? IS NULL OR number < ?)",
                (*statuses, owner, owner, before, before),
            ).fetchone()
        return int(found)

    def start(self, job_id: str) -> bool:
        """Queued to running; False if it is no longer queued."""
        return self._change(job_id, ("queued",), status="running", started_at=time.time())

    def complete(self, job_id: str) -> bool:
        """Queued or running to completed; False if it was neither, or has no result: then it fails.

        A start that could not be stored leaves a job queued. A result that is no longer wanted is removed.
        """
        folder = self.folder(job_id)
        with self._lock:
            if not folder.is_dir():
                self.fail(job_id, "the result is gone")
                return False
            size = sum(file.stat().st_size for file in folder.iterdir())
            if self._change(job_id, UNFINISHED, status="completed", finished_at=time.time(), bytes=size):
                return True
            job = self.get(job_id)
            if job is None or job.status != "completed":
                self._remove_result(job_id)
        return False

    def fail(self, job_id: str, message: str) -> bool:
        """Queued or running to failed; False if it was neither."""
        return self._change(job_id, UNFINISHED, status="failed", finished_at=time.time(), error=message)

    def cancel(self, job_id: str) -> bool:
        """Queued or running to cancelled; False if it was neither."""
        return self._change(job_id, UNFINISHED, status="cancelled", finished_at=time.time())

    def delete(self, job_id: str) -> None:
        """Forgets a job and removes its result."""
        with self._lock:
            self._database.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
        self._remove_result(job_id)

    def requeue(self) -> None:
        """Running to queued, when the server ends in order."""
        with self._lock:
            self._database.execute("UPDATE jobs SET status = 'queued', started_at = NULL WHERE status = 'running'")

    def recover(self) -> list[Job]:
        """Puts in order what a killed server left, and gives the jobs to do, the oldest first.

        A job whose result is whole is completed; one that was running is queued again, unless it was running at three
        kills: then it is the likely reason and fails. Results of no job are removed, and nothing else.
        """
        with self._lock:
            for job in self._select("status IN ('queued', 'running')"):
                if self.folder(job.id).is_dir():
                    self.complete(job.id)
                elif job.status == "queued":
                    continue
                elif job.crashes + 1 >= _MOST_CRASHES:
                    self.fail(job.id, f"the server was killed {_MOST_CRASHES} times while this job ran")
                else:
                    self._change(job.id, ("running",), status="queued", crashes=job.crashes + 1)
            kept = {job.id for job in self._select("status = 'completed'")}
            for folder in self._results.iterdir():
                if folder.name not in kept and _RESULT.fullmatch(folder.name):
                    shutil.rmtree(folder, ignore_errors=True)
            return self._select("status = 'queued' ORDER BY number")

    def expire(self, keep_seconds: float, keep_bytes: int) -> int:
        """Deletes finished jobs that are too old, and the oldest while all results are too large; gives how many."""
        oldest = time.time() - keep_seconds
        with self._lock:
            (excess,) = self._database.execute("SELECT total(bytes) - ? FROM jobs", (keep_bytes,)).fetchone()
            rows = self._database.execute(
                "SELECT id, bytes, finished_at FROM jobs "
                "WHERE finished_at < ? OR (? > 0 AND bytes > 0) ORDER BY finished_at, number",
                (oldest, excess),
            ).fetchall()
            gone = 0
            for job_id, size, finished_at in rows:
                if finished_at < oldest or excess > 0:
                    self.delete(job_id)
                    excess -= size
                    gone += 1
        return gone

    def _change(self, job_id: str, statuses: Sequence[str], **values: Any) -> bool:
        columns = ", ".join(f"{name} = ?" for name in values)
        marks = ", ".join("?" * len(statuses))
        with self._lock:
            done = self._database.execute(
                f"UPDATE jobs SET {columns} WHERE id = ? AND status IN ({marks})", (*values.values(), job_id, *statuses)
            )
            return done.rowcount == 1

    def _select(self, where: str, *values: Any) -> list[Job]:
        with self._lock:
            rows: Sequence[sqlite3.Row] = self._database.execute(f"SELECT * FROM jobs WHERE {where}", values).fetchall()
        return [Job(**{**dict(row), "request": ClipRequest.model_validate_json(row["request"])}) for row in rows]

    def _remove_result(self, job_id: str) -> None:
        shutil.rmtree(self.folder(job_id), ignore_errors=True)
