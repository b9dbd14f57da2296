"""What the agent does for each job: hold it while Slurm has it suspended, have its memory moved, let it go.

A job is looked at when an event names it; what is done depends only on what its files say then, so that an event
that came late, twice or not at all is made good by the next. The way of a job:

    runs ──Slurm suspends──► held ──Slurm resumes──► waits ──its pages are there, or max_hold──► runs
                               └─ asks Slurm for a request, assigns CPUs, moves (an errand) ─┘

A job that its rule parks is moved away while it is held, and does the rest while it waits.
Whatever fails on the way, the job is let go: at once if Slurm lets it run, else when it does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pageferry.agent.chronicle import Chronicle
from pageferry.agent.counts import Release
from pageferry.agent.errands import Errands
from pageferry.agent.homecoming import Homecoming
from pageferry.agent.migrations import Migrations
from pageferry.agent.placing import Placing
from pageferry.agent.site import Site
from pageferry.agent.tended import Cause, Migration, Phase, Reply, Stage, Stop, Tended
from pageferry.comment import Wish
from pageferry.errors import KernelError, PageferryError, UsageError, Vanished
from pageferry.gate.gate import Gate
from pageferry.kernel.cgroup import pids
from pageferry.policy import Mode
from pageferry.schedulers.slurm_cgroups import slurm_job_suspension, slurm_job_user_groups, slurm_suspension

POLL_SECONDS = 0.05
"""How often a job is looked at that is about to stand still, and whose tasks (on version 1) appear without an event."""

HELD_SECONDS = 1.0
"""How often a held job is looked at whatever happens: an event may have been lost, or a look have failed."""

REASSIGNED_SECONDS = 0.2
"""How long after a cpuset was written the job's memory follows: Slurm writes several files."""

SLOW_SECONDS = 10.0
"""A suspended job that does not stand still by then is looked at less often."""

AGAIN_SECONDS = 1.0
"""After this long a release is tried again that the kernel did not let us do."""


