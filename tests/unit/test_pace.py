"""What must hold of a rate: it holds from the first byte on, for all workers together; no wait outlasts its use."""

from __future__ import annotations

import errno
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry import mover
from pageferry.errors import UsageError
from pageferry.kernel import libnuma
from pageferry.kernel.processes import ProcessHandle, open_process
from pageferry.kernel.residency import PageTables
from pageferry.mover import Limits
from pageferry.pace import CALL_SECONDS, Pace
from pageferry_planner.model import ANONYMOUS, SELF, Bucket, Plan, Process, Ranges, Tally
from pageferry_planner.pages import Entries
from support.children import child
from support.plans import Row, runs_of

PAGE = 4096


@dataclass
class Clock:
    """Time that passes only when somebody waits."""

    now: float = 1000.0
    ends_at: float = math.inf
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float, _pidfd: int | None) -> bool:
        with self.lock:
            self.now += seconds
            return self.now >= self.ends_at


def never() -> bool:
    return False


@given(
    st.floats(1.0, 1e9),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 100)), min_size=1, max_size=20),
)
def test_no_byte_moves_before_it_is_paid_for_and_idle_time_pays_for_nothing(
    rate: float, calls: list[tuple[float, float]]
) -> None:
    clock = Clock()
    pace = Pace(rate, clock, clock.pause)
    begun: list[tuple[float, int]] = [(clock.now, 0)]
    for worth, idle in calls:
        count = int(rate * worth) + 1
        pace.pay(count, never)
        begun.append((clock.now, count))
        clock.now += idle
    for first in range(len(begun)):
        for last in range(first + 1, len(begun)):
            paid = sum(count for _, count in begun[first + 1 : last + 1])
            assert paid <= rate * (begun[last][0] - begun[first][0]) * (1 + 1e-6) + rate * 1e-3


def test_workers_share_one_rate() -> None:
    clock = Clock()
    pace = Pace(1000.0, clock, clock.pause)

    def work() -> None:
        for _ in range(20):
            pace.pay(50, never)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert clock.now - 1000.0 >= 4 * 20 * 50 / 1000.0 - 1e-6


def test_one_call_takes_no_more_than_a_quarter_of_a_second() -> None:
    assert CALL_SECONDS == 0.25
    assert Pace(4000.0).call_bytes(1 << 20) == 1000
    assert Pace(math.inf).call_bytes(1 << 20) == 1 << 20


@pytest.mark.parametrize("rate", [0, -1.0, math.nan])
def test_a_rate_that_lets_nothing_pass_is_refused(rate: float) -> None:
    with pytest.raises(UsageError, match="bytes per second"):
        Pace(rate)


def test_a_wait_ends_when_the_move_is_to_stop() -> None:
    clock = Clock()
    Pace(1.0, clock, clock.pause).pay(1 << 40, lambda: clock.now > 1003.0)
    assert clock.now == pytest.approx(1003.0, abs=0.1)


def test_a_wait_ends_when_the_process_does() -> None:
    with child() as process, open_process(process.pid) as handle:
        began = time.monotonic()
        asked = 0

        def stopped() -> bool:
            nonlocal asked
            asked += 1
            if asked == 3:
                process.kill()
            return time.monotonic() > began + 60

        Pace(1.0).pay(1 << 40, stopped, handle.pidfd)
        assert not handle.alive()
        assert time.monotonic() < began + 60


class FakeTables:
    """Page tables of processes, (process, page) → node; every page but those of a huge one has its own frame."""

    def __init__(self, nodes: dict[tuple[int, int], int]) -> None:
        self.nodes = nodes

    def entries(self, ranges: Ranges) -> Iterator[Entries]:
        for row in range(len(ranges)):
            process, first, count = int(ranges.process[row]), int(ranges.page[row]), int(ranges.count[row])
            page = [page for page in range(first, first + count) if (process, page) in self.nodes]
            node = np.array([self.nodes[process, each] for each in page], np.int64)
            nothing = np.zeros(len(page), bool)
            yield Entries(nothing + row, np.array(page, np.int64), node, nothing + np.int64(0), nothing, nothing)


