"""The migrations of jobs, one at a time for each: ask Slurm, give CPUs, move, tell.

    asks Slurm ──► gives CPUs ──► ready ──the job stands still, or is not held──► moves ──► told
      (errand)                                                                   (errand)   (record, comment, reply)

A request may have what can be moved while the job runs moved first (an errand); then it is held, and given CPUs.

A job that is suspended, and that its rule parks (`parking`), has its memory moved to where the rule says instead; what
is asked for it is read, and served, when it is let go on, with the memory still parked.

What a job's comments ask for is read and answered by `requests`. When a job is held and let go is `tending`'s: it is
told when the last migration of a job has ended.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from pageferry import applied, ferry, report, strays
from pageferry.agent import chores
from pageferry.agent.chronicle import Chronicle
from pageferry.agent.errand import Result
from pageferry.agent.errands import ASK_SECONDS, MOVE_SECONDS, Errands
from pageferry.agent.narrowing import Narrowing
from pageferry.agent.parking import Parking, broken_off
from pageferry.agent.placing import Placing
from pageferry.agent.requests import Requests
from pageferry.agent.site import Site
from pageferry.agent.tended import Cause, Migration, Phase, Stage, Tended
from pageferry.applied import Destination
from pageferry.comment import Wish
from pageferry.errors import Denied, PageferryError
from pageferry.gate.gate import Gate
from pageferry.kernel.topology import read_topology
from pageferry.policy import Mode
from pageferry.schedulers.slurm_cgroups import slurm_job_cgroups
from pageferry_planner.model import Target


class Migrations:
    """`jobs` are those of the host, by ID.

    `ruled` is called with a job when the policy of its migration is known, `stop` with one that is to be held for the
    rest of its memory, `let_go` with one that need not wait for it, `idle` with one for whose memory nothing is left to
    do; `room` when a job's nodes have room now.
    """

    def __init__(
        self,
        jobs: Mapping[int, Tended],
        errands: Errands,
        *,
        gate: Gate,
        placing: Placing,
        chronicle: Chronicle,
        site: Site,
        ruled: Callable[[Tended], None],
        stop: Callable[[Tended], None],
        let_go: Callable[[Tended], None],
        idle: Callable[[Tended], None],
        room: Callable[[], None],
    ) -> None:
        self._jobs = jobs
        self._gate = gate
        self._placing = placing
        self._errands = errands
        self._chronicle = chronicle
        self._site = site
        self._ruled = ruled
        self._stop = stop
        self._let_go = let_go
        self._idle = idle
        self._room = room
        self._narrowing = Narrowing(errands, placing, chronicle)
        self.parking = Parking(placing, chronicle, site)
        self.requests = Requests(jobs, errands, placing=placing, chronicle=chronicle, site=site, begin=self.begin)

    def begin(self, tended: Tended, migration: Migration) -> None:
        """Begin a migration, or have it wait for the one that is under way; one that waits for this cause will do."""
        if tended.migration is not None:
            if migration.reply is not None or not tended.queued(migration.cause):
                tended.queue.append(migration)
            return
        tended.migration, migration.stop = migration, tended.stop
        if migration.stage is Stage.ASKS:
            ended = partial(self._asked, tended, migration, time.monotonic())
        elif not self._site.knows(tended.facts):
            ended = partial(self._asked_for_rules, tended, migration, migration.stage)
            migration.stage = Stage.ASKS
        else:
            self._start(tended, migration)
            return
        self._errands.send(chores.ask([tended.job]), ended, job=tended.job, seconds=ASK_SECONDS)

    def _asked(self, tended: Tended, migration: Migration, at: float, result: Result) -> None:
        if not self._is_present(tended, migration):
            return
        answer = self._answer(tended, result)
        if not self.parking.nodes(tended):  # else it is asked again when it goes on
            self.requests.understand(tended, migration, at, answer)
        if migration.cause is Cause.RESUME and not migration.text:
            self._next(tended)  # nothing new was asked for while it was suspended
        elif migration.cause is Cause.BEATEN and (answer is None or answer["state"] != "RUNNING"):
            self._next(tended)  # it was not resumed, but ended
        else:
            if migration.cause is Cause.BEATEN:
                self._chronicle.tell(tended, "beaten", "resumed before it was held; served while it runs")
            self._assign(tended, migration)

    def _asked_for_rules(self, tended: Tended, migration: Migration, stage: Stage, result: Result) -> None:
        if self._is_present(tended, migration):
            self._answer(tended, result)
            migration.stage = stage
            self._start(tended, migration)

    def _answer(self, tended: Tended, result: Result) -> Mapping[str, Any] | None:
        """Return what Slurm says of a job, and keep what rules want to know; None if it does not say."""
        answer: Mapping[str, Any] | None = (result.value or {}).get("jobs", {}).get(str(tended.job))
        if answer is not None:
            tended.know(answer)
        elif result.error:
            said = result.error
            if not self._site.knows(tended.facts):
                said += f"; {self._site.policy(None).named()} holds, as no rule that asks about the job can match"
            self._chronicle.tell(tended, "not asked", said, logging.WARNING)
        return answer

    def _start(self, tended: Tended, migration: Migration) -> None:
        """Begin with a migration for which Slurm need not be asked, or no more: with its memory, or with its CPUs."""
        migration.policy = self.parking.policy(tended)
        if migration.stage is Stage.COPIES and migration.wish is not None and migration.policy.mode is Mode.MOVE:
            migration.nodes = migration.wish.nodes
            self._carry(tended, migration, self._copied)
        else:
            self._assign(tended, migration)

    def _copied(self, tended: Tended, migration: Migration, result: Result) -> None:
        """Hold a job whose memory was moved while it ran, and see to its CPUs and the rest.

        One that cannot be held goes on running, as one that nobody wanted held.
        """
        migration.copied, migration.errand = result.value, None
        migration.reached("copied")
        if not self._is_present(tended, migration):
            migration.outcome = migration.copied
            self._chronicle.ended(tended, migration)
            return
        try:
            if not migration.late:
                self._stop(tended)
        except PageferryError as error:
            self._chronicle.tell(tended, "not held", str(error), logging.ERROR)
        self._assign(tended, migration)

    def _assign(self, tended: Tended, migration: Migration) -> None:
        migration.stage = Stage.ASKS  # until all is known; the job may be let go meanwhile
        policy = migration.policy = self.parking.policy(tended)
        self._ruled(tended)
        if policy.mode is Mode.OFF:
            self._narrowing.widen(tended)
        tended.placed_for = self._placing.nodes(tended.job)
        if policy.mode is Mode.OFF and not migration.text and migration.reply is None:
            self._chronicle.tell(tended, "left alone", f'{policy.named()}, mode = "off"')
            self._next(tended)
            return
        try:
            _check(migration)
            if migration.wish is not None:
                migration.nodes = migration.wish.nodes
                if policy.mode is Mode.MOVE and not migration.memory_only:
                    self._give(tended, migration.wish)
        except PageferryError as error:
            migration.error, migration.exit_code, migration.wish = str(error), error.exit_code, None
        if migration.wish is None:
            self._place(tended, migration)
        if self.parking.comes_back(tended, migration):
            migration.cause = Cause.UNPARK
        tended.placed_for = self._placing.nodes(tended.job)
        migration.stage = Stage.READY
        self.advance(tended)

    def _place(self, tended: Tended, migration: Migration) -> None:
        """Choose the nodes of a migration that nobody names any for."""
        if migration.cause is Cause.REQUEST and migration.error is not None:
            migration.nodes = ()
        elif park := self.parking.nodes(tended):
            migration.cause, migration.nodes = Cause.PARK, park
        elif migration.policy.mode is not Mode.OFF:
            migration.nodes = self._placing.nodes(tended.job)

    def _give(self, tended: Tended, wish: Wish) -> None:
        """Give a job the CPUs of a wish; the memory of those that had them follows. Raises UsageError, KernelError."""
        for job in self._placing.give(tended.job, wish):
            if job in self._jobs:
                self.begin(self._jobs[job], Migration(Cause.DISPLACED, Stage.READY))

    def advance(self, tended: Tended) -> None:
        """Send for a job's memory, if that is what is next: once the job stands still, or if it is not held."""
        migration = tended.migration
        if migration is None or migration.stage is not Stage.READY:
            return
        if migration.cause is Cause.PARK and tended.phase is not Phase.HELD:  # it goes on before it was parked
            tended.migration = None
            self.begin(tended, Migration(Cause.UNPARK, Stage.ASKS))
            return
        if tended.phase is not Phase.RUNS and not self._gate.frozen(tended.job):
            return
        if not migration.nodes or (migration.error and migration.reply):
            self._finish(tended, migration)
            return
        if migration.late and migration.policy.when_hold_ends == "leave":
            migration.outcome = migration.copied
            migration.error = "max_hold was used up before its memory began to move"
            self._narrowing.widen(tended)  # its CPUs may be elsewhere
            self._finish(tended, migration)
            return
        if tended.phase is Phase.WAITS and migration.copied is not None and self._is_there(tended, migration):
            self._let_go(tended)  # and on from here, while it runs
            return
        migration.stage = Stage.MOVES
        self._carry(tended, migration, self._moved)

    def hold_ended(self, tended: Tended) -> None:
        """A job is let go before its memory has arrived: what has not moved by now is left, if its policy says so."""
        migration = tended.migration
        if migration is None or migration.late:
            return
        migration.late = True
        if migration.errand is not None and migration.policy.when_hold_ends == "leave":
            migration.errand.interrupt()

    def _carry(self, tended: Tended, migration: Migration, then: Callable[[Tended, Migration, Result], None]) -> None:
        """Send an errand that moves a job's memory to the migration's nodes."""
        migration.progress = None
        destination = self._destination(tended, migration)
        runs = migration.copied is None and tended.phase is Phase.RUNS
        chore = chores.move(
            tended.job,
            destination,
            migration.policy,
            self._chronicle.snapshots,
            runs=runs,
            settles=migration.stage is not Stage.COPIES and migration.cause is not Cause.PARK,
            mems=self._placing.mems,
        )
        migration.reached("copying" if migration.stage is Stage.COPIES else "moving")
        ended = partial(then, tended, migration)
        advanced = partial(_advanced, migration)
        migration.errand = self._errands.send(chore, ended, advanced, job=tended.job, seconds=MOVE_SECONDS)

    def _destination(self, tended: Tended, migration: Migration) -> Destination:
        sources = migration.sources = self._placing.home(tended.job)
        if (parked := self.parking.destination(tended, migration, sources or ())) is not None:
            return parked
        if migration.copied is not None:
            sources = ferry.sources_after(sources or (), migration.nodes)
        strategy = migration.wish.strategy if migration.wish is not None else None
        return Destination(migration.nodes, strategy, sources)

    def _is_there(self, tended: Tended, migration: Migration) -> bool:
        """Say whether next to nothing is left to move of a job's memory, which was moved while it ran."""
        policy, special = migration.policy, frozenset[int]()
        if policy.special:  # else no file need be read meanwhile
            special = applied.special_nodes(policy, self._destination(tended, migration), read_topology())
        target = Target(migration.nodes, special=special)
        return strays.few(slurm_job_cgroups(tended.job), {*target.nodes, *target.left_alone})

    def _moved(self, tended: Tended, migration: Migration, result: Result) -> None:
        migration.outcome, migration.errand = result.value, None
        migration.reached("moved")
        if migration.copied is not None:
            first = migration.copied
            migration.outcome = report.joined(first, result.value) if result.value is not None else first
        stopped = broken_off(tended, migration)  # before it began, perhaps, which is no failure
        if result.error and not migration.error and not stopped:
            migration.error, migration.exit_code = result.error, result.exit_code
        if self._jobs.get(tended.job) is tended:
            self._narrowing.moved(tended, result)  # also of a migration that was given up
        if not self._is_present(tended, migration):
            self._chronicle.ended(tended, migration)
            return
        if migration.cause in {Cause.PARK, Cause.UNPARK}:
            self._room()
        arrived = (of := migration.outcome) is not None and not of["refused"]
        if arrived and not stopped and migration.cause is not Cause.PARK and migration.policy.mode is Mode.MOVE:
            self._placing.settle_at(tended.job, migration.nodes)
        self._finish(tended, migration)

    def _finish(self, tended: Tended, migration: Migration) -> None:
        self.parking.finished(tended, migration)
        if tended.phase is Phase.WAITS and migration.cause is not Cause.PARK:
            migration.seconds_stopped = time.monotonic() - tended.thawed_at
        self._chronicle.ended(tended, migration)
        self.requests.served(tended, migration)
        if migration.reply is not None:
            failed = {"error": migration.error, "code": migration.exit_code}
            stopped = {"seconds_stopped": migration.seconds_stopped} if migration.seconds_stopped else {}
            outcome = migration.outcome and {**migration.outcome, **stopped}
            migration.reply(failed if migration.error else {"outcome": outcome})
        self._next(tended)

    def _next(self, tended: Tended) -> None:
        tended.migration = None
        if tended.queue:
            self.begin(tended, tended.queue.pop(0))
        else:
            self._idle(tended)

    def _is_present(self, tended: Tended, migration: Migration) -> bool:
        """Say whether an errand's end is still about the job: it may have ended, and another have its ID."""
        return self._jobs.get(tended.job) is tended and tended.migration is migration


def _check(migration: Migration) -> None:
    """Raise Denied for a migration that was asked for, and that the job's policy does not allow."""
    policy = migration.policy
    if policy.mode is Mode.OFF:
        raise Denied(f'{policy.named()} leaves the job alone (mode = "off")')
    if migration.by_owner and not policy.owners_may_ask:
        raise Denied(f"{policy.named()} lets the job's owner ask for no move (owners_may_ask)")


def _advanced(migration: Migration, message: Mapping[str, Any]) -> None:
    migration.progress = (message["done_bytes"], message["of_bytes"])
