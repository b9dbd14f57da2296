"""The dedup: VMAs of all processes → backings, and which range of each is asked of which address space.

Every range of a backing that the job maps gets one carrier, and the ranges do not overlap: a file mapped by 256
processes is asked of one of them (seeds of the idea: Ray Bryant on linux-kernel, 15 Feb 2005, points 2 and 3).
A private mapping is read in its own process all the same, because pages written there are that process's alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pageferry_planner.columns import Bools, Ints
from pageferry_planner.maps import Maps, Region
from pageferry_planner.model import ANONYMOUS, Backing, Ranges

READ_ONLY_PRIVATE_PAGES = 1 << 14
"""A read-only private file mapping above this size is taken to hold page cache only, as input files mapped by every
rank do; below it, it may be what a program wrote and then protected (RELRO), and is read in each process."""

_PROCESS_SHIFT = 52
"""Page numbers are below 1 << 52: an address has 64 bits, a page at least 4096 bytes."""


class Span(NamedTuple):
    """Pages [lo, hi) of a backing, as mapped by the VMA numbered `owner`."""

    lo: int
    hi: int
    owner: int


@dataclass(frozen=True, slots=True)
class Sharing:
    """The job's backings and VMAs.

    `vmas`: every VMA of the job that memory of the job can be in. `extents`: the fewest ranges, none overlapping,
    that cover what the job maps of each backing; `carriers`: the VMA of each. `own` (per VMA): private, and read whole
    in its process. `ranges`: what is to be read, carriers first: the extents and the own VMAs. `contested` (per
    backing): its page-cache pages may be seen through more than one of the ranges.
    """

    backings: tuple[Backing, ...]
    vmas: Ranges
    extents: Ranges
    carriers: Ints
    own: Bools
    ranges: Ranges
    contested: Bools


def cover(spans: Iterable[tuple[int, int, int]]) -> list[Span]:
    """Return the fewest non-overlapping spans, each part of one given span, that cover the union of all.

    Greedy interval cover: from the first page not covered, the span that reaches furthest (ties: the lowest owner).
    """
    waiting = sorted(spans, key=lambda span: (span[0], -span[1], span[2]))
    chosen: list[Span] = []
    position, following = 0, 0
    while following < len(waiting):
        lo = waiting[following][0]
        position = max(position, lo)
        best = waiting[following]
        while following < len(waiting) and waiting[following][0] <= position:
            if waiting[following][1] > best[1]:
                best = waiting[following]
            following += 1
        if best[1] > position:
            chosen.append(Span(position, best[1], best[2]))
            position = best[1]
    return chosen


def share(
    maps: Maps,
    page_bytes: int,
    spaces: Mapping[int, str] | None = None,
    devices: Collection[int] = (),
) -> Sharing:
    """Group the VMAs by backing and choose carriers.

    `spaces`: what tells files apart that show one (device, inode), by the number of the region. `devices`: the regions
    of device nodes, sockets and the like: what a driver maps there is not the job's memory, unless written privately.
    """
    backings, region_backing, region_kept = _backings(maps.regions, spaces or {}, devices)
    shared = np.array([region.shared for region in maps.regions], bool)
    writable = np.array([region.writable for region in maps.regions], bool)
    offset = np.array([region.offset // page_bytes for region in maps.regions], np.int64)

    kept = region_kept[maps.region[maps.line]] if len(maps.line) else np.zeros(0, bool)
    line, process = maps.line[kept], maps.process[kept]
    page, count = maps.start[line] // page_bytes, (maps.end[line] - maps.start[line]) // page_bytes
    told = _told_before(process, page, count)
    new = told < count
    line, process, page, count, told = line[new], process[new], page[new], count[new], told[new]
    region = maps.region[line]
    backing = region_backing[region]
    private = ~shared[region]
    vmas = Ranges(
        process=process,
        page=page + told,
        count=count - told,
        backing=backing,
        index=np.where(backing == ANONYMOUS, page, offset[region]) + told,
        private=private,
    )
    own = private & ((backing == ANONYMOUS) | writable[region] | (vmas.count <= READ_ONLY_PRIVATE_PAGES))
    extents, carriers = _carry(vmas, np.flatnonzero(backing != ANONYMOUS))
    first = np.zeros(len(vmas), bool)
    first[carriers] = True
    ranges = Ranges.concatenate([extents.take(~own[carriers]), vmas.take(own & first), vmas.take(own & ~first)])
    contested = np.zeros(len(backings) + 1, bool)  # the last is ANONYMOUS
    contested[backing[own]] = True
    contested[ANONYMOUS] = False
    return Sharing(backings, vmas, extents, carriers, own, ranges, contested)


def _told_before(process: Ints, page: Ints, count: Ints) -> Ints:
    """Return how many of the first pages of each VMA an earlier one of its process has: maps may change meanwhile.

    The kernel goes on reading from the end of the last VMA that it told. One that was joined to that meanwhile begins
    before, and is told from its beginning; one that was cut may be told once more (fs/proc/task_mmu.c m_next()).
    """
    end = (process << _PROCESS_SHIFT) + page + count
    before = np.append(0, np.maximum.accumulate(end))[: len(end)]
    told: Ints = np.clip(before - (process << _PROCESS_SHIFT) - page, 0, count)
    return told


def _backings(
    regions: Sequence[Region], spaces: Mapping[int, str], devices: Collection[int]
) -> tuple[tuple[Backing, ...], Ints, Bools]:
    """Number the backings; return them, and per region its backing's number and whether it is looked at at all."""
    numbers: dict[tuple[str, int, str], int] = {}
    backings: list[Backing] = []
    backing = np.full(len(regions), ANONYMOUS, np.int64)
    kept = np.ones(len(regions), bool)
    for row, region in enumerate(regions):
        if region.kernel_own or (row in devices and region.shared):
            kept[row] = False
        elif not region.anonymous and row not in devices:
            space = spaces.get(row, "")
            if region.path.startswith("/SYSV"):
                space = f"sysv:{region.namespace}"
            key = (region.device, region.inode, space)
            if key not in numbers:
                numbers[key] = len(backings)
                backings.append(Backing(*key, path=region.path))
            backing[row] = numbers[key]
    return tuple(backings), backing, kept