class Tending:
    """The jobs of a host under the agent's care. For one thread; nothing here waits. `errands`: for the loop."""

    def __init__(self, gate: Gate, placing: Placing, chronicle: Chronicle, site: Site) -> None:
        self._gate = gate
        self._placing = placing
        self._chronicle = chronicle
        self._site = site
        self._jobs: dict[int, Tended] = {}
        self.errands = Errands()
        self._homecoming = Homecoming(self._jobs, self.errands, placing, chronicle, site)
        self._migrations = Migrations(
            self._jobs,
            self.errands,
            gate=gate,
            placing=placing,
            chronicle=chronicle,
            site=site,
            ruled=self._ruled,
            stop=self._stop,
            let_go=partial(self._let_go, cause=Release.ARRIVED),
            idle=self._idle,
            room=self._homecoming.ended,
        )
        self._parking = self._migrations.parking

    # What has happened. Called by the agent's loop.

    def look(
        self, job: int, *, writes: Mapping[Path, int] = MappingProxyType({}), cpus: bool = False, tasks: bool = False
    ) -> None:
        """See how a job stands, and do what follows.

        `writes`: how often freezers of it were written; `cpus`: a cpuset was; `tasks`: a step or task of it is new.
        """
        fresh = job not in self._jobs
        tended = self._jobs.setdefault(job, Tended(job))
        if fresh or cpus or tasks:
            self._see_cpus(tended)
        # A write to a freezer that is known needs no search for others: a job may wait for its release.
        if tasks or not writes or not writes.keys() <= set(tended.groups):
            tended.groups = slurm_job_user_groups(job)
        suspended = slurm_suspension(tended.groups).asked
        if tended.phase is Phase.RUNS:
            if suspended and not tended.unheld:
                self._hold(tended)
            elif not suspended:
                tended.unheld = False
                self._count_writes(tended, writes)
                if tended.migration is None and self._placing.parked(job):  # its hold was lost, or no agent was there
                    self._migrations.begin(tended, Migration(Cause.UNPARK, Stage.ASKS))
            return
        if tended.phase is Phase.HELD and not suspended:
            self._thawed(tended)
        elif tended.phase is Phase.WAITS and suspended:
            tended.phase, tended.deadline, tended.unreleased = Phase.HELD, None, None
            _reached(tended, "resumed", None)
            if self._parking.nodes(tended):  # whatever has come back
                self._parking.suspended(tended)
                self._migrations.begin(tended, Migration(Cause.SUSPEND, Stage.ASKS))
        if tasks and tended.phase is not Phase.RUNS:
            self._gate.extend(job)
        self._migrations.advance(tended)

    def gone(self, job: int) -> None:
        """Forget a job that has ended here; the memory of others may come home."""
        tended = self._jobs.pop(job, None)
        if tended is not None:
            _drop(tended, f"job {job} has ended")
        self.ended()
        held = job in self._gate.held()
        self._gate.release(job)
        if held:
            self._chronicle.counts.released(Release.ENDED)
        if tended is not None:
            self._over(tended)
        self._placing.gone(job, self._jobs)

    def ended(self) -> None:
        """A job has ended: see soon whose memory can come home."""
        self._homecoming.ended()

    def poke(self, jobs: Iterable[int]) -> None:
        """See whether any of these jobs has a request that is to be served at once."""
        known = [job for job in jobs if job in self._jobs]
        if known:
            self._migrations.requests.poke(known)

    def request(
        self,
        job: int,
        wish: Wish,
        reply: Reply,
        *,
        hold: bool,
        precopy: bool,
        memory_only: bool = False,
        by_owner: bool = False,
    ) -> None:
        """Serve a request that came over the socket; `reply` gets the outcome. Raises UsageError, KernelError.

        `hold`: a job that runs is held meanwhile; `precopy`: what can move while it runs does so first. `memory_only`:
        the job keeps its CPUs; `by_owner`: its user asks, which the job's policy must allow.
        """
        if job not in self._jobs:
            raise UsageError(f"no such job on this host: {job}")
        tended = self._jobs[job]
        copies = precopy and tended.phase is Phase.RUNS
        moves = not self._site.knows(tended.facts) or self._site.policy(tended.facts).mode is Mode.MOVE
        if hold and moves and not copies:
            self._stop(tended)
        stage = Stage.COPIES if copies else Stage.READY
        migration = Migration(Cause.REQUEST, stage, wish, reply=reply, memory_only=memory_only, by_owner=by_owner)
        self._migrations.begin(tended, migration)

    def due(self) -> float | None:
        """Do what its time has come for; return when to come again (monotonic), None: not before something happens."""
        now = time.monotonic()
        times: list[float] = []
        for job in [job for job in self._gate.held() if job not in self._jobs]:
            self._jobs[job] = Tended(job)
        for tended in list(self._jobs.values()):
            times += self._one_by_one(tended, partial(self._due_of, tended, now))
        for part in (self._placing.due, self._homecoming.due, self.errands.due):
            times += self._one_by_one(None, partial(_times, part))
        return min(times, default=None)

    def _one_by_one(self, tended: Tended | None, act: Callable[[], list[float]]) -> list[float]:
        """Do something for a job; a failure is told, and keeps nobody else from what is due."""
        try:
            return act()
        except Vanished:
            return [time.monotonic() + AGAIN_SECONDS]
        except PageferryError as error:
            self._chronicle.tell(tended, "not done", str(error), logging.ERROR)
            return [time.monotonic() + AGAIN_SECONDS]

    def _due_of(self, tended: Tended, now: float) -> list[float]:
        held = tended.job in self._gate.held()
        if held and tended.phase is Phase.RUNS:  # something failed between the one and the other
            self._released(tended, Release.FAULT)
        elif not held and tended.phase is not Phase.RUNS:
            self._lost(tended)
        if tended.deadline is not None and now >= tended.deadline:
            if tended.unreleased is None:
                self._migrations.hold_ended(tended)
            self._let_go(tended, tended.unreleased or Release.MAX_HOLD)
        if tended.reassigned_at is not None and tended.migration is None and now >= tended.reassigned_at:
            tended.reassigned_at = None
            self._follow(tended)
        if tended.phase is not Phase.RUNS and now >= tended.look_at:
            tended.look_at = now + (POLL_SECONDS if self._is_moving_on(tended, now) else HELD_SECONDS)
            self.look(tended.job, tasks=tended.phase is Phase.WAITS)
        times = [tended.deadline, tended.reassigned_at if tended.migration is None else None]
        times.append(tended.look_at if tended.phase is not Phase.RUNS else None)
        return [at for at in times if at is not None]

    def recovered(self, job: int) -> None:
        """Take over a hold of an agent before us: keep it while Slurm has the job suspended, else let the job go."""
        tended = self._jobs.setdefault(job, Tended(job))
        self._chronicle.counts.held()
        self._see_cpus(tended)
        if slurm_job_suspension(job).asked:
            tended.phase = Phase.HELD
            tended.stop = Stop({"held": hold.since_wall} if (hold := self._gate.held().get(job)) else {})
            self._gate.extend(job)
            self._chronicle.tell(tended, "recovered", "Slurm has it suspended; still held")
            self._migrations.begin(tended, Migration(Cause.RECOVERED, Stage.ASKS))
        else:
            self._chronicle.tell(tended, "recovered", "Slurm lets it run; released", logging.WARNING)
            tended.thawed_at = time.monotonic()
            self._released(tended, Release.RECOVERED)
            self._migrations.begin(tended, Migration(Cause.RECOVERED, Stage.ASKS))

    def tell_news(self) -> None:
        """Say what was released by the guardian, and why; each is said once."""
        for text in self._gate.news():
            self._chronicle.tell(None, "released by the guardian", text, logging.WARNING)

    def abandon(self, job: int, why: str) -> None:
        """Give up on what is being done for a job's memory, after a fault of our own; it runs if Slurm lets it."""
        tended = self._jobs.get(job)
        if tended is None:
            return
        if tended.migration is not None and tended.migration.errand is not None:
            tended.migration.errand.interrupt()  # another may begin
        _drop(tended, why)
        if tended.phase is Phase.WAITS:
            self._released(tended, Release.FAULT)

    def known(self) -> tuple[int, ...]:
        """Return the jobs of this host."""
        return tuple(self._jobs)

    def status(self) -> dict[str, Any]:
        """Return how each job stands, as plain data."""
        return {
            str(tended.job): {
                "phase": tended.phase.value,
                "stage": tended.migration.stage.value if tended.migration else None,
                "home_nodes": self._placing.home(tended.job),
                "parked_nodes": self._placing.parked(tended.job),
                "rule": self._site.policy(tended.facts).rule,
                "move": tended.migration.as_move() if tended.migration else None,
            }
            for tended in self._jobs.values()
        }

    def held(self) -> dict[str, int]:
        """Return how many jobs are held now: that Slurm has suspended too, or that wait for their memory."""
        phases = [self._jobs[job].phase for job in self._gate.held() if job in self._jobs]
        return {phase.value: phases.count(phase) for phase in (Phase.HELD, Phase.WAITS)}

    # Hold and release.

    def _hold(self, tended: Tended) -> None:
        policy = self._site.policy(tended.facts)
        seen = {"suspended": time.time()}
        try:
            if policy.mode is Mode.MOVE or not self._site.knows(tended.facts):
                self._gate.hold(tended.job)
            else:
                tended.unheld = True
        except Vanished:
            return
        except KernelError as error:
            tended.unheld = True
            self._chronicle.tell(tended, "not held", str(error), logging.ERROR)
        else:
            tended.writes.clear()
            if not tended.unheld:
                tended.phase = Phase.HELD
                tended.stop = Stop(seen | {"held": time.time()})
                tended.held_at = time.monotonic()
                tended.look_at = 0.0
                self._chronicle.counts.held()
                self._chronicle.tell(tended, "held", "Slurm suspends it")
        tended.hurry()
        self._homecoming.suspended(tended.job)
        self._parking.suspended(tended)
        self._migrations.begin(tended, Migration(Cause.SUSPEND, Stage.ASKS, moments=seen))
        self._migrations.advance(tended)

    def _stop(self, tended: Tended) -> None:
        """Hold a job that runs, for its memory's sake. Raises KernelError."""
        if tended.phase is Phase.RUNS:
            self._gate.hold(tended.job)
            self._chronicle.counts.held()
            tended.phase, tended.stop = Phase.WAITS, Stop({"held": time.time()})
            tended.hurry()
            if tended.migration is not None:
                tended.migration.stop = tended.stop
            self._count_down(tended)

    def _thawed(self, tended: Tended) -> None:
        tended.phase = Phase.WAITS
        _reached(tended, "resumed", time.time())
        self._count_down(tended)
        self._parking.thawed(tended)
        if tended.migration is None:
            self._idle(tended)

    def _count_down(self, tended: Tended) -> None:
        tended.thawed_at = time.monotonic()
        tended.deadline = tended.thawed_at + self._site.policy(tended.facts).max_hold_seconds
        tended.look_at = 0.0

    def _released(self, tended: Tended, cause: Release) -> bool:
        """Have the gate release a job, and say whether it could; else it waits, and it is tried again soon."""
        tended.phase, tended.deadline = Phase.RUNS, None
        cause = tended.unreleased or cause
        held = tended.job in self._gate.held()
        try:
            self._gate.release(tended.job)
        except KernelError as error:
            self._chronicle.tell(tended, "not released", str(error), logging.CRITICAL)
            tended.phase, tended.unreleased = Phase.WAITS, cause
            tended.deadline = tended.look_at = time.monotonic() + AGAIN_SECONDS
            return False
        tended.unreleased = None
        if held:
            self._chronicle.counts.released(cause)
        self._over(tended)
        return True

    def _over(self, tended: Tended) -> None:
        """A job goes on: what the history has of this stop is completed."""
        _reached(tended, "released", time.time())
        if tended.stop is not None:
            self._chronicle.over(tended.stop)
        tended.stop = None

    def _let_go(self, tended: Tended, cause: Release, why: str = "") -> None:
        waited = time.monotonic() - tended.thawed_at
        if not self._released(tended, cause):
            return
        if tended.migration is not None:
            tended.migration.seconds_stopped = waited
        self._chronicle.tell(tended, "released", f"{why or cause.value}; {waited * 1000:.0f} ms after Slurm's resume")
        self._migrations.begin(tended, Migration(Cause.RESUME, Stage.ASKS))
        self._migrations.advance(tended)

    def _ruled(self, tended: Tended) -> None:
        """A job's policy is known: one that is not to be moved is not held either, another as long as it says."""
        policy = self._site.policy(tended.facts)
        if tended.phase is Phase.WAITS and policy.mode is Mode.MOVE:
            tended.deadline = tended.thawed_at + policy.max_hold_seconds
        elif policy.mode is Mode.MOVE or tended.phase is Phase.RUNS:
            return
        elif tended.phase is Phase.WAITS:
            self._let_go(tended, Release.POLICY, f"{policy.named()}, mode = {policy.mode}")
        elif self._released(tended, Release.POLICY):
            tended.unheld = True
            self._chronicle.tell(tended, "released", f"{policy.named()}, mode = {policy.mode}; Slurm has it suspended")

    def _lost(self, tended: Tended) -> None:
        """The guardian has released a job that we thought we held: it is served while it runs."""
        tended.phase, tended.deadline, tended.unreleased = Phase.RUNS, None, None
        self._over(tended)
        self._chronicle.counts.released(Release.GUARDIAN)
        self._chronicle.tell(tended, "hold lost", Release.GUARDIAN.value, logging.WARNING)
        self.tell_news()
        self._migrations.advance(tended)

    def _count_writes(self, tended: Tended, writes: Mapping[Path, int]) -> None:
        """Take note of a job that was suspended and resumed before it could be held.

        Both are writes to the same freezer. So are the thaws when Slurm kills a step: only if Slurm says that the job
        runs, and the group still has processes, is it what it seems.
        """
        tended.writes.update(writes)
        twice = [group for group, count in tended.writes.items() if count > 1]
        if twice:
            tended.writes.clear()
            if any(pids(group) for group in twice):
                self._migrations.begin(tended, Migration(Cause.BEATEN, Stage.ASKS))

    def _idle(self, tended: Tended) -> None:
        """Nothing is left to do for a job's memory."""
        if self._placing.parked(tended.job) and not slurm_suspension(tended.groups).asked:
            self._migrations.begin(tended, Migration(Cause.UNPARK, Stage.ASKS))
        elif tended.phase is Phase.WAITS:
            self._let_go(tended, Release.ARRIVED)

    def _is_moving_on(self, tended: Tended, now: float) -> bool:
        """Say whether a held job is to be looked at often: it is about to stand still, or (version 1) may start tasks.

        What has not stood still for a while is in an uninterruptible call, which may take its time.
        """
        ready = tended.migration is not None and tended.migration.stage is Stage.READY
        hold = self._gate.held().get(tended.job)
        starts = tended.phase is Phase.WAITS and hold is not None and hold.private is not None
        return starts or (ready and (tended.phase is Phase.WAITS or now < tended.held_at + SLOW_SECONDS))

    # CPUs.

    def _see_cpus(self, tended: Tended) -> None:
        """A job's cpusets may be others: bring them in line with the map, and its memory after it, a little later."""
        try:
            self._placing.see(tended.job)
        except KernelError as error:
            self._chronicle.tell(tended, "CPUs not mapped", str(error), logging.ERROR)
        nodes = self._placing.nodes(tended.job)
        before = tended.cpu_nodes or self._placing.home(tended.job)
        if before and nodes != before:
            tended.reassigned_at = time.monotonic() + REASSIGNED_SECONDS
        tended.cpu_nodes = nodes

    def _follow(self, tended: Tended) -> None:
        """Bring a job's memory to its CPUs, if these are still elsewhere and nothing else has brought them there."""
        nodes = self._placing.nodes(tended.job)
        if tended.migration is None and nodes and nodes != (tended.placed_for or self._placing.home(tended.job)):
            self._migrations.begin(tended, Migration(Cause.CPUSET, Stage.READY))


def _reached(tended: Tended, moment: str, at: float | None) -> None:
    """Take note of when a moment of a job's stop was; None: it has not come after all."""
    if tended.stop is not None:
        tended.stop.moments.pop(moment, None)
        if at is not None:
            tended.stop.moments[moment] = at


def _drop(tended: Tended, why: str) -> None:
    """Give up on all that is done or waits to be done for a job, and say so to those who asked."""
    given_up = [migration for migration in (tended.migration, *tended.queue) if migration is not None]
    tended.migration = None
    tended.queue = []
    for migration in given_up:
        if migration.reply is not None:
            migration.reply({"error": why, "code": 1})


def _times(due: Callable[[], float | None]) -> list[float]:
    at = due()
    return [] if at is None else [at]
