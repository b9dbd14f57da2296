"""Where in a large mapping memory is, on kernels that cannot be asked for it (PAGEMAP_SCAN, Linux 6.7).

A page table takes 3 seconds to read for each TiB that is mapped, whatever is in it. /proc/PID/smaps says how much is in
memory of each mapping: one without any is not read, and one of little is read until that was found, or time is up.
"""

from __future__ import annotations

import mmap
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from pageferry.errors import Denied, Vanished
from pageferry.kernel.files import read_bytes
from pageferry.kernel.pagemap import EXCLUSIVE, FILE, PRESENT

SECONDS = 2.0
"""So long a look at a job searches its sparse mappings, all in all."""

DENSE = 4
"""What has every fourth page in memory is read as it is."""

_CHUNK_PAGES = 1 << 18
_VMA = re.compile(rb"^([0-9a-f]+)-([0-9a-f]+) .*?^Rss: +([0-9]+) kB", re.MULTILINE | re.DOTALL)


class Sparse:
    """Finds the present pages of large mappings; `unread`: pages in memory that were not found in time."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Begin with all of the time."""
        self._root = root
        self._resident: dict[int, Mapping[tuple[int, int], int]] = {}
        self._left = SECONDS
        self.unread = 0

    def present(self, thread: int, descriptor: int, lo: int, hi: int) -> list[tuple[int, int]]:
        """Return stretches of pages within [lo, hi) outside which nothing was found to be present, ascending.

        `thread`: whose page table `descriptor` is. Pages that are no memory, such as the zero page, may be missed.
        """
        if thread not in self._resident:
            self._resident[thread] = read_resident(thread, self._root)
        vmas = [(max(lo, first), min(hi, end), pages) for (first, end), pages in self._resident[thread].items()]
        found: list[tuple[int, int]] = []
        for first, end, pages in vmas:
            if first < end and pages:
                sparse = (end - first) > DENSE * pages
                found += self._search(descriptor, first, end, pages) if sparse else [(first, end)]
        return found

    def _search(self, descriptor: int, lo: int, hi: int, pages: int) -> list[tuple[int, int]]:
        """Search from both ends: what programs use of what they reserve is seldom in the middle."""
        began, found = time.monotonic(), []
        for first, end in _inwards(lo, hi):
            try:
                entries = np.frombuffer(os.pread(descriptor, (end - first) * 8, first * 8), np.uint64)
            except ProcessLookupError:  # it has ended
                break
            present = np.flatnonzero(entries >= PRESENT)
            if len(present):
                found.append((first + int(present[0]), first + int(present[-1]) + 1))
                pages -= int(((entries[present] & (FILE | EXCLUSIVE)) != 0).sum())
            if pages <= 0:
                break
            if time.monotonic() - began > self._left:
                self.unread += pages
                break
        self._left -= time.monotonic() - began
        return sorted(found)


def read_resident(thread: int, root: Path = Path("/")) -> dict[tuple[int, int], int]:
    """Return how many pages of each mapping [first, end) of a process are in memory, by page numbers."""
    try:
        text = read_bytes(root / f"proc/{thread}/smaps")
    except (Vanished, Denied):
        return {}
    return {
        (int(start, 16) // mmap.PAGESIZE, int(end, 16) // mmap.PAGESIZE): int(rss) * 1024 // mmap.PAGESIZE
        for start, end, rss in _VMA.findall(text)
    }


def _inwards(lo: int, hi: int) -> Iterator[tuple[int, int]]:
    """Yield pieces of [lo, hi), from the two ends in turn."""
    while lo < hi:
        end = min(hi, lo + _CHUNK_PAGES)
        yield lo, end
        lo = end
        if lo < hi:
            first = max(lo, hi - _CHUNK_PAGES)
            yield first, hi
            hi = first
