"""What must hold of reading page tables here: nothing is faulted in, and every way of reading says the same."""

from __future__ import annotations

import mmap
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from guest.ranks import HUGE, MADV_HUGEPAGE, PRIVATE, READ, SHARED, Job, Memory, job
from guest.witness import census, page_table, queried_nodes, residency, smaps, status
from pageferry.kernel import pagemap
from pageferry.kernel.mountinfo import read_mountinfo
from pageferry.kernel.residency import PageTables
from pageferry.kernel.topology import read_topology
from pageferry.snapshot import take
from pageferry_planner.model import ANONYMOUS, Ranges
from pageferry_planner.policy import Rules

PAGE = mmap.PAGESIZE


@pytest.fixture
def made() -> Iterator[Job]:
    """A job of one process."""
    with job() as processes:
        yield processes


def stretches(entries: np.ndarray[tuple[int], np.dtype[np.uint64]], first: int) -> list[tuple[int, int]]:
    """Return the stretches of present pages, page by page."""
    found: list[tuple[int, int]] = []
    for number, entry in enumerate(entries.tolist(), start=first):
        if entry >> 63:
            if found and found[-1][1] == number:
                found[-1] = found[-1][0], number + 1
            else:
                found.append((number, number + 1))
    return found


def scanned(pid: int, lo: int, hi: int) -> list[tuple[int, int]]:
    """Return the present pages as PAGEMAP_SCAN tells them."""
    descriptor = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY)
    try:
        found = pagemap.scan(descriptor, lo, hi, PAGE)
    finally:
        os.close(descriptor)
    if found is None:
        pytest.skip("this kernel has no PAGEMAP_SCAN (before 6.7)")
    joined: list[tuple[int, int]] = []
    for a, b in found:  # the kernel begins a new region where categories change
        if joined and joined[-1][1] == a:
            joined[-1] = joined[-1][0], b
        else:
            joined.append((a, b))
    return joined


def sparse(made: Job) -> Memory:
    memory = made.first.map(1 << 18)
    for page in random.Random(1).sample(range(1 << 18), 300):
        memory.write(page, page + 1)
    return memory


def scattered(made: Job) -> Memory:
    """More stretches than one call of the kernel returns."""
    memory = made.first.map(20000)
    made.first.ask("write_each", memory.address, 2, 10000)
    return memory


def huge(made: Job) -> Memory:
    memory = made.first.map(8 * HUGE, align=HUGE)
    memory.tell("madvise", MADV_HUGEPAGE)
    return memory.write(0, 100).write(5 * HUGE, 6 * HUGE)


def file(made: Job) -> Memory:
    return made.first.map(5000, made.first.memfd(5000), flags=SHARED).write(10, 20).write(3000, 4900)


def read_only(made: Job) -> Memory:
    return made.first.map(5000, prot=READ, flags=PRIVATE).read(100, 300)


def empty(made: Job) -> Memory:
    return made.first.map(1 << 20)


@pytest.mark.parametrize("kind", [sparse, scattered, huge, file, read_only, empty])
def test_the_scan_and_the_plain_read_say_the_same(made: Job, kind: object) -> None:
    assert callable(kind)
    memory: Memory = kind(made)
    lo, hi = memory.address // PAGE, memory.address // PAGE + memory.pages
    assert scanned(made.first.pid, lo, hi) == stretches(page_table(made.first.pid, *memory.span), lo)


