"""Looking at a job, and moving it, leaves everything else about it as it was."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from guest import rights
from guest.proof import prove_whole, request
from guest.ranks import BIND, HUGE, HUGETLB, INTERLEAVE, MADV_PAGEOUT, READ, SHARED, Job, filled, job
from guest.witness import node_vector, numa_maps, policies, residency, status, swapped, vmstat
from pageferry import ferry

pytestmark = pytest.mark.systemd

SIZES = ("VmRSS", "RssAnon", "RssFile", "RssShmem", "VmSwap", "VmPTE", "VmSize", "VmLck")


def tasks(pid: int) -> list[int]:
    """Return the threads of a process."""
    return sorted(int(task.name) for task in Path(f"/proc/{pid}/task").iterdir())


def state(made: Job) -> list[dict[str, Any]]:
    """Return what must be the same before and after."""
    return [
        {
            **status(rank.pid, *SIZES),
            "policies": policies(rank.pid),
            "pins": {task: os.sched_getaffinity(task) for task in tasks(rank.pid)},
            "pages": numa_maps(rank.pid).total(),
        }
        for rank in made.ranks
    ]


def mixed(made: Job, tmp_path: Path) -> None:
    """Give a job of three ranks memory of many kinds, little of it touched."""
    path = tmp_path / "data"
    with path.open("wb") as file:
        file.truncate(4096 * 4096)
    first = made.first
    shared = first.map(4096, path, flags=SHARED)
    shared.write(7, 9)
    first.map(1 << 18).write(1 << 17, (1 << 17) + 3)
    first.map(1 << 20, prot=READ).read(5, 6)
    anonymous = first.map(2048, flags=SHARED | 0x20).write(100, 200)
    for number, rank in enumerate(made.fork(2)):
        shared.of(rank).write(1000 + 50 * number, 1030 + 50 * number)
        anonymous.of(rank).write(300 + number, 302 + number)


@pytest.fixture
def swap(several_nodes: None) -> Iterator[None]:
    """A swap disk."""
    disk = os.environ["PAGEFERRY_SCRATCH"]
    subprocess.run(["mkswap", disk], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["swapon", disk], check=True)
    yield
    subprocess.run(["swapoff", disk], check=True)


def test_a_plan_changes_nothing_at_all(tmp_path: Path) -> None:
    with job(node=0) as made:
        mixed(made, tmp_path)
        before, resident, counters = state(made), residency(tmp_path / "data", 4096), vmstat()
        rights.plan(made.pids, request(2))
        assert state(made) == before
        assert residency(tmp_path / "data", 4096) == resident
        assert (vmstat() - counters)["pgmigrate_success"] == 0


def test_a_move_leaves_sizes_page_tables_policies_and_pins_as_they_were(tmp_path: Path) -> None:
    with job(node=0) as made:
        mixed(made, tmp_path)
        made.first.ask("threads", 4, 8, [0, 1])
        before, resident = state(made), residency(tmp_path / "data", 4096)
        assert sum(resident) == 2 + 30 + 30
        rights.move(made.pids, request(2))
        assert state(made) == before
        assert residency(tmp_path / "data", 4096) == resident


def test_a_hole_in_a_file_is_not_filled(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with job(node=0) as made:
        memory = made.first.map(1 << 18, path, flags=SHARED)
        memory.write(1 << 17, (1 << 17) + 10)
        blocks = path.stat().st_blocks
        prove_whole(made, 2)
        assert path.stat().st_blocks == blocks == 80


def test_a_file_on_a_disk_is_not_read_in(scratch: Path) -> None:
    path = scratch / "input"
    filled(path, 500)
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("1")
    with job(node=0) as made:
        memory = made.first.map(500, path, prot=READ)
        memory.tell("madvise", 1)  # no read-ahead
        memory.read(0, 1)
        memory.read(250, 251)
        before = residency(path, 500)
        assert 2 <= sum(before) < 100
        counters = vmstat()
        prove_whole(made, 2)
        assert residency(path, 500) == before
        assert (vmstat() - counters)["pgpgin"] == 0


def test_swapped_pages_stay_swapped(swap: None) -> None:
    with job(node=0) as made:
        private = made.first.map(300).write()
        shared = made.first.map(300, made.first.memfd(300), flags=SHARED).write()
        made.fork(2)
        private.write(0, 300, seed=2)
        for memory in (private, shared):
            made.first.ask("madvise", memory.address, 200, MADV_PAGEOUT)
        out = swapped(made.first.pid, *private.span), status(made.first.pid, "VmSwap")["VmSwap"]
        assert out[0] == 200
        before, counters = state(made), vmstat()
        outcome = rights.move(made.pids, request(2))
        counters = vmstat() - counters
        assert counters["pswpin"] == 0
        assert counters["pgmigrate_success"] == outcome.tally.requested
        assert state(made) == before
        assert (swapped(made.first.pid, *private.span), status(made.first.pid, "VmSwap")["VmSwap"]) == out
        assert node_vector(made.first.pid, *private.span) == [-1] * 200 + [2] * 100
        assert sorted(node_vector(made.first.pid, *shared.span)) == [-1] * 200 + [2] * 100


def test_memory_policies_are_left_as_they_are_and_bound_pages_move() -> None:
    with job(node=0) as made:
        bound, spread = made.first.map(100), made.first.map(100)
        bound.tell("mbind", BIND, [0])
        spread.tell("mbind", INTERLEAVE, [0, 1])
        bound.write()
        spread.write()
        made.first.ask("set_mempolicy", BIND, [0, 1])
        before = policies(made.first.pid)
        assert {"bind:0", "interleave:0-1", "bind:0-1"} <= {policy for _, policy in before}
        prove_whole(made, 2)
        assert policies(made.first.pid) == before
        assert node_vector(made.first.pid, *bound.span) == [2] * 100


def test_untouched_huge_pages_are_not_taken_from_the_pool() -> None:
    pool = Path("/sys/devices/system/node/node0/hugepages/hugepages-2048kB")
    (pool / "nr_hugepages").write_text("3")
    try:
        with job(node=0) as made:
            made.first.map(3 * HUGE, flags=SHARED | HUGETLB | 0x20).write(0, HUGE)
            free = (pool / "free_hugepages").read_text()
            rights.plan(made.pids, request(2))
            assert (pool / "free_hugepages").read_text() == free
    finally:
        (pool / "nr_hugepages").write_text("0")


def ours() -> tuple[int, int]:
    """Return how many descriptors and threads we have."""
    return len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))


def ours_around_a_move(pids: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return what we have before and after a move, of which there was one already."""
    ferry.move(pids, request(2))
    before = ours()
    ferry.move(pids, request(3))
    return before, ours()


def test_a_move_leaves_no_descriptor_and_no_thread_of_ours_behind() -> None:
    with job(node=0, ranks=2) as made:
        made.first.map(64, made.first.memfd(64), flags=SHARED).write(0, 10)
        before, after = rights.call(ours_around_a_move, made.pids)
        assert before == after
