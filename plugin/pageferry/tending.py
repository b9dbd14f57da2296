"""What the agent does for each job: hold it while Slurm has it suspended, have its memory moved, let it go.

A job is looked at when an event names it; what is done depends only on what its files say then, so that an event
that came late, twice or not at all is made good by the next. The way of a job:

    runs ──Slurm suspends──► held ──Slurm resumes──► waits ──its pages are there, or max_hold──► runs
                               └─ asks Slurm for a request, assigns CPUs, moves (an errand) ─┘

Whatever fails on the way, the job is let go: at once if Slurm lets it run, else when it does.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pageferry import chores, errand, ferry
from pageferry.assignments import Assignments
from pageferry.chores import Chore, Destination, nodes_of
from pageferry.chronicle import Chronicle, for_operator
from pageferry.comment import Wish, format_request, parse
from pageferry.config import Settings
from pageferry.errand import Errand, Result
from pageferry.errors import KernelError, PageferryError, UsageError, Vanished
from pageferry.gate import Gate
from pageferry.homes import Homes
from pageferry.kernel.cgroup import pids
from pageferry.kernel.topology import read_topology
from pageferry.schedulers.slurm_cgroups import slurm_job_suspension
from pageferry.tended import Cause, Migration, Phase, Reply, Stage, Tended
from pageferry_planner.model import Target

POLL_SECONDS = 0.05
"""How often a job is looked at that is about to stand still, and whose tasks (on version 1) appear without an event."""

SETTLE_SECONDS = (0.005, 0.05)
"""How often a task is looked at that is about to leave slurmstepd: in the first second, and then."""

REASSIGNED_SECONDS = 0.2
"""How long after a cpuset was written the job's memory follows: Slurm writes several files."""

AGAIN_SECONDS = 1.0
"""After this long a release is tried again that the kernel did not let us do."""

HOME_SECONDS = 1.0
"""How long after a job has ended the others' memory comes home: its own must be free first."""


