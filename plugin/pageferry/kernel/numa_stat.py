"""Reads how much memory of a cgroup, with all groups below it, is on which node: memory.numa_stat.

One small file of counters, so that many jobs can be looked at cheaply; it may be seconds old, and counts a page for
the group that touched it first. What is to be moved is found in page tables, never here.
Sources: Documentation/admin-guide/cgroup-v2.rst; kernel mm/memcontrol.c memory_numa_stat_show() and, for version 1,
memcg_numa_stat_show().
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from pageferry.errors import KernelError, Vanished
from pageferry.kernel.files import read_bytes, shown

_LINE = re.compile(rb"([a-z_]{1,80})(=[0-9]{1,19})?((?: N[0-9]{1,4}=[0-9]{1,19})*) ?")
_NODE = re.compile(rb" N([0-9]+)=([0-9]+)")
_LEGACY = "hierarchical_"

Counters = Mapping[str, Mapping[int, int]]
"""Name of a counter → node → bytes."""


def read_numa_stat(group: Path) -> Counters:
    """Return the counters of a group in bytes, those of groups below it included; version 1 counts in pages.

    Version 1's names are given without "hierarchical_". Raises Vanished when the group or the file is not there (no
    memory controller), Denied, and KernelError for a file that cannot be understood.
    """
    path = group / "memory.numa_stat"
    found: dict[str, dict[int, int]] = {}
    legacy = False
    for line in filter(None, read_bytes(path).split(b"\n")):
        match = _LINE.fullmatch(line)
        if match is None:
            raise KernelError(f"{path}: not a counter: {shown(line)}")
        name = match[1].decode()
        legacy |= match[2] is not None
        found[name] = {int(node): int(count) for node, count in _NODE.findall(match[3])}
    if not legacy:
        return found
    below = {name: nodes for name, nodes in found.items() if name.startswith(_LEGACY)}
    return {
        name.removeprefix(_LEGACY): {node: pages * mmap.PAGESIZE for node, pages in nodes.items()}
        for name, nodes in below.items()
    }


def mapped_bytes(counters: Counters) -> dict[int, int]:
    """Return, per node, about how much of a group's memory its processes map: what a move can reach.

    Page cache that nobody maps is left out. Version 1 does not tell mapped page cache from other, so there all of it
    is left out, but for shared memory, which counts as anonymous. Raises KernelError without the counters it needs.
    """
    if "anon" not in counters:
        raise KernelError("memory.numa_stat has no line for anon")
    if "file_mapped" in counters:
        # Shared memory that is mapped is in both; none is in neither.
        parts = [counters["anon"], _most(counters["file_mapped"], counters.get("shmem", {}))]
    else:
        parts = [counters["anon"], counters.get("unevictable", {})]
    nodes = sorted({node for part in parts for node in part})
    return {node: sum(part.get(node, 0) for part in parts) for node in nodes}


def mapped_bytes_of(groups: Iterable[Path]) -> dict[int, int]:
    """Return the sum of `mapped_bytes` over groups; one that has ended, or has no memory controller, counts nothing.

    Empty: none of them says anything. Raises Denied and KernelError as the others do.
    """
    found: dict[int, int] = {}
    for group in groups:
        with suppress(Vanished):
            for node, count in mapped_bytes(read_numa_stat(group)).items():
                found[node] = found.get(node, 0) + count
    return found


def _most(one: Mapping[int, int], other: Mapping[int, int]) -> dict[int, int]:
    return {node: max(one.get(node, 0), other.get(node, 0)) for node in {*one, *other}}
