"""A policy applied: where a job's memory is to go, under what its policy says → the ferry's request, and its outcome.

Which policy holds is `policy`'s to say; when a job is moved, and what is told of it, is left to the callers: the
agent's errands, PBS's events, and `pageferry explain`.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from pageferry import ferry, report, spill
from pageferry.errors import PageferryError, Stopped
from pageferry.kernel.topology import Topology, read_topology
from pageferry.kernel.weights import read_weights
from pageferry.mover import Limits
from pageferry.policy import Mode, Policy
from pageferry.spill import JobId
from pageferry_planner.model import Strategy, Target, WhenFull
from pageferry_planner.policy import Rules


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a job's memory goes; `sources` are the nodes whose memory goes to the i-th target, None: by memory.

    `strategy`, `when_full` None: the policy's. `spill`: nodes that may take what does not fit; None: any but special
    ones. `parked`: nodes that the memory is parked on, or was and has not all come back from: it leaves them also where
    they are special. No source is special otherwise.
    """

    nodes: tuple[int, ...]
    strategy: Strategy | None = None
    sources: tuple[int, ...] | None = None
    when_full: WhenFull | None = None
    spill: frozenset[int] | None = None
    parked: frozenset[int] = frozenset()


def rules(policy: Policy) -> Rules:
    """Return which of a job's mappings stay, by its policy."""
    return Rules(
        stay=policy.libraries,
        reference_count=policy.reference_count,
        xattrs=policy.xattr,
        filesystems=policy.leave_filesystems,
    )


def special_nodes(policy: Policy, destination: Destination, topology: Topology) -> frozenset[int]:
    """Return the special nodes of a move: where memory is on purpose, and not because it is, or was, parked there."""
    return policy.special.on(topology) - destination.parked


def request(
    policy: Policy,
    destination: Destination,
    topology: Topology,
    seconds: float | None = None,
    *,
    runs: bool = False,
) -> ferry.Request:
    """Return what is asked of the ferry; `seconds`: how long it may take; `runs`: the job does, meanwhile.

    The kernel's weights of nodes go before a rule's. Raises KernelError if they are needed and cannot be understood.
    """
    on_purpose = special_nodes(policy, destination, topology)
    sources = frozenset(destination.sources) - on_purpose if destination.sources is not None else None
    spill = destination.spill
    if spill is None:
        spill = topology.nodes_with_memory() - (policy.special.on(topology) - {*destination.nodes})
    strategy = destination.strategy or policy.strategy
    weights = (read_weights() if strategy is Strategy.WEIGHTED else ()) or policy.weights
    return ferry.Request(
        target=Target(
            nodes=destination.nodes,
            strategy=strategy,
            sources=sources,
            when_full=destination.when_full or policy.when_full,
            spill=spill,
            huge_pages=policy.huge_pages,
            weights=weights,
            special=on_purpose,
            hugetlb_surplus=policy.hugetlb_surplus,
        ),
        rules=rules(policy),
        limits=Limits(workers=policy.workers, seconds=seconds, bytes_per_second=policy.rate),
        reserve_bytes=policy.reserve,
        hot_seconds=policy.hot_seconds if runs else None,
    )


def homecomings(
    policies: Mapping[JobId, Policy],
    *,
    left: Mapping[JobId, Collection[int]] = MappingProxyType({}),
    groups_of: spill.GroupsOf = spill.slurm_groups,
    seconds: float | None = None,
    seen: spill.Seen = lambda _far: None,
) -> list[spill.Homecoming[JobId]]:
    """Return whose spilled memory can come home of these jobs, as each one's policy says; the biggest gain first.

    `left`: nodes that a job was parked on and has not all come back from, which it leaves also where they are special.
    `seen` is told how much of it is away, on each node. The rest is as in `spill.candidates`.
    """
    far: Counter[int] = Counter()
    found: list[spill.Homecoming[JobId]] = []
    alike: dict[tuple[Policy, frozenset[int]], list[JobId]] = {}
    for job, policy in policies.items():
        alike.setdefault((policy, frozenset(left.get(job, ()))), []).append(job)
    for (policy, parked), jobs in alike.items():
        if policy.mode is not Mode.OFF and policy.spill_enabled:
            homes = spill.candidates(
                jobs,
                groups_of=groups_of,
                least_bytes=policy.spill_least_bytes,
                bytes_per_second=policy.spill_rate,
                seconds=seconds,
                reserve_bytes=policy.reserve,
                rules=rules(policy),
                special=policy.special.on(read_topology()) - parked if policy.special else frozenset(),
                seen=far.update,
            )
            # What comes in slices is not watched for each of them: others wait.
            hot = policy.hot_seconds if seconds is None else None
            for home in homes:
                target = replace(
                    home.request.target, huge_pages=policy.huge_pages, hugetlb_surplus=policy.hugetlb_surplus
                )
                # Nor is a node compacted for what may come again with each job that ends.
                asked = replace(home.request, target=target, hot_seconds=hot, compacts=False)
                found.append(replace(home, request=asked))
    seen(far)
    return sorted(found, key=lambda home: -home.gain)


def carried(
    policy: Policy,
    pids: Iterable[int],
    asked: ferry.Request,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
    seen: Callable[[ferry.Inputs], None] = lambda _inputs: None,
) -> dict[str, Any]:
    """Move a job's memory, or, if its policy says so, only plan to; return the outcome for a program.

    `progress` and `seen` are `ferry.move`'s. Raises as that does; PageferryError for a mode in which nothing may be
    asked for.
    """
    if policy.mode is Mode.OFF:
        raise PageferryError(f'{policy.named()} leaves the job alone (mode = "off")')
    if policy.mode is Mode.MOVE:
        return report.outcome_json(ferry.move(pids, asked, progress, seen))
    began = time.monotonic()
    unmarked = replace(asked, hot_seconds=None)  # nothing is done to the pages of a job that is only observed
    _, made = ferry.plan(pids, unmarked, seen)
    return report.observed_json(made, time.monotonic() - began)


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Have SIGINT end a move between two calls, with all of its pages accounted for.

    Yields what is to be called when memory moves: what comes later than the move changes nothing any more. Raises
    Stopped if it comes before, or came while it was blocked, as it is in an errand.
    """
    moves = False

    def moving() -> None:
        nonlocal moves
        moves = True

    def interrupted(_number: int, _frame: object) -> None:
        if not moves:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupted)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        yield moving
    except KeyboardInterrupt as error:
        raise Stopped("its time was used up before its memory began to move") from error
    finally:
        moves = True
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)
