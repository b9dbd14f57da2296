"""What must hold of telling what we may do."""

from __future__ import annotations

from pathlib import Path

import pytest

from pageferry.errors import KernelError
from pageferry.kernel.capabilities import effective, missing
from support.trees import write

FIRST_NAMESPACE = "         0          0 4294967295\n"


def host(root: Path, mask: str, uid_map: str = FIRST_NAMESPACE) -> Path:
    write(root, "proc/self/status", f"Name:\tx\\nCapEff:\\t0\nCapPrm:\t000001ffffffffff\nCapEff:\t{mask}\n")
    return write(root, "proc/self/uid_map", uid_map)


def test_capabilities_are_read_by_name(tmp_path: Path) -> None:
    mask = 1 << 23 | 1 << 19 | 1 << 40 | 1 << 7
    names = effective(host(tmp_path, f"{mask:016x}"))
    assert names == {"CAP_SYS_NICE", "CAP_SYS_PTRACE", "CAP_CHECKPOINT_RESTORE"}


def test_a_whole_set_leaves_no_gap_and_an_empty_one_all(tmp_path: Path) -> None:
    assert missing(effective(host(tmp_path, "000001ffffffffff"))) == ()
    assert [gap.capability for gap in missing(effective(host(tmp_path, "0" * 16)))] == [
        "CAP_SYS_NICE",
        "CAP_SYS_PTRACE",
        "CAP_SYS_ADMIN",
        "CAP_CHECKPOINT_RESTORE",
        "CAP_DAC_READ_SEARCH",
        "CAP_FOWNER",
    ]


def test_capabilities_in_a_user_namespace_do_not_count(tmp_path: Path) -> None:
    assert effective(host(tmp_path, "000001ffffffffff", "0 1000 1\n")) == frozenset()


def test_the_greater_capability_stands_in_for_the_lesser() -> None:
    names = [gap.capability for gap in missing({"CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE"})]
    assert names == ["CAP_SYS_NICE", "CAP_SYS_PTRACE", "CAP_FOWNER"]
    assert [gap.capability for gap in missing({"CAP_CHECKPOINT_RESTORE", "CAP_SYS_NICE", "CAP_SYS_PTRACE"})] == [
        "CAP_SYS_ADMIN",
        "CAP_DAC_READ_SEARCH",
        "CAP_FOWNER",
    ]


def test_every_gap_tells_what_is_lost_and_what_is_kept_in_one_line() -> None:
    for gap in missing(frozenset()):
        for text in (gap.lost, gap.kept):
            assert text
            assert text.isprintable()


@pytest.mark.parametrize("mask", ["", "zz", "1ff"])
def test_a_bad_status_is_named_in_the_complaint(tmp_path: Path, mask: str) -> None:
    with pytest.raises(KernelError, match="proc/self/status"):
        effective(host(tmp_path, mask))
