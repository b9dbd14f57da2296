"""The agent: one process per host that waits for Slurm's cgroups, its socket, its errands and its guardian.

This is the loop and nothing else: what an event means for a job is `tending`'s, what a request means is `service`'s.
An idle agent makes no system call but those of its watchdog.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pageferry.agent.chronicle import Chronicle
from pageferry.agent.counts import Release
from pageferry.agent.exporter import Exporter
from pageferry.agent.homes import Homes
from pageferry.agent.metrics import Metrics
from pageferry.agent.pbs import PbsEvents
from pageferry.agent.placing import Placing
from pageferry.agent.service import Service
from pageferry.agent.site import Site
from pageferry.agent.tended import Phase
from pageferry.agent.tending import Tending
from pageferry.agent.watch import Event, Kind, Watch
from pageferry.agent.wire_server import Server
from pageferry.cpus.assignments import Assignments
from pageferry.errors import KernelError, PageferryError, Vanished
from pageferry.gate.gate import PULSE_SECONDS, Gate
from pageferry.history.store import Store
from pageferry.kernel.sd_notify import notify, watchdog_seconds

log = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0
"""After this long a job is looked at again that could not be, and inotify where it had no room."""


@dataclass(frozen=True, slots=True)
class Places:
    """Where the agent keeps what it keeps: for as long as the host runs, and for good."""

    run: Path = Path("/run/pageferry")
    history: Path = Path("/var/lib/pageferry/history.sqlite3")


def run(site: Site, places: Places) -> None:
    """Serve until SIGTERM or SIGINT; nothing is held when this returns. Raises KernelError, UsageError at the start.

    At SIGHUP the site's settings are read again.
    """
    agent = _Agent(site, places)
    try:
        agent.serve()
    finally:
        agent.close()


class _Agent:
    def __init__(self, site: Site, places: Places) -> None:
        self._site = site
        self._history = Store(places.history, max_days=site.settings.agent.retention_days)
        self._chronicle = Chronicle(self._history)
        self._assignments = Assignments(places.run)
        self._service = Service(site, self._assignments, self._chronicle, self._rescan)
        # The socket first: whoever has it is the only agent.
        self._server = Server(places.run / "agent.sock", self._service.handle, trusted=lambda: self._service.trusted)
        self._gate = Gate(places.run / "holds")
        self._watch = Watch()
        placing = Placing(self._assignments, Homes(places.run), site)
        self._tending = Tending(self._gate, placing, self._chronicle, site)
        self._pbs = PbsEvents(self._tending.errands, self._chronicle, site, places.run / "pbs")
        self._service.tending, self._service.pbs = self._tending, self._pbs
        self._metrics = Metrics(self._chronicle, self._held)
        self._export()
        self._again: set[int] = set()
        self._again_at: float | None = None
        self._rescan_at: float | None = None
        self._guardless_until: float | None = None
        self._watchdog = watchdog_seconds()
        self._pulse_at = self._watchdog_at = 0.0
        self._wakeup = _signals()

    def serve(self) -> None:
        """Take over what is there, and then do what comes."""
        self._tending.tell_news()
        for text in self._assignments.restore():
            self._chronicle.tell(None, "CPU map", text, logging.WARNING)
        recovered = self._gate.recover()
        self._pbs.recover()
        self._chronicle.tell(
            None, "started", f"{len(self._watch.jobs())} jobs, {len(recovered)} held by an agent before"
        )
        for hold in recovered:
            self._guarded(hold.job, partial(self._tending.recovered, hold.job))
        self._look_at(self._watch.jobs())
        notify(READY="1")
        while self._wait():
            pass
        self._chronicle.tell(None, "stopped")
        notify(STOPPING="1")

    def close(self) -> None:
        """Let go of everything."""
        for _ in self._gate.held():
            self._chronicle.counts.released(Release.STOPPED)
        self._gate.close()
        self._tending.errands.close()
        self._pbs.close()
        self._exporter.close()
        self._server.close()
        self._watch.close()

    def _wait(self) -> bool:
        """Wait for what comes next and do it; say whether to go on."""
        deadline = self._due()  # it may send errands, which are then waited for
        poll = select.poll()
        fixed = {
            self._wakeup: self._nothing,
            self._watch.fileno(): self._happened,
            self._server.fileno(): self._server.serve,
            **self._exporter.descriptors(),
        }
        if self._guardless_until is None:
            fixed[self._gate.guardian_fd()] = self._guardian_ended
        for descriptor in (*fixed, *self._tending.errands.descriptors()):
            poll.register(descriptor, select.POLLIN)
        timeout = None if deadline is None else max(0, (deadline - time.monotonic()) * 1000)
        for descriptor, _ in poll.poll(timeout):
            if descriptor == self._wakeup:
                if not _is_reload(self._wakeup):
                    return False
                self._reload()
                return True  # who is to be waited for may be others by now
            if descriptor in fixed:
                fixed[descriptor]()
            elif descriptor in self._tending.errands.descriptors():
                job = self._tending.errands.job(descriptor)
                self._guarded(job, partial(self._tending.errands.collect, descriptor))
        return True

    def _due(self) -> float | None:
        """Do what its time has come for; return when to come again."""
        now = time.monotonic()
        self._server.expire()
        if self._again_at is not None and now >= self._again_at:
            jobs, self._again, self._again_at = self._again, set(), None
            self._look_at(jobs)
        if self._rescan_at is not None and now >= self._rescan_at:
            self._rescan_at = None
            self._rescan()
            self._look_at({*self._watch.jobs(), *self._tending.known()})
        times = [self._server.deadline(), self._again_at, self._rescan_at]
        times += [self._tending.due(), self._pbs.due(), self._exporter.due()]
        if self._guardless_until is not None and now >= self._guardless_until:
            self._guardless_until = None
        times.append(self._guardless_until)
        if self._gate.held():
            if now >= self._pulse_at:
                self._gate.pulse()
                self._pulse_at = now + PULSE_SECONDS / 4
            times.append(self._pulse_at)
        if self._watchdog is not None:
            if now >= self._watchdog_at:
                notify(WATCHDOG="1")
                self._watchdog_at = now + self._watchdog
            times.append(self._watchdog_at)
        return min((at for at in times if at is not None), default=None)

    def _happened(self) -> None:
        self._seen(self._watch.events)

    def _seen(self, look: Callable[[], Iterable[Event]]) -> None:
        """Take what the watch tells; where inotify has no room, all of it is looked at again in a while."""
        try:
            self._take(look())
        except KernelError as error:
            self._chronicle.tell(None, "not watched", str(error), logging.ERROR)
            self._rescan_at = time.monotonic() + AGAIN_SECONDS

    def _take(self, events: Iterable[Event]) -> None:
        by_job: dict[int, list[Event]] = {}
        for event in events:
            by_job.setdefault(event.job, []).append(event)
        if 0 in by_job:
            self._look_at({*self._watch.jobs(), *self._tending.known()})
        for job, ours in by_job.items():
            if job == 0:
                continue
            kinds = {event.kind for event in ours}
            if Kind.GONE in kinds:
                self._guarded(job, partial(self._tending.gone, job))
                kinds.discard(Kind.GONE)
            if kinds:
                writes = {event.group: event.writes for event in ours if event.writes}
                self._look(job, writes, Kind.CPUSET in kinds, bool(kinds & {Kind.JOB, Kind.STEP, Kind.TASK}))

    def _look_at(self, jobs: Iterable[int]) -> None:
        there = self._watch.jobs()
        for job in jobs:
            if job in there:
                self._look(job, {}, True, True)
            else:
                self._guarded(job, partial(self._tending.gone, job))

    def _look(self, job: int, writes: Mapping[Path, int], cpus: bool, tasks: bool) -> None:
        self._guarded(job, partial(self._tending.look, job, writes=writes, cpus=cpus, tasks=tasks))

    def _guarded(self, job: int, act: Callable[[], None]) -> None:
        """Do something for a job; if that fails, say so and look again in a while."""
        try:
            act()
        except Vanished:
            self._look_again(job)  # a part of it has ended, perhaps
        except PageferryError as error:
            self._again_soon(job, f"job {job}: {error}")
        except Exception as error:
            # Whatever a comment or a file has tripped us over: the other jobs are still to be served, this one let go.
            log.exception("job %d", job)
            self._again_soon(job, f"job {job}: {type(error).__name__}: {error}")
            self._tending.abandon(job, f"{type(error).__name__}: {error}")

    def _again_soon(self, job: int, why: str) -> None:
        self._chronicle.tell(None, "not done", why, logging.ERROR)
        self._look_again(job)

    def _look_again(self, job: int) -> None:
        if job:
            self._again.add(job)
            self._again_at = self._again_at or time.monotonic() + AGAIN_SECONDS

    def _guardian_ended(self) -> None:
        self._chronicle.tell(None, "guardian ended", "another is started", logging.ERROR)
        try:
            self._gate.reguard()
        except KernelError as error:
            self._chronicle.tell(None, "no guardian", str(error), logging.CRITICAL)
            self._guardless_until = time.monotonic() + AGAIN_SECONDS
        self._tending.tell_news()

    def _reload(self) -> None:
        """Read the settings again; if anything is wrong with them, say all of it, and keep those that hold."""
        before = self._site.settings
        if faults := self._site.reload():
            for fault in faults:
                self._chronicle.tell(None, "settings not read", fault, logging.ERROR)
            self._chronicle.tell(None, "not reloaded", "the settings that were read before still hold", logging.ERROR)
            return
        settings = self._site.settings
        if settings.metrics != before.metrics:
            self._exporter.give_way(settings.metrics)
            self._export()
        root = logging.getLogger()
        if logging.getLevelName(root.level).lower() == before.agent.log_level:  # else the command line's holds
            root.setLevel(settings.agent.log_level.upper())
        self._history.keep_days(settings.agent.retention_days)
        self._chronicle.tell(None, "reloaded", f"{len(settings.rule)} rules")

    def _export(self) -> None:
        self._exporter = Exporter(self._metrics, self._site.settings.metrics)
        self._service.faults = self._exporter.faults

    def _rescan(self) -> None:
        self._seen(self._watch.rescan)

    def _held(self) -> dict[str, int]:
        """Return how many jobs are held now; PBS's are let go by it and wait."""
        held = self._tending.held()
        return held | {Phase.WAITS.value: held[Phase.WAITS.value] + self._pbs.held()}

    def _nothing(self) -> None:
        return


def _is_reload(wakeup: int) -> bool:
    """Take the signals that have come, and say whether they only ask for the settings to be read again."""
    return set(os.read(wakeup, 64)) == {signal.SIGHUP}


def _signals() -> int:
    """Have SIGTERM, SIGINT and SIGHUP be read from a descriptor, a byte each with its number, and return it."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(write_end)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: None)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    return read_end
