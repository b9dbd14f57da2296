"""Which pages are of large folios: huge pages, and what a kernel of today makes of 16 KiB and more.

A folio moves as a whole, by one address. So what of it a process maps becomes a unit of the runs, and no place of the
planner, or of what carries a plan out, cuts it. One is mapped whole, or in part: the rest unmapped, written to after a
fork, or asked of another carrier. Who looks at page frames is left to the caller.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pageferry_planner.columns import Bools, Columns, Ints
from pageferry_planner.cuts import cut, edges_inside
from pageferry_planner.model import Kind, Runs, Snapshot


@dataclass(frozen=True, slots=True)
class Seen(Columns):
    """What is mapped of one large folio: pages [page, page + count) of a process, in frames from `pfn` on.

    `begins`, `ends`: these are the first, the last frame of the folio. `hugetlb`: it is of a pool.
    """

    process: Ints
    page: Ints
    count: Ints
    pfn: Ints
    begins: Bools
    ends: Bools
    hugetlb: Bools

    def whole(self) -> Bools:
        """Return which folios are mapped whole."""
        return self.begins & self.ends


@dataclass(frozen=True, slots=True)
class Folios(Columns):
    """Pages [page, page + count) of a process that are of large folios; none overlap. The rest is as in Runs."""

    process: Ints
    page: Ints
    count: Ints
    unit: Ints
    kind: Ints
    folio: Ints


def seen(process: Ints, page: Ints, pfn: Ints, tail: Bools, after: Bools, head: Bools, hugetlb: Bools) -> Seen:  # noqa: PLR0917 - columns
    """Return what present pages show of large folios.

    The columns are in the order of process and page. `tail`: the frame belongs to the folio of the one before; `after`:
    the next one to this one's; `head`: a large folio begins here.
    """
    joined = tail[1:] & (process[1:] == process[:-1]) & (np.diff(page) == 1) & (np.diff(pfn) == 1)
    begin = np.flatnonzero(np.append(True, ~joined)[: len(page)])
    count = np.diff(np.append(begin, len(page)))
    large = head[begin] | tail[begin]
    begin, count = begin[large], count[large]
    return Seen(process[begin], page[begin], count, pfn[begin], head[begin], ~after[begin + count - 1], hugetlb[begin])


def joined(parts: Seen) -> Seen:
    """Join what was seen of one folio in several readings."""
    follows = (parts.process[1:] == parts.process[:-1]) & ~parts.begins[1:] & ~parts.ends[:-1]
    follows &= (np.diff(parts.page) == parts.count[:-1]) & (np.diff(parts.pfn) == parts.count[:-1])
    begin = np.flatnonzero(np.append(True, ~follows)[: len(parts)])
    last = np.append(begin[1:], len(parts))[: len(begin)] - 1
    count = parts.page[last] + parts.count[last] - parts.page[begin]
    return replace(parts.take(begin), count=count, ends=parts.ends[last])


def folios(found: Seen, unit: Ints) -> Folios:
    """Return the folios that were seen, alike ones side by side as one row; `unit`: the pages that each has."""
    kind = np.where(found.whole(), np.where(found.hugetlb, Kind.HUGETLB, Kind.FOLIO), Kind.PART).astype(np.int64)
    alike = (found.process[1:] == found.process[:-1]) & (unit[1:] == unit[:-1]) & (kind[1:] == kind[:-1])
    alike &= (np.diff(found.page) == found.count[:-1]) & (kind[1:] != Kind.PART)
    begin = np.flatnonzero(np.append(True, ~alike)[: len(found)])
    last = np.append(begin[1:], len(found))[: len(begin)] - 1
    count = found.page[last] + found.count[last] - found.page[begin]
    folio = _several(np.where(kind == Kind.PART, found.pfn // unit, -1))
    return Folios(found.process[begin], found.page[begin], count, unit[begin], kind[begin], folio[begin])


def marked(snapshot: Snapshot, of: Folios) -> Snapshot:
    """Return the snapshot with its runs cut into ordinary pages and folios; use was not looked at yet.

    A folio that does not lie within one run, since its pages moved while they were read, counts as ordinary pages.
    """
    runs = _side_by_side(snapshot.runs)
    rows, offsets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    by_process = [
        (np.flatnonzero(runs.process == number), of.take(of.process == number)) for number in np.unique(of.process)
    ]
    for mine, theirs in by_process:
        edges = np.unique(np.concatenate([theirs.page, theirs.page + theirs.count]))
        row, offset = edges_inside(runs.page[mine], runs.count[mine], edges)
        rows.append(mine[row])
        offsets.append(offset)
    parts, _ = cut(runs, np.concatenate(rows), np.concatenate(offsets))
    for number in np.unique(of.process).tolist():
        mine, theirs = np.flatnonzero(parts.process == number), of.take(of.process == number)
        theirs = theirs.take(np.argsort(theirs.page))
        place = np.maximum(np.searchsorted(theirs.page, parts.page[mine], "right") - 1, 0)
        into = parts.page[mine] - theirs.page[place]
        step = np.where(theirs.kind[place] == Kind.PART, theirs.count[place], theirs.unit[place])
        fits = (into >= 0) & (into < theirs.count[place]) & (into % step == 0) & (parts.count[mine] % step == 0)
        for name in ("unit", "kind", "folio"):
            getattr(parts, name)[mine[fits]] = getattr(theirs, name)[place[fits]]
    return replace(snapshot, runs=parts, folios=True)


def of_backing(runs: Runs, parts: Seen, backing: int) -> Runs:
    """Return runs of which what was seen of these folios, whole ones or parts as they were marked, is of a backing."""
    rows, offsets = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for number in np.unique(parts.process).tolist():
        mine, theirs = np.flatnonzero(runs.process == number), parts.take(parts.process == number)
        edges = np.unique(np.concatenate([theirs.page, theirs.page + theirs.count]))
        row, offset = edges_inside(runs.page[mine], runs.count[mine], edges)
        rows.append(mine[row])
        offsets.append(offset)
    runs, _ = cut(runs, np.concatenate(rows), np.concatenate(offsets))
    of = runs.backing.copy()
    for number in np.unique(parts.process).tolist():
        mine, theirs = np.flatnonzero(runs.process == number), parts.take(parts.process == number)
        theirs = theirs.take(np.argsort(theirs.page))
        place = np.searchsorted(theirs.page, runs.page[mine], "right") - 1
        inside = (place >= 0) & (runs.page[mine] < (theirs.page + theirs.count)[place])
        of[mine[inside]] = backing
    return replace(runs, backing=of)


def gathered(runs: Runs) -> Runs:
    """Return the runs with all parts of a folio as one, the first of them, which counts them all."""
    several = runs.folio > 0
    if not several.any():
        return runs
    _, first, of = np.unique(runs.folio[several], return_index=True, return_inverse=True)
    rows = np.flatnonzero(several)
    count, kept = runs.count.copy(), ~several
    count[rows[first]] = np.bincount(of, runs.count[several])
    kept[rows[first]] = True
    return replace(runs, count=count).take(kept)


def parted(runs: Runs, parts: Runs) -> tuple[Runs, Ints]:
    """Return gathered runs as the parts that they were made of, and which run each is of."""
    several = np.flatnonzero(runs.folio > 0)
    if not len(several):
        return runs, np.arange(len(runs))
    several = several[np.argsort(runs.folio[several])]
    theirs = parts.take(np.isin(parts.folio, runs.folio[several]))
    of = several[np.searchsorted(runs.folio[several], theirs.folio)]
    single = np.flatnonzero(runs.folio == 0)
    return Runs.concatenate([runs.take(single), theirs]), np.concatenate([single, of])


def _several(key: Ints) -> Ints:
    """Return a number from 1 on for each key that comes several times and is not negative, else 0."""
    _, of, times = np.unique(key, return_inverse=True, return_counts=True)
    number: Ints = np.where((key >= 0) & (times[of] > 1), of + 1, 0)
    return number


def _side_by_side(runs: Runs) -> Runs:
    """Join runs that lie side by side, as of two mappings between which a folio may lie; all are of ordinary pages."""
    runs = runs.take(np.lexsort((runs.page, runs.process)))
    follows = np.diff(runs.page) == runs.count[:-1]
    for column in (runs.process, runs.node, runs.backing, runs.page - runs.index):
        follows &= column[1:] == column[:-1]
    begin = np.flatnonzero(np.append(True, ~follows)[: len(runs)])
    last = np.append(begin[1:], len(runs))[: len(begin)] - 1
    count = runs.page[last] + runs.count[last] - runs.page[begin]
    return replace(runs.take(begin), count=count)
