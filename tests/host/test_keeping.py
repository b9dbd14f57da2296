"""Which pages of a real process are huge, as the kernel's own count of them says."""

from __future__ import annotations

from guest.ranks import HUGE, MADV_HUGEPAGE, job
from guest.witness import smaps
from pageferry import keeping
from pageferry.kernel.topology import read_topology
from pageferry.snapshot import take
from pageferry_planner.capacity import HUGE_PAGES
from pageferry_planner.huge import cut_huge, whole
from pageferry_planner.policy import Rules


def test_huge_pages_are_told_from_others_and_from_parts_of_some() -> None:
    with job(node=0) as made:
        memory = made.first.map(6 * HUGE, align=HUGE)
        memory.tell("madvise", MADV_HUGEPAGE)
        memory.write()
        made.first.map(3000).write()
        before = smaps(made.first.pid, memory.address, "AnonHugePages")
        assert before == 6 * 2048, "this host has huge pages, and some free"
        made.first.ask("unmap", memory.address + 100 * 4096, 300)
        with take(made.pids, Rules(), read_topology()) as taken:
            snapshot = keeping.marked(taken).snapshot
        assert snapshot.huge is not None
        parts, _, huge = cut_huge(snapshot.runs, snapshot.huge)
        ours = (parts.page >= memory.address // 4096) & (parts.page < memory.address // 4096 + memory.pages)
        assert parts.take(huge & whole(parts) & ours).pages() == 5 * HUGE_PAGES
        assert parts.take(huge & ~whole(parts) & ours).pages() == HUGE_PAGES - 300
        assert parts.take(~huge & ours).pages() == 0
        small = [row for row in range(len(parts)) if not ours[row] and huge[row]]
        assert sum(int(parts.count[row]) for row in small) < HUGE_PAGES, "at most what the host makes huge of its own"
