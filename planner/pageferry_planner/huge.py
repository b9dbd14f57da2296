"""Which pages are of transparent huge pages, for a move that must not split any.

One that an address space maps whole, at an address that is a multiple of its size, can move whole. Of what is mapped
only in part (the rest unmapped, or written to after a fork) or across such an address, a request would be for a part of
a huge page that others may map whole, or that the kernel means to split (a folio on its deferred list, which newer
kernels split before they migrate it): it stays.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from pageferry_planner.capacity import HUGE_PAGES
from pageferry_planner.columns import Bools, Ints
from pageferry_planner.heat import cut
from pageferry_planner.model import Huge, Runs


def mapped_whole(process: Ints, page: Ints, pfn: Ints, huge: Bools) -> Bools:
    """Return which pages are of a huge page that its process maps whole.

    Columns of present pages, in the order of process and page, and of any length: what is cut off at either end is not
    whole. `huge`: which frames are of huge pages.
    """
    found = np.zeros(len(page), bool)
    first = np.flatnonzero(huge & (page % HUGE_PAGES == 0) & (pfn % HUGE_PAGES == 0))
    first = first[first + HUGE_PAGES <= len(page)]
    rows = first[:, None] + np.arange(HUGE_PAGES)
    for column in (page, pfn):
        rows = rows[(column[rows] - column[rows[:, :1]] == np.arange(HUGE_PAGES)).all(axis=1)]
    rows = rows[(process[rows] == process[rows[:, :1]]).all(axis=1)]
    found[rows.ravel()] = True
    return found


def table(process: Ints, page: Ints, pfn: Ints, huge: Bools) -> Huge:
    """Return the huge pages among present pages: those that are mapped whole, and parts of others, apart.

    The columns are those of `mapped_whole`.
    """
    whole_page = mapped_whole(process, page, pfn, huge)[huge]
    process, page, pfn = process[huge], page[huge], pfn[huge]
    follows = (process[1:] == process[:-1]) & (np.diff(page) == 1) & (whole_page[1:] == whole_page[:-1])
    follows &= whole_page[1:] | (pfn[1:] // HUGE_PAGES == pfn[:-1] // HUGE_PAGES)
    begin = np.flatnonzero(np.append(True, ~follows)[: len(page)])
    return Huge(process[begin], page[begin], np.diff(np.append(begin, len(page))))


def cut_huge(runs: Runs, huge: Huge) -> tuple[Runs, Ints, Bools]:
    """Return the runs cut around what of them is huge, which run each part is of, and which parts are huge.

    A run that begins or ends inside a huge page is cut where the next one begins or the last one ends, too.
    """
    rows, offsets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for of_runs, begin, end in _spaces(runs, huge):
        at = runs.page[of_runs]
        aligned = np.concatenate([-(-at // HUGE_PAGES), (at + runs.count[of_runs]) // HUGE_PAGES]) * HUGE_PAGES
        edges = np.unique(np.concatenate([begin, end, aligned[_inside(aligned, begin, end)]]))
        first = np.searchsorted(edges, at, "right")
        inside = np.maximum(np.searchsorted(edges, at + runs.count[of_runs]) - first, 0)
        which = np.arange(inside.sum()) + np.repeat(first - np.cumsum(inside) + inside, inside)
        rows.append(np.repeat(of_runs, inside))
        offsets.append(edges[which] - np.repeat(at, inside))
    parts, of = cut(runs, np.concatenate(rows), np.concatenate(offsets))
    found = np.zeros(len(parts), bool)
    for of_parts, begin, end in _spaces(parts, huge):
        found[of_parts] = _inside(parts.page[of_parts], begin, end)
    return parts, of, found


def whole(runs: Runs) -> Bools:
    """Return which of the huge parts that `cut_huge` returned are of whole huge pages."""
    aligned: Bools = (runs.page % HUGE_PAGES == 0) & (runs.count % HUGE_PAGES == 0)
    return aligned


def _spaces(runs: Runs, huge: Huge) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Yield for each process with huge pages: the rows of its runs, and where its rows of `huge` begin and end."""
    for process in np.unique(huge.process).tolist():
        mine = huge.take(huge.process == process)
        mine = mine.take(np.argsort(mine.page))
        yield np.flatnonzero(runs.process == process), mine.page, mine.page + mine.count


def _inside(page: Ints, begin: Ints, end: Ints) -> Bools:
    found: Bools = page < np.append(-1, end)[np.searchsorted(begin, page, "right")]
    return found
