"""Which pages of a real process are of large folios, as the kernel's own count of them says, with the unit's rights."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest import rights
from guest.ranks import HUGE, HUGETLB, MADV_HUGEPAGE, SHARED, Job, Memory, job
from guest.witness import smaps
from pageferry import ferry
from pageferry_planner.model import Kind, Runs, Target

GIB = 262144
POOL = Path("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages")
FOLDER = Path("/sys/kernel/mm/transparent_hugepage")

pytestmark = pytest.mark.usefixtures("whose")


@pytest.fixture(params=["unit", "root"])
def whose(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose rights a look has: those of the agent's unit, or all."""
    monkeypatch.setenv(rights.VARIABLE, request.param)


def looked_at(made: Job) -> Runs:
    return rights.call(ferry.look, made.pids, ferry.Request(Target(()))).snapshot.runs


def within(runs: Runs, memory: Memory) -> Runs:
    page = memory.address // 4096
    return runs.take((runs.page >= page) & (runs.page < page + memory.pages))


@contextmanager
def changed(path: Path, change: Callable[[str], str]) -> Iterator[str]:
    """Change a setting of this host; yields what it was. One test at a time, also of those that run side by side."""
    with Path("/run/lock/pageferry-tests-folios").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = path.read_text()
        path.write_text(change(before))
        try:
            yield before
        finally:
            path.write_text(before.partition("[")[2].partition("]")[0] or before)


def test_huge_pages_are_told_from_others_and_from_parts_of_some() -> None:
    with job(node=0) as made:
        memory = made.first.map(6 * HUGE, align=HUGE)
        memory.tell("madvise", MADV_HUGEPAGE)
        memory.write()
        small = made.first.map(3000).write()
        assert smaps(made.first.pid, memory.address, "AnonHugePages") == 6 * 2048, "this host has some free"
        made.first.ask("unmap", memory.address + 100 * 4096, 300)
        runs = looked_at(made)
        ours = within(runs, memory)
        assert (ours.unit == HUGE).all()
        assert ours.take(ours.kind == Kind.FOLIO).pages() == 5 * HUGE
        parts = ours.take(ours.kind == Kind.PART)
        assert parts.count.tolist() == [100, HUGE - 400]
        assert len(set(parts.folio.tolist()) - {0}) == 1
        assert set(within(runs, small).unit.tolist()) == {1}


def test_a_huge_page_that_two_mappings_show_is_one() -> None:
    with job(node=0) as made:
        memory = made.first.map(2 * HUGE, align=HUGE)
        memory.tell("madvise", MADV_HUGEPAGE)
        memory.write()
        made.first.ask("mprotect", memory.address + 100 * 4096, 50, 1)
        ours = within(looked_at(made), memory)
        assert (ours.count.tolist(), ours.kind.tolist(), ours.unit.tolist()) == ([2 * HUGE], [Kind.FOLIO], [HUGE])


@pytest.mark.parametrize("kilobytes", [16, 64, 256, 1024])
def test_folios_smaller_than_huge_pages_are_told_by_their_size(kilobytes: int) -> None:
    path, pages = FOLDER / f"hugepages-{kilobytes}kB/enabled", kilobytes // 4
    if not path.exists():
        pytest.skip("this kernel is older than Linux 6.8, and makes none")
    with changed(path, lambda _: "madvise"), job(node=0) as made:
        memory = made.first.map(pages, align=pages)
        memory.tell("madvise", MADV_HUGEPAGE)
        memory.write()
        ours = within(looked_at(made), memory)
        assert (ours.count.tolist(), ours.kind.tolist(), ours.unit.tolist()) == ([pages], [Kind.FOLIO], [pages])


def test_a_gigantic_page_is_one_unit() -> None:
    if not POOL.exists():
        pytest.skip("this processor has no pages of 1 GiB")
    with changed(POOL, lambda before: str(int(before) + 1)) as before:
        if int(POOL.read_text()) == int(before):
            pytest.skip("this host has no GiB free in one piece")
        with job(node=0) as made:
            memory = made.first.map(GIB, flags=SHARED | HUGETLB | 0x20 | 30 << 26).write(0, 1)
            ours = within(looked_at(made), memory)
            assert (ours.count.tolist(), ours.kind.tolist(), ours.unit.tolist()) == ([GIB], [Kind.HUGETLB], [GIB])
