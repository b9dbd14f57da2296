"""Which of a job's pages are of large folios, told from the flags of their frames, for what may move.

Where frames are hidden from us nobody can tell, and all pages count as ordinary ones. What follows from it is the
planner's. A move that is to keep huge pages whole needs to know: move_pages(2) moves one whole if its target has a free
one, compacting the node if it must, and splits it if that fails (kernel mm/migrate.c alloc_migration_target(),
migrate_pages()); no flag says otherwise.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pageferry.errors import KernelError
from pageferry.kernel import capabilities, huge_pages
from pageferry.kernel.pageflags import COMPOUND_HEAD, COMPOUND_TAIL, HUGE, flags_of, folio_pages
from pageferry.snapshot import Taken
from pageferry_planner.columns import Bools
from pageferry_planner.folios import Seen, folios, joined, marked, seen
from pageferry_planner.model import Ranges, huge_page


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
    found = joined(Seen.concatenate(list(_seen(taken, rows))))
    unit, torn = found.count.copy(), ~found.whole()
    unit[torn] = folio_pages(found.pfn[torn], taken.snapshot.huge_page)
    return replace(taken, snapshot=marked(taken.snapshot, folios(found, unit)))


def _seen(taken: Taken, rows: Bools) -> Iterator[Seen]:
    runs = taken.snapshot.runs.take(rows)
    ranges = Ranges(runs.process, runs.page, runs.count, runs.backing, runs.index, np.zeros(len(runs), bool))
    for present in taken.tables.entries(ranges):
        entries = present.take(present.pfn != 0)
        last = np.append(np.diff(entries.pfn) != 1, True)[: len(entries)]
        flags = flags_of(np.concatenate([entries.pfn, entries.pfn[last] + 1]))
        flags, following = flags[: len(entries)], flags[len(entries) :]
        tail = (flags & COMPOUND_TAIL) != 0
        after = np.append(tail[1:], False)[: len(entries)]
        after[last] = (following & COMPOUND_TAIL) != 0
        head, hugetlb = (flags & COMPOUND_HEAD) != 0, (flags & HUGE) != 0
        yield seen(ranges.process[entries.row], entries.page, entries.pfn, tail, after, head, hugetlb)
