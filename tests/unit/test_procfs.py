"""What must hold of reading processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageferry.errors import Denied, KernelError, Vanished
from pageferry.kernel import procfs
from pageferry.kernel.mountinfo import read_mountinfo
from support.trees import plant, write

STARTED = 280893
HOSTILE_NAMES = [b"cat", b") R 1 (", b"a b", b"))))", b"(", b"x\n1 (y) S 1", b"\x1b[2J", b"\xff\xfe", b"", b"a\0b"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return plant("processes", tmp_path)


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_the_start_time_is_read_whatever_a_process_calls_itself(root: Path, name: bytes) -> None:
    text = (root / "proc/4242/stat").read_bytes()
    write(root, "proc/4242/stat", text.replace(b"(cat)", b"(" + name + b")"))
    assert procfs.start_time(4242, root) == STARTED


@pytest.mark.parametrize("text", [b"", b"4242 (cat) S 1 2", b"4242 (cat) " + b"x " * 40])
def test_a_bad_stat_is_named_in_the_complaint(root: Path, text: bytes) -> None:
    write(root, "proc/4242/stat", text)
    with pytest.raises(KernelError, match="4242/stat"):
        procfs.start_time(4242, root)


def test_a_status_is_read_whole(root: Path) -> None:
    assert procfs.read_status(4242, root) == procfs.Status(
        name="cat",
        state="S",
        thread_group=4242,
        parent=4200,
        uids=(1000, 1001, 1002, 1003),
        threads=1,
        cpus_allowed=frozenset({0, 1, 6}),
        mems_allowed=frozenset({0, 1, 2, 5}),
        rss_anon_bytes=112 * 1024,
        rss_file_bytes=1528 * 1024,
        rss_shmem_bytes=0,
    )


def test_kernel_threads_and_zombies_have_no_memory_and_empty_maps(root: Path) -> None:
    for pid, state in ((2, "S"), (4300, "Z")):
        status = procfs.read_status(pid, root)
        assert (status.state, status.rss_anon_bytes, status.rss_file_bytes) == (state, 0, 0)
        assert procfs.read_maps(pid, root) == b""


def test_a_hostile_name_stays_one_printable_line_and_forges_no_field(root: Path) -> None:
    assert procfs.read_status(4300, root).name == r"a\\b\n)"
    text = (root / "proc/4242/status").read_bytes()
    write(root, "proc/4242/status", text.replace(b"\tcat\n", b"\t\x1b[2J\\nUid:\\t0 \xe2\x80\xae\n"))
    status = procfs.read_status(4242, root)
    assert status.name == r"\x1b[2J\nUid:\t0 \u202e"
    assert status.uids == (1000, 1001, 1002, 1003)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (b"Threads:", b"Strands:"),
        (b"PPid:\t4200", b"PPid:\tnone"),
        (b"Mems_allowed_list:\t0-2,5", b"Mems_allowed_list:\t2-0"),
        (b"RssAnon:\t     112 kB", b"RssAnon:\t     112 MB"),
        (b"RssAnon:\t     112 kB", b"RssAnon:"),
    ],
)
def test_a_bad_status_is_named_in_the_complaint(root: Path, good: bytes, bad: bytes) -> None:
    text = (root / "proc/4242/status").read_bytes()
    assert good in text
    write(root, "proc/4242/status", text.replace(good, bad))
    with pytest.raises(KernelError, match="4242/status"):
        procfs.read_status(4242, root)


def test_maps_are_handed_on_untouched_whatever_their_names_hold(root: Path) -> None:
    name = b"/tmp/a\\012b c\x1b[2J\xff (deleted)"
    text = (root / "proc/4242/maps").read_bytes()
    text += b"7f0000000000-7f0000001000 rw-s 00000000 00:01 9 " + name + b"\n"
    write(root, "proc/4242/maps", text)
    assert procfs.read_maps(4242, root) == text


def test_a_process_that_is_gone_has_vanished_for_every_reader(root: Path) -> None:
    for reader in (
        procfs.start_time,
        procfs.read_status,
        procfs.read_maps,
        procfs.ipc_namespace,
        procfs.descendants,
    ):
        with pytest.raises(Vanished):
            reader(7, root)


def test_a_process_that_may_not_be_read_is_denied(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(Denied, match="4242/maps"):
        procfs.read_maps(4242, root)


def test_the_ipc_namespace_is_its_inode(root: Path) -> None:
    assert procfs.ipc_namespace(4242, root) == 4026531839
    (root / "proc/2/ns").mkdir()
    (root / "proc/2/ns/ipc").symlink_to("mnt:[1]")
    with pytest.raises(KernelError, match="not an IPC namespace"):
        procfs.ipc_namespace(2, root)


def test_processes_are_listed_and_other_names_are_not(root: Path) -> None:
    assert procfs.list_pids(root) == {2, 4242, 4300}


def test_descendants_are_children_and_theirs_without_the_process_itself(root: Path) -> None:
    status = (root / "proc/4300/status").read_text()
    write(root, "proc/4301/status", status.replace("PPid:\t4242", "PPid:\t4300"))
    (root / "proc/4302").mkdir()  # ended after the list was made
    assert procfs.descendants(4242, root) == {4300, 4301}
    assert procfs.descendants(2, root) == frozenset()


def test_a_circle_of_parents_does_not_hang(root: Path) -> None:
    text = (root / "proc/4242/status").read_text()
    write(root, "proc/4242/status", text.replace("PPid:\t4200", "PPid:\t4300"))
    assert procfs.descendants(4242, root) == {4300}


def test_devices_are_named_as_maps_names_them(root: Path) -> None:
    mounts = {mount.device: mount.fstype for mount in read_mountinfo(root)}
    assert mounts["fe:00"] == "ext4"
    assert mounts["08:11"] == "nfs4"
    assert mounts["103:12c"] == "xfs"
