"""How much of each node the kernel keeps free for itself.

Below a zone's high watermark it reclaims what others use, and below the lowest a move fails; how much more is to be
left free is the caller's to say. Of a low zone, what its protection says is kept from ordinary allocations too
(lowmem_reserve): such pages are free and no use. Source: /proc/zoneinfo, kernel mm/vmstat.c zoneinfo_show_print().
With transparent huge pages the watermarks of a small node exceed 1/64 of it (khugepaged's
set_recommended_min_free_kbytes()).
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path

from pageferry.errors import KernelError
from pageferry.kernel.files import read_bytes

_ZONE = re.compile(rb"^Node ([0-9]+), zone +\w+$")
_FREE = re.compile(rb"^ +pages free +([0-9]+)$")
_HIGH = re.compile(rb"^ +high +([0-9]+)$")
_PROTECTION = re.compile(rb"^ +protection: \(([0-9, ]+)\)$")


def read_kept_free(root: Path = Path("/")) -> dict[int, int]:
    """Return, for each node, the sum of its zones' high watermarks in bytes, and of what is protected besides.

    No more counts as protected than is free in its zone. Raises KernelError for a file that cannot be understood.
    """
    path = root / "proc/zoneinfo"
    found: dict[int, int] = {}
    node, free, high = -1, 0, 0
    for line in read_bytes(path).split(b"\n"):
        if zone := _ZONE.match(line):
            node, free = int(zone[1]), 0
            found.setdefault(node, 0)
        elif pages := _FREE.match(line):
            free = int(pages[1])
        elif watermark := _HIGH.match(line):
            if node < 0:
                raise KernelError(f"{path}: a watermark of no zone")
            high = int(watermark[1])
            found[node] += high * mmap.PAGESIZE
        elif protection := _PROTECTION.match(line):
            most = max(map(int, protection[1].split(b",")))
            found[node] += min(most, max(0, free - high)) * mmap.PAGESIZE
    if not found:
        raise KernelError(f"{path}: names no zone")
    return found
