"""What must hold of watching real processes: what they read meanwhile is told from what they did not."""

from __future__ import annotations

import numpy as np
import pytest

from guest.ranks import SHARED, Job, Memory, job
from guest.witness import census
from pageferry import hotness
from pageferry.hotness import Means
from pageferry.kernel.topology import read_topology
from pageferry.snapshot import take
from pageferry_planner.model import Snapshot
from pageferry_planner.policy import Rules

PAGES = 1 << 13
"""More than a processor remembers of page tables, so that it has to look, and to mark, again."""


def seen(made: Job, monkeypatch: pytest.MonkeyPatch, *read: Memory) -> Snapshot:
    """Return the snapshot of a job that reads this while it is watched."""

    def reads(_seconds: float) -> None:
        for memory in read:
            memory.read(0, PAGES)

    monkeypatch.setattr(hotness, "pause", reads)
    with take(made.pids, Rules(), read_topology()) as taken:
        return hotness.watched(taken, 1.0).snapshot


def used(snapshot: Snapshot, number: int, memory: Memory) -> int:
    """Return how many pages of a process's memory were used, as the snapshot says."""
    assert snapshot.referenced is not None
    runs = snapshot.runs
    inside = (runs.process == number) & (runs.page >= memory.address // 4096)
    inside &= runs.page < memory.address // 4096 + PAGES
    assert int(runs.count[inside].sum()) == PAGES, "no run reaches beyond the mapping"
    return int(snapshot.referenced[inside].sum())


def apart(made: Job, number: int) -> Memory:
    """Have memory that the kernel does not join with the mapping beside it."""
    rank = made.ranks[number]
    memory = rank.map(PAGES + 1)
    rank.ask("mprotect", memory.address + PAGES * 4096, 1, 0)
    return memory.write(0, PAGES)


@pytest.mark.skipif(hotness.means() is Means.NONE, reason="this kernel tells nothing of use")
def test_what_was_read_is_told_from_what_was_not_and_nothing_else_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    with job() as made:
        hot, cold = apart(made, 0), apart(made, 0)
        before = census(made.pids)
        snapshot = seen(made, monkeypatch, hot)
        assert used(snapshot, 0, hot) > PAGES // 2
        assert used(snapshot, 0, cold) == 0
        assert np.isin(before.pfn, census(made.pids).pfn).all()


@pytest.mark.skipif(hotness.means() is Means.NONE, reason="this kernel tells nothing of use")
def test_shared_memory_that_one_of_two_reads_is_half_as_hot_as_if_both_did(monkeypatch: pytest.MonkeyPatch) -> None:
    with job() as made:
        path = made.first.memfd(PAGES)
        (other,) = made.fork()
        ours = made.first.map(PAGES, path, flags=SHARED).write()
        theirs = other.map(PAGES, path, flags=SHARED).read()
        one = used(seen(made, monkeypatch, ours), 0, ours)
        both = used(seen(made, monkeypatch, ours, theirs), 0, ours)
        assert 0 < one <= PAGES // 2 + 1
        assert one < both <= PAGES
