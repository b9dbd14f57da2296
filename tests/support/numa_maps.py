"""Reads how many pages of each mapping of a process lie on which node, as the kernel itself counts them.

For checks and reports: the kernel walks all page tables for one answer. Source: the man page numa(7).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pageferry.errors import KernelError
from pageferry.kernel.files import printable, read_bytes

_NODE_PAGES = re.compile(rb" N([0-9]+)=([0-9]+)(?= |$)")
_KERNEL_PAGE = re.compile(rb" kernelpagesize_kB=([0-9]+)(?= |$)")


@dataclass(frozen=True, slots=True)
class NumaVma:
    """One line of /proc/PID/numa_maps: `pages` goes from node to pages of `page_bytes` each."""

    start: int
    page_bytes: int
    pages: Mapping[int, int]


def read_numa_maps(pid: int, root: Path = Path("/")) -> tuple[NumaVma, ...]:
    """Return where the pages of each mapping are, mappings without pages included.

    Pages of a transparent huge page count as base pages, those of hugetlb as one each of their own size.
    A page that several processes map is counted in each. Raises Vanished, Denied, and KernelError for a file
    that cannot be understood.
    """
    path = root / "proc" / str(pid) / "numa_maps"
    vmas: list[NumaVma] = []
    # Names in it have their white space and "=" escaped (fs/proc/task_mmu.c, show_numa_map), so that no file
    # name looks like a count. Policies can hold blanks ("prefer (many):0-1"): search for counts, don't split.
    for line in filter(None, read_bytes(path).split(b"\n")):
        page = _KERNEL_PAGE.search(line)
        try:
            start = int(line.partition(b" ")[0], 16)
        except ValueError as error:
            raise KernelError(f"{path}: not a mapping: {printable(line[:200])}") from error
        page_bytes = int(page[1]) * 1024 if page else os.sysconf("SC_PAGE_SIZE")
        pages = {int(node): int(count) for node, count in _NODE_PAGES.findall(line)}
        vmas.append(NumaVma(start, page_bytes, pages))
    return tuple(vmas)