@pytest.mark.parametrize("kind", [sparse, scattered, huge, file, read_only, empty])
def test_entries_are_the_same_with_and_without_the_scan(
    made: Job, kind: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(kind)
    memory: Memory = kind(made)
    with_scan = present(made, memory, monkeypatch, sparse_pages=0)
    plain = present(made, memory, monkeypatch, sparse_pages=1 << 40)
    assert with_scan == plain
    entries = page_table(made.first.pid, *memory.span)
    assert [page for page, _ in plain] == [
        memory.address // PAGE + number for number, entry in enumerate(entries.tolist()) if entry >> 63
    ]


def present(made: Job, memory: Memory, monkeypatch: pytest.MonkeyPatch, sparse_pages: int) -> list[tuple[int, int]]:
    monkeypatch.setattr(pagemap, "_SPARSE_PAGES", sparse_pages)
    with PageTables([made.first.pid]) as tables:
        parts = [*tables.entries(range_of(memory))]
    return [(page, pfn) for part in parts for page, pfn in zip(part.page.tolist(), part.pfn.tolist(), strict=True)]


def range_of(memory: Memory) -> Ranges:
    page = memory.address // PAGE
    process, first, count, backing, index = np.array([[0], [page], [memory.pages], [ANONYMOUS], [page]], np.int64)
    return Ranges(process, first, count, backing, index, np.ones(1, bool))


def test_the_node_by_page_frame_is_the_one_that_the_kernel_says(made: Job) -> None:
    memory = made.first.map(600).write(0, 300).read(300, 400)
    with PageTables([made.first.pid]) as tables:
        (entries,) = tables.entries(range_of(memory))
    addresses = [page * PAGE for page in entries.page.tolist()]
    asked = queried_nodes(made.first.pid, addresses)
    by_frame = entries.node.tolist()
    # Of the zero page the kernel does not say where it is (-EFAULT): it is nobody's.
    assert by_frame[:300] == asked[:300]
    assert asked[300:] == [-14] * 100


def test_a_snapshot_finds_what_a_walk_over_all_page_tables_finds(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(300 * PAGE))
    with job() as made:
        first = made.first
        private = first.map(500).write()
        shared = first.map(400, first.memfd(400), flags=SHARED).write(0, 50)
        copied = first.map(300, path).read(0, 100)
        segment = first.system_v(64).write(0, 3)
        for number, rank in enumerate(made.fork(4)):
            private.of(rank).write(20 * number, 20 * number + 30, seed=number)
            shared.of(rank).write(50 * number, 50 * number + 70)
            copied.of(rank).write(number, 10 * number + 5, seed=number)
            segment.of(rank).read(2, 5)
        before = [status(pid, "VmRSS", "VmPTE", "RssAnon", "RssFile", "RssShmem") for pid in made.pids]
        with take(made.pids, Rules(), read_topology()) as taken:
            found = taken.snapshot.runs
        assert [status(pid, "VmRSS", "VmPTE", "RssAnon", "RssFile", "RssShmem") for pid in made.pids] == before
        assert found.pages() == census(made.pids).total + unmapped(path, made)


@pytest.mark.parametrize("children", [1, 2])
def test_a_huge_page_that_its_parent_has_begun_to_write_is_found_once(made: Job, children: int) -> None:
    memory = made.first.map(2 * HUGE, align=HUGE)
    memory.tell("madvise", MADV_HUGEPAGE)
    memory.write()
    if smaps(made.first.pid, memory.address, "AnonHugePages") != 2 * 2048:
        pytest.skip("no huge pages to be had")
    ranks = made.fork(children)
    memory.write(0, 1, seed=2)
    memory.of(ranks[-1]).write(HUGE + 7, HUGE + 8, seed=3)
    with take(made.pids, Rules(), read_topology()) as taken:
        found = taken.snapshot.runs.pages()
    assert found == census(made.pids).total


def unmapped(path: Path, made: Job) -> int:
    """Return how many pages of a file that is in memory, on a tmpfs, no process has in its page table."""
    device = path.stat().st_dev
    name = f"{os.major(device):02x}:{os.minor(device):02x}"
    if "tmpfs" not in {mount.fstype for mount in read_mountinfo() if mount.device == name}:
        return 0
    return census(made.pids, [(path, 0, 300)]).total - census(made.pids).total


def test_planning_brings_no_page_of_a_file_into_memory(tmp_path: Path) -> None:
    path = Path("/dev/shm") / f"pageferry-test-{os.getpid()}"
    try:
        with path.open("wb") as handle:
            handle.truncate(2000 * PAGE)
        with job() as made:
            made.first.map(2000, path, flags=SHARED).write(100, 103)
            before = residency(path, 2000)
            with take(made.pids, Rules(), read_topology()):
                pass
            assert residency(path, 2000) == before
            assert sum(before) == 3
    finally:
        path.unlink(missing_ok=True)
