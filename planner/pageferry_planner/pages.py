"""Page-table entries → runs of unique resident pages; and what of a backing no carrier has shown.

A page that several address spaces map is one page. Most are unique by construction: a shared range is read through its
one carrier, and an entry with the exclusive bit is nobody else's (but for a huge page's: `shared_huge`). The rest is
told apart by its place in its backing (page cache seen through private mappings) or by its page frame (copy-on-write
memory of forked processes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pageferry_planner.columns import Bools, Columns, Ints
from pageferry_planner.model import ANONYMOUS, Ranges, Runs
from pageferry_planner.sharing import Sharing


@dataclass(frozen=True, slots=True)
class Entries(Columns):
    """Present page-table entries, one row each, as read of ranges.

    `row`: which range; `page`: virtual page number; `node`: where the page is; `pfn`: its frame, 0 where not known;
    `file`: page cache or shared memory (pagemap bit 61); `exclusive`: mapped once (bit 56).
    """

    row: Ints
    page: Ints
    node: Ints
    pfn: Ints
    file: Bools
    exclusive: Bools

    @property
    def count(self) -> Ints:
        """One page each, as Stretches has it."""
        return np.ones(len(self.page), np.int64)


@dataclass(frozen=True, slots=True)
class Stretches(Columns):
    """Present page-table entries as Entries has them, joined where they follow one another in one range and are alike.

    `count`: how many pages, on one node and with the same bits; `pfn`: the frame of the first, 0 where not known.
    """

    row: Ints
    page: Ints
    count: Ints
    node: Ints
    pfn: Ints
    file: Bools
    exclusive: Bools


def doubtful(sharing: Sharing, ranges: Ranges, entries: Entries | Stretches) -> Bools:
    """Return which entries may show a page that another entry shows too.

    Without page frames (pfn 0), copy-on-write memory cannot be told apart and counts as each process's own.
    """
    backing = ranges.backing[entries.row]
    in_file = entries.file & (backing != ANONYMOUS)
    twice_seen: Bools = (in_file & sharing.contested[backing]) | (~in_file & ~entries.exclusive & (entries.pfn != 0))
    return twice_seen


def kernels_own(ranges: Ranges, entries: Entries | Stretches) -> Bools:
    """Return which entries show a page of the kernel's: in a mapping of no object, a page that is not anonymous.

    Trampolines and the like (install_special_mapping()) look like memory of the process but for that.
    """
    found: Bools = entries.file & (ranges.backing[entries.row] == ANONYMOUS)
    return found


@dataclass(frozen=True, slots=True)
class Sightings(Columns):
    """Frames that may be anonymous memory of several processes, ascending, and how many mappings of each were seen."""

    frame: Ints
    shown: Ints


def sightings(entries: Entries) -> Sightings:
    """Return what entries show of pages that are neither a file's nor exclusive, and whose frame is known."""
    frames = np.sort(entries.pfn[~entries.file & ~entries.exclusive & (entries.pfn != 0)])
    first = np.flatnonzero(np.append(True, frames[1:] != frames[:-1])[: len(frames)])
    return Sightings(frames[first], np.diff(np.append(first, len(frames))))


def first_of_each(ranges: Ranges, entries: Entries) -> Entries:
    """Return the entries without those that show a page which an earlier entry shows, in the order given.

    Entries of no file whose page frame is not known are all kept.
    """
    backing = ranges.backing[entries.row]
    in_file = entries.file & (backing != ANONYMOUS)
    kept = ~in_file & (entries.pfn == 0)
    known = np.flatnonzero(~in_file & ~kept)
    kept[known[_first_of_each(entries.pfn[known])]] = True
    rows = np.flatnonzero(in_file)
    index = ranges.index[entries.row[rows]] + entries.page[rows] - ranges.page[entries.row[rows]]
    kept[rows[_first_of_each(index, backing[rows])]] = True
    return entries.take(kept)


def _first_of_each(*keys: Ints) -> Ints:
    """Return the rows, in no order, without those of which an earlier row has the same keys."""
    order = np.lexsort(keys)  # stable: equal keys stay in the order given
    apart = np.ones(len(order), bool)
    apart[1:] = np.logical_or.reduce([key[order][1:] != key[order][:-1] for key in keys])
    return order[apart]


def runs(ranges: Ranges, entries: Entries | Stretches) -> Runs:
    """Join entries that follow one another in one range, on one node, into runs."""
    if not len(entries):
        return Runs.empty()
    own = (ranges.backing[entries.row] != ANONYMOUS) & ranges.private[entries.row] & ~entries.file
    end = entries.page + entries.count
    follows = (
        (entries.row[1:] == entries.row[:-1])
        & (entries.page[1:] == end[:-1])
        & (entries.node[1:] == entries.node[:-1])
        & (own[1:] == own[:-1])
    )
    begin = np.append(0, np.flatnonzero(~follows) + 1)
    row, page = entries.row[begin], entries.page[begin]
    written = own[begin]  # a page of a private file mapping that was written to is memory of the process
    return Runs.of_pages(
        process=ranges.process[row],
        page=page,
        count=end[np.append(begin[1:], len(entries)) - 1] - page,
        node=entries.node[begin],
        backing=np.where(written, ANONYMOUS, ranges.backing[row]),
        index=np.where(written, page, ranges.index[row] + page - ranges.page[row]),
    )


