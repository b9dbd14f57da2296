"""One event of PBS's: from what the hook said to what became of the job's memory.

    event ─► request, or PBS's nodes ─► (hold) ─► the ferry ─► record, outcome

The agent's errands come through here, and the command that does without an agent. A job that MoM has stopped is moved
while it stands still. One that is about to run again is held beyond its resume until its memory has arrived, for
`max_hold_seconds` at most, if something can hold it; MoM, and with it the scheduler, is told as soon as that is so. All
else is moved while it runs.
"""

from __future__ import annotations

import math
import pwd
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from pageferry.comment import PREFIX, Wish, parse
from pageferry.config import Settings
from pageferry.errors import KernelError, PageferryError, Stopped, UsageError, Vanished
from pageferry.kernel.topology import Topology, read_topology
from pageferry.pbs import hold, record
from pageferry.pbs.event import Kind, PbsJob
from pageferry.pbs.record import FOLDER, Record
from pageferry.policy import Facts, Mode, Policy
from pageferry.schedulers.pbs import is_stopped, job_nodes, job_pids, owner
from pageferry_planner.model import Target

if TYPE_CHECKING:  # numpy comes with it
    from pageferry import spill
    from pageferry.applied import Destination

Say = Callable[[Mapping[str, Any]], None]
"""Who waits for the job is told {"held": true}, and lets it go on; or {"live": why}, and can only wait for the end.

With "already": true it is held by another of ours, for an earlier resume.

{"parks": true} is for whoever may want a suspended job's move to be stopped, by SIGINT from then on.
"""


WAIT_SECONDS = 1.0
"""How long after a job has ended spilled memory is looked for: its own must be free first."""

SLICE_SECONDS = 15.0
"""How long a job is moved at a time while it runs on, the look at it included: a suspension waits for no more."""


