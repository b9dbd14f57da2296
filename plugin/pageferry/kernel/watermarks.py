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

_ZONE = re.compile(rb"^Node ([0-9]{1,4}), zone +(\w{1,40})$")
_FREE = re.compile(rb"^ +pages free +([0-9]{1,19})$")
_HIGH = re.compile(rb"^ +high +([0-9]{1,19})$")
_PROTECTION = re.compile(rb"^ +protection: \(([0-9]{1,19}(?:, [0-9]{1,19})*)\)$")


def read_kept_free(root: Path = Path("/")) -> dict[int, int]:
    """Return, for each node, the sum of what is kept of its zones, in bytes. Raises as `read_kept_by_zone` does."""
    found: dict[int, int] = {}
    for (node, _), kept in read_kept_by_zone(root).items():
        found[node] = found.get(node, 0) + kept
    return found


def read_kept_by_zone(root: Path = Path("/")) -> dict[tuple[int, bytes], int]:
    """Return, for each node and zone, its high watermark in bytes, and what is protected besides.

    No more counts as protected than is free in its zone. Raises KernelError for a file that cannot be understood.
    """
    path = root / "proc/zoneinfo"
    found: dict[tuple[int, bytes], int] = {}
    zone, free, high = None, 0, 0
    for line in read_bytes(path).split(b"\n"):
        if name := _ZONE.match(line):
            zone, free = (int(name[1]), name[2]), 0
            found[zone] = 0
        elif pages := _FREE.match(line):
            free = int(pages[1])
        elif watermark := _HIGH.match(line):
            if zone is None:
                raise KernelError(f"{path}: a watermark of no zone")
            high = int(watermark[1])
            found[zone] += high * mmap.PAGESIZE
        elif zone is not None and (protection := _PROTECTION.match(line)):
            most = max(map(int, protection[1].split(b",")))
            found[zone] += min(most, max(0, free - high)) * mmap.PAGESIZE
    if not found:
        raise KernelError(f"{path}: names no zone")
    return found
