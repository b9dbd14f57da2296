"""One event of PBS's: from what the hook said to what became of the job's memory.

    event ─► request, or PBS's nodes ─► (hold) ─► the ferry ─► record, outcome

The agent's errands come through here, and the command that does without an agent. A job that MoM has stopped is moved
while it stands still. One that is about to run again is held beyond its resume until its memory has arrived, for
`max_hold_seconds` at most, if something can hold it; MoM, and with it the scheduler, is told as soon as that is so. All
else is moved while it runs.
"""

from __future__ import annotations

import pwd
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from pageferry.comment import PREFIX, Wish, parse
from pageferry.config import Settings
from pageferry.errors import KernelError, PageferryError, UsageError, Vanished
from pageferry.kernel.topology import Topology, read_topology
from pageferry.pbs import hold, record
from pageferry.pbs.event import Kind, PbsJob
from pageferry.pbs.record import FOLDER, Record
from pageferry.schedulers.pbs import is_stopped, job_nodes, job_pids
from pageferry_planner.model import Strategy, Target, WhenFull

Say = Callable[[Mapping[str, Any]], None]
"""Who waits for the job is told {"held": true}, and lets it go on; or {"live": why}, and can only wait for the end."""


WAIT_SECONDS = 1.0
"""How long after a job has ended spilled memory is looked for: its own must be free first."""


@dataclass(frozen=True, slots=True)
class Case:
    """What has happened to a job on this host, which goes by the names `hosts`; `folder` has the jobs' records."""

    kind: Kind
    job: PbsJob
    hosts: frozenset[str]
    settings: Settings
    folder: Path = FOLDER

    @property
    def max_hold_seconds(self) -> float:
        """How long the job may be held."""
        return self.settings.agent.max_hold_seconds

    def pids(self) -> frozenset[int]:
        """Return the job's processes."""
        return job_pids(self.job.id, self.job.session, user_id(self.job.user) if self.job.user else None)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for a job, or why that makes no sense; `fresh`: in its comment, and not served yet."""

    text: str = ""
    wish: Wish | None = None
    error: str | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Served:
    """What was done for a job. `outcome` as `report.outcome_json` has it; None: there was nothing to do."""

    job: str
    event: str
    nodes: tuple[int, ...] = ()
    sources: tuple[int, ...] = ()
    outcome: Mapping[str, Any] | None = None
    error: str | None = None
    request: str = ""
    uid: int = -1
    seconds_stopped: float = 0.0
    began: float = field(default_factory=time.time)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def understood(job: PbsJob, hosts: frozenset[str], known: Record) -> Asked:
    """Return what is asked for a job: once by its comment, else at each event by what came with its submission."""
    comment, standing = job.comment.strip(), job.asked.strip().removeprefix(PREFIX)
    fresh = comment.startswith(PREFIX) and comment != known.served
    text = comment if fresh else PREFIX + standing if standing else ""
    if not text:
        return Asked()
    try:
        request = parse(text)
        wishes = [request.for_host(host) for host in hosts] if request is not None else []
        wish = next((wish for wish in wishes if wish is not None), None)
        if wish is not None and wish.cpus is not None:
            raise UsageError("cpus=: under PBS a job keeps the CPUs that PBS gave it")
        if wish is not None and wish.now:
            raise UsageError("now: PBS tells a host of no comment before the resume; use pageferry move on the host")
    except UsageError as error:
        return Asked(text, None, str(error), fresh)
    return Asked(text, wish, None, fresh)


def is_settled(job: PbsJob, hosts: frozenset[str], folder: Path = FOLDER) -> bool:
    """Say whether a job that is about to run again has all of its memory where it belongs, since it was suspended.

    Takes note that it runs. Few files are read, and no page table: MoM waits for this.
    """
    known = record.load(job.id, folder)
    asked = understood(job, hosts, known)
    where = asked.wish.nodes if asked.wish else job_nodes(job.id, job.exec_vnode, hosts, read_topology())
    if not known.settled or known.settled != where or asked.fresh or asked.error:
        return False
    record.save(job.id, msgspec.structs.replace(known, settled=()), folder)
    return True


def take_note(job: PbsJob, hosts: frozenset[str], folder: Path = FOLDER) -> bool:
    """Look at the nodes that PBS gives a job, and say whether they are others than at the last look (drift)."""
    known = record.load(job.id, folder)
    nodes = job_nodes(job.id, job.exec_vnode, hosts, read_topology())
    if not nodes or nodes == known.placed:
        return False
    if known.placed:
        return True
    record.save(job.id, msgspec.structs.replace(known, placed=nodes, homes=known.homes or nodes), folder)
    return False


def serve(case: Case, say: Say) -> Served:
    """Have a job's memory follow an event; nothing is left held. Raises nothing: what went wrong is in the answer."""
    began = time.time()
    try:
        served = _serve(case, say)
    except Vanished:
        served = Served(case.job.id, case.kind.value)
    except PageferryError as error:
        served = Served(case.job.id, case.kind.value, error=str(error))
    return replace(served, uid=user_id(case.job.user), began=began)


