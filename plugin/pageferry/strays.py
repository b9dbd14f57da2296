"""What of a job's memory is on other nodes than it should be, by its cgroups' counters alone: a few small files.

A pre-copied move asks it while the job stands still. Where next to nothing is left, the job need not wait until its
page tables were looked at once more: that, and the rest, can be done while it runs on its new CPUs, where whatever it
touches is local anyway.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from pageferry.errors import PageferryError
from pageferry.kernel.numa_stat import mapped_bytes_of

LEAST_BYTES = 4 << 20
"""Below this it is next to nothing: the kernel's counters lag by as much on a host of some CPUs."""

PART = 64
"""And so is one part of so many of all that the job maps."""


def few(groups: Iterable[Path], nodes: Collection[int]) -> bool:
    """Say whether next to nothing of what these groups count is outside nodes; False if they cannot say."""
    try:
        counted = mapped_bytes_of(groups)
    except PageferryError:
        return False
    away = sum(count for node, count in counted.items() if node not in nodes)
    return bool(counted) and away <= max(LEAST_BYTES, sum(counted.values()) // PART)
