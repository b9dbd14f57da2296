"""Texts of /proc and /sys, changed at random: each reader says what they mean, or in one line that it does not know."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pageferry.errors import PageferryError
from pageferry.kernel import cgroup, mempolicy, procfs, referenced, sparse
from pageferry.kernel.huge_pages import read_free_huge_pages, read_splits
from pageferry.kernel.hugetlb import read_pools
from pageferry.kernel.mountinfo import Mount, read_mountinfo
from pageferry.kernel.pfn_ranges import read_pfn_ranges
from pageferry.kernel.topology import read_topology
from pageferry.kernel.watermarks import read_kept_by_zone
from pageferry.kernel.weights import read_weights
from pageferry.snapshot import parsed_maps
from pageferry_planner.maps import Maps
from support.mutations import clean, fuzz, mutated
from support.trees import FIXTURES, plant, write

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")

PID = 4242
OWN = Path("/proc/self")


def recorded(name: str) -> list[bytes]:
    """Return the texts of that name in the captured trees, and our own."""
    texts = []
    for tree in ("processes", "four_nodes", "slurm_v1", "slurm_v2"):
        parts = re.split(r"^-- (.+?) --\n", (FIXTURES / f"{tree}.txtar").read_text(), flags=re.MULTILINE)
        texts += [
            text.encode() for path, text in zip(parts[1::2], parts[2::2], strict=True) if path.endswith(f"/{name}")
        ]
    return texts


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant("processes", tmp_path_factory.mktemp("proc"))


STATUS = recorded("status")
STAT = [text for text in recorded("stat") if text.count(b" ") > 20]
MAPS = [text for text in recorded("maps") if text]
NUMA_MAPS = recorded("numa_maps")
MOUNTINFO = recorded("mountinfo")
SMAPS = [
    b"".join(
        line + b"\nSize: 132 kB\nRss: 112 kB\nReferenced: 100 kB\nPrivate_Hugetlb: 0 kB\nVmFlags: rd wr mr\n"
        for line in text.splitlines()
    )
    for text in MAPS
]


@given(mutated(STATUS))
@fuzz
def test_a_status_is_read_or_refused(root: Path, text: bytes) -> None:
    write(root, f"proc/{PID}/status", text)
    status = clean(lambda: procfs.read_status(PID, root), [root])
    if isinstance(status, procfs.Status):
        assert re.fullmatch("[A-Za-z]", status.state)
        assert status.name.isprintable()
        for number in (status.thread_group, status.parent, status.threads, *status.uids):
            assert 0 <= number < 1 << 32
        for size in (status.rss_anon_bytes, status.rss_file_bytes, status.rss_shmem_bytes):
            assert 0 <= size < 1 << 63
        assert len(status.uids) == 4
    write(root, f"proc/{PID}/task/{PID}/status", text)
    clean(lambda: sparse.Sparse(lambda frames: frames, root)._in_memory(PID), [root])


@given(mutated(STAT))
@fuzz
def test_a_stat_is_read_or_refused(root: Path, text: bytes) -> None:
    write(root, f"proc/{PID}/stat", text)
    for read in (procfs.start_time, procfs.parent):
        found = clean(lambda read=read: read(PID, root), [root])  # type: ignore[misc]
        assert isinstance(found, PageferryError) or 0 <= found < 1 << 64
    assert clean(lambda: procfs.living_thread(PID, root), [root]) is not None
    clean(lambda: procfs.has_ended(PID, root), [root])


@given(mutated(MOUNTINFO))
@fuzz
def test_mounts_are_read_or_refused(root: Path, text: bytes) -> None:
    write(root, "proc/self/mountinfo", text)
    mounts = clean(lambda: read_mountinfo(root), [root])
    if not isinstance(mounts, PageferryError):
        assert all(isinstance(mount, Mount) and re.fullmatch("[0-9a-f]+:[0-9a-f]+", mount.device) for mount in mounts)
    clean(lambda: cgroup.read_hierarchies(root), [root])
    clean(lambda: cgroup.unified_mounts(root), [root])


@given(mutated(MAPS))
@example(b"2000-1000 r--p 00000000 fe:00 1 /a\n")
@example(b"1000-2000 r--p 00000000 fe:00 " + b"9" * 40 + b" /a\n")
@example(b"1000-2000 r--p -1 fe:00 -1\n")
@example(b"1000-2000 r--p 00000000 fe:\x0500 1 /a\n")
@fuzz
def test_maps_are_read_or_refused(text: bytes) -> None:
    maps = clean(lambda: parsed_maps([text, *MAPS], None))
    if isinstance(maps, Maps):
        start, end = maps.start.view(np.uint64), maps.end.view(np.uint64)
        assert (start < end).all()
        for region in maps.regions:
            assert 0 <= region.offset < 1 << 64
            assert 0 <= region.inode < 1 << 64
            assert region.device.isprintable()


@given(mutated(NUMA_MAPS))
@fuzz
def test_memory_policies_are_read_or_refused(root: Path, text: bytes) -> None:
    for line in text.split(b"\n"):
        told = clean(lambda line=line: mempolicy.parse(line))  # type: ignore[misc]
        if isinstance(told, tuple):
            policy, occupied = told
            assert policy.mode.isprintable()
            assert all(0 <= node < 1 << 16 for node in policy.nodes | occupied)
    write(root, f"proc/{PID}/task/{PID}/numa_maps", text)
    write(root, f"proc/{PID}/numa_maps", text)
    clean(lambda: mempolicy._of_mappings(PID, 1e18, root), [root])
    clean(lambda: mempolicy._of_threads(PID, 1e18, root), [root])


@given(mutated(SMAPS))
@example(b"2000-1000 r--p 00000000 fe:00 1 /a\nRss: 4 kB\n")
@example(b"1000-2000 r--p 00000000 fe:00 1 /a\nRss: 999999 kB\nReferenced: 9999999 kB\n")
@example(b"1000-2000 r--p 00000000 fe:00 1 /a\nRss: " + b"9" * 5000 + b" kB\n")
@fuzz
def test_mappings_in_memory_are_read_or_not_told(root: Path, text: bytes) -> None:
    write(root, f"proc/{PID}/smaps", text)
    vmas = clean(lambda: sparse.read_vmas(PID, root), [root])
    if isinstance(vmas, list):
        assert all(0 <= first < end <= 1 << 52 and 0 <= pages <= end - first for first, end, pages in vmas)
    read = clean(lambda: referenced.read(PID, root), [root])
    if isinstance(read, tuple):
        page, pages, used = read
        assert (page >= 0).all()
        assert (used <= pages).all()
        assert (used >= 0).all()


NODE_FILES: tuple[tuple[str, Callable[[Path], object]], ...] = (
    ("sys/devices/system/node/online", read_topology),
    ("sys/devices/system/node/node0/cpulist", read_topology),
    ("sys/devices/system/node/node0/distance", read_topology),
    ("sys/devices/system/node/node0/meminfo", read_topology),
    ("sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages", read_topology),
    ("sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", read_pools),
    ("sys/devices/system/memory/block_size_bytes", read_pfn_ranges),
    ("sys/kernel/mm/mempolicy/weighted_interleave/node0", read_weights),
    ("sys/kernel/mm/transparent_hugepage/hpage_pmd_size", read_free_huge_pages),
    ("proc/buddyinfo", read_free_huge_pages),
    ("proc/zoneinfo", read_kept_by_zone),
    ("proc/vmstat", read_splits),
    ("proc/stat", procfs.processes_forked),
)
TEXTS = {
    "sys/kernel/mm/mempolicy/weighted_interleave/node0": b"3\n",
    "sys/kernel/mm/transparent_hugepage/hpage_pmd_size": b"2097152\n",
    "sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages": b"12\n",
}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = plant("four_nodes", tmp_path_factory.mktemp("host"))
    for name in ("proc/buddyinfo", "proc/zoneinfo", "proc/vmstat", "proc/stat"):
        write(root, name, Path("/", name).read_bytes())
    for name, text in TEXTS.items():
        write(root, name, text)
    return root


@pytest.mark.parametrize(("name", "read"), NODE_FILES, ids=[name for name, _ in NODE_FILES])
@given(data=st.data())
@fuzz
def test_what_the_kernel_says_of_the_host_is_read_or_refused(
    host: Path, data: st.DataObject, name: str, read: Callable[[Path], object]
) -> None:
    whole = (host / name).read_bytes()
    write(host, name, data.draw(mutated([whole])))
    try:
        numbers_of(clean(lambda: read(host), [host]))
    finally:
        write(host, name, whole)


@pytest.mark.parametrize(
    ("name", "read", "text"),
    [
        ("sys/devices/system/node/node0/distance", read_topology, b"10 21 17 " + b"9" * 5000),
        ("sys/devices/system/node/node0/meminfo", read_topology, b"Node 0 MemTotal: " + b"9" * 5000 + b" kB\n"),
        ("sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", read_pools, b"9" * 5000),
        ("sys/devices/system/memory/block_size_bytes", read_pfn_ranges, b"18446744073709551615\n"),
        ("sys/kernel/mm/transparent_hugepage/hpage_pmd_size", read_free_huge_pages, b"9" * 5000),
        ("proc/buddyinfo", read_free_huge_pages, b"Node 0, zone DMA " + b"9" * 5000),
        ("proc/stat", procfs.processes_forked, b"processes " + b"9" * 5000 + b"\n"),
    ],
)
def test_a_number_that_no_kernel_writes_is_refused(
    host: Path, name: str, read: Callable[[Path], object], text: bytes
) -> None:
    whole = (host / name).read_bytes()
    write(host, name, text)
    try:
        assert isinstance(clean(lambda: read(host), [host]), PageferryError)
    finally:
        write(host, name, whole)


def numbers_of(found: object) -> None:
    """Assert that all numbers in what was read are such as the kernel has."""
    if isinstance(found, bool | str | bytes | PageferryError) or found is None:
        return
    if isinstance(found, int):
        assert 0 <= found < 1 << 80
    elif isinstance(found, dict):
        for part in (*found.keys(), *found.values()):
            numbers_of(part)
    elif isinstance(found, list | tuple | frozenset):
        for part in found:
            numbers_of(part)
