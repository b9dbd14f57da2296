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

from pageferry_planner.model import Ints, Ranges

EXCLUSIVE, FILE, SWAPPED, PRESENT = (np.uint64(1 << bit) for bit in (56, 61, 62, 63))
PFN = np.uint64((1 << 55) - 1)

_BUFFER_ENTRIES = 1 << 18
_JOIN_GAP = 64
"""Ranges of one process that lie so few pages apart are read in one go."""

_SPARSE_PAGES = 1 << 15
"""A range larger than this is first scanned for what is present, where the kernel can."""

_PROCESS_SHIFT = 46  # page numbers of a 57-bit address space need 45 bits

_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
_PRESENT_ONLY = (1 << 3, 0, 1 << 3)  # category_mask, category_anyof_mask, return_mask: PAGE_IS_PRESENT
_REGIONS = 4096


@dataclass(frozen=True, slots=True)
class Present:
    """Present entries: the row of the range that each is in, its page number, and the raw 64-bit entry."""

    row: Ints
    page: Ints
    entry: npt.NDArray[np.uint64]


def read(ranges: Ranges, descriptor: Callable[[int], int]) -> Iterator[Present]:
    """Read the present entries of ranges; those of one process must not overlap.

    `descriptor` gives the open pagemap of a process number. What cannot be read, because the process has ended, reads
    as not present. Rows come in order of process and page, a buffer at a time.
    """
    order = np.lexsort((ranges.page, ranges.process))
    process, page = ranges.process[order], ranges.page[order]
    key = (process << _PROCESS_SHIFT) + page
    buffer = np.empty(_BUFFER_ENTRIES, np.uint64)
    view = buffer.data.cast("B")
    pieces: list[tuple[int, int, int]] = []  # position in the buffer, process, first page
    used = 0
    for owner, first, hi in _stretches(process, page, ranges.count[order], descriptor):
        lo = first
        while lo < hi:
            if used == _BUFFER_ENTRIES:
                yield _sort_out(buffer, pieces, order, key, ranges.count)
                pieces, used = [], 0
            entries = min(hi - lo, _BUFFER_ENTRIES - used)
            got = _pread(descriptor(owner), view[used * 8 : (used + entries) * 8], lo * 8)
            buffer[used + got // 8 : used + entries] = 0
            pieces.append((used, owner, lo))
            used, lo = used + entries, lo + entries
    if used:
        yield _sort_out(buffer[:used], pieces, order, key, ranges.count)


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
        lo = int(argument[4]) // page_bytes
    return found


def _stretches(
    process: Ints, page: Ints, count: Ints, descriptor: Callable[[int], int]
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


def _sort_out(
    buffer: npt.NDArray[np.uint64], pieces: list[tuple[int, int, int]], order: Ints, key: Ints, count: Ints
) -> Present:
    there = np.flatnonzero(buffer.view(np.int64) < 0)  # bit 63
    position, owner, first = np.array(pieces, np.int64).T
    per_piece = np.diff(np.append(np.searchsorted(there, position), len(there)))
    found = there + np.repeat((owner << _PROCESS_SHIFT) + first - position, per_piece)
    from_range = max(int(np.searchsorted(key, (pieces[0][1] << _PROCESS_SHIFT) + pieces[0][2], "right")) - 1, 0)
    to_range = int(np.searchsorted(key, found[-1], "right")) if len(found) else from_range
    rows = order[from_range:to_range]
    lo = np.searchsorted(found, key[from_range:to_range])
    hi = np.searchsorted(found, key[from_range:to_range] + count[rows])
    row = np.repeat(rows, hi - lo)
    if len(row) != len(found):  # present pages in the gaps between joined ranges are nobody's question
        inside = np.zeros(len(found) + 1, np.int64)
        np.add.at(inside, lo, 1)
        np.subtract.at(inside, hi, 1)
        kept = np.cumsum(inside[:-1]) > 0
        there, found = there[kept], found[kept]
    return Present(row, found & ((1 << _PROCESS_SHIFT) - 1), buffer[there])
