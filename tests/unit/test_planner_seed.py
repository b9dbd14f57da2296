"""The cases of the thread that pageferry comes from (Ray Bryant and Andi Kleen, linux-kernel, 15 February 2005).

Point 2: a page that many processes map is asked for once. Point 3: a file mapped at different offsets takes requests
that do not overlap and together cover it. Point 1: libraries on a list stay, and one private to the job moves.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pageferry_planner.columns import Ints
from pageferry_planner.maps import parse
from pageferry_planner.model import Host, Plan, Process, Runs, Snapshot, Strategy, Target, Verdict
from pageferry_planner.pages import asked_per_process, holes, others
from pageferry_planner.placement import place
from pageferry_planner.policy import Facts, Rules, decide
from pageferry_planner.sharing import Sharing, share
from support.jobs import PAGE

FILE_PAGES = 300 * 2**30 // PAGE
PIDS = 256
HUGE = 512


def mapping(
    offset: int, pages: int, kind: bytes = b"rw-s", path: bytes = b"/scratch/matrix", at: int = 1 << 32
) -> bytes:
    return b"%x-%x %s %08x 08:01 77 %s\n" % (at * PAGE, (at + pages) * PAGE, kind, offset * PAGE, path)


@dataclass(frozen=True)
class Piece:
    """Pages [index, index + count) of a file, seen through one process."""

    process: int
    page: int
    count: int
    node: int
    index: int


def runs_of(pieces: list[Piece]) -> Runs:
    rows = np.array([(p.process, p.page, p.count, p.node, 0, p.index) for p in pieces], np.int64).reshape(-1, 6)
    return Runs.of_pages(*rows.T.copy())


def resident(sharing: Sharing, nodes: Callable[[Ints], Ints], piece: int) -> Runs:
    """Return runs of `piece` pages each, as if all of what the carriers were asked for were resident."""
    (first,) = (int(page) for page in sharing.ranges.page)
    index = np.arange(0, int(sharing.ranges.count[0]), piece)
    nothing = np.zeros(len(index), np.int64)
    count = np.minimum(piece, int(sharing.ranges.count[0]) - index)
    return Runs.of_pages(nothing + sharing.ranges.process[0], first + index, count, nodes(index), nothing, index)


def snapshot_of(sharing: Sharing, runs: Runs, verdicts: tuple[Verdict, ...], processes: int) -> Snapshot:
    return Snapshot(
        page_bytes=PAGE,
        processes=tuple(
            Process(1000 + number, 1, "rank", frozenset({0}), frozenset(range(4))) for number in range(processes)
        ),
        backings=sharing.backings,
        verdicts=verdicts,
        vmas=sharing.vmas,
        runs=runs,
        asked_per_process=asked_per_process(sharing, runs),
    )


def host(room: int) -> Host:
    return Host(dict.fromkeys(range(4), room), {n: tuple(m for m in range(4) if m != n) for n in range(4)})


def plan_for_300_gb() -> tuple[Sharing, Plan]:
    text = mapping(0, FILE_PAGES)
    sharing = share(parse([text] * PIDS), PAGE)
    runs = resident(sharing, lambda index: index // HUGE % 2, 64 * HUGE)
    snapshot = snapshot_of(sharing, runs, (Verdict(True, "job-only"),), PIDS)
    target = Target((2, 3), sources=frozenset({0, 1}))
    return sharing, place(snapshot, target, host(FILE_PAGES))


def test_a_300_gb_file_mapped_in_256_pids_is_asked_of_one_of_them() -> None:
    sharing, plan = plan_for_300_gb()
    assert len(sharing.vmas) == PIDS
    assert len(sharing.ranges) == len(sharing.extents) == 1
    assert set(plan.moves.process.tolist()) == {0}


def test_a_300_gb_file_mapped_in_256_pids_is_requested_once_per_unique_page() -> None:
    _, plan = plan_for_300_gb()
    assert plan.moves.pages() == FILE_PAGES == plan.total()
    order = np.argsort(plan.moves.index)
    ends = plan.moves.index[order] + plan.moves.count[order]
    assert plan.moves.index[order].tolist() == [0, *ends[:-1].tolist()]
    assert int(ends[-1]) == FILE_PAGES
    assert plan.asked_per_process == PIDS * FILE_PAGES


def test_when_the_one_has_shown_all_of_a_300_gb_file_the_255_others_are_not_asked() -> None:
    sharing = share(parse([mapping(0, FILE_PAGES)] * PIDS), PAGE)
    all_of_it = runs_of([Piece(0, 1 << 32, FILE_PAGES, 0, 0)])
    assert holes(sharing, all_of_it) == []
    but_one_page = runs_of(
        [Piece(0, 1 << 32, 1000, 0, 0), Piece(0, (1 << 32) + 1001, FILE_PAGES - 1001, 0, 1001)],
    )
    (hole,) = holes(sharing, but_one_page)
    assert (hole.lo, hole.hi) == (1000, 1001)
    asked = others(sharing, [hole])
    assert sorted(asked.process.tolist()) == list(range(1, PIDS))
    assert set(asked.page.tolist()) == {(1 << 32) + 1000}


def test_planning_for_a_300_gb_file_in_256_pids_takes_well_under_a_second() -> None:
    began = time.process_time()
    plan_for_300_gb()
    assert time.process_time() - began < 0.8


def test_planning_for_a_300_gb_file_in_256_pids_takes_little_memory() -> None:
    tracemalloc.start()
    plan_for_300_gb()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8 << 20


def test_dealing_out_a_300_gb_file_by_huge_pages_takes_memory_for_the_huge_pages_only() -> None:
    sharing = share(parse([mapping(0, FILE_PAGES)] * PIDS), PAGE)
    runs = runs_of([Piece(0, 1 << 32, FILE_PAGES, 0, 0)])
    snapshot = snapshot_of(sharing, runs, (Verdict(True, "job-only"),), PIDS)
    tracemalloc.start()
    plan = place(snapshot, Target((0, 1, 2, 3), Strategy.INTERLEAVE), host(FILE_PAGES))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert plan.total() == FILE_PAGES
    assert most < 200 << 20


def requests(*texts: bytes) -> list[tuple[int, int, int]]:
    """Return (process, first index, pages) of each request for the file."""
    extents = share(parse(texts), PAGE).extents
    columns = (extents.process, extents.index, extents.count)
    return sorted(zip(*(column.tolist() for column in columns), strict=True))


def test_overlapping_offsets_take_two_requests_that_do_not_overlap_and_together_cover_the_file() -> None:
    assert requests(mapping(0, 100), mapping(60, 100)) == [(0, 0, 100), (1, 100, 60)]
    assert requests(mapping(60, 100), mapping(0, 100)) == [(0, 100, 60), (1, 0, 100)]


def test_disjoint_offsets_take_two_requests() -> None:
    assert requests(mapping(0, 100), mapping(200, 50)) == [(0, 0, 100), (1, 200, 50)]


def test_adjoining_offsets_take_two_requests() -> None:
    assert requests(mapping(0, 100), mapping(100, 50)) == [(0, 0, 100), (1, 100, 50)]


def test_a_part_of_what_another_maps_takes_no_request() -> None:
    assert requests(mapping(10, 20), mapping(0, 100), mapping(50, 50)) == [(1, 0, 100)]


def test_requests_name_the_addresses_of_the_process_that_carries_them() -> None:
    texts = [mapping(0, 100, at=5000), mapping(60, 100, at=9000)]
    extents = share(parse(texts), PAGE).extents
    assert sorted(zip(extents.process.tolist(), extents.page.tolist(), strict=True)) == [(0, 5000), (1, 9040)]


LIBRARIES = Rules(stay=("/usr/lib*", "/opt/site/*.so*"))


def plan_for_a_library(path: bytes, facts: Facts) -> Plan:
    sharing = share(parse([mapping(0, 10, b"r-xp", path)] * 3), PAGE)
    runs = runs_of([Piece(0, 1 << 32, 10, 0, 0)])
    verdict = decide(sharing.backings[0], facts, LIBRARIES)
    return place(snapshot_of(sharing, runs, (verdict,), 3), Target((2,)), host(100))


def test_a_library_on_the_list_stays_and_no_request_is_made_for_it() -> None:
    plan = plan_for_a_library(b"/usr/lib64/libmpi.so", Facts())
    assert plan.excluded == {"library-list": 10}
    assert len(plan.moves) == 0
    assert plan.total() == 10


def test_a_library_that_a_process_outside_the_job_maps_stays() -> None:
    plan = plan_for_a_library(b"/home/user/libsolver.so", Facts(external_pids=(1, 2)))
    assert plan.excluded == {"reference-count": 10}
    assert len(plan.moves) == 0


def test_a_library_private_to_the_job_moves_once() -> None:
    plan = plan_for_a_library(b"/home/user/libsolver.so", Facts())
    assert plan.excluded == {}
    assert plan.moves.pages() == 10
    assert plan.target.tolist() == [2]
