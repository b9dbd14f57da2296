"""What must hold of huge pages that are kept: each moves whole to a free huge page, or stays; all else is as without.

The oracle knows the huge pages as the test drew them, and looks at single pages.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry_planner.folios import Folios, marked
from pageferry_planner.model import Bucket, Host, HugePages, Kind, Plan, Snapshot, Target, WhenFull
from pageferry_planner.placement import place
from support.plans import (
    AMPLE,
    HUGE,
    NODES,
    Address,
    anonymous,
    fates_of,
    hosts,
    huge_of,
    line_host,
    movable,
    snapshot_of,
    snapshots,
    targets,
    targets_of,
)

PER_NODE = st.fixed_dictionaries({node: st.integers(0, 3) for node in NODES})


Kept = tuple[Snapshot, Folios, Target]
"""A job, its huge pages and parts of some as they were drawn, and a target that keeps them."""


@st.composite
def kept(draw: st.DrawFn) -> Kept:
    """Draw a job with huge pages, and a target that keeps them."""
    snapshot = draw(snapshots())
    huge = draw(huge_of(snapshot))
    return marked(snapshot, huge), huge, replace(draw(targets()), huge_pages=HugePages.KEEP)


def huge_pages(snapshot: Snapshot, huge: Folios) -> list[list[Address]]:
    """Return the movable pages of each huge page that is mapped whole, and of each part of one."""
    found = []
    may = movable(snapshot)
    for process, page, count in zip(*(column.tolist() for column in huge.columns()[:3]), strict=True):
        found.append([(process, number) for number in range(page, page + count) if (process, number) in may])
    return [pages for pages in found if pages]


def stages_of(plan: Plan) -> dict[Address, int]:
    """Return the stage of each page that is requested."""
    moves = plan.moves
    rows = zip(moves.process.tolist(), moves.page.tolist(), moves.count.tolist(), plan.stage.tolist(), strict=True)
    return {(process, page + step): stage for process, page, count, stage in rows for step in range(count)}


@given(kept(), hosts(), PER_NODE)
@settings(max_examples=200, deadline=None)
def test_a_huge_page_moves_whole_or_not_at_all_and_to_a_free_one(asked: Kept, host: Host, free: dict[int, int]) -> None:
    snapshot, huge, target = asked
    plan = place(snapshot, target, replace(host, huge=free))
    where, when, may = targets_of(plan), stages_of(plan), movable(snapshot)
    arriving, leaving = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for pages in huge_pages(snapshot, huge):
        goes = {(where.get(page), when.get(page)) for page in pages}
        assert len(goes) == 1, "its parts have one fate"
        ((node, stage),) = goes
        if node is not None and stage is not None:
            assert len(pages) == HUGE
            assert pages[0][1] % HUGE == 0, "what is mapped in part is not asked for"
            arriving[stage, node] += 1
            leaving[stage, may[pages[0]].node] += 1
    for stage in range(max(when.values(), default=0) + 1):
        for node in NODES:
            free[node] -= arriving[stage, node]
            assert free[node] >= 0
        for node in NODES:
            free[node] += leaving[stage, node]


@given(kept(), hosts(), PER_NODE)
@settings(max_examples=100, deadline=None)
def test_no_node_is_sent_more_than_its_room_and_every_page_is_accounted_for(
    asked: Kept, host: Host, free: dict[int, int]
) -> None:
    snapshot, _, target = asked
    plan = place(snapshot, target, replace(host, huge=free))
    moves, room = plan.moves, Counter(host.room)
    for stage in np.unique(plan.stage).tolist():
        rows = np.flatnonzero(plan.stage == stage).tolist()
        for row in rows:
            room[int(plan.target[row])] -= int(moves.count[row])
        assert min(room.values()) >= 0
        for row in rows:
            room[int(moves.node[row])] += int(moves.count[row])
    assert plan.total() == snapshot.runs.pages()
    fates = fates_of(plan.stays)
    assert fates[Bucket.NO_ROOM] == plan.no_room
    assert fates[Bucket.NO_HUGE_PAGE] == plan.no_huge_page >= sum(plan.short.values()) * (not target.spill)
    assert fates[Bucket.IN_PLACE] == plan.in_place


@given(kept(), hosts(ample=True), PER_NODE)
@settings(max_examples=200, deadline=None)
def test_all_that_is_not_huge_goes_as_without(asked: Kept, host: Host, free: dict[int, int]) -> None:
    snapshot, huge, target = asked
    without = targets_of(place(snapshot, replace(target, huge_pages=HugePages.SPLIT), host))
    plan = place(snapshot, target, replace(host, huge=free))
    huge_ones = {page for pages in huge_pages(snapshot, huge) for page in pages}
    found = targets_of(plan)
    assert {page: node for page, node in found.items() if page not in huge_ones} == {
        page: node for page, node in without.items() if page not in huge_ones
    }
    assert plan.lacking == {}, "a huge page without a free one is no reason to refuse the rest"
    assert set(found) <= set(without), "what is in place stays there"
    if target.when_full is not WhenFull.SPILL:
        assert found.items() <= without.items()


@given(kept(), hosts(ample=True))
@settings(max_examples=100, deadline=None)
def test_with_free_huge_pages_enough_only_parts_of_some_stay(asked: Kept, host: Host) -> None:
    snapshot, huge, target = asked
    without = targets_of(place(snapshot, replace(target, huge_pages=HugePages.SPLIT), host))
    plan = place(snapshot, target, replace(host, huge=dict.fromkeys(NODES, 1000)))
    assert plan.short == {}
    torn = {page for pages in huge_pages(snapshot, huge) for page in pages if len(pages) < HUGE or pages[0][1] % HUGE}
    assert targets_of(plan) == {page: node for page, node in without.items() if page not in torn}


@given(st.integers(0, 5), st.permutations(NODES), PER_NODE, st.frozensets(st.sampled_from(NODES)))
@settings(max_examples=200, deadline=None)
def test_spill_fills_free_huge_pages_nearest_first(
    count: int, order: list[int], free: dict[int, int], spill: frozenset[int]
) -> None:
    here, there = order[0], order[1]
    host = replace(line_host([AMPLE] * 4), huge=free)
    rows = [anonymous(0, HUGE, count * HUGE, here)] if count else []
    snapshot = marked(snapshot_of(rows), huge_rows((0, HUGE, count * HUGE)) if count else Folios.empty())
    target = Target((there,), when_full=WhenFull.SPILL, spill=spill, huge_pages=HugePages.KEEP)
    plan = place(snapshot, replace(target, sources=frozenset({here})), host)
    arrived = Counter(targets_of(plan).values())
    nearer = host.nearest[there][: host.nearest[there].index(here)]
    left = count
    for node in (there, *(near for near in nearer if near in spill)):
        takes = min(left, free[node])
        assert arrived[node] == takes * HUGE
        left -= takes
    assert plan.no_huge_page == left * HUGE
    assert plan.short == ({there: (count - free[there]) * HUGE} if count > free[there] else {})


def huge_rows(*rows: tuple[int, int, int]) -> Folios:
    """Return huge pages (process, page, count), or a part of one."""
    kinds = [(HUGE, Kind.FOLIO if count % HUGE == 0 else Kind.PART) for _, _, count in rows]
    table = [(*row, *kind, 0) for row, kind in zip(rows, kinds, strict=True)]
    return Folios(*np.array(table, np.int64).reshape(-1, 6).T.copy())


def plan_of(
    rows: list[tuple[int, int, int]], free: int, room: int = AMPLE, when_full: WhenFull = WhenFull.REFUSE
) -> Plan:
    """Return the plan for huge pages of a process on node 0 that are to go to node 1."""
    snapshot = snapshot_of([anonymous(0, page, count, 0) for _, page, count in rows])
    host = replace(line_host([AMPLE, room, AMPLE, AMPLE]), huge={1: free})
    target = Target((1,), when_full=when_full, huge_pages=HugePages.KEEP)
    return place(marked(snapshot, huge_rows(*rows)), target, host)


def test_what_lacks_room_lacks_room_and_what_lacks_a_free_huge_page_lacks_that() -> None:
    plan = plan_of([(0, 0, 4 * HUGE)], free=3, room=2 * HUGE + 9, when_full=WhenFull.PARTIAL)
    assert (plan.moves.pages(), plan.no_room, plan.no_huge_page) == (2 * HUGE, 2 * HUGE, 0)
    plan = plan_of([(0, 0, 4 * HUGE)], free=1, room=3 * HUGE, when_full=WhenFull.PARTIAL)
    assert (plan.moves.pages(), plan.no_room, plan.no_huge_page, plan.short) == (HUGE, 0, 3 * HUGE, {1: 3 * HUGE})


def test_no_room_refuses_and_no_free_huge_page_does_not() -> None:
    assert plan_of([(0, 0, 2 * HUGE)], free=9, room=HUGE).lacking == {1: HUGE}
    assert plan_of([(0, 0, 2 * HUGE)], free=0).lacking == {}


def test_a_part_of_a_huge_page_needs_no_compaction() -> None:
    plan = plan_of([(0, 100, 300)], free=9)
    assert (plan.moves.pages(), plan.no_huge_page, plan.short) == (0, 300, {})


def test_huge_pages_that_leave_a_node_first_make_room_for_others() -> None:
    rows = [anonymous(0, 0, HUGE, 0), anonymous(0, 10 * HUGE, HUGE, 1)]
    snapshot = marked(snapshot_of(rows), huge_rows((0, 0, HUGE), (0, 10 * HUGE, HUGE)))
    host = replace(line_host([0, 0, HUGE, 0]), huge={2: 1})
    plan = place(snapshot, Target((1, 2), huge_pages=HugePages.KEEP), host)
    assert plan.moves.pages() == 2 * HUGE


def test_which_pages_are_huge_must_be_known() -> None:
    with pytest.raises(ValueError, match="not known which pages are huge"):
        place(snapshot_of([]), Target((1,), huge_pages=HugePages.KEEP), line_host([AMPLE] * 4))
