"""The study's database: pairs, raters, and who was shown what. SQLite in WAL mode, one transaction a request.

A pair that is shown to a rater is leased to it: a row of `assignments` without an answer, which counts as a vote until
`leased_until`. A pair is given out while its votes and live leases are fewer than it needs, the one with the fewest
first. An answer that comes after its lease ran out is taken if there is still room. So a pair never gets a vote too
many, however many raters arrive at once and however many leave half-way, and a report can be read at any moment.

Nobody is given two pairs or checks with a clip in common: whoever sees a clip again knows which system is compared with
all. So the checks of a rater are drawn when it joins, and pairs with their clips are kept from it. Votes of raters who
failed their attention checks, and finished or let their lease run out, do not count; others are given their pairs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from threading import RLock
from typing import Any

from latent_shift.core.errors import DataError, InputError, LatentShiftError

from .records import Answers, Clip, ClipFacts, NewPair, Pair, Rater, Shown, Side, State, Vote
from .settings import QUESTIONS, StudySettings

CLIPS_FOLDER = "clips"
DATABASE = "study.sqlite"

_VERSION = 3
_SCHEMA = f"""
CREATE TABLE study (settings TEXT NOT NULL);
CREATE TABLE clips (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    frames INTEGER NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL, fps REAL NOT NULL,
    columns INTEGER NOT NULL, gap INTEGER NOT NULL, frames_per_sheet INTEGER NOT NULL
);
CREATE TABLE pairs (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    prompt TEXT NOT NULL,
    first TEXT NOT NULL, second TEXT NOT NULL,
    first_clip INTEGER NOT NULL REFERENCES clips, second_clip INTEGER NOT NULL REFERENCES clips
);
CREATE TABLE raters (
    id INTEGER PRIMARY KEY,
    token TEXT NOT NULL UNIQUE,
    worker TEXT UNIQUE,
    code TEXT NOT NULL,
    checks TEXT NOT NULL, checks_after TEXT NOT NULL,
    joined_at REAL NOT NULL, trained_at REAL, finished_at REAL,
    rejected INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE assignments (
    id INTEGER PRIMARY KEY,
    rater INTEGER NOT NULL REFERENCES raters,
    pair INTEGER NOT NULL REFERENCES pairs,
    position INTEGER NOT NULL,
    flipped INTEGER NOT NULL,
    shown_at REAL NOT NULL, leased_until REAL NOT NULL,
    quality TEXT, faithfulness TEXT, seconds REAL, answered_at REAL,
    UNIQUE (rater, pair), UNIQUE (rater, position)
);
CREATE INDEX assignments_of_pair ON assignments (pair);
PRAGMA user_version = {_VERSION};
"""
_COUNTED = "SELECT count(*) FROM assignments JOIN raters ON raters.id = rater WHERE pair = pairs.id AND NOT rejected"
_VOTES = f"({_COUNTED} AND answered_at IS NOT NULL)"
# Votes and live leases of a pair, but for those of one rater.
_TAKEN = f"({_COUNTED} AND rater != :rater AND (answered_at IS NOT NULL OR leased_until > :now))"
# Pairs without a clip of what a rater saw, or of the checks that it will meet.
_NEW_PAIR = (
    "NOT EXISTS (SELECT 1 FROM pairs AS seen WHERE seen.id IN "
    "(SELECT pair FROM assignments WHERE rater = :rater UNION ALL SELECT value FROM json_each(:checks)) "
    "AND (seen.first_clip IN (pairs.first_clip, pairs.second_clip) "
    "OR seen.second_clip IN (pairs.first_clip, pairs.second_clip)))"
)
# The checks, and how many pairs, and of these how many that need votes, are kept from a rater who meets them.
_CHECK_COSTS = (
    f"SELECT checks.id, count(pairs.id) AS pairs, sum(pairs.id IS NOT NULL AND {_VOTES} < :most) AS needed "
    "FROM pairs AS checks LEFT JOIN pairs ON pairs.kind = 'pair' AND checks.first_clip IN (pairs.first_clip, "
    "pairs.second_clip) WHERE checks.kind = 'check' GROUP BY checks.id ORDER BY needed, pairs, random()"
)
_PASSED = " AND ".join(f"{question} = 'first'" for question in QUESTIONS)
_CHECKS_MET = (
    "FROM assignments JOIN pairs ON pairs.id = pair "
    "WHERE rater = raters.id AND kind = 'check' AND answered_at IS NOT NULL"
)


class UnknownRaterError(LatentShiftError):
    """No rater has this token."""


class UnknownItemError(LatentShiftError):
    """The rater was shown nothing at this position."""


class ConflictError(LatentShiftError):
    """What was asked for is not possible now, though it may have been before."""


class Store:
    """One study. Safe to use from any thread, and from several processes.

    Args:
        folder: what `create_study` made.
        clock: seconds since 1970; tests bring their own.

    Raises:
        InputError: it is no study.
        DataError: its database is damaged or of another version.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        path = folder / DATABASE
        if not path.is_file():
            raise InputError("study", str(folder), "be a folder made by `latent-shift study create`")
        self._lock, self._clock = RLock(), clock
        self._database = _connect(path)
        try:
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            if version != _VERSION:
                raise DataError(f"{path} has version {version}, this program reads version {_VERSION}")
            (settings,) = self._database.execute("SELECT settings FROM study").fetchone()
            clips = self._read("SELECT * FROM clips")
            pairs = self._read("SELECT first_clip, second_clip FROM pairs WHERE kind = 'pair'")
        except sqlite3.DatabaseError as error:
            raise DataError(f"{path} is no database of a study ({error})") from error
        self.settings = StudySettings.model_validate_json(settings)
        self._clips = {row["id"]: _clip(row) for row in clips}
        self.files = {
            clip.file_name(sheet): folder / CLIPS_FOLDER / clip.file_name(sheet)
            for clip in self._clips.values()
            for sheet in range(clip.num_sheets)
        }
        """The files that raters may see, by the name in their address."""
        self.quota = min(self.settings.pairs_per_rater, _count_disjoint(pairs))
        """Pairs that one rater is asked about, at most: no clip is shown twice."""

    @staticmethod
    def create(folder: Path, settings: StudySettings, pairs: Sequence[NewPair]) -> None:
        """Writes the database of a new study into `folder`."""
        with contextlib.closing(_connect(folder / DATABASE)) as database:
            database.executescript(f"PRAGMA journal_mode = WAL; BEGIN; {_SCHEMA}")
            database.execute("INSERT INTO study VALUES (?)", (settings.model_dump_json(),))
            clips = {clip.name: clip for pair in pairs for clip in (pair.first_clip, pair.second_clip)}
            ids = {name: number for number, name in enumerate(sorted(clips), 1)}
            fields = [*ClipFacts.model_fields, "name"]
            marks = ", ".join(f":{field}" for field in fields)
            database.executemany(
                f"INSERT INTO clips (id, {', '.join(fields)}) VALUES (:id, {marks})",
                [{"id": ids[clip.name], **clip.model_dump()} for clip in clips.values()],
            )
            database.executemany(
                "INSERT INTO pairs (kind, prompt, first, second, first_clip, second_clip) VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (
                        pair.kind,
                        pair.prompt,
                        pair.first,
                        pair.second,
                        ids[pair.first_clip.name],
                        ids[pair.second_clip.name],
                    )
                    for pair in pairs
                ],
            )
            database.execute("COMMIT")

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            self._database.close()

    def join(self, worker: str | None = None) -> str:
        """A new rater, who agreed to take part.

        Args:
            worker: what a crowd platform calls this person, if it said.

        Returns:
            The rater's token: whoever has it is this rater.

        Raises:
            ConflictError: this worker has begun before.
        """
        token, code = secrets.token_urlsafe(24), secrets.token_hex(5).upper()
        with self._transaction() as database:
            checks = self._draw_checks(database)
            ids = json.dumps(checks)
            expected = max(len(checks), min(self.quota, self._count_left(database, 0, ids, _TAKEN)))
            after = json.dumps(sorted(random.SystemRandom().sample(range(1, expected + 1), len(checks))))
            code = self.settings.completion_code or code
            try:
                database.execute(
                    "INSERT INTO raters (token, worker, code, checks, checks_after, joined_at) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (_digest(token), worker, code, ids, after, self._clock()),
                )
            except sqlite3.IntegrityError as error:
                raise ConflictError("this worker has begun already; open the link that you were given then") from error
        return token

    def state(self, token: str) -> State:
        """Where a rater stands; leases the next pair where one is due.

        Raises:
            UnknownRaterError: nobody has this token.
        """
        with self._transaction() as database:
            return self._state(database, self._rater(database, token))

    def item(self, token: str, position: int) -> Shown:
        """What this rater was shown before, to look at it again.

        Raises:
            UnknownRaterError: nobody has this token.
            UnknownItemError: the rater was shown nothing there.
        """
        with self._transaction() as database:
            return self._shown(self._assignment(database, self._rater(database, token), position))

    def train(self, token: str, answers: Answers) -> bool:
        """Whether the answers to the training example are right; if they are, the rater goes on to the pairs.

        Raises:
            UnknownRaterError: nobody has this token.
            InputError: an answer is no side of this study.
        """
        self._check(answers)
        with self._transaction() as database:
            rater = self._rater(database, token)
            right = "right" if _flips_training(rater) else "left"
            if any(answers[question] != right for question in QUESTIONS):
                return False
            database.execute(
                "UPDATE raters SET trained_at = coalesce(trained_at, ?) WHERE id = ?", (self._clock(), rater["id"])
            )
            return True

    def answer(self, token: str, position: int, answers: Answers) -> State:
        """Keeps a rater's answers, or changes them; gives what comes next.

        Raises:
            UnknownRaterError: nobody has this token.
            UnknownItemError: the rater was shown nothing there.
            InputError: an answer is no side of this study.
            ConflictError: the rater has finished, or was away so long that others have taken the pair.
        """
        self._check(answers)
        with self._transaction() as database:
            rater = self._rater(database, token)
            row = self._assignment(database, rater, position)
            if rater["finished_at"] is not None:
                raise ConflictError("you have finished; answers can no longer be changed")
            if row["answered_at"] is not None or self._has_room(database, row):
                now, names = self._clock(), ("second", "first") if row["flipped"] else ("first", "second")
                meant = {"left": names[0], "right": names[1], "same": "same"}
                database.execute(
                    "UPDATE assignments SET quality = ?, faithfulness = ?, seconds = coalesce(seconds, ?), "
                    "answered_at = coalesce(answered_at, ?) WHERE id = ?",
                    (*(meant[answers[question]] for question in QUESTIONS), now - row["shown_at"], now, row["id"]),
                )
                return self._state(database, rater)
            database.execute("DELETE FROM assignments WHERE id = ?", (row["id"],))
        raise ConflictError("you were away so long that somebody else has rated this pair")

    def finish(self, token: str) -> State:
        """Ends a rater's work and gives the completion code.

        Raises:
            UnknownRaterError: nobody has this token.
            ConflictError: there is something left to do.
        """
        with self._transaction() as database:
            rater = self._rater(database, token)
            state = self._state(database, rater)
            if state.status != "finished":
                if state.status != "ready" and not (state.status == "wait" and state.done):
                    raise ConflictError("there is something left to do before the end")
                self._end(database, rater["id"])
                state = State("finished", state.done, state.done, code=rater["code"])
            return state

    def pairs(self) -> list[Pair]:
        """All pairs and attention checks, without the training example."""
        rows = self._read("SELECT id, kind, prompt, first, second FROM pairs WHERE kind != 'training' ORDER BY id")
        return [Pair(**dict(row)) for row in rows]

    def votes(self) -> list[Vote]:
        """All answers to pairs and checks, in the order in which they came."""
        rows = self._read("SELECT * FROM assignments WHERE answered_at IS NOT NULL ORDER BY answered_at, id")
        return [
            Vote(
                row["rater"], row["pair"], bool(row["flipped"]), {name: row[name] for name in QUESTIONS}, row["seconds"]
            )
            for row in rows
        ]

    def raters(self) -> list[Rater]:
        """Everybody who agreed to take part."""
        with self._transaction() as database:
            self._reject_who_left(database)
        rows = self._read("SELECT id, worker, code, joined_at, finished_at, rejected FROM raters ORDER BY id")
        return [Rater(**{**dict(row), "rejected": bool(row["rejected"])}) for row in rows]

    def _state(self, database: sqlite3.Connection, rater: sqlite3.Row) -> State:
        answered: dict[str, int] = {
            kind: count
            for kind, count in database.execute(
                "SELECT kind, count(*) FROM assignments JOIN pairs ON pairs.id = pair "
                "WHERE rater = ? AND answered_at IS NOT NULL GROUP BY kind",
                (rater["id"],),
            )
        }
        pairs, checks = answered.get("pair", 0), answered.get("check", 0)
        plan: list[int] = json.loads(rater["checks"])
        after: list[int] = json.loads(rater["checks_after"])
        done, more_checks, more_pairs = pairs + checks, len(after) - checks, self.quota - pairs

        def total(taken: str, shown: int = 0) -> int:
            left = self._count_left(database, rater["id"], rater["checks"], taken)
            return done + shown + more_checks + min(more_pairs, left)

        if rater["finished_at"] is not None:
            return State("finished", done, done, code=rater["code"])
        if rater["trained_at"] is None:
            return State("training", done, total(_TAKEN), self._training(database, rater))
        self._reject_who_left(database)
        row = self._open(database, rater)
        if row is None and more_checks and pairs >= after[checks]:
            row = self._lease(database, rater, plan[checks])
        if row is None and more_pairs:
            row = self._give(database, rater)
        if row is None and more_checks and pairs:  # others have taken the pairs that were to come before it
            row = self._lease(database, rater, plan[checks])
        if row is not None:
            more_checks -= row["kind"] == "check"
            more_pairs -= row["kind"] == "pair"
            return State("rate", done, total(_TAKEN, shown=1), self._shown(row))
        code = None if done else self.settings.full_code
        if more_pairs and self._count_left(database, rater["id"], rater["checks"], _VOTES):
            return State("wait", done, total(_VOTES), code=code)
        return State("ready" if done else "full", done, done, code=code)

    def _open(self, database: sqlite3.Connection, rater: sqlite3.Row) -> sqlite3.Row | None:
        """What the rater was shown and has not answered, leased anew; None if there is nothing, or others took it."""
        row = database.execute(
            "SELECT * FROM assignments WHERE rater = ? AND answered_at IS NULL", (rater["id"],)
        ).fetchone()
        if row is None:
            return None
        if not self._has_room(database, row):
            database.execute("DELETE FROM assignments WHERE id = ?", (row["id"],))
            return None
        now = self._clock()
        database.execute(
            "UPDATE assignments SET leased_until = :until, "
            "shown_at = CASE WHEN leased_until > :now THEN shown_at ELSE :now END WHERE id = :id",
            {"id": row["id"], "now": now, "until": now + self.settings.lease_minutes * 60},
        )
        return self._with_pair(database, "assignments.id = ?", row["id"])

    def _draw_checks(self, database: sqlite3.Connection) -> list[int]:
        """The checks that a new rater will meet: those first that keep the fewest pairs from it.

        Never more of them than the pairs that are left, and none that would keep all pairs from it that need votes.
        """
        costs = database.execute(_CHECK_COSTS, {"most": self.settings.raters_per_pair}).fetchall()
        drawn: list[int] = []
        for number, _, needed in costs:
            if len(drawn) == min(self.settings.checks_per_rater, self.quota):
                break
            ids = json.dumps([*drawn, number])
            in_all = self._count_left(database, 0, ids, "0")
            if in_all > len(drawn) and (not needed or self._count_left(database, 0, ids, _VOTES)):
                drawn.append(number)
        random.SystemRandom().shuffle(drawn)
        return drawn

    def _give(self, database: sqlite3.Connection, rater: sqlite3.Row) -> sqlite3.Row | None:
        """Leases the pair with room that fewest have; None where there is none."""
        found = database.execute(
            f"SELECT id, {_TAKEN} AS taken FROM pairs WHERE kind = 'pair' AND taken < :most AND {_NEW_PAIR} "
            "ORDER BY taken, random() LIMIT 1",
            self._facts(rater["id"], rater["checks"]),
        ).fetchone()
        return None if found is None else self._lease(database, rater, found["id"])

    def _lease(self, database: sqlite3.Connection, rater: sqlite3.Row, pair: int) -> sqlite3.Row | None:
        now = self._clock()
        made = database.execute(
            "INSERT INTO assignments (rater, pair, position, flipped, shown_at, leased_until) "
            "SELECT ?, ?, 1 + coalesce(max(position), 0), ?, ?, ? FROM assignments WHERE rater = ?",
            (rater["id"], pair, secrets.randbelow(2), now, now + self.settings.lease_minutes * 60, rater["id"]),
        )
        return self._with_pair(database, "assignments.id = ?", made.lastrowid)

    def _has_room(self, database: sqlite3.Connection, row: sqlite3.Row) -> bool:
        """Whether a vote on what is leased by `row` would not be one too many. Checks take any number."""
        facts = {"rater": row["rater"], "now": self._clock(), "pair": row["pair"]}
        kind, taken = database.execute(f"SELECT kind, {_TAKEN} FROM pairs WHERE id = :pair", facts).fetchone()
        return bool(kind == "check" or taken < self.settings.raters_per_pair)

    def _facts(self, rater: int, checks: str) -> dict[str, Any]:
        """What `_TAKEN` and `_NEW_PAIR` ask for."""
        return {"rater": rater, "checks": checks, "now": self._clock(), "most": self.settings.raters_per_pair}

    def _count_left(self, database: sqlite3.Connection, rater: int, checks: str, taken: str) -> int:
        """Pairs that the rater, or a new one (0), could be given one after the other: with room, and no clip twice.

        `checks` are what it meets besides; `taken` is what counts as taken: `_TAKEN`, or `_VOTES` for what may come
        free.
        """
        query = f"SELECT first_clip, second_clip FROM pairs WHERE kind = 'pair' AND {_NEW_PAIR} AND {taken} < :most"
        return _count_disjoint(database.execute(query, self._facts(rater, checks)))

    def _end(self, database: sqlite3.Connection, rater: int) -> None:
        """Notes that the rater has finished, and whether it passed fewer of the checks than the study asks for."""
        database.execute(
            "UPDATE raters SET finished_at = :now, "  # whom others have replaced since stays rejected
            f"rejected = rejected OR (SELECT coalesce(total({_PASSED}) / count(*) < :least, 0) {_CHECKS_MET}) "
            "WHERE id = :rater",
            {"now": self._clock(), "least": self.settings.min_attention, "rater": rater},
        )

    def _reject_who_left(self, database: sqlite3.Connection) -> None:
        """The same for all who have not finished, and whose last lease ran out."""
        database.execute(
            "UPDATE raters SET rejected = 1 WHERE NOT rejected AND finished_at IS NULL "
            "AND NOT EXISTS (SELECT 1 FROM assignments WHERE rater = raters.id AND leased_until > :now) "
            f"AND (SELECT total({_PASSED}) / count(*) < :least {_CHECKS_MET})",
            {"now": self._clock(), "least": self.settings.min_attention},
        )

    def _training(self, database: sqlite3.Connection, rater: sqlite3.Row) -> Shown:
        row = database.execute("SELECT * FROM pairs WHERE kind = 'training'").fetchone()
        clips = self._clips[row["first_clip"]], self._clips[row["second_clip"]]
        left, right = reversed(clips) if _flips_training(rater) else clips
        return Shown(0, row["prompt"], left, right, None)

    def _assignment(self, database: sqlite3.Connection, rater: sqlite3.Row, position: int) -> sqlite3.Row:
        row = self._with_pair(database, "rater = ? AND position = ?", rater["id"], position)
        if row is None:
            raise UnknownItemError(f"you were shown nothing at position {position}")
        return row

    def _with_pair(self, database: sqlite3.Connection, where: str, *values: Any) -> sqlite3.Row | None:
        found: sqlite3.Row | None = database.execute(
            "SELECT assignments.*, kind, prompt, first_clip, second_clip "
            f"FROM assignments JOIN pairs ON pairs.id = pair WHERE {where}",
            values,
        ).fetchone()
        return found

    def _shown(self, row: sqlite3.Row) -> Shown:
        clips = self._clips[row["first_clip"]], self._clips[row["second_clip"]]
        left, right = reversed(clips) if row["flipped"] else clips
        sides: dict[str, Side] = {
            "first": "right" if row["flipped"] else "left",
            "second": "left" if row["flipped"] else "right",
            "same": "same",
        }
        answers = {name: sides[row[name]] for name in QUESTIONS} if row["answered_at"] is not None else None
        return Shown(row["position"], row["prompt"], left, right, answers)

    def _rater(self, database: sqlite3.Connection, token: str) -> sqlite3.Row:
        row: sqlite3.Row | None = database.execute("SELECT * FROM raters WHERE token = ?", (_digest(token),)).fetchone()
        if row is None:
            raise UnknownRaterError("this link belongs to nobody in this study")
        return row

    def _check(self, answers: Answers) -> None:
        sides = ("left", "right", "same") if self.settings.allow_ties else ("left", "right")
        for question in QUESTIONS:
            if answers.get(question) not in sides:
                raise InputError(question, answers.get(question), f"be one of {', '.join(sides)}")

    def _read(self, query: str) -> list[sqlite3.Row]:
        with self._lock:
            return self._database.execute(query).fetchall()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """The database, for this thread and process alone; all that is done in it is kept, or nothing."""
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")


def _connect(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
    database.row_factory = sqlite3.Row
    return database


def _clip(row: sqlite3.Row) -> Clip:
    return Clip(**{name: row[name] for name in row.keys() if name != "id"})  # noqa: SIM118 - a row is no mapping


def _digest(token: str) -> str:
    """What the database keeps of a token, so that who reads it cannot answer for others."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _flips_training(rater: sqlite3.Row) -> bool:
    """Whether the whole clip is on the right for this rater."""
    return int(rater["token"][0], 16) % 2 == 1


def _count_disjoint(pairs: Iterable[sqlite3.Row]) -> int:
    """How many of the pairs can be shown in turn without a clip twice.

    They are taken as they come, which finds the most where no pair is used up.
    """
    seen: set[int] = set()
    count = 0
    for pair in pairs:
        if seen.isdisjoint(pair):
            seen.update(pair)
            count += 1
    return count
