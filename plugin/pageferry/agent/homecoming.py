"""Spilled memory comes home when a job has ended or was parked: soon after, live, one errand at a time for the host."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from pageferry.agent import chores
from pageferry.agent.chronicle import Chronicle
from pageferry.agent.errand import Errand, Result
from pageferry.agent.errands import MOVE_SECONDS, Errands
from pageferry.agent.placing import Placing
from pageferry.agent.site import Site
from pageferry.agent.tended import Cause, Migration, Phase, Stage, Tended
from pageferry.policy import Facts, Policy
from pageferry.schedulers.slurm_cgroups import slurm_job_suspension

WAIT_SECONDS = 1.0
"""How long after a job has ended: its own memory must be free first."""


class Homecoming:
    """`jobs` are those of the host, by ID: of these, the ones that run and are left alone otherwise are looked at."""

    def __init__(
        self, jobs: Mapping[int, Tended], errands: Errands, placing: Placing, chronicle: Chronicle, site: Site
    ) -> None:
        self._jobs = jobs
        self._errands = errands
        self._placing = placing
        self._chronicle = chronicle
        self._site = site
        self._at: float | None = None
        self._errand: Errand | None = None
        self._left: Mapping[int, tuple[int, ...]] = {}
        """Where the errand was told that jobs left memory when they were parked; more may have since."""
        self._on_its_way: int | None = None
        """The job whose memory is being brought home, if any."""

    def suspended(self, job: int) -> None:
        """A job is suspended: what comes home of it stops, and is another migration's when it goes on."""
        if self._on_its_way == job:
            self._stop()

    def ended(self) -> None:
        """A job has ended, or its memory has been moved away: see soon whose memory can come home."""
        if self._site.settings.spills and self._at is None:
            self._at = time.monotonic() + WAIT_SECONDS

    def due(self) -> float | None:
        """Send for spilled memory, if it is time; return when to come again (monotonic), if ever."""
        if self._at is None or self._errand is not None:
            return None
        if time.monotonic() < self._at:
            return self._at
        self._at = None
        free = [job for job, tended in self._jobs.items() if tended.phase is Phase.RUNS and tended.migration is None]
        free = [job for job in free if not slurm_job_suspension(job).asked]
        if not self._jobs:
            self._chronicle.counts.nothing_far("slurm")
        if free:
            of = {job: self._jobs[job].facts for job in free}
            left = self._left = {job: nodes for job in free if (nodes := self._placing.left(job))}
            chore = chores.bring_home(of, self._site.settings, self._chronicle.snapshots, left)
            self._errand = self._errands.send(chore, self._done, self._came, seconds=MOVE_SECONDS)
        return None

    def _came(self, message: Mapping[str, Any]) -> None:
        if "far" in message:
            self._chronicle.counts.seen_far("slurm", {int(node): count for node, count in message["far"].items()})
        elif "known" in message:
            if (tended := self._jobs.get(message["known"])) is not None:
                tended.facts = tended.facts or Facts.from_plain(message["facts"])
        elif "begins" in message:
            self._begins(message["begins"])
        elif "ends" in message:
            self._on_its_way = None
        elif (tended := self._jobs.get(message["job"])) is not None:
            outcome = message["outcome"]
            migration = Migration(Cause.SPILL, Stage.MOVES, nodes=tuple(message["nodes"]), outcome=outcome)
            migration.policy = Policy(rule=message["rule"])
            migration.began -= outcome["seconds"]
            migration.began_ns -= int(outcome["seconds"] * 1e9)
            self._chronicle.ended(tended, migration)
            if outcome["complete"]:
                since = {*self._placing.left(tended.job)} - {*self._left.get(tended.job, ())}
                self._placing.leave(tended.job, tuple(sorted(since)))

    def _begins(self, job: int) -> None:
        """A job's memory is on its way home: it stops if the job has been suspended since it was looked at."""
        self._on_its_way = job
        tended = self._jobs.get(job)
        if tended is None or tended.phase is not Phase.RUNS:
            self._stop()

    def _stop(self) -> None:
        """Stop the job's that comes home, or, if it comes too late for that, the next one's: so look again."""
        if self._errand is not None:
            self._errand.interrupt()
            self.ended()

    def _done(self, result: Result) -> None:
        self._errand, self._on_its_way = None, None
        if result.error:
            self._chronicle.tell(None, "spilled memory stays", result.error, logging.ERROR)
