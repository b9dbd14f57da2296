"""Tells what happens to jobs: a line in the log, a row in the history, a count, and the outcome for the operator.

What happens is `tending`'s; the log is one line for each event, with the job, for journald or a terminal.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import Counter

from pageferry.agent.tended import Migration, Tended
from pageferry.comment import outcome_text
from pageferry.history import store
from pageferry.history.store import Store
from pageferry.kernel.lists import format_list
from pageferry.report import size

_STAYS = ("pinned", "no_room", "denied", "not_reached")

_log = logging.getLogger(__name__)


class Chronicle:
    """The record of a host's agent; `counts` since it started."""

    def __init__(self, history: Store) -> None:
        self._history = history
        self.counts: Counter[str] = Counter()

    def tell(self, tended: Tended | None, kind: str, text: str = "", level: int = logging.INFO) -> None:
        """Say that something happened to a job, or (None) to the agent."""
        self.counts[kind] += 1
        where = f"job {tended.job}: " if tended else ""
        _log.log(level, "%s%s%s", where, kind, f": {text}" if text else "")
        self._history.record_event(tended.job if tended else 0, tended.uid if tended else -1, kind, text)

    def lost(self) -> int:
        """Return how many records could not be written down."""
        return self._history.lost

    def fault(self) -> str | None:
        """Return why the last record could not be written or read, None while all is well."""
        return self._history.fault

    def read(self, job: int | None, user: int | None, limit: int) -> tuple[list[store.Migration], list[store.Event]]:
        """Return the newest migrations and events: of a job, of a user's jobs, or all."""
        return self._history.migrations(job, user, limit), self._history.events(job, user, limit)

    def ended(self, tended: Tended, migration: Migration) -> None:
        """Say what became of a migration."""
        outcome = migration.outcome or {}
        seconds = (time.monotonic_ns() - migration.began_ns) / 1e9
        word = migration.outcome_word()
        self.counts[f"migrations {word}"] += 1
        moved = size(outcome.get("moved_bytes", 0))
        _log.log(
            logging.WARNING if migration.error or word in {"partial", "refused"} else logging.INFO,
            "job %d: %s: %s, moved %s to %s in %.2f s%s",
            tended.job,
            migration.cause.value,
            word,
            moved,
            format_list(migration.nodes) or "nowhere",
            seconds,
            f": {migration.error}" if migration.error else "",
        )
        self._history.record_migration(
            store.Migration(
                job=tended.job,
                uid=tended.uid,
                host=",".join(tended.hosts) or socket.gethostname(),
                event=migration.cause.value,
                rule="",
                began=migration.began,
                seconds=seconds,
                seconds_stopped=migration.seconds_stopped,
                nodes_from=format_list(migration.sources or ()),
                nodes_to=format_list(migration.nodes),
                outcome=word,
                pages=dict(outcome.get("pages", {})),
                requested=outcome.get("requested_pages", 0),
                calls=outcome.get("calls", 0),
                bytes=outcome.get("moved_bytes", 0),
                error=migration.error or "",
                details={"request": migration.text, "excluded": outcome.get("excluded", {})},
            )
        )


def for_operator(migration: Migration) -> str:
    """Return a migration's outcome as it is written back into the job's AdminComment."""
    at = time.strftime("%H:%M:%S")
    if migration.outcome is None or migration.error:
        return f"failed: {migration.error}, {at}"
    if migration.outcome["refused"]:
        lacking = migration.outcome["lacking_bytes"]
        return "refused: no room on " + ", ".join(f"node {node} ({size(lacks)})" for node, lacks in lacking.items())
    pages = migration.outcome["pages"]
    stayed = {bucket: pages[bucket] for bucket in _STAYS if pages.get(bucket)}
    return outcome_text(migration.outcome["moved_bytes"], migration.nodes, stayed, at)