class Tending:
    """The jobs of a host under the agent's care. For one thread; nothing here waits."""

    def __init__(
        self, gate: Gate, assignments: Assignments, homes: Homes, chronicle: Chronicle, settings: Settings
    ) -> None:
        self._gate = gate
        self._assignments = assignments
        self._homes = homes
        self._chronicle = chronicle
        self._settings = settings
        self._jobs: dict[int, Tended] = {}
        self._errands: dict[int, tuple[Errand, Callable[[Mapping[str, Any]], None], Callable[[Result], None]]] = {}
        self._settling_since: float | None = None
        self._home_at: float | None = None
        self._coming_home = False

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
        suspended = slurm_job_suspension(job).asked
        if tended.phase is Phase.RUNS:
            if suspended and not tended.unheld:
                self._hold(tended)
            elif not suspended:
                tended.unheld = False
                self._count_writes(tended, writes)
            return
        if tended.phase is Phase.HELD and not suspended:
            self._thawed(tended)
        elif tended.phase is Phase.WAITS and suspended:
            tended.phase, tended.deadline = Phase.HELD, None
        if tasks and tended.phase is not Phase.RUNS:
            self._gate.extend(job)
        self._advance(tended)

    def gone(self, job: int) -> None:
        """Forget a job that has ended here; the memory of others may come home."""
        tended = self._jobs.pop(job, None)
        self._gate.release(job)
        self._assignments.gone(job)
        self._homes.keep(self._jobs)
        if tended is not None:
            for migration in (tended.migration, *tended.queue):
                if migration is not None and migration.reply is not None:
                    migration.reply({"error": f"job {job} has ended", "code": 1})
        self.ended()

    def ended(self) -> None:
        """A job has ended: see soon whose memory can come home."""
        if self._settings.spill.enabled and self._home_at is None:
            self._home_at = time.monotonic() + HOME_SECONDS

    def poke(self, jobs: Iterable[int]) -> None:
        """See whether any of these jobs has a request that is to be served at once."""
        known = [job for job in jobs if job in self._jobs]
        if known:
            now = time.monotonic()
            self._send(chores.ask(known), lambda result: self._poked(now, result))

    def request(self, job: int, wish: Wish, hold: bool, reply: Reply) -> None:
        """Serve a request that came over the socket; `reply` gets the outcome. Raises UsageError, KernelError."""
        if job not in self._jobs:
            raise UsageError(f"no such job on this host: {job}")
        tended = self._jobs[job]
        if hold and tended.phase is Phase.RUNS:
            self._gate.hold(job)
            tended.phase = Phase.WAITS
            self._count_down(tended)
        self._begin(tended, Migration(Cause.REQUEST, Stage.READY, wish, reply=reply))

    def due(self) -> float | None:
        """Do what its time has come for; return when to come again (monotonic), None: not before something happens."""
        now = time.monotonic()
        times: list[float] = []
        for tended in list(self._jobs.values()):
            if tended.phase is not Phase.RUNS and tended.job not in self._gate.held():
                self._lost(tended)
            if tended.deadline is not None and now >= tended.deadline:
                self._let_go(tended, "max_hold is used up")
            if tended.reassigned_at is not None and now >= tended.reassigned_at:
                tended.reassigned_at = None
                self._follow(tended)
            if self._is_moving_on(tended):
                self.look(tended.job, tasks=tended.phase is Phase.WAITS)
                times.append(now + POLL_SECONDS)
            times += [at for at in (tended.deadline, tended.reassigned_at) if at is not None]
        if self._settling_since is not None:
            self._settle()
        if self._settling_since is not None:
            times.append(now + SETTLE_SECONDS[now > self._settling_since + 1])
        if self._home_at is not None and not self._coming_home:
            if now >= self._home_at:
                self._bring_home()
            else:
                times.append(self._home_at)
        return min(times, default=None)

    def recovered(self, job: int) -> None:
        """Take over a hold of an agent before us: keep it while Slurm has the job suspended, else let the job go."""
        tended = self._jobs.setdefault(job, Tended(job))
        self._see_cpus(tended)
        if slurm_job_suspension(job).asked:
            tended.phase = Phase.HELD
            self._gate.extend(job)
            self._chronicle.tell(tended, "recovered", "Slurm has it suspended; still held")
            self._begin(tended, Migration(Cause.RECOVERED, Stage.ASKS))
        else:
            self._chronicle.tell(tended, "recovered", "Slurm lets it run; released", logging.WARNING)
            tended.thawed_at = time.monotonic()
            self._released(tended)
            self._begin(tended, Migration(Cause.RECOVERED, Stage.ASKS))

    def descriptors(self) -> list[int]:
        """Return what the loop has to wait for on behalf of errands: `collect` what is readable."""
        return list(self._errands)

    def collect(self, descriptor: int) -> None:
        """Take what an errand has said, and what follows from its end."""
        sent, said, ended = self._errands[descriptor]
        for message in sent.read():
            said(message)
        if sent.result is not None:
            del self._errands[descriptor]
            ended(sent.result)

    def known(self) -> tuple[int, ...]:
        """Return the jobs of this host."""
        return tuple(self._jobs)

    def status(self) -> dict[str, Any]:
        """Return how each job stands, as plain data."""
        return {
            str(tended.job): {
                "phase": tended.phase.value,
                "stage": tended.migration.stage.value if tended.migration else None,
                "home_nodes": self._homes.get(tended.job),
            }
            for tended in self._jobs.values()
        }

    def close(self) -> None:
        """End all errands; what they have begun in the kernel is finished there."""
        for sent, _, _ in self._errands.values():
            sent.kill()
        self._errands.clear()

    # Hold and release.

    def _hold(self, tended: Tended) -> None:
        try:
            self._gate.hold(tended.job)
        except Vanished:
            return
        except KernelError as error:
            tended.unheld = True
            self._chronicle.tell(tended, "not held", str(error), logging.ERROR)
        else:
            tended.phase = Phase.HELD
            tended.writes.clear()
            self._chronicle.tell(tended, "held", "Slurm suspends it")
        self._begin(tended, Migration(Cause.SUSPEND, Stage.ASKS))
        self._advance(tended)

    def _thawed(self, tended: Tended) -> None:
        tended.phase = Phase.WAITS
        self._count_down(tended)
        if tended.migration is None:
            self._let_go(tended, "its memory is there")

    def _count_down(self, tended: Tended) -> None:
        tended.thawed_at = time.monotonic()
        tended.deadline = tended.thawed_at + self._settings.agent.max_hold_seconds

    def _released(self, tended: Tended) -> bool:
        """Have the gate release a job, and say whether it could; else it waits, and it is tried again soon."""
        tended.phase, tended.deadline = Phase.RUNS, None
        try:
            self._gate.release(tended.job)
        except KernelError as error:
            self._chronicle.tell(tended, "not released", str(error), logging.CRITICAL)
            tended.phase, tended.deadline = Phase.WAITS, time.monotonic() + AGAIN_SECONDS
            return False
        return True

    def _let_go(self, tended: Tended, why: str) -> None:
        waited = time.monotonic() - tended.thawed_at
        if not self._released(tended):
            return
        if tended.migration is not None:
            tended.migration.seconds_stopped = waited
        self._chronicle.tell(tended, "released", f"{why}; {waited * 1000:.0f} ms after Slurm's resume")
        self._begin(tended, Migration(Cause.RESUME, Stage.ASKS))
        self._advance(tended)

    def _lost(self, tended: Tended) -> None:
        """The guardian has released a job that we thought we held: it is served while it runs."""
        tended.phase, tended.deadline = Phase.RUNS, None
        self._chronicle.tell(tended, "hold lost", "the guardian released it", logging.WARNING)
        self._advance(tended)

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
                self._begin(tended, Migration(Cause.BEATEN, Stage.ASKS))

    # Migrations: one at a time for a job.

    def _begin(self, tended: Tended, migration: Migration) -> None:
        if tended.migration is not None:
            if migration.reply is not None or not tended.queued(migration.cause):
                tended.queue.append(migration)
            return
        tended.migration = migration
        if migration.stage is Stage.ASKS:
            now = time.monotonic()
            self._send(chores.ask([tended.job]), lambda result: self._asked(tended, migration, now, result))
        else:
            self._assign(tended, migration)

    def _asked(self, tended: Tended, migration: Migration, at: float, result: Result) -> None:
        if result.error:
            self._chronicle.tell(tended, "not asked", result.error, logging.WARNING)
        answer = (result.value or {}).get("jobs", {}).get(str(tended.job))
        self._understand(tended, migration, at, answer)
        if migration.cause is Cause.RESUME and not migration.text:
            self._next(tended)  # nothing new was asked for while it was suspended
        elif migration.cause is Cause.BEATEN and (answer is None or answer["state"] != "RUNNING"):
            self._next(tended)  # it was not resumed, but ended
        else:
            if migration.cause is Cause.BEATEN:
                self._chronicle.tell(tended, "beaten", "resumed before it was held; served while it runs")
            self._assign(tended, migration)

    def _understand(self, tended: Tended, migration: Migration, at: float, answer: Mapping[str, Any] | None) -> None:
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

    def _poked(self, at: float, result: Result) -> None:
        for job, answer in (result.value or {}).get("jobs", {}).items():
            if (tended := self._jobs.get(int(job))) is not None:
                migration = Migration(Cause.REQUEST, Stage.READY)
                self._understand(tended, migration, at, answer)
                if migration.wish is not None and migration.wish.now:
                    tended.served, tended.answered_at = migration.text, math.inf
                    self._begin(tended, migration)

    def _assign(self, tended: Tended, migration: Migration) -> None:
        try:
            if migration.wish is not None:
                self._give_cpus(tended, migration.wish)
                migration.nodes = migration.wish.nodes
        except PageferryError as error:
            migration.error, migration.exit_code, migration.wish = str(error), error.exit_code, None
        if migration.wish is None:
            migration.nodes = self._nodes(tended)
        migration.stage = Stage.READY
        self._advance(tended)

    def _give_cpus(self, tended: Tended, wish: Wish) -> None:
        """Give a job the CPUs that were asked for, or some on the nodes that were. Raises UsageError, KernelError."""
        topology = read_topology()
        ferry.check(Target(wish.nodes), topology)
        if not self._settings.cpus.enabled:
            if wish.cpus is not None:
                raise UsageError("cpus=: this site's settings keep jobs on Slurm's CPUs ([cpus] enabled = false)")
            return
        without = not any(topology.node(node).cpus for node in wish.nodes)
        if wish.cpus is None and (without or not self._is_confined(tended.job)):
            return
        wanted = wish.cpus if wish.cpus is not None else self._assignments.choose(tended.job, wish.nodes)
        for job in self._assignments.move(tended.job, wanted):
            if job != tended.job and job in self._jobs:
                self._begin(self._jobs[job], Migration(Cause.DISPLACED, Stage.READY))

    def _advance(self, tended: Tended) -> None:
        """Send for the memory, once the job stands still, or if it is not held."""
        migration = tended.migration
        if migration is None or migration.stage is not Stage.READY:
            return
        if tended.phase is not Phase.RUNS and not self._gate.frozen(tended.job):
            return
        if not migration.nodes or (migration.error and migration.reply):
            self._finish(tended, migration)
            return
        migration.stage = Stage.MOVES
        migration.sources = self._homes.get(tended.job)
        wish = migration.wish
        destination = Destination(migration.nodes, sources=migration.sources)
        if wish is not None:
            destination = Destination(migration.nodes, wish.strategy, migration.sources)
        chore = chores.move(tended.job, destination, self._settings)
        self._send(chore, lambda result: self._moved(tended, migration, result))

    def _moved(self, tended: Tended, migration: Migration, result: Result) -> None:
        migration.outcome = result.value
        if result.error and not migration.error:
            migration.error, migration.exit_code = result.error, result.exit_code
        if result.value is not None and not result.value["refused"] and tended.job in self._jobs:
            self._homes.put(tended.job, migration.nodes)
        self._finish(tended, migration)

    def _finish(self, tended: Tended, migration: Migration) -> None:
        if tended.phase is Phase.WAITS:
            migration.seconds_stopped = time.monotonic() - tended.thawed_at
        self._chronicle.ended(tended, migration)
        if migration.text:
            tended.served, tended.answered_at = migration.text, math.inf
            if self._settings.agent.write_outcome == "AdminComment" and tended.job in self._jobs:
                chore = chores.write_back(tended.job, tended.host, for_operator(migration))
                self._send(chore, lambda result: self._written(tended, migration, result))
        if migration.reply is not None:
            failed = {"error": migration.error, "code": migration.exit_code}
            migration.reply(failed if migration.error else {"outcome": migration.outcome})
        self._next(tended)

    def _next(self, tended: Tended) -> None:
        tended.migration = None
        if tended.queue:
            self._begin(tended, tended.queue.pop(0))
        elif tended.phase is Phase.WAITS:
            self._let_go(tended, "its memory is there")

    def _written(self, tended: Tended, migration: Migration, result: Result) -> None:
        if result.value is None or not result.value["written"]:
            why = result.error or "other hosts' outcomes were written over it"
            self._chronicle.tell(tended, "not written back", why, logging.WARNING)
        elif tended.served == migration.text:
            tended.answered_at = time.monotonic()

    # CPUs.

    def _see_cpus(self, tended: Tended) -> None:
        """A job's cpusets may be others: bring them in line with the map, and its memory after it, a little later."""
        try:
            self._assignments.seen(tended.job)
            self._settle()
        except KernelError as error:
            self._chronicle.tell(tended, "CPUs not mapped", str(error), logging.ERROR)
        nodes = self._nodes(tended)
        if nodes and self._homes.get(tended.job) is None:
            self._homes.put(tended.job, nodes)
        if tended.cpu_nodes and nodes != tended.cpu_nodes:
            tended.reassigned_at = time.monotonic() + REASSIGNED_SECONDS
        tended.cpu_nodes = nodes

    def _follow(self, tended: Tended) -> None:
        """Bring a job's memory to its CPUs, if these are still elsewhere and nothing else has brought them there."""
        nodes = self._nodes(tended)
        if tended.migration is None and nodes and nodes != self._homes.get(tended.job):
            self._begin(tended, Migration(Cause.CPUSET, Stage.READY))

    def _settle(self) -> None:
        if not self._assignments.settle():
            self._settling_since = None
        elif self._settling_since is None:
            self._settling_since = time.monotonic()

    def _nodes(self, tended: Tended) -> tuple[int, ...]:
        """Return the nodes of a job's CPUs; none for one that is not confined to any."""
        try:
            return nodes_of(self._assignments.cpus(tended.job), read_topology())
        except UsageError:
            return ()

    def _is_confined(self, job: int) -> bool:
        try:
            return bool(self._assignments.cpus(job))
        except UsageError:
            return False

    def _is_moving_on(self, tended: Tended) -> bool:
        if tended.phase is Phase.RUNS:
            return False
        ready = tended.migration is not None and tended.migration.stage is Stage.READY
        hold = self._gate.held().get(tended.job)
        return ready or (tended.phase is Phase.WAITS and hold is not None and hold.private is not None)

    # Memory that comes home.

    def _bring_home(self) -> None:
        self._home_at = None
        jobs = [job for job, tended in self._jobs.items() if tended.phase is Phase.RUNS and tended.migration is None]
        jobs = [job for job in jobs if not slurm_job_suspension(job).asked]
        if jobs:
            self._coming_home = True
            chore = chores.bring_home(jobs, self._settings)
            self._send(chore, self._home, self._came_home)

    def _came_home(self, message: Mapping[str, Any]) -> None:
        tended = self._jobs.get(message["job"])
        if tended is not None and "outcome" in message:
            outcome = message["outcome"]
            migration = Migration(Cause.SPILL, Stage.MOVES, nodes=tuple(message["nodes"]), outcome=outcome)
            migration.began -= outcome["seconds"]
            migration.began_ns -= int(outcome["seconds"] * 1e9)
            self._chronicle.ended(tended, migration)

    def _home(self, result: Result) -> None:
        self._coming_home = False
        if result.error:
            self._chronicle.tell(None, "spilled memory stays", result.error, logging.ERROR)

    def _send(
        self,
        chore: Chore,
        ended: Callable[[Result], None],
        said: Callable[[Mapping[str, Any]], None] = lambda _message: None,
    ) -> None:
        try:
            sent = errand.begin(chore)
        except OSError as error:
            ended(Result(None, f"no process for an errand: {error.strerror}", 4))
        else:
            self._errands[sent.fd] = (sent, said, ended)
