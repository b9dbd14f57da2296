"""The way of the data, in one function: job → snapshot → plan → move → tally.

Everything that acts on a job comes through here.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

from pageferry import folios, hotness
from pageferry.errors import KernelError, PageferryError, UsageError, Vanished
from pageferry.kernel import capabilities, libnuma
from pageferry.kernel.huge_pages import compact, read_free_huge_pages
from pageferry.kernel.hugetlb import Pools, read_pools
from pageferry.kernel.lists import format_list
from pageferry.kernel.topology import Topology, read_topology
from pageferry.kernel.watermarks import read_kept_free
from pageferry.mover import Limits, carry
from pageferry.snapshot import Taken, take
from pageferry_planner.columns import Bools
from pageferry_planner.ledger import Ledger, buckets, ledger, merged, unmoved
from pageferry_planner.model import Bucket, Host, HugePages, Plan, Snapshot, Tally, Target, huge_page
from pageferry_planner.placement import may_move, place
from pageferry_planner.policy import Facts, Rules

ROUNDS = 3
"""How often a job is looked at again because a carrier ended while its pages may still be the job's."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for: where to, under which rules, and how much it may cost.

    `reserve_bytes`: what is left free on every target node, no less than the kernel's own watermarks; None: 1/64 of the
    node, at least 16 MiB. `hot_seconds`: how long is watched what the job uses, while it runs and before the budget
    begins; 0: it was before, by `watch`; None: not at all. `compacts`: where huge pages are to be kept, a target may be
    compacted first, which no budget ends.
    """

    target: Target
    rules: Rules = field(default_factory=Rules)
    limits: Limits = field(default_factory=Limits)
    reserve_bytes: int | None = None
    hot_seconds: float | None = None
    compacts: bool = True


@dataclass(frozen=True, slots=True)
class Inputs:
    """All that a plan is made from: what was seen of the job and of the host, and what was asked for.

    `facts`: what the rules were asked of each backing. `kept_free`: bytes per node that the kernel keeps for itself.
    `free_huge`: free huge pages per node, looked at if they are to be kept.
    """

    snapshot: Snapshot
    facts: tuple[Facts, ...]
    topology: Topology
    kept_free: Mapping[int, int]
    request: Request
    free_huge: Mapping[int, int] = field(default_factory=dict)

    @property
    def keeps(self) -> bool:
        """True when huge pages are not to be split."""
        return self.request.target.huge_pages is HugePages.KEEP


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was planned, what became of it, and how long that took in seconds. Tally and ledger sum the same pages.

    `pools`: the host's pools of hugetlb pages before and after.
    """

    plan: Plan
    tally: Tally
    ledger: Ledger
    seconds: float
    seconds_planning: float
    pools: tuple[Pools, Pools] = ({}, {})

    @property
    def complete(self) -> bool:
        """True when every page that was to move has moved (or went with its process), and all were found."""
        return self.tally.misplaced() == self.tally[Bucket.VANISHED] and not self.plan.unread


def survey(pids: Iterable[int], rules: Rules) -> tuple[Snapshot, Topology]:
    """Return where the memory of processes is, without asking for anything to move."""
    topology = read_topology()
    with take(pids, rules, topology) as taken:
        return taken.snapshot, topology


def plan(
    pids: Iterable[int], request: Request, seen: Callable[[Inputs], None] = lambda _inputs: None
) -> tuple[Snapshot, Plan]:
    """Return the plan, and the snapshot that it was made from; nothing is moved. `seen` as in `move`."""
    with _planned(pids, request, seen) as (taken, made):
        return taken.snapshot, made


def look(pids: Iterable[int], request: Request) -> Inputs:
    """Return what a plan would be made from; whether the request makes sense is found out when one is made."""
    topology = read_topology()
    with take(pids, request.rules, topology) as taken:
        return _inputs(_looked_at(taken, request, taken.snapshot.movable()), topology, request)


def watch(pids: Iterable[int], request: Request) -> Request:
    """Watch what processes use, before they are held; return the request to make while they are.

    Its `hot_seconds` is None if they could not be watched.
    """
    if not request.hot_seconds:
        return request
    with take(pids, request.rules, read_topology()) as taken:
        known = hotness.watch(taken, request.hot_seconds)
    return replace(request, hot_seconds=0.0 if known else None)


def plan_from(inputs: Inputs) -> Plan:
    """Return the plan for what was seen, wherever and whenever that was: nothing of this host is looked at.

    Raises UsageError and KernelError as `plan` does.
    """
    check(inputs.request.target, inputs.topology)
    if inputs.keeps and not inputs.snapshot.folios:
        raise UsageError("which pages are huge was not looked at: ask for --huge-pages keep when the snapshot is made")
    return _made(inputs)


