"""Tells what happens to jobs: a line in the log, a row in the history, a count, and the outcome for the operator.

What happens is `tending`'s; the log is one line for each event, with the job, for journald or a terminal.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pageferry.agent.counts import Counts
from pageferry.agent.tended import Migration, Stop, Tended
from pageferry.history import store
from pageferry.history.store import Store
from pageferry.kernel.lists import format_list
from pageferry.report import outcome_word, size, told

_log = logging.getLogger(__name__)


class Chronicle:
    """The record of a host's agent; `counts` since it started."""

    def __init__(self, history: Store) -> None:
        self._history = history
        self.counts = Counts()

    def tell(
        self, tended: Tended | None, kind: str, text: str = "", level: int = logging.INFO, *, pbs_job: str = ""
    ) -> None:
        """Say that something happened to a job, Slurm's or PBS's, or (None) to the agent."""
        self.counts.happened(kind)
        job = tended.job if tended else pbs_job or 0
        _log.log(level, "%s%s%s", f"job {job}: " if job else "", kind, f": {text}" if text else "")
        self._history.record_event(job, tended.uid if tended else -1, kind, text)

    @property
    def snapshots(self) -> Path | None:
        """Where errands keep what their plans are made from: beside the history, at debug level; None: nowhere."""
        return self._history.path.parent / "snapshots" if _log.isEnabledFor(logging.DEBUG) else None

    def lost(self) -> int:
        """Return how many records could not be written down."""
        return self._history.lost

    def fault(self) -> str | None:
        """Return why the last record could not be written or read, None while all is well."""
        return self._history.fault

    def read(
        self, job: int | str | None, user: int | None, limit: int, *, ledgers: bool = False
    ) -> tuple[list[store.Migration], list[store.Event]]:
        """Return the newest migrations (and their ledgers) and events: of a job, of a user's jobs, or all."""
        return self._history.migrations(job, user, limit, ledgers=ledgers), self._history.events(job, user, limit)

    def read_one(self, number: int, user: int | None) -> list[store.Migration]:
        """Return the migration of an ID with its ledger, if there is one, and it is a user's (None: anybody's)."""
        return self._history.migrations(user=user, number=number)

    def over(self, stop: Stop) -> None:
        """Complete what was told of a stop before it was over."""
        for number, moments in stop.told:
            self._history.amend(number, moments | stop.moments)
        stop.told.clear()

    def ended(self, tended: Tended, migration: Migration) -> None:
        """Say what became of a migration."""
        moments = migration.moments | (migration.stop.moments if migration.stop else {})
        number = self._record(
            migration.outcome,
            store.Migration(
                job=tended.job,
                uid=tended.uid,
                host=",".join(tended.hosts) or socket.gethostname(),
                event=migration.cause.value,
                rule=migration.policy.rule,
                began=migration.began,
                seconds=(time.monotonic_ns() - migration.began_ns) / 1e9,
                seconds_stopped=migration.seconds_stopped,
                nodes_from=format_list(migration.sources or ()),
                nodes_to=format_list(migration.nodes),
                outcome=migration.outcome_word(),
                error=migration.error or "",
                moments=moments,
                details={"request": migration.text, "name": tended.name},
            ),
        )
        if migration.stop is not None and number:
            migration.stop.told.append((number, moments))

    def served(self, told: Mapping[str, Any]) -> None:
        """Say what became of a job of PBS's: an answer of `pbs.serve`, as plain data."""
        self._record(
            told["outcome"],
            store.Migration(
                job=told["job"],
                uid=told["uid"],
                host=socket.gethostname(),
                event=told["event"],
                rule=told["rule"],
                began=told["began"],
                seconds=max(0.0, time.time() - told["began"]),
                seconds_stopped=told["seconds_stopped"],
                nodes_from=format_list(told["sources"]),
                nodes_to=format_list(told["nodes"]),
                outcome=outcome_word(told["outcome"], told["error"]),
                error=told["error"] or "",
                moments=told["moments"],
                details={"request": told["request"]},
            ),
        )

    def _record(self, outcome: Mapping[str, Any] | None, row: store.Migration) -> int:
        """Log, count and write down a migration; what became of its pages is in `outcome`. Return its ID, 0: lost."""
        outcome = outcome or {}
        self.counts.migrated(row.event, row.outcome, outcome, row.seconds_stopped)
        _log.log(
            logging.WARNING if row.error or row.outcome in {"partial", "refused"} else logging.INFO,
            "job %s: %s: %s, %s %s to %s in %.2f s%s%s",
            row.job,
            row.event,
            row.outcome,
            "would move" if "would_move_bytes" in outcome else "moved",
            size(outcome.get("would_move_bytes", outcome.get("moved_bytes", 0))),
            row.nodes_to or "nowhere",
            row.seconds,
            f" (rule {row.rule})" if row.rule else "",
            f": {row.error}" if row.error else "",
        )
        return self._history.record_migration(
            replace(
                row,
                pages=dict(outcome.get("pages", {})),
                requested=outcome.get("requested_pages", 0),
                calls=outcome.get("calls", 0),
                bytes=outcome.get("moved_bytes", 0),
                asked_per_process=outcome.get("asked_per_process_pages", 0),
                ledger=outcome.get("ledger", {}),
                details=row.details | {"excluded": outcome.get("excluded", {})} | _would(outcome),
            )
        )


def _would(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a migration that was only observed would have done."""
    keys = ("would_move_bytes", "would_request_pages", "lacking_bytes") if outcome.get("observed") else ()
    return {key: outcome[key] for key in keys if outcome.get(key)}


def for_operator(migration: Migration) -> str:
    """Return a migration's outcome as it is written back into the job's AdminComment."""
    return told(migration.outcome, migration.nodes, migration.error)
