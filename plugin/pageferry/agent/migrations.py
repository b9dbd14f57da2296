"""The migrations of jobs, one at a time for each: ask Slurm, give CPUs, move, tell.

    asks Slurm ──► gives CPUs ──► ready ──the job stands still, or is not held──► moves ──► told
      (errand)                                                                   (errand)   (record, comment, reply)

A request may have what can be moved while the job runs moved first (an errand); then it is held, and given CPUs.

A job that is suspended, and that its rule parks, has its memory moved to where the rule says instead; what is asked
for it is read, and served, when it is let go on, with the memory still parked.

When a job is held and let go is `tending`'s: it is told when the last migration of a job has ended.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from pageferry import ferry, parking, report, strays
from pageferry.agent import chores
from pageferry.agent.chronicle import Chronicle, for_operator
from pageferry.agent.errand import Result
from pageferry.agent.errands import ASK_SECONDS, MOVE_SECONDS, Errands
from pageferry.agent.placing import Placing
from pageferry.agent.site import Site
from pageferry.agent.tended import Cause, Migration, Phase, Stage, Tended
from pageferry.applied import Destination
from pageferry.comment import PREFIX, Wish, format_request, parse
from pageferry.errors import Denied, PageferryError, UsageError
from pageferry.gate.gate import Gate
from pageferry.mems import record
from pageferry.policy import Facts, Mode, Policy
from pageferry.schedulers.slurm_cgroups import slurm_job_cgroups


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
        self._not_parked: set[str] = set()
        self._pokes: set[int] = set()
        self._poking = False

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
            self._finish(tended, migration)
            return
        if tended.phase is Phase.WAITS and migration.copied is not None and _is_there(tended, migration):
            self._let_go(tended)  # and on from here, while it runs
            return
        if migration.cause is Cause.PARK:
            self._placing.park(tended.job, migration.nodes)
        migration.stage = Stage.MOVES
        self._carry(tended, migration, self._moved)

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
        home, parked = self._placing.home(tended.job), self._placing.parked(tended.job)
        sources = migration.sources = home
        strategy = migration.wish.strategy if migration.wish is not None else None
        if migration.cause is Cause.PARK:
            return parking.away(migration.policy, home or (), migration.nodes)
        if parked:
            migration.sources = parked
            return parking.back(migration.policy, parked, home or (), migration.nodes, strategy)
        if migration.copied is not None:
            sources = ferry.sources_after(sources or (), migration.nodes)
        return Destination(migration.nodes, strategy, sources)

    def thawed(self, tended: Tended) -> None:
        """Slurm lets a job go on: what of it is being parked need not be any more, and comes back next."""
        migration = tended.migration
        if migration is not None and migration.cause is Cause.PARK and migration.errand is not None:
            migration.errand.interrupt()

    def suspended_again(self, tended: Tended) -> None:
        """Slurm suspends a job again that waits for its memory: one that is to be parked is, whatever has come back."""
        if self._parking(tended):
            self.not_back(tended)
            self.begin(tended, Migration(Cause.SUSPEND, Stage.ASKS))

    def not_back(self, tended: Tended) -> None:
        """A job is suspended: what comes back of it need not, if it is to be parked."""
        migration = tended.migration
        if migration is None or migration.cause is not Cause.UNPARK or migration.errand is None:
            return
        if self._parking(tended):
            migration.errand.interrupt()

    def _parking(self, tended: Tended) -> tuple[int, ...]:
        """Return where a job's memory is parked now, as its rule says; none unless it is suspended, and held."""
        policy = self._site.policy(tended.facts)
        if tended.phase is not Phase.HELD or policy.mode is not Mode.MOVE:
            return ()
        try:
            return self._placing.parking(tended.job, policy)
        except UsageError as error:
            if str(error) not in self._not_parked:  # it is so for each job, each time
                self._not_parked.add(str(error))
                self._chronicle.tell(tended, "not parked", str(error), logging.WARNING)
            return ()

    def _policy(self, tended: Tended) -> Policy:
        """Return what holds for a job: what was parked comes back, whatever its rule says by now."""
        policy = self._site.policy(tended.facts)
        return replace(policy, mode=Mode.MOVE) if self._placing.parked(tended.job) else policy

    def hold_ended(self, tended: Tended) -> None:
        """A job is let go before its memory has arrived: what has not moved by now is left, if its policy says so."""
        migration = tended.migration
        if migration is None or migration.late:
            return
        migration.late = True
        if migration.errand is not None and migration.policy.when_hold_ends == "leave":
            migration.errand.interrupt()

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

    def poke(self, jobs: Iterable[int]) -> None:
        """See whether any of these jobs has a request that is to be served at once; one question at a time."""
        self._pokes |= set(jobs)
        if self._poking or not self._pokes:
            return
        asked, self._pokes, self._poking = sorted(self._pokes), set(), True
        self._errands.send(chores.ask(asked), partial(self._poked, time.monotonic()), seconds=ASK_SECONDS)

    def _poked(self, at: float, result: Result) -> None:
        self._poking = False
        for job, answer in (result.value or {}).get("jobs", {}).items():
            if (tended := self._jobs.get(int(job))) is not None:
                _know(tended, answer)
                migration = Migration(Cause.REQUEST, Stage.READY)
                self._understand(tended, migration, at, answer)
                if migration.wish is not None and migration.wish.now:
                    # What was asked for before, and has not begun, is no longer asked for.
                    tended.queue = [one for one in tended.queue if one.cause is not Cause.REQUEST or one.reply]
                    self._serving(tended, migration)
                    self.begin(tended, migration)
        self.poke(())

    def _serving(self, tended: Tended, migration: Migration) -> None:
        if migration.by_owner:
            self._placing.keep_served_owner(tended.job, migration.text)
            return
        tended.served, tended.answered_at = migration.text, math.inf
        self._placing.keep_served(tended.job, migration.text)

    def _asked(self, tended: Tended, migration: Migration, at: float, result: Result) -> None:
        if not self._is_present(tended, migration):
            return
        answer = self._answer(tended, result)
        if not self._parking(tended):  # else it is asked again when it goes on
            self._understand(tended, migration, at, answer)
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

    def _start(self, tended: Tended, migration: Migration) -> None:
        """Begin with a migration for which Slurm need not be asked, or no more: with its memory, or with its CPUs."""
        migration.policy = self._policy(tended)
        if migration.stage is Stage.COPIES and migration.wish is not None and migration.policy.mode is Mode.MOVE:
            migration.nodes = migration.wish.nodes
            self._carry(tended, migration, self._copied)
        else:
            self._assign(tended, migration)

    def _answer(self, tended: Tended, result: Result) -> Mapping[str, Any] | None:
        """Return what Slurm says of a job, and keep what rules want to know; None if it does not say."""
        answer: Mapping[str, Any] | None = (result.value or {}).get("jobs", {}).get(str(tended.job))
        if answer is not None:
            _know(tended, answer)
        elif result.error:
            said = result.error
            if not self._site.knows(tended.facts):
                said += f"; {self._site.policy(None).named()} holds, as no rule that asks about the job can match"
            self._chronicle.tell(tended, "not asked", said, logging.WARNING)
        return answer

    def _assign(self, tended: Tended, migration: Migration) -> None:
        migration.stage = Stage.ASKS  # until all is known; the job may be let go meanwhile
        policy = migration.policy = self._policy(tended)
        self._ruled(tended)
        if policy.mode is Mode.OFF:
            self._widen(tended)
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
        wrong = migration.cause is Cause.REQUEST and migration.error is not None
        if migration.wish is None and not wrong and (park := self._parking(tended)):
            migration.cause, migration.nodes = Cause.PARK, park
        elif migration.wish is None and wrong:
            migration.nodes = ()
        elif migration.wish is None and policy.mode is not Mode.OFF:
            migration.nodes = self._placing.nodes(tended.job)
        tended.placed_for = self._placing.nodes(tended.job)
        migration.stage = Stage.READY
        self.advance(tended)

    def _give(self, tended: Tended, wish: Wish) -> None:
        """Give a job the CPUs of a wish; the memory of those that had them follows. Raises UsageError, KernelError."""
        for job in self._placing.give(tended.job, wish):
            if job in self._jobs:
                self.begin(self._jobs[job], Migration(Cause.DISPLACED, Stage.READY))

    def _moved(self, tended: Tended, migration: Migration, result: Result) -> None:
        migration.outcome, migration.errand = result.value, None
        migration.reached("moved")
        if migration.copied is not None:
            first = migration.copied
            migration.outcome = report.joined(first, result.value) if result.value is not None else first
        if mems := (result.value or {}).get("mems"):
            self._tell_mems(tended, **mems)
        parks, back = migration.cause is Cause.PARK, migration.cause is Cause.UNPARK
        held = tended.phase is Phase.HELD
        stopped = (parks and not held) or (back and held)  # before it began, perhaps, which is no failure
        if result.error and not migration.error and not stopped:
            migration.error, migration.exit_code = result.error, result.exit_code
        if not self._is_present(tended, migration):
            self._chronicle.ended(tended, migration)
            return
        if parks or back:
            self._room()
        arrived = (of := migration.outcome) is not None and not of["refused"]
        if arrived and not parks and not (back and held) and migration.policy.mode is Mode.MOVE:
            self._placing.settle_at(tended.job, migration.nodes)
        self._finish(tended, migration)

    def _finish(self, tended: Tended, migration: Migration) -> None:
        if migration.cause is Cause.UNPARK and not _comes_again(tended, migration):
            self._placing.park(tended.job, ())  # as far as it could; else it would be tried for ever
        if tended.phase is Phase.WAITS and migration.cause is not Cause.PARK:
            migration.seconds_stopped = time.monotonic() - tended.thawed_at
        self._chronicle.ended(tended, migration)
        if migration.nodes and (migration.error or migration.outcome is None):  # its CPUs may be elsewhere by now
            self._widen(tended)
        if migration.text:
            self._serving(tended, migration)
            if self._site.settings.agent.write_outcome == "AdminComment" and tended.job in self._jobs:
                served = "" if migration.by_owner else migration.text
                chore = chores.write_back(tended.job, tended.hosts, for_operator(migration), served)
                ended = partial(self._written, tended, migration)
                self._errands.send(chore, ended, job=tended.job, seconds=ASK_SECONDS)
        if migration.reply is not None:
            failed = {"error": migration.error, "code": migration.exit_code}
            stopped = {"seconds_stopped": migration.seconds_stopped} if migration.seconds_stopped else {}
            outcome = migration.outcome and {**migration.outcome, **stopped}
            migration.reply(failed if migration.error else {"outcome": outcome})
        self._next(tended)

    def _widen(self, tended: Tended) -> None:
        """Let a job allocate wherever Slurm lets it, if it is narrowed: its memory is not known to be where it is."""
        if record.is_recorded(tended.job, self._placing.mems):
            chore = chores.widen(tended.job, self._placing.mems)
            self._errands.send(chore, partial(self._widened, tended), job=tended.job, seconds=ASK_SECONDS)

    def _widened(self, tended: Tended, result: Result) -> None:
        if result.value is None:
            self._chronicle.tell(tended, "not widened", result.error or "", logging.WARNING)
        elif result.value["widened"]:
            self._chronicle.tell(tended, "widened", "cpuset.mems is as Slurm wrote it")

    def _tell_mems(self, tended: Tended, nodes: str, why: str) -> None:
        if nodes:
            self._chronicle.tell(tended, "narrowed", f"cpuset.mems {nodes}")
        if why:
            self._chronicle.tell(tended, "not narrowed", why, logging.WARNING)

    def _written(self, tended: Tended, migration: Migration, result: Result) -> None:
        if result.value is None or not result.value["written"]:
            why = result.error or "other hosts' outcomes were written over it"
            self._chronicle.tell(tended, "not written back", why, logging.WARNING)
        elif tended.served == migration.text:
            tended.answered_at = time.monotonic()

    def _is_present(self, tended: Tended, migration: Migration) -> bool:
        """Say whether an errand's end is still about the job: it may have ended, and another have its ID."""
        return self._jobs.get(tended.job) is tended and tended.migration is migration

    def _next(self, tended: Tended) -> None:
        tended.migration = None
        if tended.queue:
            self.begin(tended, tended.queue.pop(0))
        else:
            self._idle(tended)

    def _understand(self, tended: Tended, migration: Migration, at: float, answer: Mapping[str, Any] | None) -> None:
        """Take the request out of a job's comment, as it was asked for `at` that time, unless it was served before.

        While our outcome is on its way, other hosts' may come into the comment: the request in it is still the same.
        """
        if answer is None:
            return
        if not tended.served:  # by an agent before us
            tended.served, tended.answered_at = self._placing.served(tended.job), math.inf
        text, wish, wrong = "", None, None
        try:
            request = parse(answer["comment"])
        except UsageError as error:
            text, wrong = answer["comment"], str(error)
        else:
            wishes = [request.for_host(host) for host in tended.hosts] if request is not None else []
            wish = next((wish for wish in wishes if wish is not None), None)
            text = format_request(request) if request is not None and wish is not None else ""
        if text != tended.served or at > tended.answered_at:
            migration.text, migration.wish, migration.error = text, wish, wrong
        if not migration.text and self._site.policy(tended.facts).owners_may_ask:
            self._understand_owner(tended, migration, answer["owners_comment"])

    def _understand_owner(self, tended: Tended, migration: Migration, comment: str) -> None:
        """Take the owner's request out of the comment that users may write; it stays there, and is served once."""
        text = comment.strip()
        if not text.startswith(PREFIX) or text == self._placing.served_owner(tended.job):
            return
        migration.text, migration.memory_only, migration.by_owner = text, True, True
        try:
            request = parse(text)
            wishes = [request.for_host(host) for host in tended.hosts] if request is not None else []
            wish = next((wish for wish in wishes if wish is not None), None)
            if wish is None:  # it is for other hosts
                migration.text, migration.memory_only, migration.by_owner = "", False, False
            elif wish.cpus is not None or wish.now:
                raise UsageError("cpus=, now: an owner asks for memory alone, with a suspension")
            migration.wish = wish
        except UsageError as error:
            migration.error = str(error)


