"""Which of a job's pages are of large folios, told from the flags of their frames, for what may move.

Where frames are hidden from us nobody can tell, and all pages count as ordinary ones. A folio of which processes
outside the job map a part stays: it would go as a whole. What follows from all that is the planner's. A move that is to
keep huge pages whole needs to know: move_pages(2) moves one whole if its target has a free one, compacting the node if
it must, and splits it if that fails (kernel mm/migrate.c alloc_migration_target(), migrate_pages()); no flag says
otherwise.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pageferry.elsewhere import Job, are_elsewhere
from pageferry.errors import KernelError
from pageferry.kernel import capabilities, huge_pages
from pageferry.kernel.pageflags import ANON, COMPOUND_HEAD, COMPOUND_TAIL, HUGE, flags_of, folio_pages
from pageferry.snapshot import Taken
from pageferry_planner.columns import Bools, Ints
from pageferry_planner.folios import Seen, folios, joined, marked, of_backing, seen
from pageferry_planner.model import Ranges, Runs, huge_page
from pageferry_planner.policy import OUTSIDE, Facts, Rules, decide


def require_known() -> None:
    """Raise KernelError where huge pages cannot be told, or are of another size than the planner takes them to be."""
    size, expected = huge_pages.read_huge_page_bytes(), huge_page(mmap.PAGESIZE) * mmap.PAGESIZE
    if size not in {None, expected}:
        raise KernelError(f"huge pages cannot be kept: they have {size} bytes here, not {expected}")
    if size is not None and "CAP_SYS_ADMIN" not in capabilities.effective():
        raise KernelError("huge pages cannot be kept without CAP_SYS_ADMIN: which pages are huge is not told")


def with_folios(taken: Taken, rows: Bools) -> Taken:
    """Return what was taken with large folios told apart, in these of its runs."""
    if "CAP_SYS_ADMIN" not in capabilities.effective():
        return taken
    several: list[Ints] = []
    found = joined(Seen.concatenate(list(_seen(taken, rows, several))))
    unit, torn = found.count.copy(), ~found.whole()
    unit[torn] = folio_pages(found.pfn[torn], taken.snapshot.huge_page)
    known = replace(taken, snapshot=marked(taken.snapshot, folios(found, unit)))
    if taken.job is None:
        return known
    staying = found.take(_elsewhere(taken, taken.job, found, unit, np.concatenate([found.pfn[:0], *several])))
    return _left_alone(known, staying) if len(staying) else known


def _elsewhere(taken: Taken, job: Job, found: Seen, unit: Ints, several: Ints) -> Bools:
    """Return what was seen of folios of which processes outside the job map any page: it would go along.

    `several`: frames that are mapped more than once, although the page table of whoever shows them says once. Of a huge
    page it says of all pages what is true of the first (fs/proc/task_mmu.c pagemap_pmd_range(), but in Linux 6.11 to
    6.14).
    """
    head, torn = found.pfn // unit * unit, ~found.whole() & ~found.hugetlb
    heads, first = np.unique(head[torn], return_index=True)
    frames = _each(heads, unit[torn][first])
    missing = np.setdiff1d(frames, _each(found.pfn[torn], found.count[torn]))
    missing = missing[(taken.tables.mappings(missing) > 0) & ((taken.tables.kinds(missing) & ANON) != 0)]
    frames = np.union1d(missing, several)
    if not len(frames):
        return np.zeros(len(found), bool)
    shown = _times_shown(taken, frames)
    heads = np.unique(head)
    of = heads[np.searchsorted(heads, frames, "right") - 1]

    def of_process(number: int) -> Ints:
        return np.flatnonzero(np.isin(of, head[found.process == number]))

    outside = are_elsewhere(job, frames, shown, of_process, taken.tables)
    return np.isin(head, of[outside])


def _times_shown(taken: Taken, frames: Ints) -> Ints:
    """Return how often the job's page tables show each of these frames, which ascend, as memory of processes."""
    shown = np.zeros(len(frames), np.int64)
    private = taken.snapshot.vmas.take(taken.snapshot.vmas.private)
    for _, entries in taken.tables.stretches(private, lambda every: np.ones(len(every), bool)):
        place = np.searchsorted(frames, entries.pfn)
        place = place[(place < len(frames)) & (frames[np.minimum(place, len(frames) - 1)] == entries.pfn)]
        shown += np.bincount(place, minlength=len(frames))
    return shown


def _left_alone(taken: Taken, parts: Seen) -> Taken:
    """Return what was taken with these parts as memory that processes outside the job map as well."""
    snapshot, facts = taken.snapshot, taken.facts
    if OUTSIDE not in snapshot.backings:
        facts = (*facts, Facts())
        verdict = decide(OUTSIDE, facts[-1], Rules())
        snapshot = replace(snapshot, backings=(*snapshot.backings, OUTSIDE), verdicts=(*snapshot.verdicts, verdict))
    runs = of_backing(snapshot.runs, parts, snapshot.backings.index(OUTSIDE))
    return replace(taken, snapshot=replace(snapshot, runs=runs), facts=facts)


def _each(first: Ints, count: Ints) -> Ints:
    """Return each of the numbers in stretches."""
    return np.repeat(first - np.cumsum(count) + count, count) + np.arange(count.sum())


def _ranges(runs: Runs) -> Ranges:
    return Ranges(runs.process, runs.page, runs.count, runs.backing, runs.index, np.zeros(len(runs), bool))


def _seen(taken: Taken, rows: Bools, several: list[Ints]) -> Iterator[Seen]:
    """Yield what is seen of large folios; add to `several` the frames that are said to be mapped once, and are not."""
    ranges = _ranges(taken.snapshot.runs.take(rows))
    for present in taken.tables.entries(ranges):
        entries = present.take(present.pfn != 0)
        last = np.append(np.diff(entries.pfn) != 1, True)[: len(entries)]
        flags = flags_of(np.concatenate([entries.pfn, entries.pfn[last] + 1]))
        flags, following = flags[: len(entries)], flags[len(entries) :]
        tail = (flags & COMPOUND_TAIL) != 0
        after = np.append(tail[1:], False)[: len(entries)]
        after[last] = (following & COMPOUND_TAIL) != 0
        head, hugetlb = (flags & COMPOUND_HEAD) != 0, (flags & HUGE) != 0
        if taken.job is not None:
            once = entries.pfn[(tail | head) & ~hugetlb & entries.exclusive & ~entries.file]
            several.append(once[taken.tables.mappings(once) > 1])
        yield seen(ranges.process[entries.row], entries.page, entries.pfn, tail, after, head, hugetlb)
