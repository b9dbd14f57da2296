"""What must hold of reading small kernel files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pageferry.errors import Denied, KernelError, PageferryError, Vanished
from pageferry.kernel.files import numbered, printable, read_bytes, translated, write_text


def test_a_file_longer_than_one_read_comes_whole(tmp_path: Path) -> None:
    content = os.urandom(300_001)
    (tmp_path / "file").write_bytes(content)
    assert read_bytes(tmp_path / "file") == content


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, Vanished),
        (errno.ESRCH, Vanished),
        (errno.ENODEV, Vanished),
        (errno.EACCES, Denied),
        (errno.EPERM, Denied),
        (errno.EIO, KernelError),
        (errno.EOPNOTSUPP, KernelError),
    ],
)
def test_each_error_of_the_system_becomes_one_of_ours(number: int, kind: type[PageferryError]) -> None:
    error = translated(OSError(number, os.strerror(number)), "/proc/1/maps")
    assert type(error) is kind
    assert str(error) == f"/proc/1/maps: {os.strerror(number)}"


def test_a_missing_file_has_vanished_and_is_never_created(tmp_path: Path) -> None:
    with pytest.raises(Vanished):
        read_bytes(tmp_path / "none")
    with pytest.raises(Vanished):
        write_text(tmp_path / "none", "1")
    assert not list(tmp_path.iterdir())


def test_a_hostile_path_is_escaped_in_the_complaint(tmp_path: Path) -> None:
    with pytest.raises(Vanished, match=r"a\\nb\\x1b") as caught:
        read_bytes(tmp_path / "a\nb\x1b")
    assert str(caught.value).isprintable()


@given(st.binary())
def test_what_is_made_printable_is_one_line_without_control_characters(raw: bytes) -> None:
    assert printable(raw).isprintable()


def test_plain_names_stay_as_they_are_and_direction_marks_do_not() -> None:
    assert printable("Zürich (deleted)".encode()) == "Zürich (deleted)"
    assert printable("a\u202eb\n\x1b[2J".encode() + b"\xff") == r"a\u202eb\n\x1b[2J\xff"


def test_only_whole_names_with_a_number_are_counted(tmp_path: Path) -> None:
    for name in ("node1", "node10", "node2", "node", "nodes3", "xnode4", "node5x", "node-6", "node7\n"):
        (tmp_path / name).touch()
    assert numbered(tmp_path, "node") == [1, 2, 10]
    (tmp_path / f"{2**32 - 1}.json").touch()
    assert numbered(tmp_path, suffix=".json") == [2**32 - 1], "the IDs of Slurm's federated jobs have ten digits"
    with pytest.raises(Vanished):
        numbered(tmp_path / "none")
