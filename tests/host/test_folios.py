"""Which pages of a real process are of large folios, as the kernel's own count of them says."""

from __future__ import annotations

from guest.ranks import HUGE, MADV_HUGEPAGE, job
from guest.witness import smaps
from pageferry import folios
from pageferry.kernel.topology import read_topology
from pageferry.snapshot import take
from pageferry_planner.model import Kind
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
            runs = folios.with_folios(taken, taken.snapshot.movable()).snapshot.runs
        ours = runs.take((runs.page >= memory.address // 4096) & (runs.page < memory.address // 4096 + memory.pages))
        assert (ours.unit == HUGE).all()
        assert ours.take(ours.kind == Kind.FOLIO).pages() == 5 * HUGE
        assert ours.take(ours.kind == Kind.PART).count.tolist() == [100, HUGE - 400]
        assert runs.take(runs.unit == 1).pages() > 2000
