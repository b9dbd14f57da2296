"""What must hold of watching a job: the right bits are marked and read, and what is not known fails nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import pytest

from pageferry import applied, ferry, hotness, spill
from pageferry.errors import Denied, KernelError, Vanished
from pageferry.hotness import Means
from pageferry.kernel import page_idle, pageflags, referenced
from pageferry.kernel.residency import PageTables
from pageferry.kernel.topology import read_topology
from pageferry.policy import Mode, Policy
from pageferry.snapshot import Taken
from pageferry_planner.columns import Bools, Ints
from pageferry_planner.model import Plan, Ranges, Snapshot, Target, Verdict
from pageferry_planner.pages import Entries
from pageferry_planner.placement import place
from support.plans import AMPLE, anonymous, line_host, snapshot_of

HEAD, TAIL = pageflags.COMPOUND_HEAD, pageflags.COMPOUND_TAIL


@dataclass
class Kernel:
    """Stands in for the kernel: where each page's frame is, what was marked, and which frames are idle still."""

    frames: dict[int, int] = field(default_factory=dict)
    huge: range = range(0)
    marked: list[int] = field(default_factory=list)
    stays_idle: set[int] = field(default_factory=set)
    waited: list[float] = field(default_factory=list)

    def entries(self, ranges: Ranges) -> Iterator[Entries]:
        for row, (page, count) in enumerate(zip(ranges.page.tolist(), ranges.count.tolist(), strict=True)):
            pages = np.arange(page, page + count)
            pfn = np.array([self.frames.get(at, 0) for at in pages.tolist()], np.int64)
            yes = np.ones(count, bool)
            yield Entries(np.full(count, row), pages, np.zeros(count, np.int64), pfn, ~yes, yes)

    def flags_of(self, pfns: Ints) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        flags = [
            (HEAD if pfn == self.huge.start else TAIL) if pfn in self.huge else np.uint64(0) for pfn in pfns.tolist()
        ]
        return np.array(flags, np.uint64)

    def mark(self, pfns: Ints) -> None:
        self.marked += pfns.tolist()

    def idle(self, pfns: Ints) -> Bools:
        return np.array([pfn in self.marked and pfn in self.stays_idle for pfn in pfns.tolist()], bool)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(hotness, "means", lambda: Means.PAGES)
    monkeypatch.setattr(hotness, "pause", made.waited.append)
    monkeypatch.setattr(hotness, "flags_of", made.flags_of)
    monkeypatch.setattr(page_idle, "mark", made.mark)
    monkeypatch.setattr(page_idle, "idle", made.idle)
    return made


@dataclass
class Handle:
    """Stands in for a process."""

    pid: int


def taken(kernel: Kernel, snapshot: Snapshot) -> Taken:
    handles = tuple(Handle(process.pid) for process in snapshot.processes)
    return Taken(snapshot, (), cast(Any, handles), cast(PageTables, kernel))


def test_page_by_page_the_part_that_was_used_is_told_from_the_rest(kernel: Kernel) -> None:
    kernel.frames = {page: 5000 + page for page in range(2048)}
    kernel.stays_idle = {5000 + page for page in range(1024)}
    found = hotness.watched(taken(kernel, snapshot_of([anonymous(0, 0, 2048, 0)])), 3.0).snapshot
    assert kernel.waited == [3.0]
    assert found.runs.count.tolist() == [1024, 1024]
    assert found.referenced is not None
    assert found.referenced.tolist() == [0, 1024]


def test_of_a_huge_page_the_head_is_marked_and_speaks_for_all(kernel: Kernel) -> None:
    kernel.frames = {page: 8192 + page for page in range(512)} | {page: page for page in range(512, 1024)}
    kernel.huge = range(8192, 8192 + 512)
    kernel.stays_idle = {8192}
    found = hotness.watched(taken(kernel, snapshot_of([anonymous(0, 0, 1024, 0)])), 1.0).snapshot
    assert sorted(kernel.marked) == [*range(512, 1024), 8192]
    assert found.referenced is not None
    assert found.referenced.tolist() == [0, 512]


def test_what_a_rule_keeps_is_never_marked(kernel: Kernel) -> None:
    kernel.frames = {page: 100 + page for page in range(20)}
    rows = [anonymous(0, 0, 10, 0), (0, 10, 10, 0, 0, 0)]
    snapshot = snapshot_of(rows, verdicts=[Verdict(False, "reference-count")])
    assert hotness.watched(taken(kernel, snapshot), 1.0).snapshot.referenced is not None
    assert kernel.marked == [*range(100, 110)]


def test_hidden_page_frames_are_neither_marked_nor_waited_for(kernel: Kernel) -> None:
    before = taken(kernel, snapshot_of([anonymous(0, 0, 100, 0)]))
    assert hotness.watched(before, 1.0) is before
    assert (kernel.marked, kernel.waited) == ([], [])


