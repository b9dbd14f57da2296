"""What must hold of folios of any size: each goes whole to one node in one batch, or stays, for one reason.

The oracle knows the folios as the test drew them, by their first page, and shares no code with the planner.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.mover import batches
from pageferry_planner.capacity import Room
from pageferry_planner.folios import Folios, Seen, folios, joined, marked, of_backing, seen
from pageferry_planner.heat import Pieces, by_mapping, by_piece
from pageferry_planner.model import (
    ANONYMOUS,
    Bucket,
    Host,
    HugePages,
    Kind,
    Plan,
    Runs,
    Snapshot,
    Strategy,
    Target,
    Verdict,
    WhenFull,
)
from pageferry_planner.placement import may_move, place
from support.plans import NODES, Address, anonymous, fates_of, hosts, line_host, snapshot_of, targets

GIB, MIB_512 = 262144, 8192
"""Pages of a huge page of 1 GiB with 4 KiB pages, and of one of 512 MiB with 64 KiB pages."""

FOLIO_SIZES = (2, 4, 16, 64, 256, 512)


class Folio(NamedTuple):
    """What goes together: so many pages, on a node, of a kind, and the pages of the whole folio.

    `number`: that of the folio, if it has several parts.
    """

    pages: int
    node: int
    kind: Kind
    unit: int
    moves: bool
    number: int


class Job(NamedTuple):
    """A snapshot, and what is in it by process and first page."""

    snapshot: Snapshot
    folios: dict[Address, Folio]


@st.composite
def jobs(draw: st.DrawFn, page_bytes: int = 4096) -> Job:
    """Draw a job of ordinary pages, large folios, parts of some, and hugetlb pages, of its processes' and of a file."""
    processes = draw(st.integers(1, 2))
    thp = page_bytes // 8
    found: dict[Address, Folio] = {}
    rows: list[tuple[int, ...]] = []
    moves = draw(st.booleans())
    for process in range(processes):
        page = draw(st.integers(0, 1 << 20))
        for _ in range(draw(st.integers(0, 6))):
            kind, node, number = draw(st.sampled_from(Kind)), draw(st.sampled_from(NODES)), 0
            if kind == Kind.PAGE:
                unit, count = 1, draw(st.integers(1, 30))
            elif kind == Kind.HUGETLB:
                unit = draw(st.sampled_from((512, MIB_512, GIB)))
                count = unit * draw(st.integers(1, 4))
            else:
                unit = draw(st.sampled_from((*FOLIO_SIZES, thp)))
                count = unit * draw(st.integers(1, 4)) if kind == Kind.FOLIO else draw(st.integers(1, unit - 1))
            step = {Kind.PAGE: 1, Kind.PART: count}.get(kind, unit)
            of_file = draw(st.booleans())
            others = [(row[3], row[6], row[8], row[4] != ANONYMOUS) for row in rows if row[8]]
            if kind == Kind.PART and draw(st.booleans()):  # it may be another part of one of these
                number = len(rows) + 1
                if draw(st.booleans()) and others:
                    node, unit, number, of_file = draw(st.sampled_from(others))
                    count = min(count, unit - 1)
                    step = count
            index = (process << 40) + page + 7 if of_file else page
            rows.append((process, page, count, node, 0 if of_file else ANONYMOUS, index, unit, kind, number))
            for first in range(page, page + count, step):
                found[process, first] = Folio(step, node, kind, unit, moves or not of_file, number)
            page += count + draw(st.sampled_from((0, 0, 1, 700)))
    homes = [frozenset(draw(st.sets(st.sampled_from(NODES), min_size=1, max_size=2))) for _ in range(processes)]
    verdict = Verdict(moves, "job-only" if moves else "library-list")
    vmas = [(process, 0, 1 << 30, 0, process << 40) for process in range(processes)]
    for process, page, count, *_ in rows:  # mappings that end anywhere, also inside folios
        lo = draw(st.integers(0, count))
        vmas.append((draw(st.integers(0, processes - 1)), page, 1 + count, 0, (process << 40) + page + lo))
    vmas += [(process, 0, 1 << 30, ANONYMOUS, 0) for process in range(processes)]
    snapshot = snapshot_of([], homes=homes, verdicts=[verdict], vmas=vmas)
    runs = Runs(*np.array(rows, np.int64).reshape(-1, 9).T.copy())
    return Job(replace(snapshot, page_bytes=page_bytes, runs=runs, folios=True), found)