@dataclass(frozen=True, slots=True)
class Case:
    """What has happened to a job on this host, which goes by the names `hosts`; `folder` has the jobs' records.

    `until`: when MoM no longer waits; a job that it has let go since is not held any more. `snapshots`: where what the
    plan is made from is kept, if anywhere.
    """

    kind: Kind
    job: PbsJob
    hosts: frozenset[str]
    settings: Settings
    folder: Path = FOLDER
    until: float = math.inf
    snapshots: Path | None = None

    @property
    def policy(self) -> Policy:
        """What holds for the job."""
        return self.settings.policy(self.job.facts())

    def pids(self) -> frozenset[int]:
        """Return the job's processes."""
        return _pids(self.job)


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for a job, or why that makes no sense; `fresh`: in its comment, and not served yet."""

    text: str = ""
    wish: Wish | None = None
    error: str | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Served:
    """What was done for a job. `outcome` as `report.outcome_json` has it; None: there was nothing to do.

    `moments` of its stop, by name, in seconds since 1970, as far as they are known here.
    """

    job: str
    event: str
    nodes: tuple[int, ...] = ()
    sources: tuple[int, ...] = ()
    outcome: Mapping[str, Any] | None = None
    error: str | None = None
    request: str = ""
    uid: int = -1
    seconds_stopped: float = 0.0
    released_at: float = 0.0
    moments: Mapping[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.time)
    rule: str = ""

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


@dataclass(frozen=True, slots=True)
class Ready:
    """Whether nothing is left to do for a job that is about to run again; `refused`: why its fresh request is."""

    settled: bool
    refused: str = ""


def ready(case: Case) -> Ready:
    """See whether a job that is about to run again has all of its memory where it belongs, since it was suspended.

    So it has if its policy is not to move it, and it asks for nothing. A request that makes no sense is refused. What
    is known of the job says so, and that it runs. Few files are read, and no page table: MoM waits for this.
    """
    job, hosts, folder = case.job, case.hosts, case.folder
    known = record.load(job.id, folder)
    asked = understood(job, hosts, known)
    topology = read_topology()
    refused = ""
    if asked.fresh and (error := asked.error or _unfit(asked.wish, topology)):
        refused = _told(None, (), error)
        known = msgspec.structs.replace(known, served=asked.text, told=refused)
        record.save(job.id, known, folder)
        asked = understood(job, hosts, known)
    if case.policy.mode is not Mode.MOVE and not asked.fresh and not known.parked:
        return Ready(True, refused)
    where = asked.wish.nodes if asked.wish else job_nodes(job.id, job.exec_vnode, hosts, topology)
    if not where and not asked.text:
        return Ready(True, refused)  # neither PBS nor anybody says where its memory belongs
    if not known.settled or known.settled != where or asked.fresh or asked.error:
        return Ready(False, refused)
    record.save(job.id, msgspec.structs.replace(known, settled=()), folder)
    return Ready(True, refused)


def _unfit(wish: Wish | None, topology: Topology) -> str | None:
    """Return why this host cannot do what is wished."""
    from pageferry import ferry

    try:
        if wish is not None:
            ferry.check(Target(wish.nodes), topology)
    except PageferryError as error:
        return str(error)
    return None


def stands(job: PbsJob) -> bool:
    """Say whether all of a job stands still, as MoM has it stopped."""
    return is_stopped(_pids(job))


def begin(job: PbsJob, hosts: frozenset[str], folder: Path = FOLDER) -> None:
    """Take note of where a job begins, which may have run here before under the same ID."""
    nodes = job_nodes(job.id, job.exec_vnode, hosts, read_topology())
    record.save(job.id, Record(homes=nodes, placed=nodes, facts=job.facts()), folder)


def unsettle(job: PbsJob, folder: Path = FOLDER) -> None:
    """Take note that a job was suspended again: what was known of an earlier suspension holds no more."""
    known = record.load(job.id, folder)
    if known.settled:
        record.save(job.id, msgspec.structs.replace(known, settled=()), folder)


def take_note(job: PbsJob, hosts: frozenset[str], folder: Path = FOLDER) -> bool:
    """Look at the nodes that PBS gives a job, and say whether they are others than at the last look (drift).

    So it is with one that runs with its memory parked: nobody told us that it was to be resumed.
    """
    known = record.load(job.id, folder)
    if known.parked and not is_stopped(_pids(job)):
        return True
    nodes = job_nodes(job.id, job.exec_vnode, hosts, read_topology())
    if not nodes or nodes == known.placed:
        return False
    if known.placed:
        return True
    noted = msgspec.structs.replace(known, placed=nodes, homes=known.homes or nodes, facts=job.facts())
    record.save(job.id, noted, folder)
    return False


def serve(case: Case, say: Say) -> Served:
    """Have a job's memory follow an event; nothing is left held. Raises nothing: what went wrong is in the answer."""
    began = time.time()
    try:
        served = _serve(case, say)
    except Vanished:
        served = Served(case.job.id, case.kind.value)
    except (PageferryError, OSError) as error:
        served = Served(case.job.id, case.kind.value, error=str(error))
    return replace(served, uid=user_id(case.job.user), began=began, rule=case.policy.rule)


def bring_home(settings: Settings, say: Say, folder: Path = FOLDER, snapshots: Path | None = None) -> int:
    """Bring the spilled memory of PBS's jobs home, live, one by one; say what became of each, and return how many.

    Said first is how much is away on each node.
    """
    from pageferry import applied, spill
    from pageferry.schedulers.pbs_cgroups import pbs_job_ids, pbs_job_pids

    def policy_of(job: str) -> Policy:
        return settings.policy(record.load(job, folder).facts or Facts("pbs"))

    def candidates(jobs: Iterable[str], seen: spill.Seen = lambda _far: None) -> list[spill.Homecoming[str]]:
        jobs = [job for job in jobs if not is_stopped(pbs_job_pids(job)) and not _sent_elsewhere(job, folder)]
        policies = {job: policy_of(job) for job in jobs}
        return applied.homecomings(policies, groups_of=spill.pbs_groups, seconds=SLICE_SECONDS, seen=seen)

    moved = 0
    for job in [found.job for found in candidates(pbs_job_ids(), lambda far: say({"far": far}))]:
        # In slices, each with a look of its own: it may have been suspended, or given other nodes, and others wait.
        while _slice_home(job, candidates, say, folder=folder, policy=policy_of(job), snapshots=snapshots):
            moved += 1
    return moved


def _sent_elsewhere(job: str, folder: Path) -> bool:
    """Say whether a request had a job's memory brought to other nodes than PBS gave it: there it is at home."""
    known = record.load(job, folder)
    return bool(known.homes and known.placed) and set(known.homes) != set(known.placed)


