"""Free huge pages of each node, read from captured and from broken files; what is asked of the kernel about them."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pageferry.errors import Denied, KernelError, PageferryError
from pageferry.kernel.huge_pages import (
    alone_at,
    compact,
    on_one_cpu,
    read_free_huge_pages,
    read_huge_page_bytes,
    read_splits,
)
from pageferry.kernel.pageflags import flags_of, folio_pages, huge_pages, mappings_of
from pageferry_planner.columns import Ints
from support.trees import write

SIZE = "sys/kernel/mm/transparent_hugepage/hpage_pmd_size"
BUDDYINFO = """\
Node 0, zone      DMA      0      0      0      0      0      0      0      0      1      1      3 
Node 0, zone    DMA32      2      1      4      2      5      4      4      4      5      3      7 
Node 0, zone   Normal    900      0      0      0      0      0      0      0      0      2     10 
Node 3, zone   Normal  50000      9      0      0      0      0      0      0      0      6      1 
"""  # noqa: W291 - as the kernel prints it
ZONEINFO = """\
Node 0, zone      DMA
  pages free     3840
        high     99
        protection: (0, 1890, 63890, 63890, 63890)
Node 0, zone    DMA32
  pages free     9000
        high     1000
        protection: (0, 0, 100, 100, 100)
Node 0, zone   Normal
  pages free     12164
        high     8000
        protection: (0, 0, 0, 0, 0)
Node 0, zone  Movable
  pages free     0
        high     0
        protection: (0, 0, 0, 0, 0)
Node 3, zone   Normal
  pages free     54000
        high     12
        protection: (0, 0, 0, 0, 0)