@st.composite
def hosts_with_pools(draw: st.DrawFn) -> Host:
    """Draw a host with any room, and pools with some free pages of each size, or none."""
    few = st.integers(0, 3)
    host = draw(hosts(ample=draw(st.booleans())))
    pools = {(node, unit): draw(few) for node in NODES for unit in (512, MIB_512, GIB) if draw(st.booleans())}
    return replace(host, pools=pools, huge={node: draw(few) for node in NODES})


any_target = st.builds(replace, targets(), huge_pages=st.sampled_from(HugePages), hugetlb_surplus=st.booleans())


def folios_in(runs: Runs, known: dict[Address, Folio]) -> list[Address]:
    """Return the folios that the runs are of, in order; fails if one is cut, or said to be another."""
    found = []
    rows = zip(*(column.tolist() for column in runs.columns()), strict=True)
    for process, page, count, node, _, _, unit, kind, number in rows:
        at = page
        while at < page + count:
            folio = known[process, at]
            assert (folio.node, folio.kind, folio.unit, folio.number) == (node, kind, unit, number)
            found.append((process, at))
            at += folio.pages
        assert at == page + count, "a folio is not cut"
    return found


def moves_of(plan: Plan, known: dict[Address, Folio]) -> dict[Address, tuple[int, int]]:
    """Return stage and target of each folio that is to move; fails if one is cut, or moves twice."""
    found = {}
    for row in range(len(plan.moves)):
        for folio in folios_in(plan.moves.take(np.array([row])), known):
            assert folio not in found
            found[folio] = (int(plan.stage[row]), int(plan.target[row]))
    return found


@given(jobs() | jobs(page_bytes=1 << 16), any_target, hosts_with_pools())
@settings(max_examples=400, deadline=None)
def test_no_folio_is_cut_and_each_page_has_one_fate(job: Job, target: Target, host: Host) -> None:
    plan = place(job.snapshot, target, host)
    moves = moves_of(plan, job.folios)
    pages = sum(job.folios[folio].pages for folio in moves)
    fates = fates_of(plan.stays)
    assert plan.moves.pages() == pages
    assert plan.total() == pages + fates.total() == job.snapshot.runs.pages()
    assert fates[Bucket.EXCLUDED] == sum(folio.pages for folio in job.folios.values() if not folio.moves)
    assert (fates[Bucket.NO_ROOM], fates[Bucket.NO_HUGE_PAGE]) == (plan.no_room, plan.no_huge_page)
    stays = Counter(folio.node for place, folio in job.folios.items() for _ in [0] if place not in moves)
    assert set(plan.stays.node.tolist()) == set(stays)
    fate_of: dict[int, tuple[int, int] | None] = {}
    for place_of, folio in job.folios.items():
        assert place_of not in moves or (folio.moves and moves[place_of][1] != folio.node)
        if folio.number:
            fate = fate_of.setdefault(folio.number, moves.get(place_of))
            assert moves.get(place_of) == fate, "all parts of a folio go together"


def is_kept(folio: Folio, target: Target, huge_page: int) -> bool:
    return target.huge_pages is HugePages.KEEP and folio.kind == Kind.FOLIO and folio.unit == huge_page