def _slice_home(
    job: str,
    candidates: Callable[[list[str]], list[spill.Homecoming[str]]],
    say: Say,
    *,
    folder: Path,
    policy: Policy,
    snapshots: Path | None,
) -> bool:
    """Bring a part of a job's spilled memory home, and say whether there may be more; not if somebody else moves it."""
    from pageferry import applied
    from pageferry.replay import kept
    from pageferry.schedulers.pbs_cgroups import pbs_job_pids

    began = time.time()
    with suppress(Vanished), record.alone(job, folder, lambda: True) as ours:
        for found in candidates([job]) if ours else ():
            pids = pbs_job_pids(job)
            with kept.recording(snapshots, job) as seen:
                outcome = applied.carried(policy, pids, found.request, seen=seen)
            nodes, uid = found.request.target.nodes, owner(pids)
            served = Served(job, "spill", nodes, outcome=outcome, began=began, uid=-1 if uid is None else uid)
            say(replace(served, rule=policy.rule).as_dict())
            return bool(outcome["moved_bytes"]) and not outcome["complete"]
    return False


def _serve(case: Case, say: Say) -> Served:
    with ExitStack() as holding:
        moments = {"suspended": time.time()} if case.kind is Kind.POSTSUSPEND else {}
        held_at = time.monotonic() if case.kind is Kind.PRERESUME and _hold(holding, case, say) else None
        if held_at is not None:
            moments["held"] = time.time()
        with record.alone(case.job.id, case.folder):
            served = _alone(case, holding, held_at, moments, say)
    if held_at is None:
        return served
    return replace(served, seconds_stopped=min(served.released_at - held_at, case.policy.max_hold_seconds))


def _hold(holding: ExitStack, case: Case, say: Say) -> bool:
    """Hold a job, if the site has it so and the kernel can; say to who waits which it is."""
    why, policy = "[pbs] hold = false", case.policy
    if policy.mode is not Mode.MOVE:
        why = f"{policy.named()}, mode = {policy.mode}"
    elif time.monotonic() > case.until:
        why = "it was let go before we were asked"
    elif case.settings.pbs.hold:
        try:
            holding.enter_context(hold.held(case.job.id, case.pids(), policy.max_hold_seconds, case.folder))
        except hold.HeldAlreadyError:
            say({"held": True, "already": True})
            return False
        except KernelError as error:
            why = str(error)
        else:
            say({"held": True})
            return True
    say({"live": why})
    return False


def _alone(case: Case, holding: ExitStack, held_at: float | None, moments: dict[str, float], say: Say) -> Served:
    """Move a job's memory, with nobody else moving it, and let it go on (`holding`) when that is done.

    `moments` is added to.
    """
    from pageferry import parking

    job, known = case.job, record.load(case.job.id, case.folder)
    # What was parked comes back, whatever the job's rule says by now.
    policy = replace(case.policy, mode=Mode.MOVE) if known.parked else case.policy
    topology = read_topology()
    placed = job_nodes(job.id, job.exec_vnode, case.hosts, topology)
    park = _parking(case, placed, topology)
    asked = Asked() if park else understood(job, case.hosts, known)  # it is served when the job goes on
    if known.parked and (wrong := _unfit(asked.wish, topology)):  # it comes back all the same
        asked = replace(asked, wish=None, error=wrong)
    nodes = park or (asked.wish.nodes if asked.wish else placed)
    error, outcome = asked.error, None
    if policy.mode is Mode.OFF:
        nodes = ()
        if asked.fresh:
            error = f'{policy.named()} leaves the job alone (mode = "off")'
    moves = policy.mode is Mode.MOVE
    settled = case.kind is Kind.PRERESUME and not known.parked and (known.settled == nodes or error is not None)
    if nodes and not settled:
        if moves:
            begun = msgspec.structs.replace(known, settled=(), begun=True, parked=park or known.parked)
            record.save(job.id, begun, case.folder)
        moments["moving"] = time.time()
        try:
            where = _destination(known, asked, policy, nodes, park)
            with _stoppable(park, say) as moving:
                outcome = _move(case, policy, where, moving, _seconds(policy, held_at))
        except Stopped:
            pass  # the job goes on, and nothing was parked
        except PageferryError as failure:
            error = error or str(failure)
        moments["moved"] = time.time()
    holding.close()
    released_at = time.monotonic()
    if "held" in moments:
        moments["released"] = min(time.time(), moments["held"] + policy.max_hold_seconds)
    complete = outcome is not None and outcome["complete"]
    stands = case.kind is Kind.POSTSUSPEND and complete and moves and not park and is_stopped(case.pids())
    arrived = outcome is not None and not outcome["refused"] and moves and not park
    after = Record(
        homes=nodes if arrived else known.homes,
        placed=(placed if moves else ()) or known.placed,
        settled=nodes if stands else (),
        served=asked.text if asked.fresh else known.served,
        told=_told(outcome, nodes, error) if error or _is_news(outcome, asked) else known.told,
        begun=known.begun and not moves,
        parked=park or (() if nodes else known.parked),
        facts=job.facts(),
    )
    record.save(job.id, after, case.folder)
    event = parking.PARK if park else parking.UNPARK if known.parked else case.kind.value
    return Served(
        job.id,
        event,
        nodes,
        known.homes if park else known.parked or known.homes,
        outcome,
        error,
        asked.text,
        released_at=released_at,
        moments=moments,
    )


