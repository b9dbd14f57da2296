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

from pageferry_planner.huge import cut_huge, mapped_whole, table, whole
from pageferry_planner.model import Bucket, Host, Huge, HugePages, Plan, Runs, Snapshot, Strategy, Target, WhenFull
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
    pages_of,
    runs_of,
    snapshot_of,
    snapshots,
    targets,
    targets_of,
)

PER_NODE = st.fixed_dictionaries({node: st.integers(0, 3) for node in NODES})


@st.composite
def kept(draw: st.DrawFn) -> tuple[Snapshot, Target]:
    """Draw a job with huge pages, and a target that keeps them."""
    snapshot = draw(snapshots())
    return replace(snapshot, huge=draw(huge_of(snapshot))), replace(draw(targets()), huge_pages=HugePages.KEEP)


def huge_pages(snapshot: Snapshot) -> list[list[Address]]:
    """Return the movable pages of each huge page that is mapped whole, and of each part of one."""
    assert snapshot.huge is not None
    found = []
    may = movable(snapshot)
    for process, page, count in zip(*(column.tolist() for column in snapshot.huge.columns()), strict=True):
        step = HUGE if page % HUGE == count % HUGE == 0 else count
        for first in range(page, page + count, step):
            found.append([(process, number) for number in range(first, first + step) if (process, number) in may])
    return [pages for pages in found if pages]


def stages_of(plan: Plan) -> dict[Address, int]:
    """Return the stage of each page that is requested."""
    moves = plan.moves
    rows = zip(moves.process.tolist(), moves.page.tolist(), moves.count.tolist(), plan.stage.tolist(), strict=True)
    return {(process, page + step): stage for process, page, count, stage in rows for step in range(count)}


@given(kept(), hosts(), PER_NODE)
@settings(max_examples=200, deadline=None)
def test_a_huge_page_moves_whole_or_not_at_all_and_to_a_free_one(
    asked: tuple[Snapshot, Target], host: Host, free: dict[int, int]
) -> None:
    snapshot, target = asked
    plan = place(snapshot, target, replace(host, huge=free))
    where, when, may = targets_of(plan), stages_of(plan), movable(snapshot)
    arriving, leaving = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for pages in huge_pages(snapshot):
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
    asked: tuple[Snapshot, Target], host: Host, free: dict[int, int]
) -> None:
    snapshot, target = asked
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
def test_all_that_is_not_huge_goes_as_without(asked: tuple[Snapshot, Target], host: Host, free: dict[int, int]) -> None:
    snapshot, target = asked
    without = targets_of(place(snapshot, replace(target, huge_pages=HugePages.SPLIT), host))
    plan = place(snapshot, target, replace(host, huge=free))
    huge = {page for pages in huge_pages(snapshot) for page in pages}
    found = targets_of(plan)
    assert {page: node for page, node in found.items() if page not in huge} == {
        page: node for page, node in without.items() if page not in huge
    }
    assert plan.lacking == {}, "a huge page without a free one is no reason to refuse the rest"
    assert set(found) <= set(without), "what is in place stays there"
    if target.when_full is not WhenFull.SPILL:
        assert found.items() <= without.items()


@given(kept(), hosts(ample=True))
@settings(max_examples=100, deadline=None)
def test_with_free_huge_pages_enough_only_parts_of_some_stay(asked: tuple[Snapshot, Target], host: Host) -> None:
    snapshot, target = asked
    without = targets_of(place(snapshot, replace(target, huge_pages=HugePages.SPLIT), host))
    plan = place(snapshot, target, replace(host, huge=dict.fromkeys(NODES, 1000)))
    assert plan.short == {}
    if target.strategy is Strategy.LOCAL:
        return  # which may send parts of one to different nodes
    torn = {page for pages in huge_pages(snapshot) for page in pages if len(pages) < HUGE or pages[0][1] % HUGE}
    assert targets_of(plan) == {page: node for page, node in without.items() if page not in torn}


@given(st.integers(0, 5), st.permutations(NODES), PER_NODE, st.frozensets(st.sampled_from(NODES)))
@settings(max_examples=200, deadline=None)
def test_spill_fills_free_huge_pages_nearest_first(
    count: int, order: list[int], free: dict[int, int], spill: frozenset[int]
) -> None:
    here, there = order[0], order[1]
    host = replace(line_host([AMPLE] * 4), huge=free)
    rows = [anonymous(0, HUGE, count * HUGE, here)] if count else []
    snapshot = replace(snapshot_of(rows), huge=huge_rows((0, HUGE, count * HUGE)) if count else Huge.empty())
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


def huge_rows(*rows: tuple[int, int, int]) -> Huge:
    return Huge(*np.array(rows, np.int64).reshape(-1, 3).T.copy())


