"""/proc/PID/clear_refs and smaps: of each mapping of a process, how much was used since its marks were taken away.

The marks are those of the page tables, which the processor sets again. While they are taken away, for as long as it
takes to walk the page tables once, page faults of the process wait; reclaim, which looks at them, too, takes its pages
for less used until they are used again. No page moves or is freed by it. The file is the process's own: of another
user's it takes CAP_DAC_OVERRIDE. Source: the man page proc(5), kernel Documentation/filesystems/proc.rst.
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np

from pageferry.kernel.files import read_bytes, write_text
from pageferry_planner.columns import Ints

_ALL_PAGES = "1"
_LINE = re.compile(
    rb"^(?:([0-9a-f]{1,16})-[0-9a-f]{1,16} |Rss: +([0-9]{1,15}) kB$|Referenced: +([0-9]{1,15}) kB$)", re.MULTILINE
)


def available(root: Path = Path("/")) -> bool:
    """Return whether the kernel has the files (CONFIG_PROC_PAGE_MONITOR)."""
    return (root / "proc/self/clear_refs").exists() and (root / "proc/self/smaps").exists()


def clear(pid: int, root: Path = Path("/")) -> None:
    """Take the marks of all pages of a process away. Raises Vanished, Denied and KernelError."""
    write_text(root / f"proc/{pid}/clear_refs", _ALL_PAGES)


def read(pid: int, root: Path = Path("/")) -> tuple[Ints, Ints, Ints]:
    """Return of each mapping its first page, how many of its pages are in memory, and how many of these were used.

    A mapping of which the text does not say both is left out, as one is that has nothing in memory; so are those of
    hugetlbfs, which have no such marks. Raises as `clear`.
    """
    found: list[tuple[int, int, int]] = []
    start = resident = 0
    for address, rss, referenced in _LINE.findall(read_bytes(root / f"proc/{pid}/smaps")):
        if address:
            start, resident = int(address, 16), 0
        elif rss:
            resident = int(rss)
        elif resident:
            found.append((start // mmap.PAGESIZE, resident, min(int(referenced), resident)))
            resident = 0
    page, pages, used = np.array(found, np.int64).reshape(-1, 3).T.copy()
    kb = mmap.PAGESIZE // 1024
    return page, pages // kb, used // kb