@given(jobs() | jobs(page_bytes=1 << 16), any_target, hosts_with_pools())
@settings(max_examples=400, deadline=None)
def test_no_node_is_sent_more_than_its_memory_its_pools_and_its_free_huge_pages_hold(
    job: Job, target: Target, host: Host
) -> None:
    """Within a stage everything arrives before anything has left; a surplus page is made of memory."""
    huge_page = job.snapshot.huge_page
    plan = place(job.snapshot, target, host)
    moves = moves_of(plan, job.folios)
    memory, pools, huge = Counter(host.room), Counter(host.pools), Counter(host.huge)
    for stage in sorted({stage for stage, _ in moves.values()}):
        of_stage = [(job.folios[folio], node) for folio, (when, node) in moves.items() if when == stage]
        made: list[int] = []
        left_pool, left_memory = Counter[tuple[int, int]](), Counter[int]()
        numbers: set[int] = set()
        for folio, node in of_stage:
            if folio.kind != Kind.HUGETLB:
                if folio.kind != Kind.PART or folio.number not in numbers:
                    memory[node] -= folio.unit if folio.kind == Kind.PART else folio.pages
                    left_memory[folio.node] += folio.unit if folio.kind == Kind.PART else folio.pages
                numbers |= {folio.number} - {0}
                huge[node] -= is_kept(folio, target, huge_page)
            elif pools[node, folio.unit] > 0:
                pools[node, folio.unit] -= 1
                left_pool[folio.node, folio.unit] += 1
            else:
                assert target.hugetlb_surplus
                assert folio.unit <= huge_page, "of gigantic pages there is no surplus"
                memory[node] -= folio.unit
                made.append(folio.unit)
        assert min([0, *memory.values(), *huge.values(), *pools.values()]) == 0
        for folio, _ in of_stage:
            huge[folio.node] += is_kept(folio, target, huge_page)
        for node, pages in left_memory.items():
            memory[node] += pages
        pools += left_pool
        if made:
            return  # which of them gave memory back to which node is the kernel's to choose


@given(jobs(), any_target, hosts_with_pools(), st.integers(1, 9), st.none() | st.integers(1, 5000))
@settings(max_examples=300, deadline=None)
def test_each_folio_is_in_one_batch_whatever_the_rate_and_the_workers(
    job: Job, target: Target, host: Host, workers: int, most: int | None
) -> None:
    plan = place(job.snapshot, target, host)
    moves = moves_of(plan, job.folios)
    batched: list[Address] = []
    for turn in batches(plan, workers, most):
        for batch in turn:
            found = folios_in(batch.runs, job.folios)
            batched += found
            kinds = {job.folios[folio].kind == Kind.HUGETLB and job.folios[folio].unit for folio in found}
            assert len(kinds) == 1, "pages of a pool are in batches of their own"
            assert {moves[folio][1] for folio in found} == {batch.target}
            assert {folio[0] for folio in found} == {batch.process}
            limit = max(512, 1 << 15 if most is None else most)
            assert (
                batch.runs.pages() <= limit
                or len(found) == 1
                or max(job.folios[folio].pages for folio in found) >= batch.runs.pages() - limit
            )
    assert sorted(batched) == sorted(moves)


