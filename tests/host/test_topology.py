"""What must hold of reading nodes and page frames, on this host."""

from __future__ import annotations

import os

import numpy as np

from pageferry.kernel.pfn_ranges import read_pfn_ranges
from pageferry.kernel.topology import read_topology


def test_every_cpu_we_may_use_belongs_to_a_node() -> None:
    topology = read_topology()
    cpus = os.sched_getaffinity(0)
    assert topology.nodes_of_cpus(cpus)
    assert cpus <= frozenset().union(*(node.cpus for node in topology.nodes))


def test_nodes_with_memory_have_at_most_the_memory_of_the_host() -> None:
    topology = read_topology()
    total = sum(node.total_bytes for node in topology.nodes)
    # Less than all of it in a guest whose memory balloon is not booked by zone.
    assert 0 < total <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert topology.nodes_with_memory()
    for node in topology.nodes:
        assert node.free_bytes + node.file_cache_bytes <= node.total_bytes


def test_each_node_is_its_own_nearest() -> None:
    topology = read_topology()
    numbers = {node.number for node in topology.nodes}
    for node in topology.nodes:
        nearest = topology.nearest(node.number)
        assert nearest[0] == node.number
        assert set(nearest) == numbers


def test_memory_blocks_cover_the_memory_and_overlap_nowhere() -> None:
    ranges = read_pfn_ranges()
    pages = int((ranges.end_pfn - ranges.start_pfn).sum())
    assert pages >= os.sysconf("SC_PHYS_PAGES")
    assert np.all(ranges.start_pfn[1:] >= ranges.end_pfn[:-1])
    assert set(ranges.node_of(ranges.start_pfn).tolist()) <= {node.number for node in read_topology().nodes}
    assert np.array_equal(ranges.node_of(ranges.end_pfn - np.uint64(1)), ranges.node)
