"""How much of each node the kernel keeps free for itself.

Below a zone's high watermark it reclaims what others use, and below the lowest a move fails; how much more is to be
left free is the caller's to say. Source: /proc/zoneinfo, kernel mm/vmstat.c zoneinfo_show_print(). With transparent
huge pages the watermarks of a small node exceed 1/64 of it (khugepaged's set_recommended_min_free_kbytes()).
"""

from __future__ import annotations

import mmap
import re
from pathlib import Path

from pageferry.errors import KernelError
from pageferry.kernel.files import read_bytes

_ZONE = re.compile(rb"^Node ([0-9]+), zone +\w+$")
_HIGH = re.compile(rb"^ +high +([0-9]+)$")


def read_high_watermarks(root: Path = Path("/")) -> dict[int, int]:
    """Return, for each node, the sum of its zones' high watermarks in bytes.

    Raises KernelError for a file that cannot be understood.
    """
    path = root / "proc/zoneinfo"
    found: dict[int, int] = {}
    node = -1
    for line in read_bytes(path).split(b"\n"):
        if zone := _ZONE.match(line):
            node = int(zone[1])
            found.setdefault(node, 0)
        elif high := _HIGH.match(line):
            if node < 0:
                raise KernelError(f"{path}: a watermark of no zone")
            found[node] += int(high[1]) * mmap.PAGESIZE
    if not found:
        raise KernelError(f"{path}: names no zone")
    return found
