"""Pools of hugetlb pages: how many each node has, by size, and how many of them may be taken.

Source: Documentation/admin-guide/mm/hugetlbpage.rst. What a mapping has reserved, and not touched yet, is free in some
node's pool, and nobody else's (kernel mm/hugetlb.c available_huge_pages()).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pageferry.errors import KernelError, Vanished
from pageferry.kernel.files import numbered, read_bytes
from pageferry.kernel.lists import parse_number

_NODES = "sys/devices/system/node"
_ALL = "sys/kernel/mm/hugepages"


@dataclass(frozen=True, slots=True)
class Pool:
    """Pages of one size that a node has, surplus ones included, and how many are free."""

    pages: int
    free: int


Pools = Mapping[int, Mapping[int, Pool]]
"""Pools by node and size in bytes."""


def read_pools(root: Path = Path("/")) -> Pools:
    """Return the pools that are not empty, by node and size in bytes. Raises KernelError."""
    found: dict[int, dict[int, Pool]] = {}
    for node in numbered(root / _NODES, "node"):
        for size, folder in _sizes(root / _NODES / f"node{node}" / "hugepages").items():
            pool = Pool(_number(folder / "nr_hugepages"), _number(folder / "free_hugepages"))
            if pool.pages:
                found.setdefault(node, {})[size] = pool
    return found


def read_free_hugepages(node: int, root: Path = Path("/")) -> dict[int, int]:
    """Return how many pages of a node's pools may be taken, by size in bytes. Raises KernelError.

    No more than are not reserved on the whole host: else the kernel takes none of a pool, but makes one.
    """
    found = {}
    for size, folder in _sizes(root / _NODES / f"node{node}" / "hugepages").items():
        found[size] = free = _number(folder / "free_hugepages")
        everywhere = root / _ALL / folder.name
        if free and everywhere.is_dir():
            reserved = _number(everywhere / "resv_hugepages")
            found[size] = max(0, min(free, _number(everywhere / "free_hugepages") - reserved))
    return found


def _sizes(directory: Path) -> dict[int, Path]:
    """Return the folder of each size in bytes; none on a node without memory, or of a kernel without hugetlb."""
    if not directory.is_dir():
        return {}
    return {size * 1024: directory / f"hugepages-{size}kB" for size in numbered(directory, "hugepages-", "kB")}


def _number(path: Path) -> int:
    try:
        text = read_bytes(path).strip()
    except Vanished as error:
        raise KernelError(f"{path} is missing") from error
    try:
        return parse_number(text)
    except ValueError as error:
        raise KernelError(f"{path}: {error}") from error
