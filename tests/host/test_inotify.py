"""What must hold of the inotify boundary, on this kernel; an overflow is fed to the parser."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from pathlib import Path

import pytest

from pageferry.errors import KernelError, Vanished
from pageferry.kernel import inotify
from pageferry.kernel.inotify import Inotify, RawEvent, parse


@pytest.fixture
def watches() -> Inotify:
    return Inotify()


def refused(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    class Library:
        def inotify_init1(self, flags: int) -> int:
            ctypes.set_errno(number)
            return -1

        def inotify_add_watch(self, fd: int, path: bytes, mask: int) -> int:
            return self.inotify_init1(0)

        inotify_rm_watch = inotify_init1

    monkeypatch.setattr(inotify, "_library", Library)


def test_what_is_not_there_has_vanished(watches: Inotify, tmp_path: Path) -> None:
    with pytest.raises(Vanished):
        watches.watch(tmp_path / "none", inotify.IN_MODIFY)


def test_a_file_is_no_directory(watches: Inotify, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Vanished):
        watches.watch(tmp_path / "file", inotify.IN_CREATE | inotify.IN_ONLYDIR)


@pytest.mark.parametrize(
    ("number", "sysctl"), [(errno.ENOSPC, "max_user_watches"), (errno.ENOMEM, "Cannot allocate memory")]
)
def test_a_refused_watch_is_told(
    watches: Inotify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, sysctl: str
) -> None:
    refused(monkeypatch, number)
    with pytest.raises(KernelError, match=sysctl):
        watches.watch(tmp_path, inotify.IN_CREATE)


@pytest.mark.parametrize(
    ("number", "sysctl"), [(errno.EMFILE, "max_user_instances"), (errno.ENOSYS, "not implemented")]
)
def test_a_refused_instance_is_told(monkeypatch: pytest.MonkeyPatch, number: int, sysctl: str) -> None:
    refused(monkeypatch, number)
    with pytest.raises(KernelError, match=sysctl):
        Inotify()


def test_nothing_to_read_is_no_event(watches: Inotify) -> None:
    assert watches.read() == ()


def test_changes_are_told_in_order_and_by_name(watches: Inotify, tmp_path: Path) -> None:
    mask = inotify.IN_CREATE | inotify.IN_DELETE | inotify.IN_MODIFY | inotify.IN_MOVED_FROM | inotify.IN_MOVED_TO
    watch = watches.watch(tmp_path, mask)
    assert watches.watch(tmp_path, mask) == watch
    name = os.fsdecode(b"a \xff\n")
    (tmp_path / name).mkdir()
    (tmp_path / name).rename(tmp_path / "b")
    (tmp_path / "b").rmdir()
    (tmp_path / "file").write_text("text")
    assert select.select([watches], [], [], 0)[0] == [watches]
    made, gone, came, removed, created, written = watches.read()
    assert made == RawEvent(watch, inotify.IN_CREATE | inotify.IN_ISDIR, 0, b"a \xff\n")
    assert (gone.mask, came.mask) == (
        inotify.IN_MOVED_FROM | inotify.IN_ISDIR,
        inotify.IN_MOVED_TO | inotify.IN_ISDIR,
    )
    assert gone.cookie == came.cookie != 0
    assert (removed.mask, removed.name) == (inotify.IN_DELETE | inotify.IN_ISDIR, b"b")
    assert (created.mask, created.name) == (inotify.IN_CREATE, b"file")
    assert (written.mask, written.name) == (inotify.IN_MODIFY, b"file")


def test_a_watch_that_has_ended_tells_so_and_ending_it_again_is_no_error(watches: Inotify, tmp_path: Path) -> None:
    watch = watches.watch(tmp_path, inotify.IN_CREATE)
    watches.unwatch(watch)
    assert watches.read() == (RawEvent(watch, inotify.IN_IGNORED, 0, b""),)
    watches.unwatch(watch)
    (tmp_path / "a").mkdir()
    assert watches.read() == ()


def test_an_end_on_a_closed_instance_is_told_and_closing_twice_is_once(watches: Inotify, tmp_path: Path) -> None:
    watch = watches.watch(tmp_path, inotify.IN_CREATE)
    watches.close()
    watches.close()
    with pytest.raises(KernelError, match="Bad file descriptor"):
        watches.unwatch(watch)


def test_the_instance_is_not_inherited(watches: Inotify) -> None:
    assert not os.get_inheritable(watches.fileno())


def test_names_of_any_padding_and_an_overflow_are_parsed() -> None:
    names = [b"", b"a" * 15, b"b" * 16, b"c" * 255]
    buffer = b""
    for number, name in enumerate(names):
        length = (len(name) + 16) // 16 * 16 if name else 0
        buffer += struct.pack("=iIII", number, inotify.IN_CREATE, 0, length) + name.ljust(length, b"\0")
    buffer += struct.pack("=iIII", -1, inotify.IN_Q_OVERFLOW, 0, 0)
    *told, lost = parse(buffer)
    assert [(event.watch, event.name) for event in told] == list(enumerate(names))
    assert lost == RawEvent(-1, inotify.IN_Q_OVERFLOW, 0, b"")


def test_more_events_than_a_buffer_holds_come_with_the_next_read(watches: Inotify, tmp_path: Path) -> None:
    watches.watch(tmp_path, inotify.IN_CREATE)
    for number in range(2000):
        (tmp_path / f"{number:0100}").touch()
    names: list[int] = []
    rounds = 0
    while batch := watches.read():
        names += [int(event.name) for event in batch]
        rounds += 1
    assert names == list(range(2000))
    assert rounds > 1
