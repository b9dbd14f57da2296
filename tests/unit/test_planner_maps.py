"""What must hold of parsing /proc/PID/maps: the kernel's lines, and the names that users can put into them."""

from __future__ import annotations

from unittest.mock import patch

import pytest

from pageferry_planner import maps
from pageferry_planner.maps import Region, parse
from pageferry_planner.sharing import share
from support.jobs import PAGE

HEAP = b"55d0c0000000-55d0c0021000 rw-p 00000000 00:00 0                          [heap]\n"
LIBC = b"7f0000000000-7f0000026000 r--p 00002000 08:01 1835077                    /usr/lib/libc.so.6\n"
VSYSCALL = b"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n"


def file_line(name: bytes) -> bytes:
    return b"1000-2000 r--s 00000000 08:01 7 " + name + b"\n"


def only_region(line: bytes) -> Region:
    (region,) = parse([line]).regions
    return region


def test_a_line_says_addresses_permissions_offset_device_inode_and_path() -> None:
    found = parse([LIBC])
    assert found.start.tolist() == [0x7F0000000000]
    assert found.end.tolist() == [0x7F0000026000]
    assert found.regions == (Region(False, False, 0x2000, "08:01", 1835077, "/usr/lib/libc.so.6", 0),)


@pytest.mark.parametrize(
    ("permissions", "shared", "writable"),
    [(b"rw-s", True, True), (b"r--s", True, False), (b"rw-p", False, True), (b"--xp", False, False)],
)
def test_permissions_say_shared_and_writable(permissions: bytes, shared: bool, writable: bool) -> None:
    region = only_region(b"1000-2000 " + permissions + b" 00000000 08:01 7 /x\n")
    assert (region.shared, region.writable) == (shared, writable)


def test_memory_without_a_name_is_anonymous() -> None:
    region = only_region(b"1000-2000 rw-p 00000000 00:00 0 \n")
    assert region.anonymous
    assert region.path == ""
    assert only_region(HEAP).anonymous


def test_what_the_kernel_puts_into_every_process_is_told_apart_and_left_out() -> None:
    found = parse([VSYSCALL + b"7000-8000 r-xp 00000000 00:00 0 [vdso]\n" + HEAP])
    assert [region.kernel_own for region in found.regions] == [True, True, False]
    assert share(found, PAGE).vmas.page.tolist() == [0x55D0C0000]


def test_the_last_line_may_lack_its_newline() -> None:
    assert len(parse([HEAP + LIBC.rstrip(b"\n")]).line) == 2