def bring_home(settings: Settings, say: Say, folder: Path = FOLDER) -> int:
    """Bring the spilled memory of PBS's jobs home, live, one by one; say what became of each, and return how many."""
    from pageferry import ferry, report, spill
    from pageferry.schedulers.pbs_cgroups import pbs_job_cgroups, pbs_job_ids, pbs_job_pids

    def groups(job: str, root: Path) -> spill.Groups:
        found = pbs_job_cgroups(job, root)
        return spill.Groups(found, found)

    def candidates(jobs: list[str]) -> list[spill.Homecoming[str]]:
        jobs = [job for job in jobs if not is_stopped(pbs_job_pids(job))]
        wanted = settings.spill
        return spill.candidates(jobs, groups_of=groups, least_bytes=wanted.least_bytes, bytes_per_second=wanted.rate)

    moved = 0
    for job in [found.job for found in candidates(list(pbs_job_ids()))]:
        began = time.time()
        with suppress(Vanished), record.alone(job, folder):
            for found in candidates([job]):  # it may have been suspended, or given other nodes
                outcome = ferry.move(pbs_job_pids(job), found.request)
                nodes = found.request.target.nodes
                say(Served(job, "spill", nodes, outcome=report.outcome_json(outcome), began=began).as_dict())
                moved += 1
    return moved


def _serve(case: Case, say: Say) -> Served:
    with ExitStack() as holding:
        held_at = time.monotonic() if case.kind is Kind.PRERESUME and _hold(holding, case, say) else None

        def used_up() -> bool:
            return held_at is not None and time.monotonic() > held_at + case.max_hold_seconds

        with record.alone(case.job.id, case.folder, used_up) as ours:
            if ours:
                return _alone(case, holding, held_at)
        holding.close()  # an earlier move takes longer than the job may wait for it
        with record.alone(case.job.id, case.folder):
            return replace(_alone(case, holding, None), seconds_stopped=case.max_hold_seconds)


def _hold(holding: ExitStack, case: Case, say: Say) -> bool:
    """Hold a job, if the site has it so and the kernel can; say to who waits which it is."""
    why = "[pbs] hold = false"
    if case.settings.pbs.hold:
        try:
            holding.enter_context(hold.held(case.job.id, case.pids(), case.folder))
        except KernelError as error:
            why = str(error)
        else:
            say({"held": True})
            return True
    say({"live": why})
    return False


def _alone(case: Case, holding: ExitStack, held_at: float | None) -> Served:
    """Move a job's memory, with nobody else moving it; let it go on (`holding`) when that is done or its time is up."""
    job, known = case.job, record.load(case.job.id, case.folder)
    asked = understood(job, case.hosts, known)
    topology = read_topology()
    placed = job_nodes(job.id, job.exec_vnode, case.hosts, topology)
    nodes = asked.wish.nodes if asked.wish else placed
    strategy = asked.wish.strategy if asked.wish else Strategy.RELATIVE
    error, outcome = asked.error, None
    if nodes and not (case.kind is Kind.PRERESUME and known.settled == nodes):
        try:
            outcome = _move(case, _target(nodes, strategy, known.homes, case.settings, topology), holding, held_at)
        except PageferryError as failure:
            error = error or str(failure)
    holding.close()
    complete = outcome is not None and outcome["complete"]
    after = Record(
        homes=nodes if outcome is not None and not outcome["refused"] else known.homes,
        placed=placed or known.placed,
        settled=nodes if case.kind is Kind.POSTSUSPEND and complete else (),
        served=asked.text if asked.fresh else known.served,
        told=_told(outcome, nodes, error) if outcome is not None or error else known.told,
    )
    record.save(job.id, after, case.folder)
    stopped = time.monotonic() - held_at if held_at is not None else 0.0
    return Served(job.id, case.kind.value, nodes, known.homes, outcome, error, asked.text, seconds_stopped=stopped)


def _move(case: Case, target: Target, holding: ExitStack, held_at: float | None) -> dict[str, Any]:
    """Move what is misplaced: as far as it goes while the job is held, the rest while it runs."""
    from pageferry import ferry, report
    from pageferry.mover import Limits

    left = None if held_at is None else max(0.0, held_at + case.max_hold_seconds - time.monotonic())
    limits = Limits(workers=case.settings.agent.workers, seconds=left)
    first = report.outcome_json(ferry.move(case.pids(), ferry.Request(target=target, limits=limits)))
    if held_at is None or not first["pages"]["not_reached"]:
        return first
    holding.close()
    unlimited = replace(limits, seconds=None)
    rest = report.outcome_json(ferry.move(case.pids(), ferry.Request(target=target, limits=unlimited)))
    moved = first["pages"]["moved"]
    rest["pages"]["moved"] += moved
    rest["pages"]["in_place"] = max(0, rest["pages"]["in_place"] - moved)
    for key in ("moved_bytes", "requested_pages", "retried_pages", "addresses", "calls", "seconds"):
        rest[key] += first[key]
    return rest


def _target(
    nodes: tuple[int, ...], strategy: Strategy, homes: tuple[int, ...], settings: Settings, topology: Topology
) -> Target:
    return Target(
        nodes=nodes,
        strategy=strategy,
        sources=frozenset(homes) if homes else None,
        when_full=WhenFull(settings.agent.when_full),
        spill=topology.nodes_with_memory(),
    )


def _told(outcome: Mapping[str, Any] | None, nodes: tuple[int, ...], error: str | None) -> str:
    from pageferry import report

    return report.told(outcome, nodes, error)


def user_id(name: str) -> int:
    """Return a user's ID, -1 if there is none of that name here."""
    with suppress(KeyError):
        return pwd.getpwnam(name).pw_uid
    return -1