@dataclass
class Kernel:
    """move_pages(2) of the fake tables; keeps (time, pages) of each call that moves."""

    clock: Callable[[], float]
    tables: FakeTables
    numbers: dict[int, int]
    calls: list[tuple[float, list[int]]] = field(default_factory=list)
    busy_once: set[int] = field(default_factory=set)

    def move_pages(
        self, pid: int, addresses: libnuma.Addresses, nodes: libnuma.Nodes, _flags: int
    ) -> tuple[int, libnuma.Nodes]:
        pages = [int(address) // PAGE for address in addresses]
        self.calls.append((self.clock(), pages))
        status = nodes.copy()
        for place, (page, node) in enumerate(zip(pages, nodes.tolist(), strict=True)):
            if page in self.busy_once:
                status[place] = -errno.EBUSY
            else:
                self.tables.nodes[self.numbers[pid], page] = node
        missed = int((status != nodes).sum())
        self.busy_once -= set(pages)
        return missed, status


class FakeHandle:
    def __init__(self, pid: int, alive: Callable[[], bool] = lambda: True) -> None:
        self.pid, self.pidfd, self.alive = pid, -1, alive

    def thread(self) -> int:
        return self.pid


def plan_of(rows: Sequence[Row], target: int = 0) -> Plan:
    moves = runs_of(rows)
    nothing = np.zeros(len(moves), np.int64)
    nobody = Process(1, 1, "", frozenset(), frozenset())
    return Plan(PAGE, (nobody,), moves, nothing + target, nothing, 0, {}, 0, (), {}, {}, 0, {})


@dataclass
class Bench:
    clock: Clock
    kernel: Kernel
    tables: FakeTables
    handles: list[FakeHandle]

    def carry(self, rows: Sequence[Row], limits: Limits) -> Tally:
        handles = cast("list[ProcessHandle]", self.handles)
        return mover.carry(plan_of(rows), handles, cast(PageTables, self.tables), limits).tally


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    clock = Clock()
    tables = FakeTables({})
    kernel = Kernel(clock, tables, {101: 0, 102: 1, os.getpid(): SELF})
    monkeypatch.setattr(libnuma, "move_pages", kernel.move_pages)
    monkeypatch.setattr(mover, "time", SimpleNamespace(monotonic=clock, sleep=lambda _seconds: None))
    monkeypatch.setattr(mover, "Pace", partial(Pace, clock=clock, pause=clock.pause))
    return Bench(clock, kernel, tables, [FakeHandle(101), FakeHandle(102)])


def resident(bench: Bench, process: int, page: int, count: int, node: int = 1) -> Row:
    bench.tables.nodes |= {(process, each): node for each in range(page, page + count)}
    return (process, page, count, node, ANONYMOUS, page)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("rate_pages", [4000, 50_000, 10_000_000])
def test_all_pages_move_and_never_sooner_than_the_rate_says(bench: Bench, workers: int, rate_pages: int) -> None:
    rows = [resident(bench, 0, 3, 5000), resident(bench, 0, 9000, 700), resident(bench, 1, 100, 6000)]
    began = bench.clock.now
    tally = bench.carry(rows, Limits(workers, bytes_per_second=rate_pages * PAGE))
    assert tally.pages[Bucket.MOVED] == tally.total() == tally.requested == 11700
    assert set(bench.tables.nodes.values()) == {0}
    moved = 0
    for at, pages in bench.kernel.calls:
        moved += len(pages)
        assert moved <= rate_pages * (at - began) + 1
        assert len(pages) <= max(512, rate_pages / 4)
    assert moved == 11700


def test_a_call_is_cut_at_huge_page_bounds_only(bench: Bench) -> None:
    row = resident(bench, 0, 100, 512 * 5)
    bench.carry([row], Limits(1, bytes_per_second=10 * PAGE))
    assert len(bench.kernel.calls) == 6
    assert sorted(pages[0] for _, pages in bench.kernel.calls) == [100, 512, 1024, 1536, 2048, 2560]


def test_pages_that_are_asked_for_again_are_paid_for_again(bench: Bench) -> None:
    row = resident(bench, 0, 0, 500)
    bench.kernel.busy_once = set(range(0, 500, 2))
    began = bench.clock.now
    tally = bench.carry([row], Limits(1, bytes_per_second=1000 * PAGE))
    assert (tally.requested, tally.retried, tally[Bucket.MOVED]) == (500, 250, 500)
    assert bench.clock.now - began == pytest.approx(0.75, abs=0.01)


def test_a_budget_that_ends_in_a_wait_leaves_the_rest_not_reached(bench: Bench) -> None:
    row = resident(bench, 0, 0, 512 * 10)
    began = bench.clock.now
    tally = bench.carry([row], Limits(1, seconds=3.5, bytes_per_second=512 * PAGE))
    assert tally.pages == {**tally.pages, Bucket.MOVED: 512 * 3, Bucket.NOT_REACHED: 512 * 7}
    assert tally.requested == 512 * 3
    assert bench.clock.now - began == pytest.approx(3.5, abs=0.1)


def test_a_process_that_ends_while_its_turn_is_awaited_has_vanished_and_costs_no_time(bench: Bench) -> None:
    bench.clock.ends_at = bench.clock.now + 5.0
    bench.handles[0].alive = lambda: bench.clock.now < bench.clock.ends_at
    row = resident(bench, 0, 0, 512 * 100)
    tally = bench.carry([row], Limits(1, bytes_per_second=512 * PAGE))
    assert tally[Bucket.VANISHED] >= 512 * 95
    assert tally[Bucket.VANISHED] + tally[Bucket.MOVED] == tally.total() == 512 * 100
    assert bench.clock.now < bench.clock.ends_at + 0.1


def test_what_we_map_ourselves_is_left_when_the_last_process_of_the_job_has_ended(bench: Bench) -> None:
    end = bench.clock.now + 5.0
    for handle in bench.handles:
        handle.alive = lambda: bench.clock.now < end
    row = resident(bench, SELF, 0, 512 * 100)
    tally = bench.carry([row], Limits(1, bytes_per_second=512 * PAGE))
    assert tally[Bucket.MOVED] <= 512 * 6
    assert tally[Bucket.VANISHED] + tally[Bucket.MOVED] == tally.total() == 512 * 100


def test_without_a_rate_nobody_waits(bench: Bench) -> None:
    row = resident(bench, 0, 0, 512 * 100)
    began = bench.clock.now
    assert bench.carry([row], Limits(1))[Bucket.MOVED] == 512 * 100
    assert bench.clock.now == began
