"""Huge pages that forked processes share: each is asked for through one process that maps all of it.

Once a parent has written to a part of one, it maps the rest page by page, and its children all of it still. A request
for a part moves the whole; and what is to keep its huge pages asks for none of which it does not see the whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pageferry_planner.capacity import HUGE_PAGES
from pageferry_planner.columns import Bools, Columns, Ints
from pageferry_planner.model import Ranges
from pageferry_planner.pages import Entries


@dataclass(frozen=True, slots=True)
class Owners(Columns):
    """Huge pages' frames (`block`: the first, divided by their number; ascending), and a process that maps all of each.

    `shift`: what is to be added to a frame's number for the page that it is there.
    """

    block: Ints
    process: Ints
    shift: Ints


def owners(process: Ints, page: Ints, pfn: Ints) -> Owners:
    """Return the huge pages of which one process maps all frames, one after another, at a huge page's place.

    Columns of present pages, in any order. Of several such processes it is the first.
    """
    order = np.lexsort((page, process))
    process, page, pfn = process[order], page[order], pfn[order]
    whole = _mapped_whole(process, page, pfn)
    block, at = np.unique(pfn[whole] // HUGE_PAGES, return_index=True)
    return Owners(block, process[whole][at], (page - pfn)[whole][at])


def _mapped_whole(process: Ints, page: Ints, pfn: Ints) -> Bools:
    """Return which pages are of a huge page's frames that one process maps all of; in the order of process and page."""
    found = np.zeros(len(page), bool)
    first = np.flatnonzero((page % HUGE_PAGES == 0) & (pfn % HUGE_PAGES == 0))
    first = first[first + HUGE_PAGES <= len(page)]
    rows = first[:, None] + np.arange(HUGE_PAGES)
    for column in (page, pfn):
        rows = rows[(column[rows] - column[rows[:, :1]] == np.arange(HUGE_PAGES)).all(axis=1)]
    rows = rows[(process[rows] == process[rows[:, :1]]).all(axis=1)]
    found[rows.ravel()] = True
    return found


def private(entries: Entries) -> Bools:
    """Return which entries are of forked processes' own memory, and their frame is known."""
    found: Bools = ~entries.file & (entries.pfn != 0)
    return found


def through(ranges: Ranges, entries: Entries, of: Owners) -> Entries:
    """Return the entries without those of a huge page that has an owner, but for the owner's."""
    where = np.minimum(np.searchsorted(of.block, entries.pfn // HUGE_PAGES), max(len(of) - 1, 0))
    if not len(of):
        return entries
    owned = private(entries) & (of.block[where] == entries.pfn // HUGE_PAGES)
    theirs = (of.process[where] == ranges.process[entries.row]) & (of.shift[where] == entries.page - entries.pfn)
    return entries.take(~owned | theirs)
