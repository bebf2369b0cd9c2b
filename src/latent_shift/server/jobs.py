"""The life of a job: the store says what is so, the engine makes it so, and watchers are woken at each change."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sqlite3
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from .engine import ClipRequest, Engine, Event, Failed, Finished, Progress, Started
from .metrics import Metrics
from .settings import ServerSettings
from .store import UNFINISHED, Job, QueueFullError, Store

_log = logging.getLogger(__name__)
_HOUSEKEEPING_SECONDS = 10.0
_KEEP_ALIVE_SECONDS = 15.0
_RECENT = 20


class BusyError(QueueFullError):
    """No job is accepted now."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds after which it is worth another try."""


@dataclass(frozen=True)
class Snapshot:
    """A job now."""

    job: Job
    step: int = 0
    """Denoising steps that are done."""
    position: int | None = None
    """Jobs before it in the queue; None where it does not wait."""
    preview: bytes | None = None
    """JPEG of one frame as the model now takes it to be."""


class Jobs:
    """Takes requests, gives them to the engine, and keeps what comes back."""

    def __init__(self, store: Store, engine: Engine, settings: ServerSettings, metrics: Metrics) -> None:
        self.engine = engine
        self._store = store
        self._settings = settings
        self._metrics = metrics
        self._live: dict[str, Progress] = {}
        self._watchers: dict[str, set[asyncio.Event]] = defaultdict(set)
        self._created: dict[str, deque[float]] = defaultdict(deque)
        self._finished: deque[float] = deque(maxlen=_RECENT)
        self._unstored: list[Event] = []
        self._streams_end = False
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        metrics.queued.set_function(lambda: store.count("queued"))
        metrics.running.set_function(lambda: store.count("running"))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Goes on with what an earlier server left; at the end, leaves what is undone to the next one."""
        self._loop = asyncio.get_running_loop()
        self._go_on()
        self.engine.start(self._on_event)
        housekeeping = asyncio.create_task(self._keep_house())
        try:
            yield
        finally:
            housekeeping.cancel()
            await asyncio.to_thread(self.engine.stop)
            with contextlib.closing(self._store):
                self._store_again()
                self._store.requeue()

    def submit(self, owner: str, request: ClipRequest, *, limited: bool) -> Snapshot:
        """Accepts a job, and gives it as it was then: queued, however soon it is taken.

        Args:
            owner: whose it is.
            request: what is to be made.
            limited: whether the limits of one API key count.

        Raises:
            BusyError: the queue is full, or the owner asks for too much.
        """
        if limited:
            self._check_rate(owner)
        most = self._settings.max_jobs_per_key if limited else None
        try:
            job = self._store.create(owner, request, self._settings.max_queue, most)
        except QueueFullError as error:
            if limited:
                self._created[owner].pop()  # what was refused is not counted
            raise BusyError(str(error), self._seconds_for_one()) from error
        accepted = self._snapshot(job)
        self.engine.submit(job.id, request, self._store.folder(job.id))
        return accepted

    def find(self, job_id: str, owner: str) -> Snapshot | None:
        """The job of this id, if there is one and it is the owner's."""
        job = self._store.get(job_id, owner)
        return None if job is None else self._snapshot(job)

    def page(
        self, owner: str, after: int | None, limit: int, *, newest_first: bool, search: str
    ) -> tuple[list[Snapshot], bool]:
        """See `Store.page`."""
        jobs, more = self._store.page(owner, after, limit, newest_first=newest_first, search=search)
        return [self._snapshot(job) for job in jobs], more

    def counts(self) -> tuple[int, int]:
        """Jobs that wait, and jobs that are being made."""
        return self._store.count("queued"), self._store.count("running")

    def remove(self, job: Job) -> bool:
        """Cancels a job that is not finished (False), or deletes it and its result (True)."""
        if self._store.cancel(job.id):
            self.engine.cancel(job.id)
            self._ended(job.id, "cancelled")
            return False
        self._store.delete(job.id)
        return True

    async def watch(self, job_id: str, owner: str) -> AsyncIterator[Snapshot | None]:
        """The job now and after every change, until it ends; None now and then, while nothing changes.

        A slow reader misses what lay between, never the end. See `end_streams`, too.
        """
        changed = asyncio.Event()
        self._watchers[job_id].add(changed)
        try:
            while (now := await asyncio.to_thread(self.find, job_id, owner)) is not None:
                yield now
                if now.job.status not in UNFINISHED or self._streams_end:
                    return
                while not await _is_set(changed):
                    yield None
                changed.clear()
        finally:
            self._watchers[job_id].discard(changed)
            if not self._watchers[job_id]:
                del self._watchers[job_id]

    def end_streams(self) -> None:
        """Ends all that watch: a server that stops would wait for them."""
        self._streams_end = True
        self._wake()

    def _go_on(self) -> None:
        """Gives the engine what an earlier server left. Another model would make other clips than were asked for."""
        serves = self.engine.facts.name
        for job in self._store.recover():
            wanted = job.request.model
            if wanted == serves:
                self.engine.submit(job.id, job.request, self._store.folder(job.id))
            elif self._store.fail(job.id, f"the server was started again with the model {serves} instead of {wanted}"):
                self._ended(job.id, "failed")

    def _snapshot(self, job: Job) -> Snapshot:
        if job.status == "queued":
            return Snapshot(job, position=self._store.count("queued", before=job.number))
        live = self._live.get(job.id)
        return Snapshot(job, step=live.step, preview=live.preview) if live else Snapshot(job)

    def _on_event(self, event: Event) -> None:
        """Called by the engine's threads, which no error here may end; what could not be stored is stored later."""
        try:
            self._note(event)
        except Exception:  # a full disk, most likely
            _log.exception("job %s: the change %s could not be stored yet", event.job_id, type(event).__name__)
            with self._lock:
                self._unstored.append(event)

    def _store_again(self) -> None:
        """Stores what could not be stored. The store takes an event that it has as well as one that comes late."""
        with self._lock:
            events, self._unstored = self._unstored, []
        for event in events:
            self._on_event(event)

    def _note(self, event: Event) -> None:
        job_id = event.job_id
        if isinstance(event, Started):
            with self._lock:
                self._live.setdefault(job_id, Progress(job_id, 0, 0))
            if not self._store.start(job_id) and not self._is_unfinished(job_id):
                self.engine.cancel(job_id)
                self._forget(job_id)
        elif isinstance(event, Progress):
            with self._lock:
                if job_id in self._live:  # else it was cancelled during this step
                    preview = event.preview or self._live[job_id].preview
                    self._live[job_id] = Progress(job_id, event.step, event.steps, preview)
            self._metrics.steps.inc()
        elif isinstance(event, Finished):
            if self._store.complete(job_id):
                self._ended(job_id, "completed")
                self._store.expire(self._settings.keep_days * 86400, self._settings.keep_bytes)
            self._forget(job_id)
        elif isinstance(event, Failed) and self._store.fail(job_id, event.message):
            self._ended(job_id, "failed")
        self._wake(None if isinstance(event, Started) else job_id)

    def _is_unfinished(self, job_id: str) -> bool:
        job = self._store.get(job_id)
        return job is not None and job.status in UNFINISHED

    def _forget(self, job_id: str) -> None:
        with self._lock:
            self._live.pop(job_id, None)

    def _ended(self, job_id: str, status: str) -> None:
        self._forget(job_id)
        self._metrics.jobs.labels(status).inc()
        job = self._store.get(job_id)
        if status == "completed" and job and job.started_at and job.finished_at:
            self._metrics.wait_seconds.observe(job.started_at - job.created_at)
            self._metrics.clip_seconds.observe(job.finished_at - job.started_at)
            self._finished.append(time.monotonic())
        self._wake()

    def _wake(self, job_id: str | None = None) -> None:
        """Wakes those who watch a job; without one all, since the place of every job in the queue may have changed."""

        def wake() -> None:
            for watched, watchers in self._watchers.items():
                if job_id in (None, watched):
                    for changed in watchers:
                        changed.set()

        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(wake)

    def _check_rate(self, owner: str) -> None:
        now = time.monotonic()
        with self._lock:
            times = self._created[owner]
            while times and times[0] <= now - 60:
                times.popleft()
            if len(times) >= self._settings.max_requests_per_minute:
                message = f"this API key created {len(times)} jobs in a minute, its limit"
                raise BusyError(message, math.ceil(times[0] + 60 - now))
            times.append(now)

    def _seconds_for_one(self) -> int:
        """After how many seconds a place in the queue should be free, from the last jobs; 5 where none is known."""
        times = list(self._finished)
        if len(times) < 2:
            return 5
        return min(600, max(1, math.ceil((times[-1] - times[0]) / (len(times) - 1))))

    async def _keep_house(self) -> None:
        while True:
            await asyncio.to_thread(self._store_again)
            with contextlib.suppress(OSError, sqlite3.Error):  # tried again some seconds later
                await asyncio.to_thread(self._store.expire, self._settings.keep_days * 86400, self._settings.keep_bytes)
            await asyncio.sleep(_HOUSEKEEPING_SECONDS)


async def _is_set(event: asyncio.Event) -> bool:
    """Waits for the event, but not for ever; whether it came."""
    try:
        await asyncio.wait_for(event.wait(), _KEEP_ALIVE_SECONDS)
    except TimeoutError:
        return False
    return True
