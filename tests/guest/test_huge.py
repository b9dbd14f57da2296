"""Huge pages move whole, one request each, and are huge afterwards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from guest import rights
from guest.proof import prove, prove_whole, request
from guest.ranks import HUGE, HUGETLB, MADV_HUGEPAGE, PRIVATE, SHARED, Job, Memory, job
from guest.witness import node_vector, smaps, vmstat
from pageferry import elsewhere, ferry
from pageferry.kernel.hugetlb import Pool
from pageferry_planner.model import Bucket, Target, WhenFull

pytestmark = pytest.mark.systemd

SHMEM_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


@contextmanager
def pool(**pages_of_node: int) -> Iterator[None]:
    """Reserve huge pages on nodes: pool(node0=4, node2=4)."""
    paths = {
        Path(f"/sys/devices/system/node/{node}/hugepages/hugepages-2048kB/nr_hugepages"): pages
        for node, pages in pages_of_node.items()
    }
    try:
        for path, pages in paths.items():
            path.write_text(str(pages))
            assert int(path.read_text()) == pages
        yield
    finally:
        for path in paths:
            path.write_text("0")


@pytest.fixture
def huge_shmem() -> Iterator[None]:
    """Let shared memory be huge where it is advised."""
    SHMEM_ENABLED.write_text("advise")
    yield
    SHMEM_ENABLED.write_text("never")


def test_transparent_huge_pages_of_a_process_move_whole_and_stay_huge() -> None:
    with job(node=0) as made:
        memory = made.first.map(4 * HUGE, align=HUGE)
        memory.tell("madvise", MADV_HUGEPAGE)
        memory.write()
        assert smaps(made.first.pid, memory.address, "AnonHugePages") == 4 * 2048
        before = vmstat()
        proof = prove_whole(made, 2)
        assert (vmstat() - before)["thp_migration_split"] == 0
        assert smaps(made.first.pid, memory.address, "AnonHugePages") == 4 * 2048
        assert node_vector(made.first.pid, *memory.span) == [2] * 4 * HUGE
        tally = proof.outcome.tally
        assert tally.addresses <= tally.requested - 4 * (HUGE - 1)


@pytest.mark.parametrize("children", [1, 2])
def test_huge_pages_that_forked_processes_share_are_asked_for_once(children: int) -> None:
    with job(node=0) as made:
        memory = made.first.map(2 * HUGE, align=HUGE)
        memory.tell("madvise", MADV_HUGEPAGE)
        memory.write()
        made.fork(children)
        memory.write(0, 1, seed=5)  # splits what it maps of the first, and has the rest with its children
        tally = prove_whole(made, 2).outcome.tally
        assert tally.addresses <= tally.requested - 2 * (HUGE - 1)
        for rank in made.ranks:
            assert node_vector(rank.pid, *memory.span) == [2] * 2 * HUGE
        assert smaps(made.ranks[-1].pid, memory.address, "AnonHugePages") == 2 * 2048


def test_a_huge_page_of_which_a_part_was_unmapped_moves() -> None:
    with job(node=0) as made:
        memory = made.first.map(2 * HUGE, align=HUGE)
        memory.tell("madvise", MADV_HUGEPAGE)
        for lo, hi in ((0, 100), (100, HUGE), (HUGE, HUGE + 100), (HUGE + 100, 2 * HUGE)):
            memory.write(lo, hi)
        made.first.ask("unmap", memory.address + 100 * 4096, HUGE)
        prove_whole(made, 2, unmapped=HUGE)
        start, end = memory.span
        assert node_vector(made.first.pid, start, start + 100 * 4096) == [2] * 100
        assert node_vector(made.first.pid, start + (100 + HUGE) * 4096, end) == [2] * (HUGE - 100)


@pytest.mark.parametrize("copied", [0, 10])
@pytest.mark.parametrize("theirs", [(0, 100), (100, HUGE)])
def test_a_huge_page_of_which_a_process_outside_maps_a_part_stays(
    theirs: tuple[int, int], copied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "SINCE_SECONDS", -1)  # as if both had been there long before
    lo, hi = theirs
    with job(node=0) as made:
        memory = made.first.map(2 * HUGE, align=HUGE)
        memory.tell("madvise", MADV_HUGEPAGE)
        memory.write()
        (other,) = made.fork()
        for first, last in ((0, lo), (hi, 2 * HUGE)):
            if first < last:
                other.ask("unmap", memory.address + first * 4096, last - first)
        if copied:
            memory.write(lo, lo + copied, seed=5)
        outcome = rights.move((made.first.pid,), request(2))
        start = memory.address
        assert node_vector(other.pid, start + lo * 4096, start + hi * 4096) == [0] * (hi - lo)
        first_one = [0] * lo + [2] * copied + [0] * (HUGE - lo - copied)
        assert node_vector(made.first.pid, *memory.span) == first_one + [2] * HUGE
        assert outcome.complete
        assert outcome.tally.excluded["reference-count"] >= HUGE - copied


def test_huge_pages_of_shared_memory_move_whole_and_stay_huge(huge_shmem: None) -> None:
    with job(node=0) as made:
        memory = made.first.map(2 * HUGE, made.first.memfd(2 * HUGE), flags=SHARED, align=HUGE)
        memory.tell("madvise", MADV_HUGEPAGE)
        memory.write()
        assert smaps(made.first.pid, memory.address, "ShmemPmdMapped") == 2 * 2048
        ranks = made.fork(2)
        memory.of(ranks[0]).read()
        proof = prove_whole(made, 2)
        assert node_vector(made.first.pid, *memory.span) == [2] * 2 * HUGE
        assert smaps(made.first.pid, memory.address, "ShmemPmdMapped") == 2 * 2048
        assert proof.outcome.tally.addresses <= proof.outcome.tally.requested - 2 * (HUGE - 1)


def test_hugetlb_memory_that_ranks_share_is_asked_for_once() -> None:
    with pool(node0=3, node2=3), job(node=0) as made:
        memory = made.first.map(3 * HUGE, flags=SHARED | HUGETLB | 0x20).write()
        for rank in made.fork(2):
            memory.of(rank).read(0, HUGE)
        proof = prove_whole(made, 2)
        assert node_vector(made.first.pid, *memory.span) == [2] * 3 * HUGE
        tally = proof.outcome.tally
        assert tally.addresses <= tally.requested - 3 * (HUGE - 1)


def test_hugetlb_memory_of_a_file_that_its_carrier_has_not_touched_arrives() -> None:
    path = Path("/dev/hugepages/segment")
    with pool(node0=4, node2=4), job(node=0) as made:
        try:
            path.touch()
            with path.open("r+b") as file:
                file.truncate(4 * HUGE * 4096)
            memory = made.first.map(4 * HUGE, path, flags=SHARED)
            one, two = made.fork(2)
            memory.of(one).write(0, HUGE)
            memory.of(two).write(HUGE, 3 * HUGE)
            prove_whole(made, 2)
            assert node_vector(one.pid, *memory.span) == [2] * HUGE + [-1] * 3 * HUGE
            assert node_vector(two.pid, *memory.span) == [-1] * HUGE + [2] * 2 * HUGE + [-1] * HUGE
        finally:
            path.unlink()


def test_private_hugetlb_memory_moves_parent_and_child() -> None:
    with pool(node0=5, node2=5), job(node=0) as made:
        memory = made.first.map(2 * HUGE, flags=PRIVATE | HUGETLB | 0x20).write()
        (child,) = made.fork()
        memory.of(child).write(0, HUGE, seed=4)
        prove_whole(made, 2)
        for rank in made.ranks:
            assert node_vector(rank.pid, *memory.span) == [2] * 2 * HUGE


def in_pool(node: int) -> int:
    """Return how many hugetlb pages a node's pool has, free or not."""
    return int(Path(f"/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/nr_hugepages").read_text())


