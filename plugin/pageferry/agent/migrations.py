"""The migrations of jobs, one at a time for each: ask Slurm, give CPUs, move, tell.

    asks Slurm ──► gives CPUs ──► ready ──the job stands still, or is not held──► moves ──► told
      (errand)                                                                   (errand)   (record, comment, reply)

When a job is held and let go is `tending`'s: it is told when the last migration of a job has ended.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

from pageferry.agent import chores
from pageferry.agent.chores import Destination
from pageferry.agent.chronicle import Chronicle, for_operator
from pageferry.agent.errand import Result
from pageferry.agent.errands import Errands
from pageferry.agent.placing import Placing
from pageferry.agent.tended import Cause, Migration, Phase, Stage, Tended
from pageferry.comment import format_request, parse
from pageferry.config import Settings
from pageferry.errors import PageferryError, UsageError
from pageferry.gate.gate import Gate


class Migrations:
    """`jobs` are those of the host, by ID; `idle` is called with a job once nothing is left to do for its memory."""

    def __init__(
        self,
        jobs: Mapping[int, Tended],
        errands: Errands,
        *,
        gate: Gate,
        placing: Placing,
        chronicle: Chronicle,
        settings: Settings,
        idle: Callable[[Tended], None],
    ) -> None:
        self._jobs = jobs
        self._gate = gate
        self._placing = placing
        self._errands = errands
        self._chronicle = chronicle
        self._settings = settings
        self._idle = idle

    def begin(self, tended: Tended, migration: Migration) -> None:
        """Begin a migration, or have it wait for the one that is under way; one that waits for this cause will do."""
        if tended.migration is not None:
            if migration.reply is not None or not tended.queued(migration.cause):
                tended.queue.append(migration)
            return
        tended.migration = migration
        if migration.stage is Stage.ASKS:
            now = time.monotonic()
            self._errands.send(
                chores.ask([tended.job]), lambda result: self._asked(tended, migration, now, result), job=tended.job
            )
        else:
            self._assign(tended, migration)

    def advance(self, tended: Tended) -> None:
        """Send for a job's memory, if that is what is next: once the job stands still, or if it is not held."""
        migration = tended.migration
        if migration is None or migration.stage is not Stage.READY:
            return
        if tended.phase is not Phase.RUNS and not self._gate.frozen(tended.job):
            return
        if not migration.nodes or (migration.error and migration.reply):
            self._finish(tended, migration)
            return
        migration.stage = Stage.MOVES
        migration.sources = self._placing.home(tended.job)
        destination = Destination(migration.nodes, sources=migration.sources)
        if migration.wish is not None:
            destination = Destination(migration.nodes, migration.wish.strategy, migration.sources)
        chore = chores.move(tended.job, destination, self._settings)
        self._errands.send(chore, lambda result: self._moved(tended, migration, result), job=tended.job)

    def poke(self, jobs: list[int]) -> None:
        """See whether any of these jobs has a request that is to be served at once."""
        now = time.monotonic()
        self._errands.send(chores.ask(jobs), lambda result: self._poked(now, result))

    def _poked(self, at: float, result: Result) -> None:
        for job, answer in (result.value or {}).get("jobs", {}).items():
            if (tended := self._jobs.get(int(job))) is not None:
                migration = Migration(Cause.REQUEST, Stage.READY)
                _understand(tended, migration, at, answer)
                if migration.wish is not None and migration.wish.now:
                    tended.served, tended.answered_at = migration.text, math.inf
                    self.begin(tended, migration)

    def _asked(self, tended: Tended, migration: Migration, at: float, result: Result) -> None:
        if result.error:
            self._chronicle.tell(tended, "not asked", result.error, logging.WARNING)
        answer = (result.value or {}).get("jobs", {}).get(str(tended.job))
        _understand(tended, migration, at, answer)
        if migration.cause is Cause.RESUME and not migration.text:
            self._next(tended)  # nothing new was asked for while it was suspended
        elif migration.cause is Cause.BEATEN and (answer is None or answer["state"] != "RUNNING"):
            self._next(tended)  # it was not resumed, but ended
        else:
            if migration.cause is Cause.BEATEN:
                self._chronicle.tell(tended, "beaten", "resumed before it was held; served while it runs")
            self._assign(tended, migration)

    def _assign(self, tended: Tended, migration: Migration) -> None:
        try:
            if migration.wish is not None:
                migration.nodes = migration.wish.nodes
                for job in self._placing.give(tended.job, migration.wish):
                    if job in self._jobs:
                        self.begin(self._jobs[job], Migration(Cause.DISPLACED, Stage.READY))
        except PageferryError as error:
            migration.error, migration.exit_code, migration.wish = str(error), error.exit_code, None
        if migration.wish is None:
            migration.nodes = self._placing.nodes(tended.job)
        migration.stage = Stage.READY
        self.advance(tended)

    def _moved(self, tended: Tended, migration: Migration, result: Result) -> None:
        migration.outcome = result.value
        if result.error and not migration.error:
            migration.error, migration.exit_code = result.error, result.exit_code
        if result.value is not None and not result.value["refused"] and tended.job in self._jobs:
            self._placing.settle_at(tended.job, migration.nodes)
        self._finish(tended, migration)

    def _finish(self, tended: Tended, migration: Migration) -> None:
        if tended.phase is Phase.WAITS:
            migration.seconds_stopped = time.monotonic() - tended.thawed_at
        self._chronicle.ended(tended, migration)
        if migration.text:
            tended.served, tended.answered_at = migration.text, math.inf
            if self._settings.agent.write_outcome == "AdminComment" and tended.job in self._jobs:
                chore = chores.write_back(tended.job, tended.host, for_operator(migration))
                self._errands.send(chore, lambda result: self._written(tended, migration, result), job=tended.job)
        if migration.reply is not None:
            failed = {"error": migration.error, "code": migration.exit_code}
            migration.reply(failed if migration.error else {"outcome": migration.outcome})
        self._next(tended)

    def _written(self, tended: Tended, migration: Migration, result: Result) -> None:
        if result.value is None or not result.value["written"]:
            why = result.error or "other hosts' outcomes were written over it"
            self._chronicle.tell(tended, "not written back", why, logging.WARNING)
        elif tended.served == migration.text:
            tended.answered_at = time.monotonic()

    def _next(self, tended: Tended) -> None:
        tended.migration = None
        if tended.queue:
            self.begin(tended, tended.queue.pop(0))
        else:
            self._idle(tended)


def _understand(tended: Tended, migration: Migration, at: float, answer: Mapping[str, Any] | None) -> None:
    """Take the request out of a job's comment, as it was asked for `at` that time, unless it was served before.

    While our outcome is on its way, other hosts' may come into the comment: the request in it is still the same.
    """
    if answer is None:
        return
    tended.host = answer["host"]
    tended.uid = tended.uid if answer["uid"] is None else answer["uid"]
    text, wish, wrong = "", None, None
    try:
        request = parse(answer["comment"])
    except UsageError as error:
        text, wrong = answer["comment"], str(error)
    else:
        wish = request.for_host(tended.host) if request is not None else None
        text = format_request(request) if request is not None and wish is not None else ""
    if text != tended.served or at > tended.answered_at:
        migration.text, migration.wish, migration.error = text, wish, wrong
