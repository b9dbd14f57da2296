"""How much of a cgroup's memory is on which node, read from both versions' files and from broken ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageferry.errors import KernelError, Vanished
from pageferry.kernel.numa_stat import mapped_bytes, read_numa_stat
from support.trees import write

V2 = """\
anon N0=55623680 N1=0 N2=4096
file N0=8192 N1=999424 N2=0
kernel_stack N0=32768 N1=0 N2=0
shmem N0=8192 N1=0 N2=12288
file_mapped N0=4096 N1=40960 N2=0
unevictable N0=0 N1=0 N2=4096
workingset_nodereclaim N0=0 N1=0 N2=0
"""
"""As Linux 6.1 writes it, shortened; bytes."""

V1 = """\
total=0 N0=0 N1=0
file=0 N0=0 N1=0
anon=0 N0=0 N1=0
unevictable=0 N0=0 N1=0
hierarchical_total=13588 N0=13580 N1=8
hierarchical_file=5 N0=0 N1=5
hierarchical_anon=13580 N0=13580 N1=0
hierarchical_unevictable=3 N0=0 N1=3
"""
"""As Linux 6.1 writes it; pages, and the group's own are 0 because a step below it has them."""


def test_version_2_counts_in_bytes_for_each_node(tmp_path: Path) -> None:
    counters = read_numa_stat(write(tmp_path, "memory.numa_stat", V2))
    assert counters["anon"] == {0: 55623680, 1: 0, 2: 4096}
    assert counters["file_mapped"] == {0: 4096, 1: 40960, 2: 0}


def test_version_1_counts_in_pages_and_what_is_below_the_group_belongs_to_it(tmp_path: Path) -> None:
    counters = read_numa_stat(write(tmp_path, "memory.numa_stat", V1))
    assert counters["anon"] == {0: 13580 * 4096, 1: 0}
    assert counters["total"] == {0: 13580 * 4096, 1: 8 * 4096}


def test_shared_memory_that_is_mapped_counts_once_and_page_cache_that_nobody_maps_not_at_all(tmp_path: Path) -> None:
    assert mapped_bytes(read_numa_stat(write(tmp_path, "memory.numa_stat", V2))) == {
        0: 55623680 + 8192,
        1: 40960,
        2: 4096 + 12288,
    }


def test_version_1_has_locked_memory_beside_the_rest(tmp_path: Path) -> None:
    assert mapped_bytes(read_numa_stat(write(tmp_path, "memory.numa_stat", V1))) == {0: 13580 * 4096, 1: 3 * 4096}


def test_nodes_whose_numbers_have_gaps_are_told_apart(tmp_path: Path) -> None:
    write(tmp_path, "memory.numa_stat", "anon N0=4096 N8=8192 N255=12288\nfile_mapped N8=4096\n")
    assert mapped_bytes(read_numa_stat(tmp_path)) == {0: 4096, 8: 12288, 255: 12288}


def test_a_group_without_the_file_has_vanished_or_has_no_memory_controller(tmp_path: Path) -> None:
    with pytest.raises(Vanished):
        read_numa_stat(tmp_path)
    with pytest.raises(Vanished):
        read_numa_stat(tmp_path / "gone")


@pytest.mark.parametrize(
    "line",
    ["anon", "anon N0", "anon N0=-1", "anon N0=1x N1=2", "anon=x N0=1", "N0=1", "anon N0=1\x1b[2J", "anon M0=1"],
)
def test_a_line_that_is_no_counter_is_refused_and_quoted_as_plain_text(tmp_path: Path, line: str) -> None:
    write(tmp_path, "memory.numa_stat", f"file N0=1\n{line} N\n")
    with pytest.raises(KernelError, match=r"memory\.numa_stat: not a counter: [ -~]+$"):
        read_numa_stat(tmp_path)


@pytest.mark.parametrize("text", ["", "file N0=4096\n", "anon=3 N0=3\n"])
def test_a_file_that_does_not_tell_anonymous_memory_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(KernelError, match="anon"):
        mapped_bytes(read_numa_stat(write(tmp_path, "memory.numa_stat", text)))
