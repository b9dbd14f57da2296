"""What must hold of the kernel's idle bits: which bytes are read and written for which page frames."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pageferry.errors import KernelError, Vanished
from pageferry.kernel import page_idle

FRAMES = 64 * 200


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree with a bitmap of FRAMES page frames, none of them idle."""
    bitmap(tmp_path).parent.mkdir(parents=True)
    bitmap(tmp_path).write_bytes(bytes(FRAMES // 8))
    return tmp_path


def bitmap(root: Path) -> Path:
    return root / "sys/kernel/mm/page_idle/bitmap"


def bits(root: Path) -> list[int]:
    """Return the frames whose bit is set: bit 0 of the first byte is frame 0."""
    data = bitmap(root).read_bytes()
    return [frame for frame in range(len(data) * 8) if data[frame // 8] >> frame % 8 & 1]


@given(frames=st.lists(st.integers(0, FRAMES - 1), unique=True))
@settings(max_examples=50)
def test_the_frames_that_are_named_are_marked_and_no_others(
    tmp_path_factory: pytest.TempPathFactory, frames: list[int]
) -> None:
    root = tmp_path_factory.mktemp("root")
    bitmap(root).parent.mkdir(parents=True)
    bitmap(root).write_bytes(bytes(FRAMES // 8))
    page_idle.mark(np.array(frames, np.int64), root)
    assert bits(root) == sorted(frames)
    asked = np.array([*frames, *((frame + 1) % FRAMES for frame in frames)], np.int64)
    assert page_idle.idle(asked, root).tolist() == [frame in frames for frame in asked.tolist()]


def test_only_whole_words_are_asked_for_and_few_that_nobody_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    pread = os.pread

    def noted(descriptor: int, count: int, offset: int) -> bytes:
        calls.append((offset, count))
        return pread(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", noted)
    page_idle.idle(np.array([6400, 0, 70, 6401]), root)
    assert calls == [(0, 16), (800, 8)]  # the kernel takes multiples of 8 bytes alone


def test_what_a_shorter_file_does_not_reach_to_counts_as_used(root: Path) -> None:
    page_idle.mark(np.arange(0, FRAMES, 7), root)
    with bitmap(root).open("r+b") as file:
        file.truncate(16)
    assert page_idle.idle(np.array([7, 126, 133, FRAMES + 64]), root).tolist() == [True, True, False, False]


def test_without_the_file_nothing_is_known(tmp_path: Path) -> None:
    assert not page_idle.available(tmp_path)
    with pytest.raises(Vanished, match="page_idle/bitmap"):
        page_idle.mark(np.array([1]), tmp_path)
    with pytest.raises(Vanished, match="page_idle/bitmap"):
        page_idle.idle(np.array([1]), tmp_path)


def test_a_frame_beyond_the_last_one_is_one_clear_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> int:
        raise OSError(6, "No such device or address")  # ENXIO, as bitmap_store() has it

    monkeypatch.setattr(os, "pwrite", refused)
    with pytest.raises(KernelError, match="page_idle/bitmap: No such device"):
        page_idle.mark(np.array([1]), root)


def test_no_frame_is_no_call(root: Path) -> None:
    nothing = np.zeros(0, np.int64)
    page_idle.mark(nothing, root)
    assert page_idle.idle(nothing, root).tolist() == []
    assert bits(root) == []


def test_what_the_kernel_does_not_take_is_not_offered_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sys/kernel/mm/page_idle").mkdir(parents=True)
    (tmp_path / "sys/kernel/mm/page_idle/bitmap").write_bytes(bytes(8))
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    page_idle.mark(np.array([63]), tmp_path)