@given(jobs(), st.data())
@settings(max_examples=200, deadline=None)
def test_what_was_seen_of_use_cuts_no_folio(job: Job, data: st.DataObject) -> None:
    runs, vmas = job.snapshot.runs, job.snapshot.vmas
    pieces = [
        (row, piece, 1, data.draw(st.integers(0, 1)))
        for row, (page, count) in enumerate(zip(runs.page.tolist(), runs.count.tolist(), strict=True))
        for piece in range(page // 512, min(-(-(page + count) // 512), page // 512 + 5))
    ]
    by_pages = by_piece(job.snapshot, Pieces(*np.array(pieces, np.int64).reshape(-1, 4).T.copy()))
    shares = np.array([data.draw(st.integers(0, 9)) for _ in range(len(vmas))], np.int64)
    for found in (by_pages, by_mapping(job.snapshot, shares * 0 + 9, shares)):
        assert sorted(folios_in(found.runs, job.folios)) == sorted(job.folios)
        if len(runs):
            place(found, Target((1,)), line_host([1 << 30] * 4))


@given(jobs(), any_target, hosts_with_pools())
@settings(max_examples=100, deadline=None)
def test_what_belongs_elsewhere_is_told_before_folios_are_known(job: Job, target: Target, host: Host) -> None:
    runs = job.snapshot.runs
    rows = may_move(job.snapshot, replace(target, strategy=Strategy.RELATIVE), host)
    ample = replace(host, room=dict.fromkeys(NODES, 1 << 40), pools={}, huge={})
    roomy = replace(target, strategy=Strategy.RELATIVE, huge_pages=HugePages.SPLIT, when_full=WhenFull.PARTIAL)
    plain = replace(job.snapshot, runs=Runs.of_pages(*runs.columns()[:6]))
    moved = moves_of_pages(place(plain, roomy, ample))
    expected = [(p, a) in moved for p, a in zip(runs.process.tolist(), runs.page.tolist(), strict=True)]
    assert rows.tolist() == expected


def moves_of_pages(plan: Plan) -> set[Address]:
    return set(zip(plan.moves.process.tolist(), plan.moves.page.tolist(), strict=True))


def hugetlb(count: int, unit: int = GIB, node: int = 0) -> Snapshot:
    """Return a job with so many hugetlb pages."""
    rows = np.array([[0, 0, count * unit, node, ANONYMOUS, 0, unit, Kind.HUGETLB, 0]], np.int64).T.copy()
    return replace(snapshot_of([]), runs=Runs(*rows), folios=True)


@pytest.mark.parametrize("unit", [512, MIB_512, GIB])
def test_an_empty_pool_refuses_before_anything_is_asked_however_much_memory_is_free(unit: int) -> None:
    host = replace(line_host([1 << 40] * 4), pools={(0, unit): 0, (1, unit): 0})
    plan = place(hugetlb(3, unit), Target((1,)), host)
    assert (plan.lacking, plan.no_huge_page, plan.no_room, len(plan.moves)) == ({1: 3 * unit}, 3 * unit, 0, 0)
    assert (plan.pool_need, plan.need) == ({(1, unit): 3}, {})


def test_as_many_go_as_the_pool_has_free_and_the_others_lack_a_huge_page() -> None:
    host = replace(line_host([0] * 4), pools={(1, GIB): 2, (1, 512): 99, (2, GIB): 9})
    plan = place(hugetlb(3), Target((1,), when_full=WhenFull.PARTIAL), host)
    assert (plan.moves.pages(), plan.no_huge_page, plan.no_room, plan.lacking) == (2 * GIB, GIB, 0, {})
    spilled = place(
        hugetlb(3), Target((1,), when_full=WhenFull.SPILL, spill=frozenset({2})), replace(host, nearest={1: (2, 0)})
    )
    assert spilled.no_huge_page == 0
    assert spilled.target.tolist() == [1, 2]


@pytest.mark.parametrize(("unit", "moved"), [(512, 3), (GIB, 1)])
def test_a_surplus_page_is_made_of_memory_if_the_rule_says_so_and_no_gigantic_one(unit: int, moved: int) -> None:
    host = replace(line_host([0, 1 << 40, 0, 0]), pools={(1, unit): 1})
    target = Target((1,), when_full=WhenFull.PARTIAL, hugetlb_surplus=True)
    assert place(hugetlb(3, unit), target, host).moves.pages() == moved * unit
    full = replace(host, room=dict.fromkeys(NODES, 3 * 512 // 2))
    assert place(hugetlb(3, 512), target, replace(full, pools={(1, 512): 1})).moves.pages() == 2 * 512


def test_pages_that_leave_a_pool_make_room_in_it_for_those_that_come_later() -> None:
    rows = [(0, 0, GIB, 0, ANONYMOUS, 0, GIB, 3, 0), (0, 2 * GIB, GIB, 1, ANONYMOUS, 2 * GIB, GIB, 3, 0)]
    snapshot = replace(snapshot_of([]), runs=Runs(*np.array(rows, np.int64).T.copy()), folios=True)
    plan = place(snapshot, Target((1, 2)), replace(line_host([0] * 4), pools={(2, GIB): 1}))
    assert plan.lacking == {}
    assert sorted(zip(plan.stage.tolist(), plan.target.tolist(), strict=True)) == [(0, 2), (1, 1)]


def test_interleave_deals_out_gigantic_pages_one_by_one() -> None:
    host = replace(line_host([0] * 4), pools={(node, GIB): 9 for node in NODES})
    plan = place(hugetlb(4, node=3), Target((0, 1), Strategy.INTERLEAVE), host)
    assert [(page // GIB, node) for page, node in zip(plan.moves.page.tolist(), plan.target.tolist(), strict=True)] == [
        (0, 0), (2, 0), (1, 1), (3, 1)
    ]  # fmt: skip


def test_pack_fills_pools_in_the_order_given() -> None:
    host = replace(line_host([0] * 4), pools={(1, GIB): 2, (2, GIB): 9})
    plan = place(hugetlb(3), Target((1, 2), Strategy.PACK), host)
    assert (plan.target.tolist(), plan.moves.count.tolist()) == ([1, 2], [2 * GIB, GIB])


Entry = tuple[int, int, int, int, str]
"""Process, page, frame, count, and what the frames are of: "small", "begin" or "inside" of a folio, or "pool"."""

SIZE = 16


def columns_of(entries: list[Entry]) -> tuple[np.ndarray, ...]:
    """Return the columns of present pages; frames lie in folios of SIZE, or of ordinary pages."""
    rows = [(p, page + n, pfn + n, what) for p, page, pfn, count, what in entries for n in range(count)]
    process, page, pfn = (np.array([row[column] for row in rows], np.int64) for column in range(3))
    large = np.array([row[3] != "small" for row in rows], bool)
    tail, after = large & (pfn % SIZE != 0), large & ((pfn + 1) % SIZE != 0)
    return process, page, pfn, tail, after, large & ~tail, np.array([row[3] == "pool" for row in rows], bool)


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([(0, 5, 32, 32, "folio")], [(0, 5, 32, 16, Kind.FOLIO)]),
        ([(0, 5, 32, 16, "folio"), (0, 21, 64, 16, "folio")], [(0, 5, 32, 16, Kind.FOLIO)]),
        (
            [(0, 5, 32, 16, "folio"), (0, 21, 80, 16, "pool")],
            [(0, 5, 16, 16, Kind.FOLIO), (0, 21, 16, 16, Kind.HUGETLB)],
        ),
        ([(0, 1, 9, 4, "small"), (0, 5, 32, 16, "folio"), (0, 21, 7, 9, "small")], [(0, 5, 16, 16, Kind.FOLIO)]),
        # a page of it is the process's own by now
        ([(0, 5, 9, 1, "small"), (0, 6, 33, 15, "folio")], [(0, 6, 15, 16, Kind.PART)]),
        ([(0, 5, 32, 4, "folio"), (0, 9, 99, 1, "small")], [(0, 5, 4, 16, Kind.PART)]),
        # parts of two, side by side, and two parts of one
        ([(0, 5, 40, 4, "folio"), (0, 9, 72, 4, "folio")], [(0, 5, 4, 16, Kind.PART), (0, 9, 4, 16, Kind.PART)]),
        ([(0, 5, 32, 4, "folio"), (0, 11, 38, 4, "folio")], [(0, 5, 4, 16, Kind.PART), (0, 11, 4, 16, Kind.PART)]),
        # halves of one in two processes
        ([(0, 5, 32, 8, "folio"), (1, 13, 40, 8, "folio")], [(0, 5, 8, 16, Kind.PART), (1, 13, 8, 16, Kind.PART)]),
        (
            [(0, 5, 32, 16, "folio"), (1, 21, 48, 16, "folio")],
            [(0, 5, 16, 16, Kind.FOLIO), (1, 21, 16, 16, Kind.FOLIO)],
        ),
        ([(0, 5, 1, 40, "small")], []),
        ([], []),
    ],
)
@pytest.mark.parametrize("most", [1, 3, 16, 1000])
def test_a_folio_is_whole_where_one_process_maps_all_of_it_side_by_side(
    entries: list[Entry], expected: list[tuple[int, ...]], most: int
) -> None:
    columns = columns_of(entries)
    parts = [seen(*(column[at : at + most] for column in columns)) for at in range(0, len(columns[0]), most)]
    found = joined(Seen.concatenate(parts))
    table = folios(found, np.full(len(found), SIZE))
    assert list(zip(*(column.tolist() for column in table.columns()[:5]), strict=True)) == expected
    frames = {(process, page): pfn for process, page, pfn, *_ in entries}
    of_parts = [
        (frames[process, page] // SIZE, number)
        for process, page, _, _, kind, number in zip(*(column.tolist() for column in table.columns()), strict=True)
        if kind == Kind.PART and (process, page) in frames
    ]
    for frame, number in of_parts:
        several = [of for of, _ in of_parts].count(frame) > 1
        assert (number > 0) == several
        assert {other for of, other in of_parts if of == frame} == {number}


def test_runs_of_two_mappings_are_joined_where_a_folio_lies_in_both() -> None:
    rows = [anonymous(0, 8, 8, 1), anonymous(0, 0, 8, 1), anonymous(0, 16, 8, 0)]
    found = marked(snapshot_of(rows), Folios(*np.array([[0, 4, 8, 8, Kind.FOLIO, 0]], np.int64).T.copy())).runs
    columns = (found.page, found.count, found.node, found.unit)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == [
        (0, 4, 1, 1), (4, 8, 1, 8), (12, 4, 1, 1), (16, 8, 0, 1)
    ]  # fmt: skip


def test_a_folio_that_lies_on_two_nodes_has_moved_meanwhile_and_counts_as_pages() -> None:
    rows = [anonymous(0, 0, 4, 1), anonymous(0, 4, 12, 2)]
    found = marked(snapshot_of(rows), Folios(*np.array([[0, 0, 8, 8, Kind.FOLIO, 0]], np.int64).T.copy())).runs
    assert set(found.unit.tolist()) == {1}
    assert found.pages() == 16


def test_room_that_is_overdrawn_takes_nothing() -> None:
    room = Room(Host({0: 5}, {}, pools={(0, 512): 0}), Target((0,), hugetlb_surplus=True), 512)
    room.take(0, 9, 0)
    assert room.most(-512, 0) == 0


def test_a_folio_that_stays_is_cut_out_of_those_beside_it() -> None:
    def column(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.array(values, np.int64)

    nothing = column(0, 0)
    runs = Runs(
        process=nothing,
        page=column(1024, 4096),
        count=column(1536, 5),
        node=nothing,
        backing=column(ANONYMOUS, ANONYMOUS),
        index=column(1024, 4096),
        unit=column(512, 1),
        kind=column(Kind.FOLIO, Kind.PAGE),
        folio=nothing,
    )
    yes = np.ones(1, bool)
    parts = Seen(column(0), column(1536), column(512), column(1 << 20), yes, yes, ~yes)
    found = of_backing(runs, parts, 7)
    assert found.page.tolist() == found.index.tolist() == [1024, 1536, 2048, 4096]
    assert found.count.tolist() == [512, 512, 512, 5]
    assert found.backing.tolist() == [ANONYMOUS, 7, ANONYMOUS, ANONYMOUS]
    assert found.unit.tolist() == [512, 512, 512, 1]
