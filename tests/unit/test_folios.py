"""What must hold of large folios as they are found, and of a move that keeps huge pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import cast

import numpy as np
import numpy.typing as npt
import pytest

from pageferry import applied, ferry, folios, parking, spill
from pageferry.errors import KernelError, UsageError
from pageferry.kernel import capabilities, huge_pages
from pageferry.kernel.pageflags import COMPOUND_HEAD, COMPOUND_TAIL
from pageferry.kernel.residency import PageTables
from pageferry.kernel.topology import Topology, read_topology
from pageferry.mover import batches
from pageferry.policy import Policy
from pageferry.snapshot import Taken
from pageferry_planner.columns import Ints
from pageferry_planner.folios import Folios, marked
from pageferry_planner.model import HugePages, Kind, Ranges, Strategy, Target, WhenFull
from pageferry_planner.pages import Entries
from pageferry_planner.placement import place
from support.plans import AMPLE, HUGE, anonymous, line_host, snapshot_of
from support.recordings import inputs_of

KEEP = HugePages.KEEP


def huge_rows(*rows: tuple[int, int, int]) -> Folios:
    """Return huge pages (process, page, count)."""
    return Folios(*np.array([(*row, HUGE, Kind.FOLIO, 0) for row in rows], np.int64).T.copy())


def inputs(pages: int, free: int) -> ferry.Inputs:
    """Return what a plan is made from for huge pages of a job on node 0 that are to go to node 2."""
    snapshot = marked(snapshot_of([anonymous(0, 0, pages * HUGE, 0)]), huge_rows((0, 0, pages * HUGE)))
    return replace(inputs_of(snapshot, huge_pages=KEEP), free_huge={2: free})


def test_a_rule_asks_for_it_in_each_move_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = Policy(huge_pages=KEEP, hugetlb_surplus=True)

    def said(target: Target) -> tuple[HugePages, bool]:
        return target.huge_pages, target.hugetlb_surplus

    for asked, expected in ((policy, (KEEP, True)), (Policy(), (HugePages.SPLIT, False))):
        assert said(applied.request(asked, applied.Destination((0,)), read_topology()).target) == expected
    monkeypatch.setattr(
        spill,
        "candidates",
        lambda jobs, **_: [spill.Homecoming(job, ferry.Request(Target((0,))), 1, 1) for job in jobs],
    )
    homes = applied.homecomings({7: policy, 8: Policy()})
    assert {home.job: said(home.request.target) for home in homes} == {7: (KEEP, True), 8: (HugePages.SPLIT, False)}


def test_the_second_half_of_a_move_keeps_them_as_well() -> None:
    made = ferry.plan_from(inputs(1, 1))
    assert ferry.after(ferry.Request(Target((1,), huge_pages=KEEP)), made).target.huge_pages is KEEP


@pytest.mark.parametrize(("reserve_mib", "free"), [(0, 9), (2, 4), (8, 1), (11, 0), (100, 0)])
def test_free_huge_pages_within_the_reserve_are_not_counted_on(reserve_mib: int, free: int) -> None:
    node = replace(inputs(1, 1).topology.nodes[0], free_bytes=11 << 20, file_cache_bytes=1 << 30)
    many = {0: 9 if reserve_mib == 0 else 100}
    node = replace(node, free_bytes=(18 << 20) if reserve_mib == 0 else node.free_bytes)
    assert ferry.host(Topology((node,)), reserve_mib << 20, {}, 4096, many).huge == {0: free}


def test_where_pages_were_not_looked_at_there_is_no_plan_that_keeps_them() -> None:
    asked = inputs(1, 1)
    with pytest.raises(UsageError, match="--huge-pages keep when the snapshot is made"):
        ferry.plan_from(replace(asked, snapshot=replace(asked.snapshot, folios=False)))


@pytest.mark.parametrize(("free", "compacts"), [(0, True), (2, True), (3, False), (9, False)])
def test_the_target_is_compacted_if_it_has_too_few_and_counted_again(
    monkeypatch: pytest.MonkeyPatch, free: int, compacts: bool
) -> None:
    asked: list[int] = []

    def compact(nodes: Iterable[int]) -> None:
        asked.extend(nodes)

    monkeypatch.setattr(ferry, "compact", compact)
    monkeypatch.setattr(ferry, "read_free_huge_pages", lambda: {2: free + 1})
    found = ferry._compacted(inputs(3, free))
    assert asked == [2] * compacts
    assert found.free_huge == {2: free + compacts}


@pytest.mark.parametrize("why", ["it is full", "it is refused"])
def test_a_node_is_not_compacted_where_that_would_yield_nothing(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """Full of page cache, which leaves room for small pages and no place for huge ones; or without room."""
    monkeypatch.setattr(ferry, "compact", pytest.fail)
    asked = inputs(3, 2)
    free, cache = (2 * HUGE * 4096, 1 << 30) if why == "it is full" else (2 * HUGE * 4096, 0)
    nodes = [replace(node, free_bytes=free, file_cache_bytes=cache) for node in asked.topology.nodes]
    if why == "it is refused":
        nodes = [replace(node, free_bytes=HUGE * 4096, file_cache_bytes=0) for node in nodes]
    target = replace(asked.request.target, when_full=WhenFull.REFUSE)
    request = replace(asked.request, target=target, reserve_bytes=0)
    asked = replace(asked, topology=Topology(tuple(nodes)), request=request, kept_free={})
    assert bool(ferry.plan_from(asked).lacking) == (why == "it is refused")
    assert ferry._compacted(asked) is asked


def test_what_comes_home_has_no_node_compacted(monkeypatch: pytest.MonkeyPatch) -> None:
    home = spill.Homecoming(7, ferry.Request(Target((0,))), 1, 1)
    monkeypatch.setattr(spill, "candidates", lambda _jobs, **_: [home])
    (found,) = applied.homecomings({7: Policy(huge_pages=KEEP)})
    assert found.request.target.huge_pages is KEEP
    assert not found.request.compacts
    assert applied.request(Policy(huge_pages=KEEP), applied.Destination((0,)), read_topology()).compacts


def test_huge_pages_that_are_parked_go_to_whichever_park_node_has_free_ones() -> None:
    keeps = Policy(huge_pages=KEEP)
    assert parking.away(keeps, (0,), (4, 5)) == applied.Destination(
        (4, 5), Strategy.PACK, (0,), WhenFull.SPILL, frozenset({4, 5})
    )
    for policy, home in ((Policy(), (0,)), (keeps, (0, 1)), (replace(keeps, when_full=WhenFull.REFUSE), (0,))):
        assert parking.away(policy, home, (4, 5)).when_full is not WhenFull.SPILL


def test_a_plan_that_cannot_be_made_has_nothing_compacted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ferry, "compact", pytest.fail)
    asked = inputs(3, 0)
    process = replace(asked.snapshot.processes[0], mems_allowed=frozenset({0}))
    outside = replace(asked, snapshot=replace(asked.snapshot, processes=(process,)))
    assert ferry._compacted(outside) is outside
    with pytest.raises(KernelError, match="cpuset"):
        ferry.plan_from(outside)


def test_huge_pages_go_before_all_else_of_their_stage() -> None:
    rows = [anonymous(0, 0, HUGE, 0), anonymous(0, HUGE, 5 * HUGE, 0), anonymous(0, 9 * HUGE, HUGE, 0)]
    snapshot = marked(snapshot_of(rows), huge_rows((0, 0, HUGE), (0, 9 * HUGE, HUGE)))
    host = replace(line_host([AMPLE] * 4), huge={1: 5})
    plan = place(snapshot, Target((1,), huge_pages=KEEP), host)
    turns = [[batch.runs.page.tolist() for batch in turn] for turn in batches(plan)]
    assert turns == [[[0, 9 * HUGE]], [[HUGE]]]
    assert len(list(batches(place(snapshot, Target((1,)), host)))) == 1


@pytest.mark.parametrize(("size", "held", "said"), [(64 << 10, True, "65536 bytes"), (2 << 20, False, "CAP_SYS_ADMIN")])
def test_what_cannot_be_kept_is_refused(monkeypatch: pytest.MonkeyPatch, size: int, held: bool, said: str) -> None:
    monkeypatch.setattr(huge_pages, "read_huge_page_bytes", lambda: size)
    monkeypatch.setattr(capabilities, "effective", lambda: frozenset({"CAP_SYS_ADMIN"}) if held else frozenset())
    with pytest.raises(KernelError, match=said):
        folios.require_known()


@pytest.mark.parametrize("size", [None, 2 << 20])
def test_a_kernel_without_huge_pages_has_nothing_to_split(monkeypatch: pytest.MonkeyPatch, size: int | None) -> None:
    monkeypatch.setattr(huge_pages, "read_huge_page_bytes", lambda: size)
    monkeypatch.setattr(capabilities, "effective", lambda: frozenset({"CAP_SYS_ADMIN"} if size else ()))
    folios.require_known()


class Tables:
    """Stands in for page tables that are read so many entries at a time; the frame of a page has its number."""

    def __init__(self, most: int) -> None:
        self._most = most

    def entries(self, ranges: Ranges) -> Iterator[Entries]:
        order = np.lexsort((ranges.page, ranges.process))
        row = np.repeat(order, ranges.count[order])
        page = np.concatenate([np.arange(ranges.page[at], ranges.page[at] + ranges.count[at]) for at in order])
        no = np.zeros(len(row), bool)
        whole = Entries(row, page, np.zeros_like(row), page, no, ~no)
        for first in range(0, len(row), self._most):
            yield whole.take(np.arange(first, min(first + self._most, len(row))))


@pytest.mark.parametrize("most", [1, 100, 512, 700, 10_000])
def test_a_folio_that_is_read_in_several_parts_is_one(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Frames from 512 to 1,535 are of two huge pages, those from 2,048 to 2,303 of sixteen folios of 16."""

    def flags_of(pfns: Ints) -> npt.NDArray[np.uint64]:
        large, small = (pfns >= HUGE) & (pfns < 3 * HUGE), (pfns >= 2048) & (pfns < 2304)
        head = (large & (pfns % HUGE == 0)) | (small & (pfns % 16 == 0))
        kinds = [head, (large | small) & ~head]
        flags: npt.NDArray[np.uint64] = np.select(kinds, [COMPOUND_HEAD, COMPOUND_TAIL], np.uint64(0))
        return flags

    monkeypatch.setattr(folios, "flags_of", flags_of)
    monkeypatch.setattr(folios, "folio_pages", lambda pfns, _: np.where(pfns < 2048, HUGE, 16))
    monkeypatch.setattr(capabilities, "effective", lambda: frozenset({"CAP_SYS_ADMIN"}))
    rows = [anonymous(0, 300, 1000, 0), anonymous(1, 2 * HUGE, 700, 0), anonymous(0, 1300, 800, 0)]
    taken = Taken(snapshot_of(rows), (), (), cast(PageTables, Tables(most)))
    runs = folios.with_folios(taken, np.ones(3, bool)).snapshot.runs
    found = zip(
        *(column.tolist() for column in (runs.process, runs.page, runs.count, runs.unit, runs.kind)), strict=True
    )
    assert list(found) == [
        (0, 300, 212, 1, Kind.PAGE),
        (0, 512, 1024, 512, Kind.FOLIO),
        (0, 1536, 512, 1, Kind.PAGE),
        (0, 2048, 48, 16, Kind.FOLIO),
        (0, 2096, 4, 16, Kind.PART),
        (1, 1024, 512, 512, Kind.FOLIO),
        (1, 1536, 188, 1, Kind.PAGE),
    ]


def test_who_may_not_see_frames_knows_of_no_folios(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "effective", frozenset[str])
    taken = Taken(snapshot_of([anonymous(0, 0, HUGE, 0)]), (), (), cast(PageTables, Tables(9)))
    assert folios.with_folios(taken, np.ones(1, bool)) is taken
