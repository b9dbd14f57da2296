"""Reads the NUMA nodes of a host: their CPUs, memory, distances and pools of huge pages.

Which node suits which page is left to the planner. Memory-less and CPU-less nodes are normal here.
Source: Documentation/ABI/stable/sysfs-devices-node.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pageferry.errors import KernelError, Vanished
from pageferry.kernel.files import read_bytes
from pageferry.kernel.hugetlb import read_free_hugepages
from pageferry.kernel.lists import parse_list

_NODES = "sys/devices/system/node"
_MEMINFO_LINE = re.compile(rb"^Node [0-9]{1,4} ([A-Za-z()_]{1,40}): +([0-9]{1,15}) kB$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Node:
    """One NUMA node. Sizes in bytes, as of the moment of reading.

    `file_cache_bytes` is what the kernel gives up first, without I/O: Inactive(file) - Dirty - Writeback.
    `distances` goes from node number to distance (10 is local); it names online nodes only.
    `free_hugepages` goes from huge page size in bytes to the number of pages in this node's pool that may be taken.
    """

    number: int
    cpus: frozenset[int]
    total_bytes: int
    free_bytes: int
    file_cache_bytes: int
    distances: Mapping[int, int]
    free_hugepages: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Topology:
    """The online nodes of a host, by ascending number."""

    nodes: tuple[Node, ...]

    def node(self, number: int) -> Node:
        """Return the node of this number; raises KeyError."""
        for node in self.nodes:
            if node.number == number:
                return node
        raise KeyError(number)

    def nodes_of_cpus(self, cpus: Iterable[int]) -> frozenset[int]:
        """Return the numbers of the nodes that hold any of `cpus`; a CPU that is offline holds nothing."""
        wanted = frozenset(cpus)
        return frozenset(node.number for node in self.nodes if node.cpus & wanted)

    def nodes_with_memory(self) -> frozenset[int]:
        """Return the numbers of the nodes that can hold pages."""
        return frozenset(node.number for node in self.nodes if node.total_bytes > 0)

    def cpuless(self) -> frozenset[int]:
        """Return the numbers of the nodes with memory and without CPUs."""
        return frozenset(node.number for node in self.nodes if node.total_bytes > 0 and not node.cpus)

    def serving(self, cpus: Iterable[int]) -> frozenset[int]:
        """Return the nodes with memory that serve CPUs: their own, or where that has no memory the nearest."""
        with_memory = self.nodes_with_memory()
        nodes = self.nodes_of_cpus(cpus)
        return frozenset(next((near for near in self.nearest(node) if near in with_memory), node) for node in nodes)

    def nearest(self, number: int) -> tuple[int, ...]:
        """Return all node numbers by distance from node `number`, itself first; ties go to the lower number.

        Nodes without memory are among them. Raises KeyError for a node that is not online.
        """
        distances = self.node(number).distances
        return tuple(sorted(distances, key=lambda other: (other != number, distances[other], other)))


def read_topology(root: Path = Path("/")) -> Topology:
    """Return the online nodes of the host whose file system is at `root`.

    Raises KernelError when the kernel was built without NUMA or a file cannot be understood.
    """
    base = root / _NODES
    try:
        online = _list(base / "online")
    except Vanished as error:
        raise KernelError(f"{base} is missing: the kernel was built without CONFIG_NUMA") from error
    order = sorted(online)
    return Topology(tuple(_read_node(root, number, order) for number in order))


def _read_node(root: Path, number: int, online: list[int]) -> Node:
    directory = root / _NODES / f"node{number}"
    text = read_bytes(directory / "meminfo")
    sizes = {name: int(kilobytes) * 1024 for name, kilobytes in _MEMINFO_LINE.findall(text)}
    words = read_bytes(directory / "distance").split()
    if len(words) != len(online) or not all(word.isdigit() and len(word) <= 3 for word in words):
        raise KernelError(f"{directory}/distance: not one number for each of the {len(online)} nodes")
    try:
        # The kernel writes one distance per online node, in order, not one per number (drivers/base/node.c).
        cache = sizes[b"Inactive(file)"] - sizes[b"Dirty"] - sizes[b"Writeback"]
        return Node(
            number=number,
            cpus=_list(directory / "cpulist"),
            total_bytes=sizes[b"MemTotal"],
            free_bytes=sizes[b"MemFree"],
            file_cache_bytes=max(0, cache),
            distances=dict(zip(online, map(int, words), strict=True)),
            free_hugepages=read_free_hugepages(number, root),
        )
    except KeyError as error:
        raise KernelError(f"{directory}/meminfo: no line for {error.args[0].decode()}") from error


def _list(path: Path) -> frozenset[int]:
    try:
        return parse_list(read_bytes(path))
    except ValueError as error:
        raise KernelError(f"{path}: {error}") from error
