"""What must hold of the reference count: who outside the job maps a backing, whatever files are called."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pageferry.errors import Denied, KernelError, PageferryError, Vanished
from pageferry.kernel.outsiders import mapped_outside
from pageferry.kernel.procfs import read_maps
from pageferry_planner.model import Backing

LIBRARY = Backing("08:01", 77, "", "/usr/lib/libx.so")
LINE = "7f0000000000-7f0000001000 r-xp 00000000 {device} {inode}    {path}\n"


def host(root: Path, **maps: str) -> Path:
    """Lay out a /proc with the maps of processes, given as p10="..."."""
    for name, text in maps.items():
        folder = root / "proc" / name[1:]
        (folder / "ns").mkdir(parents=True)
        (folder / "maps").write_bytes(text.encode())
        (folder / "ns/ipc").symlink_to(f"ipc:[{int(name[1:])}]")
    return root


def line(device: str = "08:01", inode: int = 77, path: str = "/usr/lib/libx.so") -> str:
    return LINE.format(device=device, inode=inode, path=path)


def test_processes_outside_the_job_are_named_and_those_of_the_job_are_not(tmp_path: Path) -> None:
    root = host(tmp_path, p10=line(), p30=line(), p20=line(), p40=line(inode=78))
    assert mapped_outside([LIBRARY], {10}, root).mapping == {LIBRARY: (20, 30)}


def test_what_only_the_job_maps_has_no_entry(tmp_path: Path) -> None:
    root = host(tmp_path, p10=line(), p20=line(device="08:02"), p30="")
    assert mapped_outside([LIBRARY], {10}, root).mapping == {}


@pytest.mark.parametrize("end", ["\r", "\x0b", "\x0c", "\x1c", "\x85"])
def test_no_line_end_in_a_name_forges_a_mapping(tmp_path: Path, end: str) -> None:
    forged = f"/tmp/x{end}{line().strip()}"
    root = host(tmp_path, p20=line(inode=1, path=forged), p30=line(inode=2, path=f"/tmp/a{end}b"))
    assert mapped_outside([LIBRARY], {10}, root).mapping == {}


def test_a_segment_of_another_ipc_namespace_is_another(tmp_path: Path) -> None:
    text = line("00:01", 0, "/SYSV00000000 (deleted)")
    root = host(tmp_path, p20=text, p30=text)
    segment = Backing("00:01", 0, "sysv:20", "/SYSV00000000 (deleted)")
    assert mapped_outside([segment], (), root).mapping == {segment: (20,)}


def test_a_memfd_with_the_number_of_a_segment_is_not_it(tmp_path: Path) -> None:
    root = host(tmp_path, p20=line("00:01", 5, "/memfd:x (deleted)"))
    assert mapped_outside([Backing("00:01", 5, "sysv:20", "/SYSV00000005 (deleted)")], (), root).mapping == {}


def test_on_an_ambiguous_device_the_path_counts(tmp_path: Path) -> None:
    root = host(tmp_path, p20=line(path="/a"), p30=line(path="/b"))
    backing = Backing("08:01", 77, "/b", "/b")
    assert mapped_outside([backing], (), root).mapping == {backing: (30,)}


@pytest.fixture
def silent(impatient: None, tmp_path: Path) -> Iterator[Path]:
    """A host of which process 20 does not answer."""
    root = host(tmp_path, p10=line(), p20="", p30=line())
    maps = root / "proc/20/maps"
    maps.unlink()
    os.mkfifo(maps)
    yield root
    os.close(os.open(maps, os.O_RDWR | os.O_NONBLOCK))


def test_a_process_that_does_not_answer_may_map_anything_and_the_others_are_asked(silent: Path) -> None:
    other = Backing("08:01", 78, "", "/usr/lib/liby.so")
    found = mapped_outside([LIBRARY, other], {10}, silent)
    assert found.mapping == {LIBRARY: (30,)}
    assert found.silent == {LIBRARY: (20,), other: (20,)}


def test_a_process_that_does_not_answer_has_no_segment_of_another_ipc_namespace(silent: Path) -> None:
    mine, other = (Backing("00:01", 5, f"sysv:{number}", "/SYSV00000005 (deleted)") for number in (10, 20))
    assert mapped_outside([mine, other], {10}, silent).silent == {other: (20,)}
    (silent / "proc/20/ns/ipc").unlink()
    assert mapped_outside([mine, other], {10}, silent).silent == {mine: (20,), other: (20,)}


@pytest.mark.parametrize(
    ("error", "silent"), [(KernelError("odd"), {LIBRARY: (20,)}), (Denied("no"), {}), (Vanished("ended"), {})]
)
def test_a_process_whose_maps_cannot_be_read_may_map_anything_and_spoils_no_look(
    error: PageferryError, silent: dict[Backing, tuple[int, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = host(tmp_path, p10=line(), p20=line(), p30=line())

    def fails(pid: int, root: Path) -> bytes:
        if pid == 20:
            raise error
        return read_maps(pid, root)

    monkeypatch.setattr("pageferry.kernel.outsiders.read_maps", fails)
    found = mapped_outside([LIBRARY], {10}, root)
    assert (found.mapping, found.silent) == ({LIBRARY: (30,)}, silent)


def test_a_process_whose_maps_and_ipc_namespace_cannot_be_read_may_have_any_segment(tmp_path: Path) -> None:
    root = host(tmp_path, p20="")
    (root / "proc/20/maps").unlink()
    (root / "proc/20/maps").mkdir()  # EISDIR
    (root / "proc/20/ns/ipc").unlink()
    (root / "proc/20/ns/ipc").symlink_to("odd")
    segment = Backing("00:01", 5, "sysv:10", "/SYSV00000005 (deleted)")
    assert mapped_outside([segment], (), root).silent == {segment: (20,)}
