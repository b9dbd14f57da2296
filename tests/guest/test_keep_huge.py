"""Huge pages that are to be kept are never split: where the target has much memory free, but few huge pages, they stay.

The target is fragmented for real: nearly every huge page's place has a page in it. No allocation compacts it by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from guest import rights
from guest.proof import prove, request
from guest.ranks import BIND, HUGE, MADV_HUGEPAGE, MADV_POPULATE_WRITE, Job, Memory, Rank, job
from guest.witness import node_vector, smaps, vmstat
from pageferry import ferry, mover
from pageferry_planner.model import Bucket, HugePages, Target, WhenFull
from pageferry_planner.policy import Rules

NODE = 3
"""The smallest one; node 2 is the nearest to it."""

LEFT_PAGES = 12288
"""48 MiB, more than the kernel keeps free for itself there, below which it takes from others."""

EXTFRAG_THRESHOLD = Path("/proc/sys/vm/extfrag_threshold")
"""Only what is more fragmented is compacted when somebody wants a large block; 1000 is the most that there is."""

FREE = 4
"""Free huge pages of the node, when the tests begin."""

MANY = 24
"""More than that, what CPUs have in their own lists, and what the kernel can reclaim."""


def free_blocks(node: int) -> list[int]:
    """Return the free blocks of a node by order, as /proc/buddyinfo has them."""
    zones = [line.split() for line in Path("/proc/buddyinfo").read_text().splitlines()]
    counts = [map(int, zone[4:]) for zone in zones if zone[1] == f"{node},"]
    return [sum(order) for order in zip(*counts, strict=True)]


def free_huge_pages(node: int) -> int:
    blocks = free_blocks(node)
    return blocks[9] + 2 * blocks[10]


def free_pages(node: int) -> int:
    return sum(count << order for order, count in enumerate(free_blocks(node)))


def huge(rank: Rank, count: int) -> Memory:
    """Map memory that is huge pages, where the kernel has some free."""
    memory = rank.map(count * HUGE, align=HUGE)
    memory.tell("madvise", MADV_HUGEPAGE)
    return memory


@pytest.fixture(scope="module")
def torn() -> Iterator[Rank]:
    """Node 3 with much memory free, and FREE huge pages; the process that has the others."""
    Path("/proc/sys/vm/drop_caches").write_text("1")
    before = EXTFRAG_THRESHOLD.read_text()
    EXTFRAG_THRESHOLD.write_text("1000")
    with job(node=0) as made:
        rank = made.first
        rank.ask("set_mempolicy", BIND, [NODE])
        count = (free_pages(NODE) - LEFT_PAGES) // HUGE
        memory = rank.map(count * HUGE)
        memory.tell("madvise", MADV_POPULATE_WRITE)
        rank.ask("leave_each", memory.address, HUGE, count)
        take(rank, free_huge_pages(NODE) - FREE)
        assert free_pages(NODE) > 200 * HUGE
        yield rank
    EXTFRAG_THRESHOLD.write_text(before)


def take(rank: Rank, count: int) -> Memory:
    """Have a process take so many huge pages."""
    memory = huge(rank, max(count, 1))
    rank.ask("write_each", memory.address, HUGE, count)
    return memory


@pytest.fixture
def compacted(monkeypatch: pytest.MonkeyPatch) -> rights.Notes:
    """Which nodes were to be compacted; none is, so that each page that moves was asked for."""
    asked = rights.Notes()

    def note(nodes: Iterable[int]) -> None:
        asked.append(set(nodes))

    monkeypatch.setattr(ferry, "compact", note)
    return asked


def wanted(node: int, huge_pages: HugePages, when_full: WhenFull = WhenFull.REFUSE) -> ferry.Request:
    target = Target((node,), when_full=when_full, spill=frozenset({2}), huge_pages=huge_pages)
    return replace(request(node, rules=Rules(reference_count=False)), target=target, reserve_bytes=0)


def filled(made: Job, count: int) -> Memory:
    memory = huge(made.first, count)
    memory.write()
    assert smaps(made.first.pid, memory.address, "AnonHugePages") == count * 2048
    return memory


def splits(counters: Counter[str]) -> int:
    """Return how many huge pages migration has split; who reclaims memory may split others."""
    return counters["thp_migration_split"]


def test_huge_pages_that_are_kept_move_as_long_as_there_are_free_ones_and_all_else_moves(
    torn: Rank, compacted: rights.Notes
) -> None:
    with job(node=0) as made:
        memory, small = filled(made, MANY), made.first.map(1000).write()
        free = free_huge_pages(NODE)
        assert 0 < free < MANY
        before = vmstat()
        proof = prove(made, wanted(NODE, HugePages.KEEP))
        assert splits(vmstat() - before) == 0
        assert smaps(made.first.pid, memory.address, "AnonHugePages") == memory.pages * 4
        assert proof.outcome.tally.split == 0
        nodes = Counter(node_vector(made.first.pid, *memory.span))
        assert (free - 1) * HUGE <= nodes[NODE] < memory.pages, "a few more come back from lists of CPUs meanwhile"
        assert nodes == {NODE: nodes[NODE], 0: memory.pages - nodes[NODE]}
        assert proof[Bucket.NO_HUGE_PAGE] == nodes[0]
        assert proof.before.not_on(NODE) == proof[Bucket.MOVED] + proof[Bucket.NO_HUGE_PAGE]
        assert node_vector(made.first.pid, *small.span) == [NODE] * 1000
        assert not proof.outcome.complete
        assert compacted.read() == [{NODE}]


@pytest.mark.long
def test_the_kernel_splits_huge_pages_whose_target_has_none_free(torn: Rank) -> None:
    with job(node=0) as made:
        memory = filled(made, MANY)  # all of it: what is zero goes when it is split (Linux 6.12)
        before = vmstat()
        outcome = rights.move(made.pids, wanted(NODE, HugePages.SPLIT))
        after = vmstat() - before
        assert outcome.complete
        assert node_vector(made.first.pid, *memory.span) == [NODE] * memory.pages
        assert after["thp_migration_split"] > 0
        assert smaps(made.first.pid, memory.address, "AnonHugePages") < memory.pages * 4


@pytest.mark.long
def test_a_huge_page_without_a_free_one_spills_whole_to_the_next_nearest_node(
    torn: Rank, compacted: rights.Notes
) -> None:
    with job(node=0) as made:
        memory = filled(made, MANY)
        free = free_huge_pages(NODE)
        before = vmstat()
        outcome = rights.move(made.pids, wanted(NODE, HugePages.KEEP, WhenFull.SPILL))
        assert splits(vmstat() - before) == 0
        assert smaps(made.first.pid, memory.address, "AnonHugePages") == memory.pages * 4
        nodes = Counter(node_vector(made.first.pid, *memory.span))
        assert (free - 1) * HUGE <= nodes[NODE] < memory.pages
        assert nodes == +Counter({NODE: nodes[NODE], 2: memory.pages - nodes[NODE]})
        assert outcome.tally[Bucket.NO_HUGE_PAGE] == 0


def test_who_takes_the_free_ones_between_plan_and_move_leaves_huge_pages_where_they_are(
    torn: Rank, compacted: rights.Notes
) -> None:
    with job(node=0) as made:
        memory = filled(made, 2)
        before, taken = vmstat(), rights.Notes()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ferry, "read_free_huge_pages", lambda: {NODE: 100})
            really = mover.carry

            def late(*arguments: object) -> object:
                while free := free_huge_pages(NODE):
                    more = take(torn, free)
                    taken.append((more.address, more.pages))
                return really(*arguments)  # type: ignore[arg-type]

            patch.setattr(ferry, "carry", late)
            outcome = rights.move(made.pids, wanted(NODE, HugePages.KEEP))  # others' pages are reclaimed meanwhile
        assert splits(vmstat() - before) == 0
        assert outcome.tally[Bucket.NO_HUGE_PAGE] == memory.pages
        for address, pages in taken.read():
            torn.ask("unmap", address, pages)
        assert smaps(made.first.pid, memory.address, "AnonHugePages") == memory.pages * 4


def test_a_target_with_too_few_is_compacted_first_and_none_is_split_for_that(torn: Rank) -> None:
    with job(node=0) as made:
        memory = filled(made, free_huge_pages(NODE) + 5)
        before, free = vmstat(), free_huge_pages(NODE)
        outcome = rights.move(made.pids, wanted(NODE, HugePages.KEEP))
        after = vmstat() - before
        assert after["compact_migrate_scanned"] > 0
        assert splits(after) == 0
        nodes = Counter(node_vector(made.first.pid, *memory.span))
        assert nodes[NODE] >= (free - 1) * HUGE
        assert outcome.tally[Bucket.NO_HUGE_PAGE] == nodes[0]
        assert smaps(made.first.pid, memory.address, "AnonHugePages") == memory.pages * 4


def test_a_huge_page_that_a_parent_maps_in_part_moves_whole_through_a_child(compacted: rights.Notes) -> None:
    with job(node=0) as made:
        memory = filled(made, 2)
        children = made.fork(2)
        memory.write(0, 1, seed=5)  # the parent has a page of its own now, and maps the rest of the first in parts
        before = vmstat()
        proof = prove(made, wanted(2, HugePages.KEEP))
        assert splits(vmstat() - before) == 0
        for child in children:
            assert smaps(child.pid, memory.address, "AnonHugePages") == 2 * 2048
            assert node_vector(child.pid, *memory.span) == [2] * 2 * HUGE
        assert proof[Bucket.NO_HUGE_PAGE] == 0
