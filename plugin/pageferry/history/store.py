"""The history of a host: each migration and each event, in SQLite, for people to look back at.

It is a witness, never a condition. Whatever is wrong with the file or its disk, nothing is raised: the record is
dropped and counted, the fault is said once in the log, and as soon as it can be, writing goes on. What must be known to
set a job free is not kept here (docs/adr/0004-state.md). The file is `database`'s; who may read what is left to the
callers.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from pageferry.history.database import Database
from pageferry.history.rows import record
from pageferry.kernel.files import printable

PATH = Path("/var/lib/pageferry/history.sqlite3")
_log = logging.getLogger(__name__)

_PRUNE_EVERY = 256
_EMPTY = "'{}'"
_JOB = "CASE pbs_job WHEN '' THEN job ELSE pbs_job END"
_IS_JOB = "(pbs_job = :job AND pbs_job != '' OR job = :number AND pbs_job = '')"
_NO_JOB = -1
_TEXT_CHARACTERS = 1024
_DETAILS_CHARACTERS = 16384
_LEDGERS = 5_000
"""The ledgers of older migrations than so many are dropped before these are: they are most of the file."""

_FIRST = (
    """CREATE TABLE migrations (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        job INTEGER NOT NULL, uid INTEGER NOT NULL, host TEXT NOT NULL, event TEXT NOT NULL,
        rule TEXT NOT NULL, began REAL NOT NULL, seconds REAL NOT NULL, seconds_stopped REAL NOT NULL,
        nodes_from TEXT NOT NULL, nodes_to TEXT NOT NULL, outcome TEXT NOT NULL, pages TEXT NOT NULL,
        requested INTEGER NOT NULL, calls INTEGER NOT NULL, bytes INTEGER NOT NULL, error TEXT NOT NULL,
        details TEXT NOT NULL)""",
    """CREATE TABLE events (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        began REAL NOT NULL, job INTEGER NOT NULL, uid INTEGER NOT NULL, kind TEXT NOT NULL,
        text TEXT NOT NULL)""",
    "CREATE INDEX migrations_job ON migrations (job)",
    "CREATE INDEX migrations_uid ON migrations (uid)",
    "CREATE INDEX events_job ON events (job)",
    "CREATE INDEX events_uid ON events (uid)",
)
_SECOND = (
    "ALTER TABLE migrations ADD COLUMN asked_per_process INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE migrations ADD COLUMN moments TEXT NOT NULL DEFAULT '{}'",
    "ALTER TABLE migrations ADD COLUMN ledger TEXT NOT NULL DEFAULT '{}'",
    "CREATE INDEX migrations_ledger ON migrations (id) WHERE ledger != '{}'",
)
# A column of numbers makes the number 1200000 of the text "12.e5". What it made of IDs of PBS, which now have a column
# of their own, is mended where it can be told; an ID that is lost has a "?", as no other has.
_THIRD = (
    "ALTER TABLE migrations ADD COLUMN pbs_job TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE events ADD COLUMN pbs_job TEXT NOT NULL DEFAULT ''",
    """UPDATE migrations SET pbs_job = job || '.?', job = 0 WHERE typeof(job) = 'integer' AND event GLOB 'execjob_*'""",
    *(
        f"""UPDATE {table} SET job = 0, pbs_job = CASE
            WHEN typeof(job) = 'text' OR job != CAST(job AS INTEGER) AND NOT job GLOB '*[^0-9.]*' THEN CAST(job AS TEXT)
            ELSE job || '.?' END
            WHERE typeof(job) != 'integer'"""  # noqa: S608
        for table in ("migrations", "events")
    ),
    "CREATE INDEX migrations_pbs_job ON migrations (pbs_job) WHERE pbs_job != ''",
    "CREATE INDEX events_pbs_job ON events (pbs_job) WHERE pbs_job != ''",
)
STEPS = (_FIRST, _SECOND, _THIRD)
"""From each version of the tables to the next; a new one keeps what is written, and readable."""


@dataclass(frozen=True, slots=True)
class Migration:
    """What became of one job's memory, once. Slurm's job IDs are numbers, PBS's are texts ("12.server").

    `began`: seconds since 1970; `nodes_*`: as the kernel lists them; `pages`: base pages by bucket, with `requested`
    and `calls` as in a tally; `event`, `rule`: why it was done; `asked_per_process`: what asking every process would
    have requested, 0 if nobody counted. `moments` of the stop, by name, as `began`; `ledger` as in `ledger_json`, empty
    where it was not kept. `id` is given by the store.
    """

    job: int | str
    uid: int
    host: str
    event: str
    rule: str
    began: float
    seconds: float
    seconds_stopped: float
    nodes_from: str
    nodes_to: str
    outcome: str
    pages: dict[str, int] = field(default_factory=dict)
    requested: int = 0
    calls: int = 0
    bytes: int = 0
    error: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    asked_per_process: int = 0
    moments: dict[str, float] = field(default_factory=dict)
    ledger: dict[str, Any] = field(default_factory=dict)
    id: int = 0

    @property
    def requests_saved(self) -> int | None:
        """Return how many pages were asked for once less than process by process; None if nobody counted."""
        return max(0, self.asked_per_process - self.requested) if self.requested and self.asked_per_process else None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job, or (`job` 0) to the agent: a hold, a release, a start, a recovery."""

    job: int | str
    uid: int
    kind: str
    text: str
    began: float
    id: int = 0