def three(made: Job) -> Memory:
    return made.first.map(3 * HUGE, flags=SHARED | HUGETLB | 0x20).write()


def to_node_2(when_full: WhenFull, *, surplus: bool = False) -> ferry.Request:
    target = Target((2,), when_full=when_full, hugetlb_surplus=surplus, spill=frozenset({3}))
    return replace(request(2), target=target)


def test_what_the_pool_has_no_room_for_is_refused_before_anything_is_asked() -> None:
    with pool(node0=3, node2=2), job(node=0) as made:
        memory = three(made)
        proof = prove(made, to_node_2(WhenFull.REFUSE))
        assert (proof.migrated, proof.outcome.tally.calls) == (0, 0)
        assert proof.outcome.plan.lacking == {2: HUGE}
        assert proof.outcome.plan.pool_need == {(2, HUGE): 3}
        assert node_vector(made.first.pid, *memory.span) == [0] * 3 * HUGE


@pytest.mark.parametrize("free", [0, 2, 3])
def test_as_many_as_the_pool_has_free_move_and_the_pools_are_as_before_when_the_job_has_ended(free: int) -> None:
    with pool(node0=3, node2=free):
        with job(node=0) as made:
            memory = three(made)
            proof = prove(made, to_node_2(WhenFull.PARTIAL))
            assert Counter(node_vector(made.first.pid, *memory.span)) == +Counter(
                {2: free * HUGE, 0: (3 - free) * HUGE}
            )
            assert proof[Bucket.NO_HUGE_PAGE] == (3 - free) * HUGE
            assert proof[Bucket.MOVED] == proof.outcome.tally.requested
            before, after = proof.outcome.pools
            assert before[0] == {2 << 20: Pool(3, 0)}
            assert after[0] == {2 << 20: Pool(3, free)}
            assert after.get(2, {2 << 20: Pool(0, 0)}) == {2 << 20: Pool(free, 0)}
        assert (in_pool(0), in_pool(2)) == (3, free)


def test_hugetlb_pages_spill_whole_to_the_next_nearest_node_whose_pool_has_some() -> None:
    with pool(node0=3, node2=1, node3=2), job(node=0) as made:
        memory = three(made)
        prove(made, to_node_2(WhenFull.SPILL))
        assert Counter(node_vector(made.first.pid, *memory.span)) == {2: HUGE, 3: 2 * HUGE}


def test_surplus_pages_change_the_pools_and_only_where_that_was_asked_for() -> None:
    with pool(node0=3, node2=1):
        with job(node=0) as made:
            memory = three(made)
            proof = prove(made, to_node_2(WhenFull.REFUSE, surplus=True))
            assert proof.outcome.complete
            assert node_vector(made.first.pid, *memory.span) == [2] * 3 * HUGE
        assert (in_pool(0), in_pool(2)) == (1, 3), "what was taken of no pool was given back to none"
        assert proof.outcome.pools[1] == {0: {2 << 20: Pool(1, 1)}, 2: {2 << 20: Pool(3, 0)}}


def test_pages_that_a_mapping_has_reserved_are_not_taken_from_it() -> None:
    with pool(node0=3, node2=2), job(node=0) as made:
        three(made)
        other = made.first.map(2 * HUGE, flags=SHARED | HUGETLB | 0x20)  # not touched yet
        outcome = rights.move(made.pids, to_node_2(WhenFull.PARTIAL))
        assert outcome.tally[Bucket.NO_HUGE_PAGE] == 3 * HUGE
        other.write()
        assert (in_pool(0), in_pool(2)) == (3, 2)
