"""Huge pages move whole, one request each, and are huge afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guest.proof import prove_whole
from guest.ranks import HUGE, HUGETLB, MADV_HUGEPAGE, PRIVATE, SHARED, job
from guest.witness import node_vector, smaps, vmstat

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


def test_hugetlb_memory_finds_room_on_a_target_whose_pool_is_empty() -> None:
    with pool(node0=3, node2=1), job(node=0) as made:
        memory = made.first.map(3 * HUGE, flags=SHARED | HUGETLB | 0x20).write()
        prove_whole(made, 2)
        assert node_vector(made.first.pid, *memory.span) == [2] * 3 * HUGE
