"""What must hold of reading NUMA nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageferry.errors import KernelError
from pageferry.kernel.topology import Topology, read_topology
from support.trees import plant, write

NODES = "sys/devices/system/node"
KIB = 1024


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return plant("four_nodes", tmp_path)


@pytest.fixture
def topology(root: Path) -> Topology:
    return read_topology(root)


def test_nodes_come_by_number_with_gaps_between_them(topology: Topology) -> None:
    assert [node.number for node in topology.nodes] == [0, 1, 2, 5]
    assert topology.node(1).cpus == {2, 3, 6}
    with pytest.raises(KeyError):
        topology.node(3)


def test_a_node_without_cpus_and_one_without_memory_are_normal(topology: Topology) -> None:
    assert topology.node(2).cpus == frozenset()
    assert topology.node(5).total_bytes == 0
    assert topology.node(5).free_hugepages == {}
    assert topology.nodes_with_memory() == {0, 1, 2}


def test_a_cpuless_node_is_one_that_has_memory(topology: Topology) -> None:
    assert topology.cpuless() == {2}


def test_sizes_are_in_bytes(topology: Topology) -> None:
    assert topology.node(0).total_bytes == 2097152 * KIB
    assert topology.node(0).free_bytes == 1048576 * KIB


def test_dirty_pages_are_no_free_room_and_the_cache_is_never_negative(topology: Topology) -> None:
    assert topology.node(0).file_cache_bytes == (200000 - 50000 - 10000) * KIB
    assert topology.node(1).file_cache_bytes == 0


def test_distances_go_by_node_number_although_the_file_skips_missing_nodes(topology: Topology) -> None:
    assert topology.node(2).distances == {0: 17, 1: 17, 2: 10, 5: 28}


def test_the_nearest_node_is_itself_and_ties_go_to_the_lower_number(topology: Topology) -> None:
    assert topology.nearest(0) == (0, 2, 1, 5)
    assert topology.nearest(2) == (2, 0, 1, 5)
    assert topology.nearest(5) == (5, 0, 1, 2)


def test_a_node_is_nearest_to_itself_even_if_firmware_says_all_are_as_near(root: Path) -> None:
    write(root, f"{NODES}/node1/distance", "10 10 10 10\n")
    assert read_topology(root).nearest(1) == (1, 0, 2, 5)


def test_cpus_are_told_to_nodes_and_unknown_cpus_to_none(topology: Topology) -> None:
    assert topology.nodes_of_cpus({1, 6}) == {0, 1}
    assert topology.nodes_of_cpus({99}) == frozenset()


def test_free_huge_pages_go_by_size_in_bytes(topology: Topology) -> None:
    assert topology.node(0).free_hugepages == {2 << 20: 16, 1 << 30: 0}


def test_a_kernel_without_numa_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="CONFIG_NUMA"):
        read_topology(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("online", "zero"),
        ("node1/cpulist", "4-2"),
        ("node1/distance", "10 20"),
        ("node1/distance", "10 20 x 30"),
        ("node1/meminfo", "Node 1 MemTotal: 12 kB\n"),
        ("node1/meminfo", ""),
        ("node1/hugepages/hugepages-2048kB/free_hugepages", "-1"),
    ],
)
def test_a_bad_file_is_named_in_the_complaint(root: Path, file: str, content: str) -> None:
    write(root, f"{NODES}/{file}", content)
    with pytest.raises(KernelError, match=file):
        read_topology(root)
