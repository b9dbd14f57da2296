"""One event of PBS's: from what the hook said to what became of the job's memory.

    event ─► request, or PBS's nodes ─► (hold) ─► the ferry ─► record, outcome

The agent's errands come through here, and the command that does without an agent. A job that MoM has stopped is moved
while it stands still. One that is about to run again is held beyond its resume until its memory has arrived, for
`max_hold_seconds` at most, if something can hold it; MoM, and with it the scheduler, is told as soon as that is so. All
else is moved while it runs. Where the memory is to be is `aim`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec

from pageferry.errors import KernelError, PageferryError, Stopped, Vanished
from pageferry.kernel.topology import read_topology
from pageferry.pbs import hold, record
from pageferry.pbs.asked import Asked
from pageferry.pbs.case import Case, Say, Served, user_id
from pageferry.pbs.event import Kind
from pageferry.pbs.record import Record
from pageferry.policy import Mode, Policy
from pageferry.schedulers.pbs import is_stopped

if TYPE_CHECKING:  # the ferry comes with them, and a job is held before that
    from pageferry.applied import Destination
    from pageferry.pbs.aim import Aim


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
    from pageferry.pbs.aim import aim_of

    job, known = case.job, record.load(case.job.id, case.folder)
    aim = aim_of(case, known)
    error, outcome = aim.error, None
    if aim.nodes and not aim.is_settled(case.kind):
        if aim.moves:
            parked = aim.park or known.parked
            begun = msgspec.structs.replace(known, settled=(), begun=True, parked=parked, left=known.parked_or_left)
            record.save(job.id, begun, case.folder)
        moments["moving"] = time.time()
        try:
            where = aim.destination()
            with _stoppable(aim.park, say) as moving:
                outcome = _move(case, aim.policy, where, moving, _seconds(aim.policy, held_at))
        except Stopped:
            pass  # the job goes on, and nothing was parked
        except PageferryError as failure:
            error = error or str(failure)
        moments["moved"] = time.time()
    holding.close()
    released_at = time.monotonic()
    if "held" in moments:
        moments["released"] = min(time.time(), moments["held"] + aim.policy.max_hold_seconds)
    record.save(job.id, _after(case, aim, outcome, error), case.folder)
    return Served(
        job.id,
        aim.event or case.kind.value,
        aim.nodes,
        aim.sources,
        outcome,
        error,
        aim.asked.text,
        released_at=released_at,
        moments=moments,
    )


def _after(case: Case, aim: Aim, outcome: Mapping[str, Any] | None, error: str | None) -> Record:
    """Return what is known of a job once an event has been served."""
    from pageferry import report

    known, moves, park = aim.known, aim.moves, aim.park
    complete = outcome is not None and outcome["complete"]
    stands = case.kind is Kind.POSTSUSPEND and complete and moves and not park and is_stopped(case.pids())
    arrived = outcome is not None and not outcome["refused"] and moves and not park
    news = error or _is_news(outcome, aim.asked)
    return Record(
        homes=aim.nodes if arrived else known.homes,
        placed=(aim.placed if moves else ()) or known.placed,
        settled=aim.nodes if stands else (),
        served=aim.asked.text if aim.asked.fresh else known.served,
        told=report.told(outcome, aim.nodes, error) if news else known.told,
        begun=known.begun and not moves,
        parked=park or (() if aim.nodes else known.parked),
        left=() if complete and known.parked and not park else known.parked_or_left,
        facts=case.job.facts(),
    )


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
