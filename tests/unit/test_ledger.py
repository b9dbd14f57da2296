"""What must hold of the ledger: every page of the job is in it once, with the node it was on and the one it is on."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry import mover
from pageferry.kernel import libnuma
from pageferry.kernel.processes import ProcessHandle
from pageferry.kernel.residency import PageTables
from pageferry.mover import Carried, Limits
from pageferry_planner import ledger as ledger_module
from pageferry_planner.ledger import Ledger, buckets, ledger, merged, summed, unmoved
from pageferry_planner.model import GONE, Backing, Bucket, Flows, Host, Plan, Ranges, Snapshot, Target, WhenFull
from pageferry_planner.pages import Entries
from pageferry_planner.placement import place
from support.plans import Address, hosts, pages_of, snapshots, targets, targets_of

PAGE = 4096
MOVES, BUSY = 0, -errno.EBUSY
FATES = (MOVES, MOVES, BUSY, -errno.EACCES, -errno.ENOMEM, -errno.EFAULT)
FILE = Backing("08:01", 7, "", "/data/7")
LINKED = Backing("08:01", 7, "", "/data/link")
"""The same, as another process knows it."""


@dataclass
class Kernel:
    """Page tables and move_pages(2) in which each page does as it was told to; `calls` until a process ends."""

    nodes: dict[Address, int]
    fates: dict[Address, int]
    lives: dict[int, int] = field(default_factory=dict)

    def alive(self, process: int) -> bool:
        return self.lives.get(process, 1) > 0

    def entries(self, ranges: Ranges) -> Iterator[Entries]:
        for row in range(len(ranges)):
            process, first, count = int(ranges.process[row]), int(ranges.page[row]), int(ranges.count[row])
            page = [page for page in range(first, first + count) if (process, page) in self.nodes]
            node = np.array([self.nodes[process, each] for each in page], np.int64)
            nothing = np.zeros(len(page), bool)
            yield Entries(nothing + row, np.array(page, np.int64), node, nothing + np.int64(0), nothing, nothing)

    def move_pages(
        self, pid: int, addresses: libnuma.Addresses, nodes: libnuma.Nodes, _flags: int
    ) -> tuple[int, libnuma.Nodes]:
        process, status = pid - 100, nodes.copy()
        if process in self.lives:
            self.lives[process] -= 1
        for place_, (address, node) in enumerate(zip(addresses.tolist(), nodes.tolist(), strict=True)):
            at = (process, address // PAGE)
            fate = self.fates.get(at, MOVES)
            if fate == MOVES and at in self.nodes:
                self.nodes[at] = node
            else:
                status[place_] = fate if at in self.nodes else -errno.ENOENT
        return int((status != nodes).sum()), status


class Handle:
    def __init__(self, kernel: Kernel, process: int) -> None:
        self._kernel, self._process = kernel, process
        self.pid, self.pidfd = 100 + process, -1

    def thread(self) -> int:
        return self.pid

    def alive(self) -> bool:
        return self._kernel.alive(self._process)


def carried(plan: Plan, kernel: Kernel) -> Carried:
    handles = cast("list[ProcessHandle]", [Handle(kernel, number) for number in range(len(plan.processes))])
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda _seconds: None)
    with patch.object(libnuma, "move_pages", kernel.move_pages), patch.object(mover, "time", clock):
        return mover.carry(plan, handles, cast(PageTables, kernel), Limits(workers=1))


def was(of: Ledger) -> Counter[tuple[Backing | None, int]]:
    found: Counter[tuple[Backing | None, int]] = Counter()
    for (backing, node, _, _), pages in of.items():
        found[backing, node] += pages
    return found


def stands(of: Ledger) -> Counter[tuple[Backing | None, int]]:
    found: Counter[tuple[Backing | None, int]] = Counter()
    for (backing, _, to, _), pages in of.items():
        found[backing, to] += pages
    return found


def seen(snapshot: Snapshot, nodes: dict[Address, int]) -> Counter[tuple[Backing | None, int]]:
    """Count pages one by one, by what they are of, on these nodes."""
    return Counter(
        (snapshot.backings[page.backing] if page.backing >= 0 else None, nodes[address])
        for address, page in pages_of(snapshot.runs).items()
        if address in nodes
    )


@st.composite
def moves(draw: st.DrawFn) -> tuple[Snapshot, Plan, Kernel]:
    """Draw a plan, and what becomes of some of its pages: gone, where they should be, or refused in any way."""
    snapshot = draw(snapshots())
    plan = place(snapshot, draw(targets(fulls=(WhenFull.PARTIAL, WhenFull.SPILL))), draw(hosts()))
    pages = pages_of(snapshot.runs)
    kernel = Kernel({address: page.node for address, page in pages.items()}, {})
    wanted = targets_of(plan)
    for address in draw(st.lists(st.sampled_from(sorted(wanted)), max_size=30, unique=True)) if wanted else ():
        what = draw(st.sampled_from((*FATES, "gone", "there")))
        if what == "gone":
            del kernel.nodes[address]
        elif what == "there":
            kernel.nodes[address] = wanted[address]
        else:
            kernel.fates[address] = cast(int, what)
    if draw(st.integers(0, 3)) == 0:
        kernel.lives[draw(st.integers(0, len(snapshot.processes) - 1))] = draw(st.integers(0, 2))
    return snapshot, plan, kernel


@given(moves())
def test_before_after_and_the_tally_are_sums_of_the_same_pages(case: tuple[Snapshot, Plan, Kernel]) -> None:
    snapshot, plan, kernel = case
    before = seen(snapshot, {address: page.node for address, page in pages_of(snapshot.runs).items()})
    done = carried(plan, kernel)
    of = ledger(snapshot, [done.flows])
    assert was(of) == before
    assert buckets(of) == {bucket: pages for bucket, pages in done.tally.pages.items() if pages}
    after = stands(of)
    gone = sum(pages for (_, node), pages in after.items() if node == GONE)
    assert gone == done.tally[Bucket.VANISHED]
    assert sum(before.values()) == sum(after.values()) == done.tally.total() == snapshot.runs.pages()
    if not any(lives <= 0 for lives in kernel.lives.values()):
        assert +after == seen(snapshot, kernel.nodes) + Counter({key: n for key, n in after.items() if key[1] == GONE})


@given(moves())
def test_what_a_rule_keeps_is_told_by_rule_and_backing(case: tuple[Snapshot, Plan, Kernel]) -> None:
    snapshot, plan, kernel = case
    of = ledger(snapshot, [carried(plan, kernel).flows])
    kept: Counter[tuple[Backing, int, int, str]] = Counter()
    for page in pages_of(snapshot.runs).values():
        if page.backing >= 0 and not (verdict := snapshot.verdicts[page.backing]).moves:
            kept[snapshot.backings[page.backing], page.node, page.node, verdict.rule] += 1
    assert {key: n for key, n in of.items() if key[3] not in set(Bucket)} == kept


@given(snapshot=snapshots(), target=targets(fulls=(WhenFull.REFUSE,)), host=hosts())
def test_a_refused_plan_leaves_every_page_where_it_was(snapshot: Snapshot, target: Target, host: Host) -> None:
    plan = place(snapshot, target, host)
    of = ledger(snapshot, [unmoved(plan)])
    assert was(of) == stands(of)
    assert sum(of.values()) == snapshot.runs.pages()


ROWS = st.tuples(st.integers(-1, 4), st.integers(0, 5), st.integers(-1, 5), st.integers(0, 7), st.integers(1, 1 << 40))


@pytest.mark.parametrize("few", [0, 1 << 20])
@given(rows=st.lists(ROWS, max_size=40))
def test_sums_are_exact_whichever_way_they_are_made(few: int, rows: list[tuple[int, int, int, int, int]]) -> None:
    wanted: Counter[tuple[int, ...]] = Counter()
    for *key, count in rows:
        wanted[tuple(key)] += count
    with patch.object(ledger_module, "_FEW", few):
        flows = summed(Flows(*np.array(rows, np.int64).reshape(-1, 5).T.copy()))
    found = [tuple(column) for column in zip(*(column.tolist() for column in flows.columns()), strict=True)]
    assert {row[:4]: row[4] for row in found} == wanted
    assert len(found) == len(wanted)


def test_pages_that_a_second_round_finds_are_moved_and_what_it_does_not_find_has_vanished() -> None:
    first = Counter({(FILE, 0, GONE, "vanished"): 10, (FILE, 0, 2, "moved"): 5, (None, 1, 1, "pinned"): 3})
    again = Counter({(LINKED, 0, 2, "moved"): 8, (LINKED, 2, 2, "in_place"): 5, (None, 1, 3, "moved"): 3})
    assert merged(first, again) == {
        (FILE, 0, 2, "moved"): 5,
        (LINKED, 0, 2, "moved"): 8,
        (FILE, 0, GONE, "vanished"): 2,
        (None, 1, 3, "moved"): 3,
    }


KEYS = st.sampled_from(
    [(what, 0, 0, why) for what in (FILE, None) for why in ("in_place", "xattr", "pinned", "no_huge_page")]
    + [(what, 0, 2, why) for what in (FILE, None) for why in ("moved", "in_place")]
    + [(what, 0, GONE, "vanished") for what in (FILE, None)]
)
LEDGERS = st.dictionaries(KEYS, st.integers(1, 50)).map(Counter)


@given(first=LEDGERS, again=LEDGERS)
def test_two_rounds_lose_no_page_and_invent_only_those_that_the_second_saw(first: Ledger, again: Ledger) -> None:
    both = merged(first, again)
    assert min(both.values(), default=1) > 0
    left = {"vanished", "pinned", "no_huge_page"}
    found = sum(n for (_, here, to, why), n in again.items() if why != "vanished" and (here != to or why in left))
    assert sum(first.values()) <= sum(both.values()) <= sum(first.values()) + found
    assert buckets(both).get(Bucket.MOVED, 0) == sum(
        n for of in (first, again) for k, n in of.items() if k[3] == "moved"
    )