def _know(tended: Tended, answer: Mapping[str, Any]) -> None:
    """Keep what Slurm says of a job."""
    tended.facts = Facts.from_plain(answer["facts"])
    tended.hosts, tended.name = tuple(answer["hosts"]), answer.get("name", "")
    tended.uid = tended.uid if answer["uid"] is None else answer["uid"]


def _comes_again(tended: Tended, migration: Migration) -> bool:
    """Say whether a parked job's memory is to be brought back once more: it is suspended again, or nothing has moved.

    What could not be brought where somebody wished comes to where the job's CPUs are; what the hold's time was not
    enough for comes while the job runs.
    """
    failed = migration.outcome is None and (migration.wish is not None or migration.late)
    return failed or tended.phase is Phase.HELD


def _is_there(tended: Tended, migration: Migration) -> bool:
    """Say whether next to nothing is left to move of a job's memory, which was moved while it ran."""
    return strays.few(slurm_job_cgroups(tended.job), migration.nodes)


def _check(migration: Migration) -> None:
    """Raise Denied for a migration that was asked for, and that the job's policy does not allow."""
    policy = migration.policy
    if policy.mode is Mode.OFF:
        raise Denied(f'{policy.named()} leaves the job alone (mode = "off")')
    if migration.by_owner and not policy.owners_may_ask:
        raise Denied(f"{policy.named()} lets the job's owner ask for no move (owners_may_ask)")


def _advanced(migration: Migration, message: Mapping[str, Any]) -> None:
    migration.progress = (message["done_bytes"], message["of_bytes"])
