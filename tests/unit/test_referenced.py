"""What must hold of the referenced bits: what smaps says of each mapping, whatever its name."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest

from pageferry.errors import Vanished
from pageferry.kernel import referenced

KB = mmap.PAGESIZE // 1024


def mapping(start: int, name: str, **kb: int) -> str:
    lines = [f"{start:x}-{start + (1 << 21):x} rw-p 00000000 00:00 0                          {name}"]
    lines += [f"{key + ':':<16}{value:>8} kB" for key, value in {"Size": 2048, "KernelPageSize": KB, **kb}.items()]
    return "\n".join([*lines, "THPeligible:    0", "VmFlags: rd wr mr mw me ac sd ", ""])


def read(tmp_path: Path, *mappings: str) -> list[tuple[int, int, int]]:
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/smaps").write_text("".join(mappings))
    return list(zip(*(column.tolist() for column in referenced.read(7, tmp_path)), strict=True))


def test_each_mapping_says_how_much_of_it_is_there_and_used(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        mapping(0x7F0000000000, "", Rss=40 * KB, Pss=3, Referenced=10 * KB, Anonymous=0),
        mapping(0x7F0000200000, "/dev/shm/Referenced: 8 kB", Rss=8 * KB, Referenced=0),
        mapping(0x7F0000400000, "[heap]", Rss=2 * KB, Referenced=4 * KB),
    )
    first = 0x7F0000000000 // mmap.PAGESIZE
    step = (1 << 21) // mmap.PAGESIZE
    assert found == [(first, 40, 10), (first + step, 8, 0), (first + 2 * step, 2, 2)]


def test_what_has_nothing_in_memory_or_does_not_say_it_is_left_out(tmp_path: Path) -> None:
    cut = mapping(0x400000, "", Rss=4 * KB, Referenced=KB)
    found = read(
        tmp_path,
        mapping(0x200000, "/dev/hugepages/x", Rss=0, Referenced=0),
        mapping(0x300000, "", Rss=4 * KB),
        cut[: cut.index("Referenced")],
    )
    assert found == []


def test_a_process_that_has_ended_is_gone(tmp_path: Path) -> None:
    for act in (referenced.clear, referenced.read):
        with pytest.raises(Vanished, match="proc/7/"):
            act(7, tmp_path)


def test_all_marks_are_taken_away_by_one_word(tmp_path: Path) -> None:
    (tmp_path / "proc/7").mkdir(parents=True)
    (tmp_path / "proc/7/clear_refs").touch()
    referenced.clear(7, tmp_path)
    assert (tmp_path / "proc/7/clear_refs").read_text() == "1"


def test_a_kernel_without_the_files_is_known(tmp_path: Path) -> None:
    assert not referenced.available(tmp_path)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/smaps").touch()
    assert not referenced.available(tmp_path)
    (tmp_path / "proc/self/clear_refs").touch()
    assert referenced.available(tmp_path)
