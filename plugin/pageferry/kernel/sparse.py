"""Where in a large mapping memory is, on kernels that cannot be asked for it (PAGEMAP_SCAN, Linux 6.7).

A page table takes 3 seconds to read for each TiB that is mapped, whatever is in it. /proc/PID/smaps says how much is in
memory of each mapping: one without any is not read, and one of little is read until that was found, or time is up.
"""

from __future__ import annotations

import mmap
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from pageferry.errors import PageferryError
from pageferry.kernel.files import read_bytes
from pageferry.kernel.pagemap import EXCLUSIVE, FILE, PFN, PRESENT
from pageferry_planner.columns import Ints

SECONDS = 2.0
"""So long a look at a job searches its sparse mappings, all in all; the first that takes long may have half of it."""

DENSE = 4
"""What has every fourth page in memory is read as it is."""

_CHUNK_PAGES = 1 << 18
_VMA = re.compile(rb"([0-9a-f]{1,16})-([0-9a-f]{1,16}) ")
_IN_MEMORY = re.compile(rb"(?:Rss|Shared_Hugetlb|Private_Hugetlb): +([0-9]{1,15}) kB")
_PROCESS_IN_MEMORY = re.compile(rb"^(?:RssAnon|RssFile|RssShmem|HugetlbPages):[ \t]+([0-9]{1,15}) kB$", re.MULTILINE)

Vmas = list[tuple[int, int, int]]
"""First page, end, and how many pages are in memory."""


class Sparse:
    """Finds the present pages of large mappings; `unread`: pages in memory that were not found in time.

    `mappings` tells how often frames are mapped: 0 is no memory, such as the zero page, which smaps does not count.
    """

    def __init__(self, mappings: Callable[[Ints], Ints], root: Path = Path("/")) -> None:
        """Begin with all of the time."""
        self._mappings = mappings
        self._root = root
        self._vmas: dict[int, Vmas | None] = {}
        self._left = SECONDS
        self.unread = 0

    def present(self, thread: int, descriptor: int, lo: int, hi: int) -> list[tuple[int, int]]:
        """Return stretches of pages within [lo, hi) outside which nothing was found to be present, ascending.

        `thread`: whose page table `descriptor` is. Pages that are no memory, such as the zero page, may be missed.
        """
        if (hi - lo) <= DENSE * self._in_memory(thread):
            return [(lo, hi)]
        if thread not in self._vmas:
            began = time.monotonic()
            self._vmas[thread] = read_vmas(thread, self._root)
            self._left -= time.monotonic() - began
        vmas = self._vmas[thread]
        if vmas is None:
            return [(lo, hi)]
        found: list[tuple[int, int]] = []
        for first, end, pages in vmas:
            first, end = max(lo, first), min(hi, end)  # noqa: PLW2901 - what of it is asked for
            if first < end and pages:
                sparse = (end - first) > DENSE * pages
                found += self._search(descriptor, first, end, pages) if sparse else [(first, end)]
        return _merged(found)

    def _in_memory(self, thread: int) -> int:
        """Return how many pages a process has in memory, at most: what is as large as that is no sparse mapping."""
        with suppress(PageferryError):
            text = read_bytes(self._root / f"proc/{thread}/status")
            return sum(map(int, _PROCESS_IN_MEMORY.findall(text))) * 1024 // mmap.PAGESIZE
        return 0

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
                pages -= self._memory(entries[present])
            if pages <= 0:
                break
            if time.monotonic() - began > max(self._left, 0) / 2:
                self.unread += pages
                break
        self._left -= time.monotonic() - began
        return found

    def _memory(self, entries: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> int:
        """Return how many present entries show memory, as smaps counts it."""
        plain = (entries & (FILE | EXCLUSIVE)) == 0
        frames = (entries[plain] & PFN).astype(np.int64)
        if not frames.any():  # none, or they are hidden
            return len(entries)
        return len(entries) - int((self._mappings(frames) == 0).sum())


def read_vmas(thread: int, root: Path = Path("/")) -> Vmas | None:
    """Return how many pages of each mapping of a process are in memory; None where that is not told.

    hugetlb pages are not in Rss (fs/proc/task_mmu.c smaps_hugetlb_range()).
    """
    try:
        text = read_bytes(root / f"proc/{thread}/smaps")
    except PageferryError:
        return None
    vmas: Vmas = []
    for line in text.split(b"\n"):
        if vma := _VMA.match(line):
            first, end = (int(address, 16) // mmap.PAGESIZE for address in vma.groups())
            if first >= end:
                return None
            vmas.append((first, end, 0))
        elif vmas and (told := _IN_MEMORY.match(line)):
            first, end, pages = vmas[-1]
            vmas[-1] = first, end, min(end - first, pages + int(told[1]) * 1024 // mmap.PAGESIZE)
    return vmas


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


def _merged(stretches: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return stretches in order, none of them twice: a mapping that changes meanwhile may be told once more."""
    merged: list[tuple[int, int]] = []
    for lo, hi in sorted(stretches):
        if merged and lo <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(hi, merged[-1][1])
        else:
            merged.append((lo, hi))
    return merged
