"""Keeping huge pages: which of a job's pages are huge, how many free ones its move may count on, and making more.

move_pages(2) moves a huge page whole if its target has a free one, compacting the node if it must, and splits it if
that fails (kernel mm/migrate.c alloc_migration_target(), migrate_pages()); no flag says otherwise. So a move that is to
keep them asks for no more than are free. What is to be done then is the planner's and the mover's.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pageferry.errors import KernelError
from pageferry.kernel import capabilities, huge_pages
from pageferry.kernel.pageflags import huge_pages as huge_frames
from pageferry.snapshot import Taken
from pageferry_planner.capacity import HUGE_PAGES
from pageferry_planner.columns import Ints
from pageferry_planner.huge import table
from pageferry_planner.model import Huge, Ranges
from pageferry_planner.pages import Entries


def require() -> None:
    """Raise KernelError where huge pages cannot be told, or are of another size than a plan is cut by."""
    size = huge_pages.read_huge_page_bytes()
    if size not in {None, HUGE_PAGES * mmap.PAGESIZE}:
        raise KernelError(f"huge pages cannot be kept: they have {size} bytes here, not {HUGE_PAGES * mmap.PAGESIZE}")
    if size is not None and "CAP_SYS_ADMIN" not in capabilities.effective():
        raise KernelError("huge pages cannot be kept without CAP_SYS_ADMIN: which pages are huge is not told")


def marked(taken: Taken) -> Taken:
    """Return what was taken, with what of the job's movable pages is huge. Raises as `require`."""
    require()
    parts = [table(*columns, huge_frames(columns[2], HUGE_PAGES)) for columns in _blocks(taken)]
    return replace(taken, snapshot=replace(taken.snapshot, huge=Huge.concatenate(parts)))


def _blocks(taken: Taken) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Yield process, page and frame of the job's movable pages, so that no part cuts through a huge page's place."""
    runs = taken.snapshot.runs.take(taken.snapshot.movable())
    ranges = Ranges(runs.process, runs.page, runs.count, runs.backing, runs.index, np.zeros(len(runs), bool))
    rest = Entries.empty()
    for read in taken.tables.entries(ranges):
        entries = Entries.concatenate([rest, read])
        process, place = ranges.process[entries.row], entries.page // HUGE_PAGES
        last = (process == process[-1:]) & (place == place[-1:])
        rest, done = entries.take(last), ~last
        yield process[done], entries.page[done], entries.pfn[done]
    yield ranges.process[rest.row], rest.page, rest.pfn