@pytest.mark.parametrize("means", [Means.PAGES, Means.MAPPINGS])
def test_a_job_that_used_nothing_stood_still_and_nothing_is_known(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, means: Means
) -> None:
    kernel.frames = {page: 100 + page for page in range(100)}
    kernel.stays_idle = set(kernel.frames.values())
    monkeypatch.setattr(hotness, "means", lambda: means)
    monkeypatch.setattr(referenced, "clear", lambda _pid: None)
    monkeypatch.setattr(referenced, "read", lambda _pid: (np.array([0]), np.array([100]), np.array([0])))
    before = taken(kernel, replace(snapshot_of([anonymous(0, 0, 100, 0)], vmas=[(0, 0, 100, -1, 0)])))
    assert hotness.watched(before, 1.0) is before
    assert kernel.waited == [1.0]


def test_what_was_marked_before_is_read_without_a_mark_or_a_wait(kernel: Kernel) -> None:
    kernel.frames = {0: 7, 1: 9}
    kernel.marked = [7, 9]
    kernel.stays_idle = {7}
    found = hotness.watched(taken(kernel, snapshot_of([anonymous(0, 0, 2, 0)])), 0.0).snapshot
    assert found.referenced is not None
    assert found.referenced.tolist() == [1]
    assert (kernel.marked, kernel.waited) == ([7, 9], [])


@pytest.mark.parametrize("error", [Denied("bitmap"), KernelError("bitmap"), Vanished("bitmap"), OSError(5, "I/O")])
@pytest.mark.parametrize("where", ["mark", "idle"])
def test_a_kernel_that_refuses_fails_no_move(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, error: Exception, where: str
) -> None:
    kernel.frames = {0: 7}

    def refuses(_pfns: Ints) -> None:
        raise error

    monkeypatch.setattr(page_idle, where, refuses)
    before = taken(kernel, snapshot_of([anonymous(0, 0, 1, 0)]))
    assert hotness.watched(before, 1.0) is before


def test_mapping_by_mapping_one_that_is_new_or_whose_process_has_ended_counts_as_used(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(pid: int) -> tuple[Ints, Ints, Ints]:
        if pid == 101:
            raise Vanished("it has ended")
        return np.array([0, 64]), np.array([64, 32]), np.array([0, 8])

    cleared: list[int] = []
    monkeypatch.setattr(hotness, "means", lambda: Means.MAPPINGS)
    monkeypatch.setattr(referenced, "clear", cleared.append)
    monkeypatch.setattr(referenced, "read", read)
    rows = [anonymous(0, 0, 128, 0), anonymous(1, 0, 64, 0)]
    vmas = [(0, 0, 64, -1, 0), (0, 64, 32, -1, 64), (0, 96, 32, -1, 96), (1, 0, 64, -1, 0)]
    snapshot = snapshot_of(rows, homes=[frozenset({0})] * 2, vmas=vmas)
    found = hotness.watched(taken(kernel, snapshot), 1.0).snapshot
    assert cleared == [100, 101]
    assert found.runs.count.tolist() == [64, 32, 32, 64]
    assert found.referenced is not None
    assert found.referenced.tolist() == [0, 8, 32, 64]


def test_without_any_means_nothing_is_done(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hotness, "means", lambda: Means.NONE)
    before = taken(kernel, snapshot_of([anonymous(0, 0, 1, 0)]))
    assert hotness.watched(before, 1.0) is before
    assert kernel.waited == []


def test_the_second_half_of_a_move_is_not_watched_for_again() -> None:
    first = place(snapshot_of([anonymous(0, 0, 1, 0)]), Target((1,)), line_host([AMPLE] * 2))
    assert ferry.after(ferry.Request(Target((1,)), hot_seconds=2.0), first).hot_seconds is None


def test_a_rule_has_only_jobs_that_run_watched() -> None:
    words = Policy(hot_seconds=2.0), applied.Destination((0,)), read_topology()
    assert applied.request(*words, runs=True).hot_seconds == 2.0
    assert applied.request(*words).hot_seconds is None


def test_memory_that_comes_home_is_watched_as_the_jobs_rule_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        spill,
        "candidates",
        lambda jobs, **_: [spill.Homecoming(job, ferry.Request(Target((0,))), 1, 1) for job in jobs],
    )
    homes = applied.homecomings({7: Policy(hot_seconds=2.0), 8: Policy()})
    assert {home.job: home.request.hot_seconds for home in homes} == {7: 2.0, 8: None}


def test_a_job_that_is_only_observed_is_not_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ferry.Request] = []

    def plan(_pids: object, request: ferry.Request, _seen: object) -> tuple[Snapshot, Plan]:
        asked.append(request)
        snapshot = snapshot_of([anonymous(0, 0, 1, 0)])
        return snapshot, place(snapshot, Target((1,)), line_host([AMPLE] * 2))

    monkeypatch.setattr(ferry, "plan", plan)
    applied.carried(Policy(mode=Mode.OBSERVE), [1], ferry.Request(Target((1,)), hot_seconds=2.0))
    assert [request.hot_seconds for request in asked] == [None]