def move(
    pids: Iterable[int],
    request: Request,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
    seen: Callable[[Inputs], None] = lambda _inputs: None,
) -> Outcome:
    """Move the memory of processes, each page once, and account for every resident page.

    `progress` is told how many of how many pages have been dealt with, `seen` what the plan is made from. Raises
    UsageError for a target that makes no sense, KernelError for what the host or our privileges do not allow, Vanished
    if no process is left.
    """
    began, pools = time.monotonic(), read_pools()
    due = began + (request.hot_seconds or 0.0)
    pids = frozenset(pids)
    libnuma.require()
    move_all = "CAP_SYS_NICE" in capabilities.effective()
    with _planned(pids, request, seen, compacts=request.compacts) as (taken, first):
        planning = time.monotonic() - began
        if first.lacking:
            stays = ledger(taken.snapshot, [unmoved(first)])
            return Outcome(first, _refused(first), stays, time.monotonic() - began, planning, (pools, pools))
        done, of = 0, first.moves.pages()

        def advance(pages: int) -> None:
            nonlocal done
            done += pages
            progress(done, of)

        limits = _left(request.limits, due, move_all)
        carried = carry(first, taken.handles, taken.tables, limits, advance)
        whole = ledger(taken.snapshot, [carried.flows])
    tally = carried.tally
    again_asked = replace(request, hot_seconds=None)
    for _ in range(ROUNDS - 1):
        limits = _left(request.limits, due, move_all)
        if not carried.carrier_lost or limits.seconds == 0:
            break
        try:
            with _planned(pids, again_asked) as (taken, again):
                if again.lacking:
                    break
                carried = carry(again, taken.handles, taken.tables, limits)
                whole = merged(whole, ledger(taken.snapshot, [carried.flows]))
        except Vanished:
            break
        tally = _merge(tally, carried.tally, whole)
    return Outcome(first, tally, whole, time.monotonic() - began, planning, (pools, read_pools()))


def after(request: Request, first: Plan) -> Request:
    """Return what is left to ask for once `first` was carried out while the job ran: what is on a target stays."""
    sources = sources_after(first.sources, request.target.nodes)
    special = request.target.left_alone  # a special node that was a source is one of the rest, too
    target = replace(request.target, sources=frozenset(sources), special=special)
    return replace(request, target=target, hot_seconds=None)


def sources_after(sources: tuple[int, ...], nodes: Iterable[int]) -> tuple[int, ...]:
    """Return the sources of the relative map for the rest of a move from `sources` to `nodes`.

    Memory that the job has had since on its old nodes goes where that of the same node went, unless an old node is a
    target too: then it goes to the nearest.
    """
    return sources if set(sources).isdisjoint(nodes) else ()


