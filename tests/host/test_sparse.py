"""A program that reserves terabytes and uses little is looked at quickly, and all that it uses is found."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from guest import rights
from guest.ranks import HUGE, HUGETLB, PRIVATE, READ, SHARED, WRITE, job
from pageferry import ferry, report
from pageferry.kernel import objects, pagemap, sparse
from pageferry_planner.model import ANONYMOUS as ANONYMOUS_BACKING
from pageferry_planner.model import Snapshot
from pageferry_planner.policy import OUTSIDE, Rules

TERABYTE = (1 << 40) // mmap.PAGESIZE
USED = (64 << 20) // mmap.PAGESIZE
NO_RESERVE, ANONYMOUS = 0x4000, 0x20


@pytest.fixture(params=["unit", "root"], autouse=True)
def whose(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose rights a look has: those of the agent's unit, or all."""
    monkeypatch.setenv(rights.VARIABLE, request.param)


@pytest.fixture(params=["old", "new"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A kernel that cannot be asked what of a mapping is present, or the one that there is."""
    if request.param == "old":
        monkeypatch.setattr(pagemap, "scan", lambda *_: None)
    return str(request.param)


def look(pids: tuple[int, ...]) -> Snapshot:
    """Look at processes."""
    return rights.call(ferry.survey, pids, Rules())[0]


def counted(found: Snapshot, lo: int, hi: int) -> int:
    """Return how many of the first process's pages [lo, hi) a look has found."""
    runs = found.runs.take(found.runs.process == 0)
    return int((runs.page + runs.count).clip(lo, hi).sum() - runs.page.clip(lo, hi).sum())


def test_little_of_fourteen_terabytes_is_found(kernel: str) -> None:
    with job() as made:
        memory = made.first.map(14 * TERABYTE, flags=PRIVATE | NO_RESERVE)
        memory.write(0, USED // 2)
        memory.write(memory.pages - USED // 2)
        memory.read(USED, USED + 100)  # the zero page is no memory
        found = look(made.pids)
        first = memory.address // mmap.PAGESIZE
        assert counted(found, first, first + memory.pages) == USED
        assert found.unread == 0


def test_what_forked_processes_share_is_found_once(kernel: str) -> None:
    with job() as made:
        memories = [
            made.first.map(10 * TERABYTE, prot=prot, flags=PRIVATE | NO_RESERVE).write(1000, 1000 + USED)
            for prot in (READ | WRITE, READ | WRITE | 4)  # so that they stay two mappings
        ]
        made.fork()
        found = look(made.pids)
        assert found.unread == 0
        assert OUTSIDE not in found.backings
        for memory in memories:
            first = memory.address // mmap.PAGESIZE
            assert counted(found, first, first + memory.pages) == USED


@pytest.fixture
def pool() -> Iterator[None]:
    """A few free huge pages of hugetlb."""
    path = Path("/proc/sys/vm/nr_hugepages")
    before = path.read_text()
    path.write_text("16")
    yield
    path.write_text(before)


@pytest.mark.usefixtures("pool")
def test_hugetlb_pages_of_a_large_mapping_are_found(kernel: str) -> None:
    with job() as made:
        memory = made.first.map(TERABYTE // 128, flags=PRIVATE | NO_RESERVE | HUGETLB | ANONYMOUS, align=HUGE)
        memory.write(0, 4 * HUGE)
        memory.write(memory.pages - HUGE)
        found = look(made.pids)
        assert found.unread == 0
        mine = [n for n, backing in enumerate(found.backings) if "hugepage" in backing.path] + [ANONYMOUS_BACKING]
        rows = np.isin(found.runs.backing, mine) & (found.runs.count >= HUGE)
        assert int(found.runs.count[rows].sum()) >= 5 * HUGE


def test_what_is_only_reserved_is_not_read(kernel: str) -> None:
    with job() as made:
        before = look(made.pids)
        memory = made.first.map(14 * TERABYTE, prot=0, flags=PRIVATE | NO_RESERVE)
        first = memory.address // mmap.PAGESIZE
        found = look(made.pids)
        assert counted(found, first, first + memory.pages) == 0
        assert found.runs.pages() - before.runs.pages() <= 1
        assert found.unread == 0


def test_what_is_not_found_in_time_is_counted_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagemap, "scan", lambda *_: None)
    monkeypatch.setattr(sparse, "SECONDS", 0.0)
    with job() as made:
        memory = made.first.map(TERABYTE, flags=PRIVATE | NO_RESERVE)
        memory.write(TERABYTE // 2, TERABYTE // 2 + USED)
        found, topology = rights.call(ferry.survey, made.pids, Rules())
        assert found.unread == USED
        assert report.status_json("job", found, topology)["not_found_bytes"] == USED * mmap.PAGESIZE


@pytest.fixture
def window() -> Iterator[Path]:
    """A file of a terabyte in shared memory, with nothing in it."""
    path = Path(f"/dev/shm/window-{os.getpid()}")
    path.touch()
    os.truncate(path, TERABYTE * mmap.PAGESIZE)
    yield path
    path.unlink()


def test_what_nobody_has_in_a_page_table_of_a_terabyte_of_shared_memory_is_found(kernel: str, window: Path) -> None:
    with job() as made:
        memory = made.first.map(TERABYTE, window, flags=SHARED, prot=READ | WRITE)
        (gone,) = made.fork()
        memory.of(gone).write(1000, 1000 + USED)
        memory.of(gone).write(TERABYTE - 10)
        made.end(gone)
        memory.write(5, 8)
        found = look(made.pids)
        number = next(n for n, backing in enumerate(found.backings) if backing.path == str(window))
        assert int(found.runs.count[found.runs.backing == number].sum()) == 3 + USED + 10
        assert window.stat().st_blocks * 512 == (3 + USED + 10) * mmap.PAGESIZE


def test_the_stretches_of_a_file_that_hold_data_are_told_and_a_long_list_ends_in_the_rest(
    window: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with window.open("r+b") as file:
        for page in (3, 4, 9, 20):
            os.pwrite(file.fileno(), b"x", page * mmap.PAGESIZE)
    with objects.mapped(window, 0, TERABYTE, in_memory=True) as found:
        assert found.data == ((3, 5), (9, 10), (20, 21))
        assert objects.resident(found, 4, 15) == [(4, 5), (9, 10)]
    monkeypatch.setattr(objects, "_MOST_STRETCHES", 2)
    with objects.mapped(window, 0, 2 << 20, in_memory=True) as found:
        assert found.data == ((3, 5), (9, 10), (10, 2 << 20))
