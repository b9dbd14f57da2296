"""What must hold of telling page frames to nodes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from pageferry.errors import KernelError
from pageferry.kernel.pfn_ranges import read_pfn_ranges
from support.trees import plant, write

MEMORY = "sys/devices/system/memory"
BLOCK = 0x8000000 // 4096


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return plant("four_nodes", tmp_path)


def test_adjacent_blocks_of_a_node_are_one_range(root: Path) -> None:
    ranges = read_pfn_ranges(root, 4096)
    assert (ranges.start_pfn // BLOCK).tolist() == [0, 8, 16, 48]
    assert (ranges.end_pfn // BLOCK).tolist() == [6, 15, 40, 56]
    assert ranges.node.tolist() == [0, 0, 1, 2]
    assert ranges.start_pfn.dtype == ranges.end_pfn.dtype == np.uint64
    assert ranges.node.dtype == np.int32


def test_a_frame_in_a_hole_or_in_a_block_of_two_nodes_has_no_node(root: Path) -> None:
    frames = np.array([0, 6 * BLOCK - 1, 6 * BLOCK, 8 * BLOCK, 15 * BLOCK, 16 * BLOCK, 47 * BLOCK, 55 * BLOCK])
    frames = np.append(frames, [56 * BLOCK, 2**55 - 1]).astype(np.uint64)
    nodes = read_pfn_ranges(root, 4096).node_of(frames)
    assert nodes.tolist() == [0, 0, -1, 0, -1, 1, -1, 2, -1, -1]
    assert nodes.dtype == np.int32


def test_frames_are_counted_in_pages_of_the_given_size(root: Path) -> None:
    assert read_pfn_ranges(root, 65536).start_pfn.tolist() == [block * 0x8000000 // 65536 for block in (0, 8, 16, 48)]


def test_no_frame_asks_for_nothing(root: Path) -> None:
    assert read_pfn_ranges(root).node_of(np.empty(0, np.uint64)).shape == (0,)


def test_without_any_block_no_frame_has_a_node(tmp_path: Path) -> None:
    write(tmp_path, f"{MEMORY}/block_size_bytes", "8000000\n")
    (tmp_path / "sys/devices/system/node").mkdir()
    assert read_pfn_ranges(tmp_path).node_of(np.arange(3, dtype=np.uint64)).tolist() == [-1, -1, -1]


def test_a_kernel_without_memory_blocks_is_told_as_such(root: Path) -> None:
    shutil.rmtree(root / MEMORY)
    with pytest.raises(KernelError, match="CONFIG_MEMORY_HOTPLUG"):
        read_pfn_ranges(root)


@pytest.mark.parametrize("content", ["", "zz", "0", "-8000000"])
def test_a_bad_block_size_is_named_in_the_complaint(root: Path, content: str) -> None:
    write(root, f"{MEMORY}/block_size_bytes", content)
    with pytest.raises(KernelError, match="block_size_bytes"):
        read_pfn_ranges(root)
