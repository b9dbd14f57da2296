"""What must hold of processes that do not answer: each is told, in time, with what its threads wait in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pageferry.errors import Silent
from pageferry.kernel.answering import require_answers
from support.trees import write

STAT = "{pid} (rank) {state} 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 77 0\n"
STATUS = """Name:\trank
State:\t{state} (x)
Tgid:\t{pid}
PPid:\t1
Uid:\t7\t7\t7\t7
Threads:\t1
Cpus_allowed_list:\t0
Mems_allowed_list:\t0
"""


def process(root: Path, pid: int, state: str = "S", waits: str = "0") -> Path:
    """Lay out a process that answers; return its page table."""
    for name in (str(pid), f"{pid}/task/{pid}"):
        write(root, f"proc/{name}/stat", STAT.format(pid=pid, state=state))
        write(root, f"proc/{name}/status", STATUS.format(pid=pid, state=state))
        write(root, f"proc/{name}/wchan", waits)
    write(root, f"proc/{pid}/pagemap", "x" * 8)
    return root / f"proc/{pid}/pagemap"


def test_processes_that_answer_and_those_that_are_gone_are_no_error(tmp_path: Path) -> None:
    process(tmp_path, 10)
    process(tmp_path, 11).unlink()
    require_answers([10, 11, 4711], tmp_path)
    require_answers([], tmp_path)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("state", "said"), [("D", "filemap_fault"), ("S", "")])
def test_who_does_not_answer_is_named_and_counted_and_what_it_waits_in_is_said(
    tmp_path: Path, state: str, said: str
) -> None:
    process(tmp_path, 10)
    tables = [process(tmp_path, pid, state, "filemap_fault") for pid in (20, 30)]
    for table in tables:
        table.unlink()
        os.mkfifo(table)
    try:
        with pytest.raises(Silent) as raised:
            require_answers([10, 20, 30], tmp_path)
    finally:
        for table in tables:
            os.close(os.open(table, os.O_RDWR | os.O_NONBLOCK))
    text = str(raised.value)
    assert "process 20 (rank)" in text
    assert "1 more" in text
    assert ("filemap_fault" in text) is bool(said)