def plan_of(
    rows: list[tuple[int, int, int]], free: int, room: int = AMPLE, when_full: WhenFull = WhenFull.REFUSE
) -> Plan:
    """Return the plan for huge pages of a process on node 0 that are to go to node 1."""
    snapshot = snapshot_of([anonymous(0, page, count, 0) for _, page, count in rows])
    host = replace(line_host([AMPLE, room, AMPLE, AMPLE]), huge={1: free})
    return place(
        replace(snapshot, huge=huge_rows(*rows)), Target((1,), when_full=when_full, huge_pages=HugePages.KEEP), host
    )


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
    snapshot = replace(snapshot_of(rows), huge=huge_rows((0, 0, HUGE), (0, 10 * HUGE, HUGE)))
    host = replace(line_host([0, 0, HUGE, 0]), huge={2: 1})
    plan = place(snapshot, Target((1, 2), huge_pages=HugePages.KEEP), host)
    assert plan.moves.pages() == 2 * HUGE


def test_which_pages_are_huge_must_be_known() -> None:
    with pytest.raises(ValueError, match="not known which pages are huge"):
        place(snapshot_of([]), Target((1,), huge_pages=HugePages.KEEP), line_host([AMPLE] * 4))


@given(kept())
@settings(max_examples=200, deadline=None)
def test_runs_are_cut_around_what_is_huge_and_lose_nothing(asked: tuple[Snapshot, Target]) -> None:
    snapshot, _ = asked
    assert snapshot.huge is not None
    parts, of, huge = cut_huge(snapshot.runs, snapshot.huge)
    assert pages_of(parts) == pages_of(snapshot.runs)
    assert (parts.node == snapshot.runs.node[of]).all()
    known = pages_of_table(snapshot.huge)
    assert pages_of(parts.take(huge)).keys() == known & pages_of(snapshot.runs).keys()
    aligned = whole(parts)
    for row in np.flatnonzero(huge & ~aligned).tolist():
        assert int(parts.count[row]) < HUGE, "whole huge pages are not lost with a part of one"


def pages_of_table(huge: Huge) -> set[Address]:
    rows = zip(*(column.tolist() for column in huge.columns()), strict=True)
    return {(process, page + step) for process, page, count in rows for step in range(count)}


def test_a_run_that_ends_inside_a_huge_page_keeps_those_before_it_whole() -> None:
    runs = runs_of([(0, HUGE + 40, 3 * HUGE, 0, 0, 0)])
    parts, _, huge = cut_huge(runs, huge_rows((0, HUGE, 4 * HUGE)))
    assert parts.page.tolist() == [HUGE + 40, 2 * HUGE, 4 * HUGE]
    assert huge.all()
    assert whole(parts).tolist() == [False, True, False]
    assert len(cut_huge(Runs.empty(), Huge.empty())[0]) == 0


Entry = tuple[int, int, int, bool]
"""Process, page, frame, huge."""


def entries(*stretches: tuple[int, int, int, int, bool]) -> list[Entry]:
    """Return the entries of stretches: process, page, frame, count, huge."""
    return [(process, page + n, pfn + n, huge) for process, page, pfn, count, huge in stretches for n in range(count)]


def columns(rows: list[Entry]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    process, page, pfn, huge = np.array(rows, np.int64).reshape(-1, 4).T.copy()
    return process, page, pfn, huge.astype(bool)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (entries((0, 512, 1024, 1024, True)), [(0, 512, 1024)]),
        (entries((0, 512, 1024, 512, True), (0, 1024, 4096, 512, True)), [(0, 512, 1024)]),
        (entries((0, 500, 9, 12, False), (0, 512, 1024, 512, True), (0, 1024, 7, 3, False)), [(0, 512, 512)]),
        # a page of it is the process's own by now
        (entries((0, 512, 9, 1, False), (0, 513, 1025, 511, True)), [(0, 513, 511)]),
        (entries((0, 512, 1024, 100, True), (0, 612, 9, 412, False)), [(0, 512, 100)]),
        # moved to an address that is no multiple of its size
        (entries((0, 520, 1024, 512, True)), [(0, 520, 512)]),
        # parts of two, side by side
        (entries((0, 600, 1100, 200, True), (0, 800, 4096, 200, True)), [(0, 600, 200), (0, 800, 200)]),
        # halves of one in two processes
        (entries((0, 512, 1024, 256, True), (1, 768, 1280, 256, True)), [(0, 512, 256), (1, 768, 256)]),
        (entries((0, 512, 1024, 512, True), (1, 1024, 2048, 512, True)), [(0, 512, 512), (1, 1024, 512)]),
        # halves of two, at the place of one
        (entries((0, 512, 1024, 256, True), (0, 768, 4096 + 256, 256, True)), [(0, 512, 256), (0, 768, 256)]),
        ([], []),
    ],
)
def test_a_huge_page_is_whole_where_one_process_maps_all_of_it_in_its_place(
    rows: list[Entry], expected: list[tuple[int, int, int]]
) -> None:
    found = table(*columns(rows))
    assert list(zip(*(column.tolist() for column in found.columns()), strict=True)) == expected
    whole_pages = mapped_whole(*columns(rows)).tolist()
    inside = {(p, page + n) for p, page, count in expected if page % HUGE == count % HUGE == 0 for n in range(count)}
    assert [(process, page) in inside for process, page, _, _ in rows] == whole_pages
