"""What must hold of folios while they are moved: one address each, and an account of what became of all their pages.

A kernel on paper moves the folio of each address, as it is by then, and its page tables are read as the real ones are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from pageferry import mover
from pageferry.kernel import libnuma
from pageferry.kernel.pageflags import COMPOUND_HEAD, COMPOUND_TAIL
from pageferry.mover import Limits, carry
from pageferry_planner.columns import Ints
from pageferry_planner.model import ANONYMOUS, Bucket, Kind, Plan, Ranges, Runs, Tally, Target, WhenFull
from pageferry_planner.pages import Entries
from pageferry_planner.placement import place
from support.plans import AMPLE, line_host, snapshot_of

GIB = 262144
SHIFT = 1 << 20
"""A page's frame is its number and that of its process times this: so that frames lie as addresses do."""


@dataclass
class Kernel:
    """Where folios are (frame of the first page → pages, node), and what was asked for, call by call."""

    folios: dict[int, tuple[int, int]] = field(default_factory=dict)
    asked: list[list[int]] = field(default_factory=list)
    pools: dict[int, int] = field(default_factory=dict)

    def head(self, frame: int) -> int:
        return max(first for first in self.folios if first <= frame)

    def entries(self, ranges: Ranges) -> Iterator[Entries]:
        order = np.lexsort((ranges.page, ranges.process))
        for row in order.tolist():
            page = np.arange(ranges.page[row], ranges.page[row] + ranges.count[row])
            frame = page + SHIFT * int(ranges.process[row])
            heads = np.array(sorted(self.folios))
            sizes, nodes = np.array([self.folios[head] for head in heads.tolist()]).T
            of = np.searchsorted(heads, frame, "right") - 1
            there = (of >= 0) & (frame < heads[of] + sizes[of])
            page, frame, of = page[there], frame[there], of[there]
            never = np.zeros(len(page), bool)
            yield Entries(np.full(len(page), row), page, nodes[of], frame, never, ~never)

    def flags_of(self, pfns: Ints) -> npt.NDArray[np.uint64]:
        large = {head: size for head, (size, _) in self.folios.items() if size > 1}
        heads = [self.head(frame) for frame in pfns.tolist()]
        flags = [0 if head not in large else int(COMPOUND_HEAD if head == pfn else COMPOUND_TAIL)
                 for head, pfn in zip(heads, pfns.tolist(), strict=True)]  # fmt: skip
        return np.array(flags, np.uint64)

    def move_pages(self, pid: int, addresses: Any, nodes: Any, _flags: int) -> tuple[int, Any]:
        self.asked.append([int(address) // 4096 for address in addresses])
        seen: set[int] = set()
        status = np.array(nodes, np.int32)
        for number, page in enumerate(self.asked[-1]):
            head = self.head(page + SHIFT * pid)
            if head in seen:
                status[number] = -16  # EBUSY: it is on its way
            seen.add(head)
        for head in seen:
            self.folios[head] = (self.folios[head][0], int(nodes[0]))
        return int((status < 0).sum()), status


@dataclass
class Handle:
    """Stands in for a process that lives; its number is its pid."""

    number: int
    pidfd: int = field(default_factory=lambda: os.eventfd(0))

    def thread(self) -> int:
        return self.number

    def alive(self) -> bool:
        return True


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()

    @contextmanager
    def alone_at(*_: object) -> Iterator[bool]:
        yield True

    monkeypatch.setattr(libnuma, "move_pages", made.move_pages)
    monkeypatch.setattr(mover, "flags_of", made.flags_of)
    monkeypatch.setattr(mover, "alone_at", alone_at)
    monkeypatch.setattr(mover, "read_free_hugepages", lambda _: made.pools)
    return made


def plan_of(kernel: Kernel, *rows: tuple[int, int, int, int, Kind, int], processes: int = 1, **host: Any) -> Plan:
    """Return the plan for (process, page, count, unit, kind, folio) on node 0, to node 1; the kernel has them so."""
    table = [(process, page, count, 0, ANONYMOUS, page, *rest) for process, page, count, *rest in rows]
    for process, page, count, unit, kind, folio in rows:
        step = count if kind == Kind.PART else unit
        for first in range(page, page + count, step) if not folio else ():
            kernel.folios[first + SHIFT * process] = (step, 0)
    snapshot = snapshot_of([], homes=[frozenset({0})] * processes)
    snapshot = replace(snapshot, runs=Runs(*np.array(table, np.int64).reshape(-1, 9).T.copy()), folios=True)
    return place(snapshot, Target((1,), when_full=WhenFull.PARTIAL), replace(line_host([AMPLE] * 4), **host))


def carried(kernel: Kernel, plan: Plan, **limits: Any) -> Tally:
    handles = [Handle(number) for number in range(len(plan.processes))]
    found = carry(plan, cast(Any, handles), cast(Any, kernel), Limits(workers=1, **limits))
    for handle in handles:
        os.close(handle.pidfd)
    assert found.tally.total() == plan.total()
    return found.tally


def nodes(kernel: Kernel) -> set[int]:
    return {node for _, node in kernel.folios.values()}


@pytest.mark.parametrize("unit", [2, 16, 256, 512, 8192])
def test_a_folio_is_asked_for_once_by_its_first_page(kernel: Kernel, unit: int) -> None:
    plan = plan_of(kernel, (0, 7, 5, 1, Kind.PAGE, 0), (0, 12, 4 * unit, unit, Kind.FOLIO, 0))
    tally = carried(kernel, plan)
    assert [page for call in kernel.asked for page in call] == [7, 8, 9, 10, 11, *range(12, 12 + 4 * unit, unit)]
    assert (tally[Bucket.MOVED], tally.requested, tally.retried, tally.addresses) == (5 + 4 * unit, 5 + 4 * unit, 0, 9)


def test_a_gigantic_page_is_one_batch_at_any_rate(kernel: Kernel) -> None:
    kernel.pools = {1 << 30: 3}
    plan = plan_of(kernel, (0, GIB, 2 * GIB, GIB, Kind.HUGETLB, 0), pools={(1, GIB): 3})
    tally = carried(kernel, plan, bytes_per_second=float(1 << 40))
    assert sorted(kernel.asked) == [[GIB], [2 * GIB]]
    assert (tally[Bucket.MOVED], tally.requested, tally.addresses, tally.retried) == (2 * GIB, 2 * GIB, 2, 0)


def test_what_was_split_since_the_plan_arrives_all_the_same_and_is_counted_page_by_page(kernel: Kernel) -> None:
    plan = plan_of(kernel, (0, 0, 32, 16, Kind.FOLIO, 0))
    kernel.folios |= dict.fromkeys(range(16, 32), (1, 0))
    tally = carried(kernel, plan)
    assert kernel.asked == [[0, 16], list(range(17, 32))]
    assert (tally[Bucket.MOVED], tally.requested, tally.retried) == (32, 32, 15)


def test_what_has_become_one_folio_since_the_plan_is_moved_once_and_counted_once(kernel: Kernel) -> None:
    plan = plan_of(kernel, (0, 0, 20, 1, Kind.PAGE, 0))
    kernel.folios = {0: (16, 0), **dict.fromkeys(range(16, 20), (1, 0))}
    tally = carried(kernel, plan)
    assert (tally[Bucket.MOVED], tally.requested) == (20, 20)
    assert nodes(kernel) == {1}


def test_what_is_left_of_a_folio_is_asked_for_by_its_first_page_that_is_there(kernel: Kernel) -> None:
    plan = plan_of(kernel, (0, 0, 16, 16, Kind.FOLIO, 0))
    kernel.folios = dict.fromkeys(range(3, 16), (1, 0))
    tally = carried(kernel, plan)
    assert kernel.asked[0] == [3]
    assert (tally[Bucket.MOVED], tally[Bucket.VANISHED]) == (13, 3)


def test_parts_of_a_folio_in_one_process_are_asked_for_by_one_address(kernel: Kernel) -> None:
    rows = [(0, 0, 4, 16, Kind.PART, 1), (0, 8, 4, 16, Kind.PART, 1), (0, 20, 3, 1, Kind.PAGE, 0)]
    plan = plan_of(kernel, *rows)
    kernel.folios[0] = (16, 0)
    tally = carried(kernel, plan)
    assert kernel.asked == [[0, 20, 21, 22]]
    assert (tally[Bucket.MOVED], tally.requested, tally.retried) == (11, 11, 0)


def test_a_part_in_another_process_has_moved_along(kernel: Kernel) -> None:
    plan = plan_of(kernel, (0, 0, 4, 16, Kind.PART, 1), (1, 8, 4, 16, Kind.PART, 1), processes=2)
    # Both are of the folio that begins at frame 0: the second process has its frames there, too.
    kernel.folios = {0: (16, 0), SHIFT: (16, 0)}
    really = kernel.move_pages

    def both(pid: int, addresses: Any, to: Any, flags: int) -> tuple[int, Any]:
        found = really(pid, addresses, to, flags)
        kernel.folios = {0: (16, 1), SHIFT: (16, 1)}
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libnuma, "move_pages", both)
        tally = carried(kernel, plan)
    assert len(kernel.asked) == 1
    assert (tally[Bucket.MOVED], tally[Bucket.IN_PLACE], tally.requested) == (8, 0, 8)


def test_no_more_hugetlb_pages_are_asked_for_than_the_pool_has_free_by_then(kernel: Kernel) -> None:
    kernel.pools = {2 << 20: 1}
    plan = plan_of(kernel, (0, 512, 3 * 512, 512, Kind.HUGETLB, 0), pools={(1, 512): 3})
    tally = carried(kernel, plan)
    assert kernel.asked == [[512]]
    assert (tally[Bucket.MOVED], tally[Bucket.NO_HUGE_PAGE], tally.requested) == (512, 1024, 512)


def test_a_hugetlb_page_that_the_kernel_cannot_place_lacks_a_huge_page_not_room(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    kernel.pools = {2 << 20: 9}
    plan = plan_of(kernel, (0, 512, 512, 512, Kind.HUGETLB, 0), pools={(1, 512): 3})
    monkeypatch.setattr(libnuma, "move_pages", full)
    assert carried(kernel, plan)[Bucket.NO_HUGE_PAGE] == 512
