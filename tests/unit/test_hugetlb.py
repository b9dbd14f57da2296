"""What must be read of pools of hugetlb pages: what a node has, and what of it may be taken."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageferry.errors import KernelError
from pageferry.kernel.hugetlb import Pool, read_free_hugepages, read_pools

MIB_2, GIB = 2 << 20, 1 << 30


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host with 5 pages of 2 MiB on node 0, one free, and 4 free ones on node 2; 3 of all are reserved."""
    for node, sizes in {0: {2048: (5, 1), 1048576: (0, 0)}, 2: {2048: (4, 4)}}.items():
        for size, (pages, free) in sizes.items():
            folder = tmp_path / f"sys/devices/system/node/node{node}/hugepages/hugepages-{size}kB"
            folder.mkdir(parents=True)
            (folder / "nr_hugepages").write_text(f"{pages}\n")
            (folder / "free_hugepages").write_text(f"{free}\n")
    (tmp_path / "sys/devices/system/node/node3").mkdir()
    folder = tmp_path / "sys/kernel/mm/hugepages/hugepages-2048kB"
    folder.mkdir(parents=True)
    (folder / "free_hugepages").write_text("5\n")
    (folder / "resv_hugepages").write_text("3\n")
    return tmp_path


def test_pools_that_are_not_empty_are_told_by_node_and_size(host: Path) -> None:
    assert read_pools(host) == {0: {MIB_2: Pool(5, 1)}, 2: {MIB_2: Pool(4, 4)}}


def test_what_somebody_has_reserved_may_not_be_taken(host: Path) -> None:
    assert read_free_hugepages(0, host) == {MIB_2: 1, GIB: 0}
    assert read_free_hugepages(2, host) == {MIB_2: 2}
    assert read_free_hugepages(3, host) == {}


@pytest.mark.parametrize("text", ["", "-1", "many"])
@pytest.mark.parametrize("name", ["sys/devices/system/node/node2/hugepages", "sys/kernel/mm/hugepages"])
def test_a_number_that_is_none_is_refused_with_its_file(host: Path, name: str, text: str) -> None:
    path = host / name / "hugepages-2048kB/free_hugepages"
    path.write_text(text)
    with pytest.raises(KernelError, match=str(path)):
        read_free_hugepages(2, host)


def test_this_host_can_be_asked() -> None:
    assert all(0 <= pool.free <= pool.pages for pools in read_pools().values() for pool in pools.values())
