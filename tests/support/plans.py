"""Generated jobs for placement, and what a plan says of each single page.

Shares no code with the planner but its values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from pageferry_planner.columns import Ints
from pageferry_planner.folios import Folios
from pageferry_planner.model import (
    ANONYMOUS,
    FATES,
    Backing,
    Bucket,
    Flows,
    Host,
    Kind,
    Order,
    Plan,
    Process,
    Ranges,
    Runs,
    Snapshot,
    Strategy,
    Target,
    Verdict,
    WhenFull,
)

HUGE = 512
NODES = range(4)
AMPLE = 1 << 30
Address = tuple[int, int]
Row = tuple[int, int, int, int, int, int]
"""Process, page, count, node, backing, index."""


@dataclass(frozen=True)
class Page:
    """A resident page: where it is, and what it is."""

    node: int
    backing: int
    index: int


def runs_of(rows: Iterable[Row]) -> Runs:
    return Runs.of_pages(*np.array(list(rows), np.int64).reshape(-1, 6).T.copy())


def ranges_of(rows: Iterable[tuple[int, int, int, int, int]]) -> Ranges:
    process, page, count, backing, index = np.array(list(rows), np.int64).reshape(-1, 5).T.copy()
    return Ranges(process, page, count, backing, index, np.zeros(len(page), bool))


def anonymous(process: int, page: int, count: int, node: int) -> Row:
    return (process, page, count, node, ANONYMOUS, page)


def snapshot_of(
    rows: Iterable[Row],
    *,
    homes: Iterable[frozenset[int]] = (frozenset({0}),),
    verdicts: Iterable[Verdict] = (),
    vmas: Iterable[tuple[int, int, int, int, int]] = (),
) -> Snapshot:
    verdicts = tuple(verdicts)
    return Snapshot(
        page_bytes=4096,
        processes=tuple(Process(100 + n, 1, "rank", home, frozenset(NODES)) for n, home in enumerate(homes)),
        backings=tuple(Backing("08:01", number, "", f"/data/{number}") for number in range(len(verdicts))),
        verdicts=verdicts,
        vmas=ranges_of(vmas),
        runs=runs_of(rows),
        asked_per_process=0,
    )


def line_host(room: Iterable[int]) -> Host:
    """Return a host whose nodes stand in a line: the distance is the difference of their numbers."""
    free = dict(enumerate(room))
    return Host(
        free, {node: tuple(sorted(set(free) - {node}, key=lambda other: (abs(other - node), other))) for node in free}
    )


def pages_of(runs: Runs) -> dict[Address, Page]:
    """Return each page of the runs; fails if one comes twice."""
    found: dict[Address, Page] = {}
    for process, page, count, node, backing, index in zip(*(c.tolist() for c in runs.columns()[:6]), strict=True):
        for step in range(count):
            assert (process, page + step) not in found
            found[process, page + step] = Page(node, backing, index + step)
    return found


def targets_of(plan: Plan) -> dict[Address, int]:
    """Return where each page that is requested is to go; fails if one is requested twice."""
    found: dict[Address, int] = {}
    moves = plan.moves
    for process, page, count, target in zip(
        moves.process.tolist(), moves.page.tolist(), moves.count.tolist(), plan.target.tolist(), strict=True
    ):
        for step in range(count):
            assert (process, page + step) not in found
            found[process, page + step] = target
    return found


def movable(snapshot: Snapshot) -> dict[Address, Page]:
    """Return the pages that no rule keeps."""
    return {
        address: page
        for address, page in pages_of(snapshot.runs).items()
        if page.backing == ANONYMOUS or snapshot.verdicts[page.backing].moves
    }


def brought_to(snapshot: Snapshot, plan: Plan) -> dict[Address, int]:
    """Return where each page that may move is, when the plan has been carried out."""
    targets = targets_of(plan)
    return {address: targets.get(address, page.node) for address, page in movable(snapshot).items()}


def fates_of(flows: Flows) -> Counter[Bucket]:
    """Return the pages of flows by the bucket that they ended in."""
    found = Counter[Bucket]()
    for fate, count in zip(flows.fate.tolist(), flows.count.tolist(), strict=True):
        found[FATES[fate]] += count
    return found


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    """Draw a job: anonymous memory and files that its processes map in part, in runs of any length on any node."""
    processes = draw(st.integers(1, 3))
    homes = [frozenset(draw(st.sets(st.sampled_from(NODES), min_size=1, max_size=2))) for _ in range(processes)]
    lengths = st.one_of(st.integers(1, 40), st.integers(480, 1100))
    nodes = st.sampled_from(NODES)
    rows: list[Row] = []
    for process in range(processes):
        page = draw(st.integers(0, 1500))
        for _ in range(draw(st.integers(0, 3))):
            rows.append(anonymous(process, page, draw(lengths), draw(nodes)))
            page += rows[-1][2] + draw(st.sampled_from((0, 0, 1, 600)))
    verdicts, vmas = [], []
    for backing in range(draw(st.integers(0, 2))):
        rule = draw(st.sampled_from(("job-only", "job-only", "reference-count", "library-list")))
        verdicts.append(Verdict(rule == "job-only", rule))
        users: list[tuple[int, int, int, int, int]] = []
        for user in range(draw(st.integers(1, 4))):
            process, lo = draw(st.integers(0, processes - 1)), draw(st.integers(0, 900))
            at = (backing * 10 + user + 1) * 129 * HUGE + lo
            users.append((process, at, draw(st.integers(1, 1200)), backing, lo))
        vmas += users
        index = 0
        for process, at, count, _, lo in sorted(users, key=lambda vma: vma[4]):
            while (index := max(index, lo)) < lo + count:
                length = min(draw(lengths), lo + count - index)
                if draw(st.integers(0, 3)):
                    rows.append((process, at + index - lo, length, draw(nodes), backing, index))
                index += length
    order = draw(st.permutations(range(len(rows))))
    return snapshot_of([rows[row] for row in order], homes=homes, verdicts=verdicts, vmas=vmas)


@st.composite
def referenced_of(draw: st.DrawFn, snapshot: Snapshot) -> Ints:
    """Draw how many pages of each run were used of late."""
    shares = st.sampled_from((0, 0.01, 0.5, 1))
    return np.array([int(draw(shares) * count) for count in snapshot.runs.count.tolist()], np.int64)


@st.composite
def huge_of(draw: st.DrawFn, snapshot: Snapshot) -> Folios:
    """Draw which of the pages are of huge pages: in their places whole ones, or parts of them."""
    rows: list[tuple[int, ...]] = []
    runs = snapshot.runs
    for process, page, count in zip(runs.process.tolist(), runs.page.tolist(), runs.count.tolist(), strict=True):
        for place in range(page // HUGE * HUGE, page + count, HUGE):
            lo, hi = max(place, page), min(place + HUGE, page + count)
            kind = draw(st.sampled_from(("small", "whole", "part")))
            if kind == "part":
                lo = draw(st.integers(lo, hi - 1))
                hi = min(draw(st.integers(lo + 1, hi)), lo + HUGE - 1)
            if kind == "part" or (kind == "whole" and hi - lo == HUGE):
                rows.append((process, lo, hi - lo, HUGE, Kind.PART if kind == "part" else Kind.FOLIO, 0))
    return Folios(*np.array(sorted(rows), np.int64).reshape(-1, 6).T.copy())


@st.composite
def hosts(draw: st.DrawFn, *, ample: bool = False) -> Host:
    """Draw a host of four nodes, with any room (or ample room) and any order of distances."""
    rooms = st.sampled_from((0, 5, 300, 700, 1100, 4000))
    nearest = {}
    for node in NODES:
        nearest[node] = tuple(draw(st.permutations([other for other in NODES if other != node])))
    return Host({node: AMPLE if ample else draw(rooms) for node in NODES}, nearest)


@st.composite
def targets(draw: st.DrawFn, strategies: Iterable[Strategy] = Strategy, fulls: Iterable[WhenFull] = WhenFull) -> Target:
    """Draw where to: any nodes in any order."""
    return Target(
        nodes=tuple(draw(st.lists(st.sampled_from(NODES), min_size=1, max_size=4, unique=True))),
        strategy=draw(st.sampled_from(list(strategies))),
        sources=draw(st.none() | st.frozensets(st.sampled_from(NODES), min_size=1)),
        when_full=draw(st.sampled_from(list(fulls))),
        spill=draw(st.frozensets(st.sampled_from(NODES))),
        order=draw(st.sampled_from(Order)),
        weights=tuple(draw(st.dictionaries(st.sampled_from(NODES), st.integers(1, 4))).items()),
    )
