"""The NUMA topologies that a guest can have, and the topology that a running machine really has.

Values only: how a layout becomes a virtual machine is `qemu`'s work. Sizes are multiples of 128 MiB, the
kernel's memory block on x86, because a PFN is traced to its node by memory block. Node 0 fills the 2 GiB
below the PCI hole exactly, so that no other node is split by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MEMORY_BLOCK_MIB = 128
SYSFS_NODES = Path("/sys/devices/system/node")


@dataclass(frozen=True, slots=True)
class Node:
    """One NUMA node: its memory and how many CPUs it has (none: a memory-only node)."""

    mib: int
    cpus: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A machine: its nodes, and `distances[i][j]` from node i to node j as in the ACPI SLIT."""

    name: str
    nodes: tuple[Node, ...]
    distances: tuple[tuple[int, ...], ...]

    @property
    def mib(self) -> int:
        """All memory of the machine."""
        return sum(node.mib for node in self.nodes)

    @property
    def cpus(self) -> int:
        """All CPUs of the machine."""
        return sum(node.cpus for node in self.nodes)

    @property
    def cpu_nodes(self) -> tuple[int, ...]:
        """The nodes that have CPUs, in order."""
        return tuple(i for i, node in enumerate(self.nodes) if node.cpus)

    @property
    def cores_per_socket(self) -> int:
        """CPUs of each socket; a socket is a node that has CPUs, and all sockets are alike."""
        (cores,) = {node.cpus for node in self.nodes if node.cpus}
        return cores

    def cpus_of(self, node: int) -> tuple[int, ...]:
        """CPU numbers of a node: they are given out node by node."""
        first = sum(before.cpus for before in self.nodes[:node])
        return tuple(range(first, first + self.nodes[node].cpus))


def symmetric(count: int, pairs: dict[tuple[int, int], int]) -> tuple[tuple[int, ...], ...]:
    """Write the whole distance matrix from the distances of its pairs (i < j); a node is 10 from itself.

    Raises ValueError unless `pairs` names each pair once: qemu refuses a matrix with gaps, and some kernels
    replace a faulty one by 10 and 20 without a word that a test would see.
    """
    wanted = {(i, j) for i in range(count) for j in range(i + 1, count)}
    if set(pairs) != wanted:
        raise ValueError(f"distances missing or unknown for pairs {sorted(wanted ^ set(pairs))}")
    return tuple(tuple(10 if i == j else pairs[min(i, j), max(i, j)] for j in range(count)) for i in range(count))


_FAR_AND_NEAR = {(0, 1): 12, (0, 2): 20, (0, 3): 28, (1, 2): 24, (1, 3): 20, (2, 3): 14}


def _layout(name: str, nodes: Sequence[tuple[int, int]]) -> Layout:
    return Layout(name, tuple(Node(*node) for node in nodes), symmetric(len(nodes), _FAR_AND_NEAR))


LAYOUTS = {
    layout.name: layout
    for layout in (
        # Unequal nodes; 0, 1 and 2 each have room for a job that shares 1 GiB.
        _layout("four", [(2048, 2), (1792, 2), (1664, 2), (1024, 2)]),
        # Node 3 is memory only, as CXL memory is.
        _layout("cpuless", [(2048, 2), (1280, 2), (1024, 2), (1024, 0)]),
        # Node 3 is soon full: a little ballast leaves it no room.
        _layout("tight", [(2048, 2), (1280, 2), (1024, 2), (256, 2)]),
    )
}


def observed(sysfs_nodes: Path = SYSFS_NODES) -> Layout:
    """Read the topology of the running machine; sizes are MemTotal, a little under the declared."""
    folders = sorted(sysfs_nodes.glob("node[0-9]*"), key=lambda folder: int(folder.name[4:]))
    return Layout(
        "observed",
        tuple(Node(_mem_total_mib(folder), len(cpu_list((folder / "cpulist").read_text()))) for folder in folders),
        tuple(tuple(int(word) for word in (folder / "distance").read_text().split()) for folder in folders),
    )


def _mem_total_mib(node: Path) -> int:
    for line in (node / "meminfo").read_text().splitlines():
        if "MemTotal:" in line:
            return int(line.split()[-2]) // 1024
    return 0


def cpu_list(text: str) -> tuple[int, ...]:
    """Read the kernel's list format: `0-2,7` is (0, 1, 2, 7); blank is no CPU."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            cpus.extend(range(int(first), int(last or first) + 1))
    return tuple(cpus)