@dataclass(frozen=True, slots=True)
class Hole:
    """Pages [lo, hi) of a backing, in the extent numbered `extent`, that no entry has shown."""

    extent: int
    backing: int
    lo: int
    hi: int


def holes(sharing: Sharing, seen: Runs) -> list[Hole]:
    """Return what of the extents no entry has shown: never touched by its carrier, or not resident."""
    seen = seen.take(seen.backing != ANONYMOUS)
    seen = seen.take(np.lexsort((seen.index, seen.backing)))
    starts = np.searchsorted(seen.backing, np.arange(len(sharing.backings) + 1))
    extents = sharing.extents
    missing: list[Hole] = []
    for extent in range(len(extents)):
        backing, lo = int(extents.backing[extent]), int(extents.index[extent])
        hi = lo + int(extents.count[extent])
        part = slice(starts[backing], starts[backing + 1])
        begin, end = seen.index[part], seen.index[part] + seen.count[part]
        inside = (end > lo) & (begin < hi)
        gap_lo = np.append(lo, end[inside])
        gap_hi = np.append(begin[inside], hi)
        for gap in np.flatnonzero(gap_hi > gap_lo):
            missing.append(Hole(extent, backing, max(lo, int(gap_lo[gap])), min(hi, int(gap_hi[gap]))))
    return missing


def askable(sharing: Sharing, missing: list[Hole], elsewhere: Callable[[int], bool]) -> list[Hole]:
    """Return the holes that anybody could fill: another VMA of the job, or, of some backings, somebody `elsewhere`."""
    vmas = sharing.vmas
    users = np.bincount(vmas.backing[(vmas.backing != ANONYMOUS) & ~sharing.own], minlength=len(sharing.backings))
    carrier_is_one = ~sharing.own[sharing.carriers]
    return [hole for hole in missing if users[hole.backing] > carrier_is_one[hole.extent] or elsewhere(hole.backing)]


def others(sharing: Sharing, missing: list[Hole]) -> Ranges:
    """Return ranges through which processes not asked yet may show pages of the holes.

    Every other process that maps a part of a hole is named, because each may have touched another part.
    """
    vmas = sharing.vmas
    askable = np.flatnonzero((vmas.backing != ANONYMOUS) & ~sharing.own)
    askable = askable[np.argsort(vmas.backing[askable], kind="stable")]
    starts = np.searchsorted(vmas.backing[askable], np.arange(len(sharing.backings) + 1))
    parts = []
    for hole in missing:
        rows = askable[starts[hole.backing] : starts[hole.backing + 1]]
        rows = rows[rows != sharing.carriers[hole.extent]]
        begin = np.maximum(vmas.index[rows], hole.lo)
        count = np.minimum(vmas.index[rows] + vmas.count[rows], hole.hi) - begin
        reach = count > 0
        rows, begin, count = rows[reach], begin[reach], count[reach]
        page = vmas.page[rows] + begin - vmas.index[rows]
        parts.append(Ranges(vmas.process[rows], page, count, vmas.backing[rows], begin, vmas.private[rows]))
    return Ranges.concatenate(parts)


def asked_per_process(sharing: Sharing, seen: Runs) -> int:
    """Return how many pages one would ask for by asking every process for every resident page that it maps.

    An estimate: it takes every process to have touched what is resident of the objects that it maps, and counts what
    forked processes still share of their own memory once.
    """
    in_object = (seen.backing != ANONYMOUS) & (seen.backing < len(sharing.backings))
    total = int(seen.count[~in_object].sum())
    seen = seen.take(in_object)
    seen = seen.take(np.lexsort((seen.index, seen.backing)))
    starts = np.searchsorted(seen.backing, np.arange(len(sharing.backings) + 1))
    mapping = sharing.vmas.backing != ANONYMOUS
    vmas = sharing.vmas.take(mapping)
    for backing in np.unique(vmas.backing).tolist():
        part = slice(starts[backing], starts[backing + 1])
        begin, count = seen.index[part], seen.count[part]
        before = np.append(0, np.cumsum(count))
        rows = vmas.backing == backing
        for edge, sign in ((vmas.index[rows] + vmas.count[rows], 1), (vmas.index[rows], -1)):
            run = np.searchsorted(begin, edge, "right")
            inside = np.minimum(edge - begin[run - 1], count[run - 1]) if len(begin) else edge * 0
            total += sign * int(np.where(run > 0, before[run - 1] + inside, 0).sum())
    return total
