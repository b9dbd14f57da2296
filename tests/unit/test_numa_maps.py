"""What must hold of reading where the kernel says that pages lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageferry.errors import KernelError, Vanished
from support.numa_maps import NumaVma, read_numa_maps
from support.trees import plant, write


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return plant("processes", tmp_path)


def test_captured_mappings_are_counted_by_node(root: Path) -> None:
    vmas = read_numa_maps(4242, root)
    assert sum(vma.pages.get(0, 0) for vma in vmas[:6]) == 16
    assert {vma.page_bytes for vma in vmas[:6]} == {4096}


def test_blanks_in_policies_and_counts_in_file_names_do_not_confuse(root: Path) -> None:
    assert read_numa_maps(4242, root)[6] == NumaVma(0x7F0000000000, 4096, {1: 2, 5: 1})


def test_huge_pages_are_counted_in_their_own_size(root: Path) -> None:
    assert read_numa_maps(4242, root)[7] == NumaVma(0x7F0000200000, 2 << 20, {0: 1, 2: 3})


def test_a_carriage_return_in_a_file_name_does_not_end_the_line(root: Path) -> None:
    write(root, "proc/4242/numa_maps", b"7f00 default file=/a\rb N1=2 kernelpagesize_kB=4\n")
    assert read_numa_maps(4242, root) == (NumaVma(0x7F00, 4096, {1: 2}),)


def test_a_process_without_memory_has_no_mapping(root: Path) -> None:
    write(root, "proc/2/numa_maps", b"")
    assert read_numa_maps(2, root) == ()


def test_a_bad_line_is_named_in_the_complaint(root: Path) -> None:
    write(root, "proc/4242/numa_maps", b"somewhere default N0=1\n")
    with pytest.raises(KernelError, match="numa_maps: not a mapping"):
        read_numa_maps(4242, root)
    with pytest.raises(Vanished):
        read_numa_maps(7, root)