def _parking(case: Case, placed: tuple[int, ...], topology: Topology) -> tuple[int, ...]:
    """Return where a job's memory is parked now, as its rule says; none unless MoM has it stopped, for good as yet."""
    from pageferry import parking

    policy = case.policy
    if case.kind is Kind.PRERESUME or policy.mode is not Mode.MOVE or not policy.park or not is_stopped(case.pids()):
        return ()
    with suppress(UsageError):  # the doctor says so
        return parking.nodes(policy, placed, topology)
    return ()


def _destination(
    known: Record, asked: Asked, policy: Policy, nodes: tuple[int, ...], park: tuple[int, ...]
) -> Destination:
    from pageferry import applied, parking

    strategy = asked.wish.strategy if asked.wish else None
    if park:
        return parking.away(policy, known.homes, nodes)
    if known.parked:
        return parking.back(policy, known.parked, known.homes, nodes, strategy)
    # Where a move was cut short, what it brought to a target stays there: the rest goes to the nearest.
    return applied.Destination(nodes, strategy, () if known.begun else known.homes or None)


@contextmanager
def _stoppable(park: tuple[int, ...], say: Say) -> Iterator[Callable[[], None]]:
    """Have SIGINT stop a move that parks a job; any other is not to be stopped. Yields as `applied.interruptible`."""
    from pageferry import applied

    if not park:
        yield lambda: None
        return
    with applied.interruptible() as moving:
        say({"parks": True})
        yield moving


def _is_news(outcome: Mapping[str, Any] | None, asked: Asked) -> bool:
    """Say whether an outcome is to take the place of the last one: a look that found all in place is not."""
    if outcome is None:
        return False
    found = outcome["moved_bytes"] or outcome.get("would_move_bytes") or not outcome["complete"]
    return bool(asked.fresh or found)


def _seconds(policy: Policy, held_at: float | None) -> float | None:
    """Return how long a move may take: of a job that is held, no longer than that, if its policy leaves the rest."""
    if held_at is None or policy.when_hold_ends != "leave":
        return None
    return max(0.0, held_at + policy.max_hold_seconds - time.monotonic())


def _move(
    case: Case, policy: Policy, destination: Destination, moving: Callable[[], None], seconds: float | None
) -> dict[str, Any]:
    """Move a job's memory; `moving` is told that it does."""
    from pageferry import applied
    from pageferry.replay import kept

    asked = applied.request(policy, destination, read_topology(), seconds)
    with kept.recording(case.snapshots, case.job.id) as seen:
        return applied.carried(policy, case.pids(), asked, lambda _done, _of: moving(), seen)


def _told(outcome: Mapping[str, Any] | None, nodes: tuple[int, ...], error: str | None) -> str:
    from pageferry import report

    return report.told(outcome, nodes, error)


def _pids(job: PbsJob) -> frozenset[int]:
    return job_pids(job.id, job.session, user_id(job.user) if job.user else None)


def user_id(name: str) -> int:
    """Return a user's ID, -1 if there is none of that name here."""
    with suppress(KeyError):
        return pwd.getpwnam(name).pw_uid
    return -1