def test_no_processes_and_empty_maps_are_no_mappings() -> None:
    assert len(parse([]).line) == 0
    found = parse([b"", HEAP, b""])
    assert found.process.tolist() == [1]
    assert len(share(parse([b""]), PAGE).ranges) == 0


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"garbage\n",
        b"1000 r--s 00000000 08:01 7 /x\n",
        b"1000-2000-3000 r--s 00000000 08:01 7 /x\n",
        b"1000-2000\n",
        b"1000-2000 r--s 00000000 08:01\n",
        b"xyzt-2000 r--s 00000000 08:01 7 /x\n",
        b"1000-2000 r-- 00000000 08:01 7 /x\n",
        b"1000-2000 r--s offset 08:01 7 /x\n",
        b"1000-2000 r--s 00000000 \xff8:01 7 /x\n",
        b"1000-2000 r--s 00000000 08:01 seven /x\n",
        b"1000-fffffffffffffffff r--s 00000000 08:01 7 /x\n",
        HEAP + b"\n" + LIBC,
        HEAP + b"continued from a name\n",
    ],
)
def test_text_that_is_not_the_kernels_is_refused_and_shown(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a line of /proc/PID/maps: b'"):
        parse([line])


@pytest.mark.parametrize(
    ("printed", "path"),
    [
        (rb"/tmp/two\012lines", r"/tmp/two\012lines"),
        (b"/tmp/a b  c", "/tmp/a b  c"),
        (b"/tmp/trailing  ", "/tmp/trailing  "),
        (b"/tmp/gone (deleted)", "/tmp/gone (deleted)"),
        (b"/tmp/1000-2000 r--s 00000000 08:01 8 /etc/shadow", "/tmp/1000-2000 r--s 00000000 08:01 8 /etc/shadow"),
        (b"/tmp/\x1b[2J\x1b]0;title\x07", "/tmp/\x1b[2J\x1b]0;title\x07"),
        (b"/tmp/return\rtab\tfeed\x0c\x0b\x1c\x85", "/tmp/return\rtab\tfeed\x0c\x0b\x1c\udc85"),
        (b"/tmp/\xff\xfe", "/tmp/\udcff\udcfe"),
        (b"/tmp/[vdso]", "/tmp/[vdso]"),
    ],
)
def test_a_hostile_name_stays_one_name_of_one_line(printed: bytes, path: str) -> None:
    found = parse([HEAP + file_line(printed) + LIBC])
    assert len(found.line) == 3
    region = found.regions[1]
    assert region.path == path
    assert (region.device, region.inode, region.kernel_own) == ("08:01", 7, False)


def test_each_distinct_line_is_parsed_once_whatever_the_number_of_processes() -> None:
    text = HEAP + LIBC + file_line(b"/data")
    with patch.object(maps, "_region", wraps=maps._region) as parsed:
        found = parse([text] * 200)
    assert parsed.call_count == 3
    assert len(found.start) == len(found.end) == 3
    assert found.process.tolist() == [process for process in range(200) for _ in range(3)]
    assert found.line.tolist() == [0, 1, 2] * 200


def test_what_follows_the_addresses_is_parsed_once_for_all_addresses() -> None:
    with patch.object(maps, "_region", wraps=maps._region) as parsed:
        found = parse([LIBC.replace(b"7f0", b"7e%d" % number) for number in range(9)])
    assert parsed.call_count == 1
    assert len(found.start) == 9
    assert found.region.tolist() == [0] * 9


def sysv(shmid: int) -> bytes:
    return b"7000-9000 rw-s 00000000 00:01 %d                          /SYSV00000000 (deleted)\n" % shmid


def memfd(inode: int) -> bytes:
    return b"a000-c000 rw-s 00000000 00:01 %d                          /memfd:x (deleted)\n" % inode


def test_the_system_v_segment_of_shmid_0_is_no_anonymous_memory() -> None:
    assert not only_region(sysv(0)).anonymous
    found = share(parse([sysv(0), sysv(0)]), PAGE)
    assert [(backing.device, backing.inode) for backing in found.backings] == [("00:01", 0)]
    assert len(found.extents) == 1


def test_one_segment_of_one_ipc_namespace_is_one_backing() -> None:
    found = share(parse([sysv(5), sysv(5), sysv(5)], [11, 11, 11]), PAGE)
    assert len(found.backings) == len(found.ranges) == 1


def test_equal_segment_numbers_of_two_ipc_namespaces_are_two_backings() -> None:
    found = share(parse([sysv(5), sysv(5), sysv(5)], [11, 22, 11]), PAGE)
    assert len(found.backings) == 2
    assert found.vmas.backing.tolist() == [0, 1, 0]
    assert found.ranges.process.tolist() == [0, 1]


def test_a_segment_and_a_memfd_of_the_same_number_are_two_backings() -> None:
    found = share(parse([sysv(5) + memfd(5), memfd(5)]), PAGE)
    assert len(found.backings) == 2
    assert found.vmas.backing.tolist() == [0, 1, 1]
    assert found.ranges.page.tolist() == [7, 10]


def test_the_namespace_matters_to_system_v_segments_only() -> None:
    found = share(parse([memfd(5), memfd(5)], [11, 22]), PAGE)
    assert len(found.backings) == 1