"""


@pytest.fixture
def host(tmp_path: Path) -> Path:
    write(tmp_path, SIZE, "2097152\n")
    write(tmp_path, "proc/buddyinfo", BUDDYINFO)
    write(tmp_path, "proc/zoneinfo", ZONEINFO)
    return tmp_path


def test_a_block_of_twice_the_size_is_two_and_each_zone_keeps_its_watermark_and_its_protection(host: Path) -> None:
    dma32 = 3 + 2 * 7  # of 10540 free pages: all of them are above 1100
    normal = (900 + 2 * 512 + 10 * 1024 - 8000) // 512  # though it has 22 blocks
    assert read_free_huge_pages(host) == {0: 0 + dma32 + normal, 3: 6 + 2 - 1}, "of an even number all but one"


def test_blocks_are_counted_by_the_size_that_huge_pages_have_here(host: Path) -> None:
    write(host, SIZE, f"{4 << 20}\n")
    assert read_free_huge_pages(host)[3] == 1
    write(host, SIZE, f"{32 << 20}\n")  # larger than any block
    assert set(read_free_huge_pages(host).values()) == {0}


def test_a_kernel_without_huge_pages_has_none_free(tmp_path: Path) -> None:
    assert read_huge_page_bytes(tmp_path) is None
    assert read_free_huge_pages(tmp_path) == {}


@pytest.mark.parametrize("text", ["", "0", "-2097152", "3000000", "2 MiB", "1024"])
def test_a_size_that_no_page_has_is_refused(host: Path, text: str) -> None:
    write(host, SIZE, text)
    with pytest.raises(KernelError, match="hpage_pmd_size"):
        read_free_huge_pages(host)


@pytest.mark.parametrize(
    "line",
    [
        "Node 3, zone   Normal",
        "Node 3, zone   Normal  1 2 x",
        "Node 3, zone   Normal  1 -2",
        "Node 3, zone   Device  1 2",
        "Node 7, zone   Normal  1 2",
        "Node 3, zone   Normal, type Movable 1 2",
        "nothing of the kind",
    ],
)
def test_a_line_that_is_no_known_zones_is_refused(host: Path, line: str) -> None:
    write(host, "proc/buddyinfo", BUDDYINFO + line + "\n")
    with pytest.raises(KernelError, match=r"buddyinfo: not a zone's free blocks: .*" + line[:10]):
        read_free_huge_pages(host)


def test_without_the_kernels_list_of_free_blocks_nothing_is_guessed(host: Path) -> None:
    (host / "proc/buddyinfo").unlink()
    with pytest.raises(KernelError, match="buddyinfo is missing"):
        read_free_huge_pages(host)


def test_this_hosts_own_files_can_be_read() -> None:
    assert all(count >= 0 for count in read_free_huge_pages().values())
    assert read_splits() >= 0


def test_splits_are_read_from_the_kernels_counters(tmp_path: Path) -> None:
    write(tmp_path, "proc/vmstat", "thp_split_page 9\nthp_migration_split 4\n")
    assert read_splits(tmp_path) == 4
    write(tmp_path, "proc/vmstat", "nr_free_pages 9\n")
    assert read_splits(tmp_path) == 0


def test_nodes_that_may_not_be_compacted_are_passed_over(tmp_path: Path) -> None:
    path = "sys/devices/system/node/node2/compact"
    write(tmp_path, path, "")
    compact([1, 2], tmp_path)
    assert (tmp_path / path).read_text() == "1"


def kpageflags(root: Path, flags: list[int]) -> None:
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/kpageflags").write_bytes(np.array(flags, np.uint64).tobytes())


HEAD, TAIL, HUGETLB = 1 << 15, 1 << 16, 1 << 17


def test_a_frame_is_huge_if_all_of_its_block_is_one_compound_page_and_no_hugetlb_page(tmp_path: Path) -> None:
    whole = [HEAD] + [TAIL] * 511
    small_folios = ([HEAD] + [TAIL] * 15) * 32
    hugetlb = [flag | HUGETLB for flag in whole]
    plain = [0] * 512
    kpageflags(tmp_path, whole + small_folios + hugetlb + plain + whole)
    frames = np.array([4 * 512 + 7, 511, 0, 512, 513, 1024, 1100, 1536, 2047, 5])
    assert huge_pages(frames, 512, tmp_path).tolist() == [True, True, True, *[False] * 6, True]
    assert huge_pages(frames[:0], 512, tmp_path).tolist() == []


def test_the_size_of_a_folio_is_told_from_any_of_its_frames(tmp_path: Path) -> None:
    kpageflags(tmp_path, [0, 0, *[HEAD, TAIL] * 3, HEAD, *[TAIL] * 7, HEAD, *[TAIL] * 15, 0])
    frames = np.array([31, 16, 32, 8, 15, 3, 2, 1, 0])
    assert folio_pages(frames, 512, tmp_path).tolist() == [16, 16, 1, 8, 8, 2, 2, 1, 1]
    assert folio_pages(np.array([20]), 8, tmp_path).tolist() == [8], "of more, no more are counted"
    assert folio_pages(frames[:0], 512, tmp_path).tolist() == []


def test_beyond_the_last_frame_there_is_nothing(tmp_path: Path) -> None:
    kpageflags(tmp_path, [HEAD, TAIL])
    assert flags_of(np.array([2, 1, 0, 900]), tmp_path).tolist() == [0, TAIL, HEAD, 0]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EPERM, Denied),
        (errno.EACCES, Denied),
        (errno.EIO, KernelError),
        (errno.ENOMEM, KernelError),
        (errno.ENOENT, KernelError),  # the kernel has no such file: no process has ended
    ],
)
@pytest.mark.parametrize("call", ["open", "pread"])
@pytest.mark.parametrize("look", [flags_of, mappings_of])
def test_what_goes_wrong_with_frames_is_the_kernels_no(
    look: Callable[[Ints, Path], object],
    call: str,
    number: int,
    kind: type[KernelError],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    write(tmp_path, "proc/kpageflags", "")
    write(tmp_path, "proc/kpagecount", "")
    with monkeypatch.context() as patched, pytest.raises(PageferryError) as raised:
        patched.setattr(os, call, fails)
        look(np.array([1]), tmp_path)
    assert type(raised.value) is kind


def test_a_thread_that_is_kept_on_its_cpu_may_use_all_of_them_again() -> None:
    before = os.sched_getaffinity(0)
    with on_one_cpu():
        assert len(os.sched_getaffinity(0)) == 1
        assert os.sched_getaffinity(0) <= before
    assert os.sched_getaffinity(0) == before


def test_one_at_a_time_counts_a_nodes_free_huge_pages_and_who_gives_up_does_not(tmp_path: Path) -> None:
    for node in (0, 1):
        (tmp_path / f"sys/devices/system/node/node{node}").mkdir(parents=True)
    asked: list[bool] = []

    def given_up() -> bool:
        asked.append(True)
        return len(asked) > 3

    with alone_at(0, lambda: False, tmp_path) as first:
        assert first
        with alone_at(1, lambda: False, tmp_path) as other:
            assert other, "another node is another matter"
        with alone_at(0, given_up, tmp_path) as second:
            assert not second
    with alone_at(0, lambda: False, tmp_path) as again:
        assert again
    with alone_at(0, lambda: True, tmp_path) as late:
        assert not late, "its time was used up while it waited"