Row = TypeVar("Row", Migration, Event)


class Store:
    """The history; for one thread, and not for a forked child.

    `lost`: records dropped since the start; `fault`: why the last one was, None while all is well.
    """

    def __init__(
        self,
        path: Path = PATH,
        *,
        max_rows: int = 50_000,
        max_ledgers: int = _LEDGERS,
        max_days: float = 90,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.lost = 0
        self._fault: str | None = None
        self._database = Database(path, STEPS)
        self._max_rows = max_rows
        self._max_ledgers = max_ledgers
        self._max_seconds = max_days * 86400
        self._clock = clock
        self._until_prune = 0
        self._damaged: dict[tuple[str, object], str] = {}

    @property
    def fault(self) -> str | None:
        """Why the last record could not be written or read, or the first that is damaged; None while all is well."""
        return self._fault or next(iter(self._damaged.values()), None)

    @property
    def path(self) -> Path:
        """The file."""
        return self._database.path

    def keep_days(self, days: float) -> None:
        """Keep records no longer than this, from the next pruning on."""
        self._max_seconds = days * 86400

    def record_migration(self, migration: Migration) -> int:
        """Write a migration down, or count it as lost; return its ID, 0 if it is lost."""
        return self._record("migrations", migration)

    def amend(self, migration: int, moments: Mapping[str, float]) -> None:
        """Write down what has become known of a migration's moments since; without it they stay as they were."""

        def update(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE migrations SET moments = ? WHERE id = ?", (_stored(dict(moments)), migration))

        self._fault = self._database.do(update) or self._fault

    def record_event(self, job: int | str, uid: int, kind: str, text: str) -> None:
        """Write down what happens now, or count it as lost."""
        self._record("events", Event(job, uid, kind, text, self._clock()))

    def migrations(
        self,
        job: int | str | None = None,
        user: int | None = None,
        limit: int = 100,
        *,
        number: int | None = None,
        ledgers: bool = True,
    ) -> list[Migration]:
        """Return the newest migrations, newest first: of a job, of a user's jobs, or all; or the one of an ID.

        None at all when the file cannot be read: `fault` says why. Without `ledgers` these are empty: they are long.
        """
        wanted = {"job": job, "uid": user, "id": number}
        return self._select("migrations", Migration, wanted, limit, frozenset() if ledgers else frozenset({"ledger"}))

    def events(self, job: int | str | None = None, user: int | None = None, limit: int = 100) -> list[Event]:
        """Return the newest events, as `migrations` does."""
        return self._select("events", Event, {"job": job, "uid": user}, limit)

    def close(self) -> None:
        """Close the file; the next record opens it again."""
        self._database.close()

    def _record(self, table: str, record: Migration | Event) -> int:
        number = 0

        def insert(connection: sqlite3.Connection) -> None:
            nonlocal number
            row = {name: _stored(getattr(record, name)) for name in _columns(type(record)) if name != "id"}
            if isinstance(row["job"], str):
                row |= {"job": 0, "pbs_job": row["job"]}
            cursor = connection.execute(
                f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})",  # noqa: S608
                tuple(row.values()),
            )
            number = cursor.lastrowid or 0

        fault = self._database.do(insert)
        if fault is not None:
            self.lost += 1
            if self._fault is None:
                _log.error("%s: %s; the history goes without records until this is mended", self._database.path, fault)
        elif self._fault is not None:
            _log.warning("%s: written again; %d records lost since the start", self._database.path, self.lost)
        self._fault = fault
        if fault is None and self._until_prune == 0:
            self._database.do(self._prune)  # apart: a disk may have room for a record, and none to delete others
            self._until_prune = _PRUNE_EVERY
        self._until_prune = max(0, self._until_prune - 1)
        return number if fault is None else 0

    def _select(
        self,
        table: str,
        kind: type[Row],
        wanted: Mapping[str, int | str | None],
        limit: int,
        without: frozenset[str] = frozenset(),
    ) -> list[Row]:
        found: list[Row] = []
        given: dict[str, int | str] = {name: value for name, value in wanted.items() if value is not None}
        shown = dict.fromkeys(without, _EMPTY) | {"job": _JOB}
        conditions = ["1", *(_IS_JOB if name == "job" else f"{name} = :{name}" for name in given)]
        if "job" in given:
            given |= {"job": str(given["job"]), "number": _number(given["job"])}

        def select(connection: sqlite3.Connection) -> None:
            columns = _columns(kind)
            rows = connection.execute(
                f"SELECT {', '.join(shown.get(name, name) for name in columns)} FROM {table} "  # noqa: S608
                f"WHERE {' AND '.join(conditions)} ORDER BY id DESC LIMIT :limit",
                {**given, "limit": max(0, limit)},
            )
            found[:] = self._readable(table, kind, rows)

        fault = self._database.do(select)
        if fault is None:
            return found
        self._fault = self._fault or fault
        return []

    def _readable(self, table: str, kind: type[Row], rows: Iterable[Sequence[Any]]) -> Iterator[Row]:
        """Yield what rows hold; one that is damaged is left out, and said once."""
        for row in rows:
            try:
                yield record(kind, row)
            except ValueError as error:
                if (table, row[-1]) not in self._damaged:
                    self._damaged[table, row[-1]] = f"row {row[-1]} of {table} is damaged, not shown: {error}"
                    _log.warning("%s: %s", self.path, self._damaged[table, row[-1]])

    def _prune(self, connection: sqlite3.Connection) -> None:
        for table in ("migrations", "events"):
            connection.execute(f"DELETE FROM {table} WHERE began < ?", (self._clock() - self._max_seconds,))  # noqa: S608
            connection.execute(
                f"DELETE FROM {table} WHERE id <= (SELECT max(id) FROM {table}) - ?",  # noqa: S608
                (self._max_rows,),
            )
        connection.execute(
            f"UPDATE migrations SET ledger = {_EMPTY} WHERE ledger != {_EMPTY} "  # noqa: S608
            "AND id <= (SELECT max(id) FROM migrations) - ?",
            (self._max_ledgers,),
        )


def _number(job: int | str) -> int:
    """Return the number of a job of Slurm's, however it is given; -1 for an ID that is none of Slurm's."""
    if isinstance(job, int):
        return job
    return int(job) if job.isascii() and job.isdigit() and len(job) < 19 else _NO_JOB


def _columns(kind: type[Migration | Event]) -> list[str]:
    return [column.name for column in fields(kind)]


def _stored(value: object) -> object:
    """Return a field as SQLite takes it: text bounded and printable, tables as JSON. Raises TypeError, ValueError."""
    if isinstance(value, str):
        return printable(value[:_TEXT_CHARACTERS].encode("utf-8", "surrogatepass"))
    if isinstance(value, dict):
        text = json.dumps(value, allow_nan=False)
        return text if len(text) <= _DETAILS_CHARACTERS else json.dumps({"dropped_characters": len(text)})
    return value