def _carry(vmas: Ranges, rows: Ints) -> tuple[Ranges, Ints]:
    """Return the extents of all backings among the given VMA rows, and the row of each one's carrier."""
    if not len(rows):
        return vmas.take(rows), rows
    lo, hi = vmas.index[rows], vmas.index[rows] + vmas.count[rows]
    order = np.lexsort((vmas.process[rows], hi, lo, vmas.backing[rows]))
    rows, lo, hi = rows[order], lo[order], hi[order]
    backing = vmas.backing[rows]
    new_backing = np.append(True, backing[1:] != backing[:-1])
    first = new_backing | np.append(True, (lo[1:] != lo[:-1]) | (hi[1:] != hi[:-1]))
    rows, lo, hi = rows[first], lo[first], hi[first]
    starts = np.append(np.flatnonzero(new_backing[first]), len(rows))
    chosen: list[Span] = []
    for begin, end in pairwise(starts.tolist()):
        part = slice(begin, end)
        chosen += cover(zip(lo[part].tolist(), hi[part].tolist(), rows[part].tolist(), strict=True))
    picked = np.array(chosen, np.int64).reshape(-1, 3)
    carrier = vmas.take(picked[:, 2])
    extents = Ranges(
        carrier.process,
        carrier.page + picked[:, 0] - carrier.index,
        picked[:, 1] - picked[:, 0],
        carrier.backing,
        picked[:, 0],
        carrier.private,
    )
    return extents, picked[:, 2]
