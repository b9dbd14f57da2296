"""PBS's events in the agent: MoM's hook says what happened, an errand sees to the job's memory, the answer goes back.

What an event means for a job is `pbs.serve`'s, or `pbs.at_once`'s if nothing is moved. A suspended job's move goes on
while MoM does other things; before a resume MoM waits until the job is held, or until nothing is left to wait for.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pageferry import parking
from pageferry.agent.chronicle import Chronicle
from pageferry.agent.counts import Release
from pageferry.agent.errand import Errand, Result, Say
from pageferry.agent.errands import MOVE_SECONDS, Errands
from pageferry.agent.site import Site
from pageferry.errors import KernelError, PageferryError
from pageferry.pbs import at_once, hold, homecoming, record, serve
from pageferry.pbs import event as events
from pageferry.pbs.case import Case
from pageferry.pbs.event import Event, Kind, PbsJob

Reply = Callable[[Mapping[str, Any]], None]


def has_given_up(event: Event, peer: int) -> bool:
    """Say whether MoM no longer waits for its hook: process `peer`, 0 for one that is in a PID namespace of its own."""
    return time.monotonic() > event.until or (peer > 0 and not Path(f"/proc/{peer}").exists())


class PbsEvents:
    """The events of a host's MoM; `folder` has the records of its jobs. For one thread; nothing here waits."""

    def __init__(self, errands: Errands, chronicle: Chronicle, site: Site, folder: Path) -> None:
        self._errands = errands
        self._chronicle = chronicle
        self._site = site
        self._folder = folder
        self._under_way: Counter[str] = Counter()
        self._held: Counter[str] = Counter()  # by the errands that do: one may follow another that has not ended yet
        self._parking: dict[str, Errand] = {}
        self._resumed: set[str] = set()
        self._waiting: dict[str, list[Callable[[], None]]] = {}
        self._home_at: float | None = None
        self._coming_home = False

    def recover(self) -> None:
        """Release what an agent before us held, if it and its guardian were killed; if that fails, say so."""
        try:
            for job in hold.release_left(self._folder):
                self._chronicle.tell(None, "recovered", "released", logging.WARNING, pbs_job=job)
        except KernelError as error:
            self._chronicle.tell(None, "not released", str(error), logging.CRITICAL)

    def happened(self, message: Mapping[str, Any], reply: Reply, peer: int) -> Mapping[str, Any] | None:
        """Serve what the hook, process `peer`, says; None: `reply` gets the answer later.

        Raises UsageError for what makes no sense.
        """
        event = events.parse(message)
        hosts = frozenset(event.hosts)
        if event.event is Kind.PERIODIC:
            return self._periodic(event, hosts)
        (job,) = event.jobs
        if event.event in {Kind.EPILOGUE, Kind.END}:
            self._ended(job)
            return {}
        if event.event is Kind.BEGIN:
            at_once.begin(job, hosts, self._folder)
            return {}
        if event.event is Kind.PRERESUME:
            return self._resumes(event, hosts, reply, peer)
        if event.event is Kind.POSTSUSPEND:
            self._resumed.discard(job.id)
            at_once.unsettle(job, self._folder)
        self._begin(Case(event.event, job, hosts, self._site.settings, self._folder), lambda _answer: None)
        return {}

    def _resumes(self, event: Event, hosts: frozenset[str], reply: Reply, peer: int) -> Mapping[str, Any] | None:
        (job,) = event.jobs
        if has_given_up(event, peer) and at_once.stands(job):
            return {"done": True}  # MoM comes with another resume
        case = Case(event.event, job, hosts, self._site.settings, self._folder, event.until)
        found = at_once.ready(case)
        if found.settled and not self._under_way[job.id]:
            return {"done": True, "told": found.refused or record.load(job.id, self._folder).told}
        self._resumed.add(job.id)
        if job.id in self._parking:
            self._parking[job.id].interrupt()
        self._begin(case, reply, found.refused)
        return None

    def due(self) -> float | None:
        """Send for spilled memory, if it is time; return when to come again (monotonic), if ever."""
        if self._home_at is None or self._coming_home:
            return None
        if time.monotonic() < self._home_at:
            return self._home_at
        self._home_at, self._coming_home = None, True

        def work(say: Say) -> Mapping[str, Any]:
            snapshots = self._chronicle.snapshots
            return {"jobs": homecoming.bring_home(self._site.settings, say, self._folder, snapshots)}

        self._errands.send(work, self._came_home, self._came, seconds=MOVE_SECONDS)
        return None

    def held(self) -> int:
        """Return how many jobs are held now beyond their resume."""
        return len(self._held)

    def close(self) -> None:
        """Take note that the errands are ended, and with them their holds."""
        for _ in self._held.elements():
            self._chronicle.counts.released(Release.STOPPED)
        self._held.clear()

    def _begin(self, case: Case, reply: Reply, refused: str = "") -> None:
        """Send an errand for a job, or have it wait for the one that is on its way; what holds waits for nobody."""
        job = case.job
        begin = partial(self._send, case, reply, refused)
        if case.kind is not Kind.PRERESUME and self._under_way[job.id]:
            self._waiting.setdefault(job.id, []).append(begin)
            return
        begin()

    def _send(self, case: Case, reply: Reply, refused: str) -> None:
        job = case.job
        self._under_way[job.id] += 1

        def work(say: Say) -> Mapping[str, Any]:
            return serve.serve(replace(case, snapshots=self._chronicle.snapshots), say).as_dict()

        holds = False

        def said(message: Mapping[str, Any]) -> None:
            nonlocal holds
            if message.get("parks") and sent is not None:
                self._parks(job, sent)
            elif message.get("held"):
                if not message.get("already"):
                    holds = True
                    self._held[job.id] += 1
                    self._chronicle.counts.held()
                self._chronicle.tell(None, "held", "until its memory is there", pbs_job=job.id)
                reply({"held": True, "told": refused or "moving"})
            else:
                self._chronicle.tell(None, "not held", str(message.get("live")), pbs_job=job.id)

        def ended(result: Result) -> None:
            self._under_way -= Counter({job.id: 1})
            self._parked(job, sent, result)
            if holds:
                self._held -= Counter({job.id: 1})
                self._chronicle.counts.released(_release(result, case.policy.max_hold_seconds))
            if result.value is None:
                self._chronicle.tell(None, "not done", result.error or "", logging.ERROR, pbs_job=job.id)
            elif result.value["outcome"] is not None or result.value["error"]:
                self._chronicle.served(result.value)
            reply({"done": True, "told": refused or record.load(job.id, self._folder).told})
            for begin in self._waiting.pop(job.id, []):
                begin()
            if not self._under_way[job.id]:
                self._resumed.discard(job.id)

        sent: Errand | None = None
        sent = self._errands.send(work, ended, said, seconds=MOVE_SECONDS)

    def _parks(self, job: PbsJob, sent: Errand) -> None:
        """From now on an errand that parks a job can be stopped; so it is if the resume was there before it."""
        self._parking[job.id] = sent
        if job.id in self._resumed:
            sent.interrupt()

    def _parked(self, job: PbsJob, sent: Errand | None, result: Result) -> None:
        """An errand that may have parked a job has ended: there is nothing more to be stopped, and room for others."""
        if self._parking.get(job.id) is sent:
            self._parking.pop(job.id, None)
        if result.value is not None and result.value["event"] in {parking.PARK, parking.UNPARK}:
            self._home_soon()

    def _periodic(self, event: Event, hosts: frozenset[str]) -> Mapping[str, Any]:
        """See which jobs PBS, or somebody else, has given other nodes; return the last outcome of each job."""
        told = {}
        for job in event.jobs:
            try:
                if at_once.take_note(job, hosts, self._folder) and job.id not in self._under_way:
                    self._begin(
                        Case(Kind.PERIODIC, job, hosts, self._site.settings, self._folder), lambda _answer: None
                    )
            except PageferryError as error:
                self._chronicle.tell(None, "not done", str(error), logging.ERROR, pbs_job=job.id)
            if text := record.load(job.id, self._folder).told:
                told[job.id] = text
        record.forget_others([*event.keep, *(job.id for job in event.jobs)], self._folder)
        return {"outcomes": told}

    def _ended(self, job: PbsJob) -> None:
        self._waiting.pop(job.id, None)
        record.forget(job.id, self._folder)
        self._home_soon()

    def _home_soon(self) -> None:
        if self._site.settings.spills and self._home_at is None:
            self._home_at = time.monotonic() + homecoming.WAIT_SECONDS

    def _came(self, message: Mapping[str, Any]) -> None:
        if "far" in message:
            self._chronicle.counts.seen_far("pbs", {int(node): count for node, count in message["far"].items()})
        else:
            self._chronicle.served(message)

    def _came_home(self, result: Result) -> None:
        self._coming_home = False
        if result.error:
            self._chronicle.tell(None, "spilled memory stays", result.error, logging.ERROR)


def _release(result: Result, max_hold_seconds: float) -> Release:
    """Return why a job was let go by an errand: if that was killed, by the guardian that each hold has here."""
    if result.value is None:
        return Release.GUARDIAN
    return Release.MAX_HOLD if result.value["seconds_stopped"] >= max_hold_seconds else Release.ARRIVED
