"""Page tables of other processes: /proc/PID/pagemap, and PAGEMAP_SCAN where the kernel has it (6.7).

Reading never faults anything in. Ranges of many processes are read into one buffer and sorted out in one pass, because
a job has thousands of small VMAs. Formats: kernel Documentation/admin-guide/mm/pagemap.rst.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pageferry_planner.columns import Bools, Ints
from pageferry_planner.model import Ranges

EXCLUSIVE, FILE, SWAPPED, PRESENT = (np.uint64(1 << bit) for bit in (56, 61, 62, 63))
PFN = np.uint64((1 << 55) - 1)

_BUFFER_ENTRIES = 1 << 15
_JOIN_GAP = 256
"""Ranges of one process that lie so few pages apart are read in one go: an entry more costs less than a call more."""

_SPARSE_PAGES = 1 << 15
"""A range larger than this is first scanned for what is present, where the kernel can."""

_VAST_PAGES = 1 << 20
"""One larger than this is searched for it, where the kernel cannot."""

_ALL_BITS = (1 << 64) - 1
_PROCESS_SHIFT = 46  # page numbers of a 57-bit address space need 45 bits

_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
_PRESENT_ONLY = (1 << 3, 0, 1 << 3)  # category_mask, category_anyof_mask, return_mask: PAGE_IS_PRESENT
_REGIONS = 4096


@dataclass(frozen=True, slots=True)
class Present:
    """Present entries, joined where they follow one another in one range and are alike.

    `row`: the row of that range; `page`, `count`: which pages; `entry`: the raw 64-bit entry of the first one; `raw`,
    `position`: what was read, and where in it the first one stands. Valid until the next one is asked for.
    """

    row: Ints
    page: Ints
    count: Ints
    entry: npt.NDArray[np.uint64]
    raw: npt.NDArray[np.uint64]
    position: Ints

    def single(self, rows: Bools) -> Present:
        """Return the entries of the given rows, one row for each page."""
        count = self.count[rows]
        place = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        position = np.repeat(self.position[rows], count) + place
        page = np.repeat(self.page[rows], count) + place
        return Present(
            np.repeat(self.row[rows], count), page, np.ones_like(page), self.raw[position], self.raw, position
        )


def read(
    ranges: Ranges,
    descriptor: Callable[[int], int],
    alike: int = _ALL_BITS,
    search: Callable[[int, int, int], list[tuple[int, int]]] | None = None,
) -> Iterator[Present]:
    """Read the present entries of ranges; those of one process must not overlap.

    `descriptor` gives the open pagemap of a process number. What cannot be read, because the process has ended, reads
    as not present. `search` finds the present stretches of pages [lo, hi) of a process number, where reading a range
    would take long and the kernel cannot be asked. Entries that agree in the bits `alike` are joined: a job's memory is
    millions of pages, which would each cost numpy a dozen passes, and few stretches. Rows come in order of process and
    page, a buffer at a time.
    """
    order = np.lexsort((ranges.page, ranges.process))
    order = order[ranges.count[order] > 0]
    process, page = ranges.process[order], ranges.page[order]
    begin = (process << _PROCESS_SHIFT) + page
    end = begin + ranges.count[order]
    bits = np.uint64(alike)
    # Not more than is needed: threads that each map and unmap a large one interrupt each other.
    buffer = np.empty(min(_BUFFER_ENTRIES, int((ranges.count + _JOIN_GAP).sum())), np.uint64)
    view = buffer.data.cast("B")
    pieces: list[tuple[int, int, int]] = []  # position in the buffer, process, first page
    used = 0
    for owner, first, hi in _stretches(process, page, ranges.count[order], descriptor, search):
        lo = first
        while lo < hi:
            if used == len(buffer):
                yield _sort_out(buffer, pieces, order, begin, end, bits)
                pieces, used = [], 0
            entries = min(hi - lo, len(buffer) - used)
            got = _pread(descriptor(owner), view[used * 8 : (used + entries) * 8], lo * 8)
            buffer[used + got // 8 : used + entries] = 0
            pieces.append((used, owner, lo))
            used, lo = used + entries, lo + entries
    if used:
        yield _sort_out(buffer[:used], pieces, order, begin, end, bits)


def scan(descriptor: int, lo: int, hi: int, page_bytes: int) -> list[tuple[int, int]] | None:
    """Return the stretches of present pages within pages [lo, hi), or None where the kernel has no PAGEMAP_SCAN."""
    regions = np.zeros((_REGIONS, 3), np.uint64)
    found: list[tuple[int, int]] = []
    while lo < hi:
        argument = np.array(
            [96, 0, lo * page_bytes, hi * page_bytes, 0, regions.ctypes.data, _REGIONS, 0, 0, *_PRESENT_ONLY],
            np.uint64,
        )
        try:
            count = fcntl.ioctl(descriptor, _PAGEMAP_SCAN, argument.data.cast("B"), True)
        except ProcessLookupError:
            return found
        except OSError:
            return None
        found += [(int(a) // page_bytes, int(b) // page_bytes) for a, b, _ in regions[:count]]
        if count < _REGIONS:
            break
        # Not walk_end: it lags once a call has flushed the kernel's own buffer of 512 regions (do_pagemap_scan()).
        lo = found[-1][1]
    return found


def _stretches(
    process: Ints,
    page: Ints,
    count: Ints,
    descriptor: Callable[[int], int],
    search: Callable[[int, int, int], list[tuple[int, int]]] | None,
) -> Iterator[tuple[int, int, int]]:
    """Join ranges that lie close together; leave out of large ones what is known to be empty."""
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    end = page + count
    apart = np.append(True, (process[1:] != process[:-1]) | (page[1:] - end[:-1] > _JOIN_GAP))[: len(page)]
    begin = np.flatnonzero(apart)
    last = np.append(begin[1:], len(page)) - 1
    for owner, lo, hi in zip(
        process[begin].tolist(), page[begin].tolist(), end[last[: len(begin)]].tolist(), strict=True
    ):
        known = scan(descriptor(owner), lo, hi, page_bytes) if hi - lo > _SPARSE_PAGES else None
        if known is None and search is not None and hi - lo > _VAST_PAGES:
            known = search(owner, lo, hi)
        if known is None:
            yield owner, lo, hi
        else:
            for a, b in known:
                yield owner, a, b


def _pread(descriptor: int, view: memoryview, offset: int) -> int:
    done = 0
    try:
        while done < len(view):
            got = os.preadv(descriptor, [view[done:]], offset + done)
            if not got:
                break
            done += got
    except ProcessLookupError:
        pass
    return done


def _sort_out(  # noqa: PLR0917 - one caller, a step of its own
    buffer: npt.NDArray[np.uint64],
    pieces: list[tuple[int, int, int]],
    order: Ints,
    begin: Ints,
    end: Ints,
    bits: np.uint64,
) -> Present:
    """Join what is alike in the buffer and tell which range it is in; `begin`, `end`: process and page, ascending."""
    position, owner, first = np.array(pieces, np.int64).T
    key, limit = (owner << _PROCESS_SHIFT) + first, np.append(position[1:], len(buffer))

    def place(edge: Ints) -> Ints:
        piece = np.searchsorted(key, edge, "right") - 1
        return np.where(piece < 0, 0, np.minimum(position[piece] + edge - key[piece], limit[piece]))

    lo, hi = place(begin), place(end)
    lo, hi = lo[lo < hi], hi[lo < hi]
    inside = np.zeros(len(buffer) + 1, np.int8)
    inside[lo] = 1
    inside[hi] -= 1
    # The gaps between joined ranges are nobody's question: read as not present.
    masked = np.where(np.cumsum(inside[:-1], dtype=np.int8), buffer & bits, np.uint64(0))
    apart = np.ones(len(buffer) + 1, bool)
    np.not_equal(masked[1:], masked[:-1], out=apart[1:-1])
    for edge in (position, lo, hi):
        apart[edge] = True
    start = np.flatnonzero(apart)
    count = np.diff(start)
    start = start[:-1]
    there = masked[start] >= PRESENT  # bit 63
    start, count = start[there], count[there]
    piece = np.searchsorted(position, start, "right") - 1
    found = key[piece] + start - position[piece]
    row = order[np.searchsorted(begin, found, "right") - 1]
    return Present(row, found & ((1 << _PROCESS_SHIFT) - 1), count, buffer[start], buffer, start)
