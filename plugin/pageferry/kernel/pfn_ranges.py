"""Tells which NUMA node a page frame (PFN) belongs to.

Who may see page frame numbers at all is left to the readers of pagemap.
Source: the memory blocks that sysfs links below the nodes, Documentation/admin-guide/mm/memory-hotplug.rst.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pageferry.errors import KernelError, Vanished
from pageferry.kernel.files import numbered, read_bytes, shown

_NODES = "sys/devices/system/node"
_MEMORY = "sys/devices/system/memory"
_MOST_BLOCK_PAGES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class PfnRanges:
    """Page frames by node: disjoint ranges, ascending, half-open.

    `start_pfn` and `end_pfn` are uint64 arrays and `node` an int32 array, all of one length.
    """

    start_pfn: NDArray[np.uint64]
    end_pfn: NDArray[np.uint64]
    node: NDArray[np.int32]

    def node_of(self, pfns: NDArray[np.uint64]) -> NDArray[np.int32]:
        """Return the node of each PFN as an int32 array of the same shape.

        -1 stands where no memory block is, and where a block belongs to two nodes.
        """
        if not self.node.size:
            return np.full(pfns.shape, -1, dtype=np.int32)
        at = np.searchsorted(self.start_pfn, pfns, side="right") - 1
        inside = (at >= 0) & (pfns < self.end_pfn[at])
        return np.where(inside, self.node[at], np.int32(-1))


def read_pfn_ranges(root: Path = Path("/"), page_bytes: int | None = None) -> PfnRanges:
    """Return which node each page frame belongs to, from the memory blocks that sysfs links below the nodes.

    `page_bytes` is the base page size, this host's if not given. Adjacent blocks of a node become one range.
    Raises KernelError, saying so, when the kernel has no memory blocks: ask nodes by move_pages(2) then.
    """
    size_file = root / _MEMORY / "block_size_bytes"
    try:
        text = read_bytes(size_file)
    except Vanished as error:
        reason = "the kernel was built without CONFIG_MEMORY_HOTPLUG, so page frames cannot be told to nodes"
        raise KernelError(f"{root / _MEMORY} is missing: {reason}") from error
    try:
        block_pages = int(text, 16) // (page_bytes or os.sysconf("SC_PAGE_SIZE"))
    except ValueError as error:
        raise KernelError(f"{size_file}: not a hexadecimal number: {shown(text)}") from error
    if not 0 < block_pages < _MOST_BLOCK_PAGES:
        raise KernelError(f"{size_file}: not the size of a block of memory: {shown(text)}")

    owner: dict[int, int] = {}
    for number in numbered(root / _NODES, "node"):
        for block in numbered(root / _NODES / f"node{number}", "memory"):
            owner[block] = -1 if block in owner else number
    ranges: list[list[int]] = []
    for block, number in sorted(owner.items()):
        if number < 0:
            continue
        if ranges and ranges[-1][1] == block and ranges[-1][2] == number:
            ranges[-1][1] = block + 1
        else:
            ranges.append([block, block + 1, number])
    table = np.array(ranges, dtype=np.uint64).reshape(-1, 3)
    pages = np.uint64(block_pages)
    return PfnRanges(table[:, 0] * pages, table[:, 1] * pages, table[:, 2].astype(np.int32))
