"""What must hold of giving real processes other CPUs, on this kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pageferry.cpus.assign import Cpusets, assign
from pageferry.errors import KernelError, UsageError
from support.children import child, python, said

THREADS = """
import os, sys, threading
def pinned(cpu):
    os.sched_setaffinity(0, {cpu})
    barrier.wait()
    sys.stdin.read()
cpus = sorted(os.sched_getaffinity(0))[:2]
barrier = threading.Barrier(3)
for cpu in cpus:
    threading.Thread(target=pinned, args=(cpu,)).start()
barrier.wait()
print(1, flush=True)
"""


def pins(pid: int) -> list[set[int]]:
    return sorted(
        (os.sched_getaffinity(int(thread.name)) for thread in Path(f"/proc/{pid}/task").iterdir()), key=sorted
    )


@pytest.fixture
def cpus() -> list[int]:
    found = sorted(os.sched_getaffinity(0))
    assert len(found) > 1, "needs two CPUs"
    return found


def test_each_threads_pin_follows(cpus: list[int]) -> None:
    first, second = cpus[:2]
    with python(THREADS) as process:
        assert said(process) == 1
        assert pins(process.pid)[:2] != [{second}, {second}]
        mapped = assign([second], [process.pid], Cpusets())
        assert len(mapped) == 3
        assert pins(process.pid) == [{second}] * 3
        assign([first, second], [process.pid], Cpusets())
        assert pins(process.pid) == [{first}] * 3


@pytest.mark.parametrize("wanted", [[], [100000]])
def test_cpus_that_are_not_there_are_refused(wanted: list[int]) -> None:
    with child() as process:
        before = pins(process.pid)
        with pytest.raises(UsageError, match="no such CPU"):
            assign(wanted, [process.pid], Cpusets())
        assert pins(process.pid) == before


def test_a_failure_midway_leaves_everything_as_it_was(
    cpus: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cpuset.cpus", "cpuset.mems", "cpuset.cpus.effective", "cpuset.mems.effective"):
        (tmp_path / name).write_text(f"{cpus[0]}\n")
    with child() as process:
        before = pins(process.pid)

        def refuse(thread: int, mask: frozenset[int]) -> None:
            raise OSError(22, "Invalid argument")

        monkeypatch.setattr("os.sched_setaffinity", refuse)
        with pytest.raises(KernelError, match="Invalid argument"):
            assign([cpus[1]], [process.pid], Cpusets(narrow=(tmp_path,)))
        assert (tmp_path / "cpuset.cpus").read_text().strip() == str(cpus[0])
        assert pins(process.pid) == before


def test_processes_that_have_ended_are_no_hindrance(cpus: list[int]) -> None:
    with child() as process:
        process.kill()
        process.wait()
        assert assign([cpus[0]], [process.pid], Cpusets()) == {}
