"""A target without room is found out before anything moves, and nobody is killed for want of memory."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from guest import rights
from guest.proof import prove, request
from guest.ranks import BIND, HUGE, MADV_HUGEPAGE, SHARED, Job, job
from guest.test_huge import in_pool, pool, three, to_node_2
from guest.witness import node_vector, vmstat
from pageferry import ferry
from pageferry.kernel import libnuma
from pageferry_planner.model import Bucket, Target, WhenFull
from pageferry_planner.policy import Rules

FULL = 3
"""The smallest node of every layout."""

LEFT_PAGES = 12288
"""48 MiB: about 20 MiB more than the kernel keeps free for itself there, below which it takes from others."""

NOISE_PAGES = 256
"""What others take or give back meanwhile."""

LISTS_OF_CPUS = Path("/proc/sys/vm/percpu_pagelist_high_fraction")
"""1/N of a zone is the most that CPUs keep in lists of their own, where it is free and is not counted as free; 0: from
Linux 6.7 on as much as they are asked for, which is more than these tests leave free."""


def free_pages(node: int) -> int:
    """Return how many pages of a node are free."""
    text = Path(f"/sys/devices/system/node/node{node}/meminfo").read_text()
    return int(text.split("MemFree:")[1].split()[0]) // 4


def high_watermark(node: int) -> int:
    """Return how many pages of a node the kernel keeps free: below that it reclaims what others use."""
    zones = re.split(r"^Node ", Path("/proc/zoneinfo").read_text(), flags=re.MULTILINE)
    ours = [zone for zone in zones if zone.startswith(f"{node}, ")]
    return sum(int(number) for zone in ours for number in re.findall(r"^ +high +(\d+)$", zone, re.MULTILINE))


@contextmanager
def small_job() -> Iterator[Job]:
    """Start a job of which the kernel cannot reclaim any page, as Linux 6.12 does of files that move to a full node."""
    with job(node=0) as made:
        made.first.ask("lock_all")
        yield made


@contextmanager
def small_lists_of_cpus() -> Iterator[None]:
    """Let CPUs keep next to nothing in lists of their own."""
    before = LISTS_OF_CPUS.read_text()
    LISTS_OF_CPUS.write_text("100000")
    try:
        yield
    finally:
        LISTS_OF_CPUS.write_text(before)


@contextmanager
def ballast(node: int, left_pages: int) -> Iterator[None]:
    """Fill a node with a process's memory, mostly huge pages for speed, until about so many pages are free.

    Page cache there, which counts as room, goes first: what we ourselves map of it elsewhere, the rest nowhere.
    """
    libnuma.migrate_pages(os.getpid(), [node], [0])
    Path("/proc/sys/vm/drop_caches").write_text("1")
    with small_lists_of_cpus(), job(node=0) as made:
        made.first.ask("set_mempolicy", BIND, [node])
        pieces = max(0, (free_pages(node) - left_pages) // HUGE)
        memory = made.first.map(pieces * HUGE, align=HUGE) if pieces else None
        if memory is not None:
            memory.tell("madvise", MADV_HUGEPAGE)
            made.first.ask("write_each", memory.address, HUGE, pieces)
        if (rest := free_pages(node) - left_pages) > 0:
            small = made.first.map(rest)
            made.first.ask("write_each", small.address, 1, rest)
        assert abs(free_pages(node) - left_pages) < 3 * HUGE
        yield


def wanted(*nodes: int, when_full: WhenFull, spill: tuple[int, ...] = ()) -> ferry.Request:
    return replace(
        request(*nodes, rules=Rules(reference_count=False)),
        target=Target(nodes, when_full=when_full, spill=frozenset(spill)),
        reserve_bytes=0,
    )


@pytest.fixture(scope="module")
def full() -> Iterator[None]:
    """Node 3 with little room."""
    before = vmstat()["oom_kill"]
    with ballast(FULL, LEFT_PAGES):
        yield
    assert vmstat()["oom_kill"] == before


def test_what_does_not_fit_is_refused_and_nothing_moves(full: None) -> None:
    with small_job() as made:
        memory = made.first.map(8192).write()
        proof = prove(made, wanted(FULL, when_full=WhenFull.REFUSE))
        assert proof.migrated == proof.outcome.tally.calls == 0
        assert proof.outcome.plan.lacking
        assert proof[Bucket.NO_ROOM] == proof.before.not_on(FULL)
        assert node_vector(made.first.pid, *memory.span) == [0] * 8192
        assert not proof.outcome.complete


def test_of_what_does_not_fit_a_part_moves_if_so_asked(full: None) -> None:
    with small_job() as made:
        memory = made.first.map(8192).write()
        proof = prove(made, wanted(FULL, when_full=WhenFull.PARTIAL))
        assert proof[Bucket.MOVED] > 2048
        assert proof[Bucket.NO_ROOM] > 0
        assert proof[Bucket.NO_ROOM] == proof.before.not_on(FULL) - proof[Bucket.MOVED]
        assert Counter(node_vector(made.first.pid, *memory.span)).keys() <= {0, FULL}
        assert free_pages(FULL) >= high_watermark(FULL) - NOISE_PAGES


def test_what_does_not_fit_goes_to_the_next_nearest_node_if_so_asked(full: None) -> None:
    with small_job() as made:
        memory = made.first.map(8192).write()
        proof = prove(made, wanted(FULL, when_full=WhenFull.SPILL, spill=(1, 2)))
        assert proof[Bucket.NO_ROOM] <= proof.before.on(2)  # those are as near as can be
        assert proof[Bucket.MOVED] == proof.outcome.tally.requested
        nodes = Counter(node_vector(made.first.pid, *memory.span))
        assert nodes.keys() <= {2, FULL}
        assert nodes[2] > 0


def test_nothing_spills_to_a_node_that_was_not_named(full: None) -> None:
    with small_job() as made:
        memory = made.first.map(8192).write()
        prove(made, wanted(FULL, when_full=WhenFull.SPILL, spill=(1,)))
        nodes = Counter(node_vector(made.first.pid, *memory.span))
        assert nodes.keys() <= {1, FULL}
        assert nodes[1] > 0


def test_a_node_that_is_full_after_all_takes_what_it_can_and_nobody_is_killed(full: None) -> None:
    """The plan is made to believe that there is room, as when others took it between plan and move."""
    with small_job() as made:
        memory = made.first.map(16384, made.first.memfd(16384), flags=SHARED).write()
        made.seal()
        before = vmstat()
        with pytest.MonkeyPatch.context() as patch:
            really = ferry.host
            patch.setattr(ferry, "host", lambda topology, *_: replace(really(topology, 0), room={FULL: 1 << 20}))
            outcome = rights.move(made.pids, wanted(FULL, when_full=WhenFull.REFUSE))
        counters = vmstat() - before
        assert counters["oom_kill"] == 0
        assert counters["pgmigrate_success"] == outcome.tally[Bucket.MOVED]
        assert outcome.tally[Bucket.NO_ROOM] > 0
        assert outcome.tally[Bucket.NO_ROOM] + outcome.tally[Bucket.MOVED] == outcome.tally.requested
        nodes = Counter(node_vector(made.first.pid, *memory.span))
        assert nodes.keys() <= {0, FULL}
        assert made.broken() == []


def test_who_takes_the_pools_free_pages_between_plan_and_call_leaves_the_jobs_where_they_are() -> None:
    with pool(node0=3, node2=1):
        with job(node=0) as made, pytest.MonkeyPatch.context() as patch:
            memory = three(made)
            really = ferry.host
            patch.setattr(ferry, "host", lambda *asked: replace(really(*asked), pools={(2, HUGE): 99}))
            outcome = rights.move(made.pids, to_node_2(WhenFull.REFUSE))
            assert Counter(node_vector(made.first.pid, *memory.span)) == {2: HUGE, 0: 2 * HUGE}
            assert outcome.tally[Bucket.NO_HUGE_PAGE] == 2 * HUGE
        assert (in_pool(0), in_pool(2)) == (3, 1)
