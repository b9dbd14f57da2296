"""Weights of nodes: the kernel's, read from captured and from broken files, and as people write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageferry.errors import KernelError
from pageferry.kernel.weights import parse_weights, read_weights
from support.trees import write

FOLDER = "sys/kernel/mm/mempolicy/weighted_interleave"


@pytest.mark.parametrize("text", ["", "\n", "0\n", "256\n", "-1\n", "x\n", "3 4\n", "1" * 5000, b"\xff\n", "²\n"])
def test_a_file_that_holds_no_weight_is_refused_by_name(tmp_path: Path, text: str | bytes) -> None:
    write(tmp_path, f"{FOLDER}/node0", "3\n")
    write(tmp_path, f"{FOLDER}/node2", text)
    with pytest.raises(KernelError, match=rf"{FOLDER}/node2: ") as found:
        read_weights(tmp_path)
    assert len(str(found.value)) < 400


def test_a_node_that_goes_while_it_is_read_has_no_weight(tmp_path: Path) -> None:
    write(tmp_path, f"{FOLDER}/node0", "3\n")
    (tmp_path / FOLDER / "node1").symlink_to("gone")
    assert read_weights(tmp_path) == ((0, 3),)


@pytest.mark.parametrize("there", ["sys/kernel/mm/mempolicy/other", "sys/kernel/mm/numa/demotion_enabled"])
def test_a_kernel_before_weighted_interleave_gives_none(tmp_path: Path, there: str) -> None:
    write(tmp_path, there, "1\n")
    assert read_weights(tmp_path) == ()


@pytest.mark.parametrize("auto", [None, "true\n", "false\n"])
def test_the_kernels_weights_are_those_that_hold_automatic_or_not(tmp_path: Path, auto: str | None) -> None:
    for node, weight in ((0, 3), (2, 1), (10, 255)):
        write(tmp_path, f"{FOLDER}/node{node}", f"{weight}\n")
    if auto is not None:
        write(tmp_path, f"{FOLDER}/auto", auto)
    assert read_weights(tmp_path) == ((0, 3), (2, 1), (10, 255))


def test_weights_that_nobody_has_set_are_none(tmp_path: Path) -> None:
    for node in (0, 1):
        write(tmp_path, f"{FOLDER}/node{node}", "1\n")
    assert read_weights(tmp_path) == ()
    write(tmp_path, f"{FOLDER}/node1", "2\n")
    assert read_weights(tmp_path) == ((0, 1), (1, 2))


def test_this_hosts_own_weights_can_be_read() -> None:
    assert all(1 <= weight <= 255 for _, weight in read_weights())


@pytest.mark.parametrize(
    "text",
    [
        *("", "0", "0:", ":1", "0:0", "0:256", "0:1000", "0:-1", "0:1.5", "0:1,", "0:1,,1:1", "0:1 ,1:1", " 0:1"),
        *("0:1\n", "0:1,0:2", "0-2:1,2:3", "1024:1", "3-2:1", "0-99999:1", "0=1", "0:1:1", "²:1", "0:²", "0:3;2:1"),
    ],
)
def test_what_is_no_list_of_weights_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r'^expected .*1 to 255.*, such as "0:3,2:1"$'):
        parse_weights(text)


def test_weights_are_written_by_node_or_by_range_of_nodes() -> None:
    assert parse_weights("2:1,0:3") == ((0, 3), (2, 1))
    assert parse_weights("0-1:255,1023:1") == ((0, 255), (1, 255), (1023, 1))