def host(
    topology: Topology,
    reserve_bytes: int | None,
    kept_free: Mapping[int, int] | None = None,
    page_bytes: int = mmap.PAGESIZE,
    free_huge: Mapping[int, int] | None = None,
) -> Host:
    """Return what placement must know of the host.

    Room is what is free and what clean, inactive page cache takes (the kernel drops it without I/O), less the reserve,
    which is never less than what the kernel keeps free for itself (`kept_free`; None: this host's). Of the free huge
    pages (`free_huge`; None: nobody asks) as many are as leave the reserve free.
    """
    room, huge = {}, {}
    kept_free = read_kept_free() if kept_free is None else kept_free
    for node in topology.nodes:
        if node.total_bytes:
            reserve = max(16 << 20, node.total_bytes // 64) if reserve_bytes is None else reserve_bytes
            reserve = max(reserve, kept_free.get(node.number, 0))
            room[node.number] = max(0, node.free_bytes + node.file_cache_bytes - reserve) // page_bytes
            unused = max(0, node.free_bytes - reserve) // (huge_page(page_bytes) * page_bytes)
            huge[node.number] = min((free_huge or {}).get(node.number, 0), unused)
    pools = {
        (node.number, size // page_bytes): free for node in topology.nodes for size, free in node.free_hugepages.items()
    }
    return Host(room, {number: topology.nearest(number)[1:] for number in room}, huge, pools)


@contextmanager
def _planned(
    pids: Iterable[int],
    request: Request,
    seen: Callable[[Inputs], None] = lambda _inputs: None,
    *,
    compacts: bool = False,
) -> Iterator[tuple[Taken, Plan]]:
    topology = read_topology()
    check(request.target, topology)
    with take(pids, request.rules, topology) as whole:
        room = _host(Inputs(whole.snapshot, whole.facts, topology, read_kept_free(), request))
        taken = _looked_at(whole, request, may_move(whole.snapshot, request.target, room))
        inputs = _inputs(taken, topology, request)
        inputs = _compacted(inputs) if compacts else inputs
        seen(inputs)
        yield taken, _made(inputs)


def _looked_at(taken: Taken, request: Request, rows: Bools) -> Taken:
    """Return what was taken with the large folios in some of its runs, and with what is used of it."""
    if request.target.huge_pages is HugePages.KEEP:
        folios.require_known()
    known = folios.with_folios(taken, rows)
    return known if request.hot_seconds is None else hotness.watched(known, request.hot_seconds)


def _inputs(taken: Taken, topology: Topology, request: Request) -> Inputs:
    inputs = Inputs(taken.snapshot, taken.facts, topology, read_kept_free(), request)
    return replace(inputs, free_huge=read_free_huge_pages()) if inputs.keeps else inputs


def _compacted(inputs: Inputs) -> Inputs:
    """Return the inputs after the nodes were compacted that have too few free huge pages for those to be kept."""
    if not inputs.keeps:
        return inputs
    with suppress(PageferryError):  # of a plan that cannot be made: it is said when it is made
        made = _made(inputs)
        torn = [] if made.lacking else sorted(made.short.keys() & _torn(inputs))
        if torn:
            compact(torn)
            return replace(inputs, free_huge=read_free_huge_pages())
    return inputs


def _torn(inputs: Inputs) -> set[int]:
    """Return the nodes with fewer free huge pages than would be in what they have free."""
    whole = {node.number: node.total_bytes // inputs.snapshot.page_bytes for node in inputs.topology.nodes}
    most = _host(replace(inputs, free_huge=whole)).huge
    return {node for node, count in most.items() if inputs.free_huge.get(node, 0) < count}


def _made(inputs: Inputs) -> Plan:
    snapshot, request = inputs.snapshot, inputs.request
    allowed = frozenset.intersection(*(process.mems_allowed for process in snapshot.processes))
    outside = set(request.target.nodes) - allowed
    if outside:
        raise KernelError(
            f"node {format_list(outside)} is outside the job's cpuset (mems {format_list(allowed)}): "
            "the kernel would refuse; widen cpuset.mems first, which moves nothing"
        )
    target = replace(request.target, spill=request.target.spill & allowed)
    return place(snapshot, target, _host(inputs))


def _host(inputs: Inputs) -> Host:
    reserve, page_bytes = inputs.request.reserve_bytes, inputs.snapshot.page_bytes
    return host(inputs.topology, reserve, inputs.kept_free, page_bytes, inputs.free_huge)


def check(target: Target, topology: Topology) -> None:
    """Raise UsageError for a target node that is not there or has no memory, KernelError on a one-node host."""
    with_memory = topology.nodes_with_memory()
    if len(with_memory) < 2:
        raise KernelError("this host has one NUMA node with memory: there is nowhere to move to")
    known = frozenset(node.number for node in topology.nodes)
    for node in target.nodes:
        if node not in known:
            raise UsageError(f"no such node on this host: {node} (nodes {format_list(known)})")
        if node not in with_memory:
            raise UsageError(f"node {node} has no memory (nodes with memory: {format_list(with_memory)})")


def _left(limits: Limits, began: float, move_all: bool) -> Limits:
    seconds = limits.seconds
    if seconds is not None:
        seconds = max(0.0, seconds - (time.monotonic() - began))
    return replace(limits, seconds=seconds, move_all=move_all)


def _refused(made: Plan) -> Tally:
    return Tally(
        pages={
            Bucket.IN_PLACE: made.in_place,
            Bucket.EXCLUDED: sum(made.excluded.values()),
            Bucket.NO_ROOM: made.no_room + made.moves.pages(),
            Bucket.NO_HUGE_PAGE: made.no_huge_page,
        },
        excluded=dict(made.excluded),
    )


def _merge(first: Tally, again: Tally, both: Ledger) -> Tally:
    """Join the tallies of two rounds: what had vanished with its carrier may have been found through another."""
    return Tally(
        pages=buckets(both),
        excluded=first.excluded,
        requested=first.requested + again.requested,
        retried=first.retried + again.retried,
        addresses=first.addresses + again.addresses,
        calls=first.calls + again.calls,
        split=first.split + again.split,
    )
