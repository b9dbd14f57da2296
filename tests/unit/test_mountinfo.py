"""What must hold of reading mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageferry.errors import KernelError
from pageferry.kernel.mountinfo import Mount, read_mountinfo
from support.trees import plant, write

MOUNTINFO = "proc/self/mountinfo"


def test_optional_fields_and_octal_escapes_are_understood(tmp_path: Path) -> None:
    assert read_mountinfo(plant("processes", tmp_path))[-2] == Mount(
        device="08:11",
        top=b"/sub dir",
        point=b"/scratch\\a\tb\nc",
        fstype="nfs4",
        super_options=frozenset({b"rw", b"vers=4.2"}),
    )


def test_mounts_come_in_the_kernels_order(tmp_path: Path) -> None:
    points = [mount.point for mount in read_mountinfo(plant("processes", tmp_path))]
    assert points[:3] == [b"/proc", b"/sys", b"/dev"]
    assert points.count(b"/dev/shm") == 2


def test_an_escaped_backslash_is_not_undone_twice_and_any_byte_passes(tmp_path: Path) -> None:
    write(tmp_path, MOUNTINFO, rb"1 2 8:1 / /a\134040\377 rw - ext4 /dev/sda rw" + b"\n")
    assert read_mountinfo(tmp_path)[0].point == b"/a\\040\xff"


@pytest.mark.parametrize(
    "line",
    [
        b"1 2 8:1 / /a rw ext4 /dev/sda rw",
        b"1 2 8 / /a rw - ext4 /dev/sda rw",
        b"1 2 8:1 - ext4 /dev/sda rw",
        b"1 2 8:1 / /a rw - ext4",
        b"\x1b[2J",
    ],
)
def test_a_bad_line_is_quoted_and_escaped_in_the_complaint(tmp_path: Path, line: bytes) -> None:
    write(tmp_path, MOUNTINFO, line + b"\n")
    with pytest.raises(KernelError, match="mountinfo: not a mount") as caught:
        read_mountinfo(tmp_path)
    assert str(caught.value).isprintable()
