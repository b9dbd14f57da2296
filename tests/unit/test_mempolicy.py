"""What must hold of reading memory policies, from files as kernels write them and from broken ones."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pageferry.errors import KernelError
from pageferry.kernel.mempolicy import Policy, parse, read_policies
from support.trees import write

LONG = 60.0
"""Seconds that a slow machine may take."""

SEEN = [
    ("55d0 default file=/usr/bin/cat mapped=2 N0=2 kernelpagesize_kB=4", None),
    ("55d0 local anon=2 dirty=2 N1=2 kernelpagesize_kB=4", None),
    ("55d0 default", None),
    ("55d0 bind:0 anon=3 dirty=3 N0=1 N2=2 kernelpagesize_kB=4", ("bind", {0}, {0, 2})),
    ("55d0 prefer:3 heap anon=1 N13=1 kernelpagesize_kB=4", ("prefer", {3}, {13})),
    ("55d0 bind=static:0-1,4 stack", ("bind=static", {0, 1, 4}, set())),
    ("55d0 bind=balancing:0 file=/usr/bin/head mapped=2 N3=2", ("bind=balancing", {0}, set())),
    ("55d0 bind=relative|balancing:1", ("bind=relative|balancing", {1}, set())),
    ("55d0 prefer (many):0-1 file=/a\\040N3=9\\075 anon=3 N1=2", ("prefer (many)", {0, 1}, set())),
    ("55d0 prefer (many)=static:0-1", ("prefer (many)=static", {0, 1}, set())),
    ("55d0 interleave:0-3 file=/anon_hugepage\\040(deleted) huge anon=4 N2=4", ("interleave", {0, 1, 2, 3}, {2})),
    ("55d0 weighted interleave:0-1 anon=1 N0=1", ("weighted interleave", {0, 1}, {0})),
]


@pytest.mark.parametrize(("line", "told"), SEEN)
def test_each_policy_that_names_nodes_is_told_with_the_nodes_of_private_memory(
    line: str, told: tuple[str, set[int], set[int]] | None
) -> None:
    wanted = None if told is None else (Policy(told[0], frozenset(told[1])), frozenset(told[2]))
    assert parse(line.encode()) == wanted


def test_a_list_of_nodes_that_the_kernel_cut_loses_its_last_member_which_may_be_half_a_number() -> None:
    text = "weighted interleave:" + ",".join(str(node) for node in range(10, 60, 2))
    cut = text[:63]
    assert cut.endswith(",3"), "node 38 is cut to 3"
    assert parse(f"55d0 {cut} anon=1 N0=1".encode()) == (
        Policy("weighted interleave", frozenset(range(10, 38, 2))),
        frozenset({0}),
    )


@pytest.mark.parametrize(
    "line",
    ["", "somewhere default", "55d0", "55d0 ", "55d0 bind:x N0=1", "55d0 bind:1-0", "55d0 \x1b[2J", "55d0 bind:0x"],
)
def test_a_line_that_is_no_mapping_is_refused_and_quoted_as_plain_text(line: str) -> None:
    with pytest.raises(KernelError, match=r"^[ -~]*$"):
        parse(line.encode())


NAMED = "Name:\t{name}\nState:\t{state}\nTgid:\t{pid}\nPPid:\t1\nUid:\t0\t0\t0\t0\nThreads:\t1\n"
MORE = "Cpus_allowed_list:\t0\nMems_allowed_list:\t0-3\n"
CGROUPS = (
    "21 1 0:20 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n22 1 0:21 / /sys/fs/freezer rw - cgroup freezer rw,freezer\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "sys/fs/cgroup/job/step/cgroup.freeze", "0\n")
    write(tmp_path, "sys/fs/cgroup/job/cgroup.freeze", "0\n")
    write(tmp_path, "sys/fs/freezer/job/freezer.state", "THAWED\n")
    write(tmp_path, "sys/fs/freezer/job/freezer.self_freezing", "0\n")
    write(tmp_path, "sys/fs/freezer/job/freezer.parent_freezing", "0\n")
    return write(tmp_path, "proc/self/mountinfo", CGROUPS)


def process(
    root: Path, pid: int, *threads: str, maps: str = "", name: str = "rank", state: str = "S (sleeping)"
) -> None:
    """Plant a process; `threads`: the first line of the numa_maps of each, `maps`: the others of the first one's."""
    write(root, f"proc/{pid}/stat", f"{pid} (x) S" + " 1" * 25)
    write(root, f"proc/{pid}/status", NAMED.format(pid=pid, name=name, state=state) + MORE)
    write(root, f"proc/{pid}/cgroup", "1:freezer:/job\n0::/job/step\n")
    write(root, f"proc/{pid}/numa_maps", f"{threads[0]}\n{maps}" if threads[0] else "")
    for number, line in enumerate(threads):
        write(root, f"proc/{pid}/task/{pid + number}/numa_maps", f"{line}\n" if line else "")


def told(root: Path, pids: set[int]) -> list[tuple[str, list[int], tuple[int, ...], str, list[int]]]:
    policies = read_policies(pids, LONG, root)
    assert policies.unknown == ""
    return [
        (found.policy.mode, sorted(found.policy.nodes), found.pids, found.name, sorted(found.occupied))
        for found in policies.found
    ]


def test_processes_with_one_policy_are_told_together(root: Path) -> None:
    process(root, 4712, "55d0 bind:0 file=/a N0=1", maps="7f00 bind:0 anon=2 N2=2\n")
    process(root, 4711, "55d0 bind:0 file=/a N0=1", maps="7f00 bind:0 anon=2 N0=2\n", name="lammps\\n\x1b")
    process(root, 4713, "55d0 default file=/a N0=1", maps="7f00 interleave:0-1 anon=2 N0=1 N1=1\n7f10 bind:0\n")
    assert told(root, {4711, 4712, 4713}) == [
        ("bind", [0], (4711, 4712, 4713), "lammps\\n\\x1b", [0, 2]),
        ("interleave", [0, 1], (4713,), "rank", [0, 1]),
    ]


def test_a_policy_of_a_thread_alone_is_told(root: Path) -> None:
    process(root, 4711, "55d0 default", "55d0 default", "55d0 prefer:1")
    assert told(root, {4711}) == [("prefer", [1], (4711,), "rank", [])]


def test_what_has_no_memory_or_has_ended_has_no_policy(root: Path) -> None:
    process(root, 2, "")
    assert told(root, {2, 99}) == []


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("proc/4711/status", NAMED.format(pid=4711, name="x", state="T (stopped)") + MORE),
        ("sys/fs/cgroup/job/step/cgroup.freeze", "1\n"),
        ("sys/fs/cgroup/job/cgroup.freeze", "1\n"),
        ("sys/fs/freezer/job/freezer.state", "FREEZING\n"),
        ("sys/fs/freezer/job/freezer.state", "FROZEN\n"),
    ],
)
def test_of_what_is_held_or_suspended_no_policy_is_read(root: Path, file: str, content: str) -> None:
    process(root, 4711, "55d0 bind:0 file=/a N0=1")
    write(root, file, content)
    policies = read_policies({4711}, LONG, root)
    assert (policies.found, policies.unknown) == ((), "1 processes: held or suspended")


def test_a_file_that_cannot_be_understood_is_said_and_the_others_are_read(root: Path) -> None:
    process(root, 4711, "55d0 bind:0")
    process(root, 4712, "55d0 default", maps="7f00 bind:x\n")
    policies = read_policies({4711, 4712}, LONG, root)
    assert [found.pids for found in policies.found] == [(4711,)]
    assert "not a mapping" in policies.unknown


@pytest.fixture
def hangs(root: Path) -> Iterator[Path]:
    """A process of which every read waits in the kernel, beside two others."""
    for pid in (4711, 4712, 4713):
        process(root, pid, "55d0 bind:0", maps="7f00 prefer:1\n")
    file = root / "proc/4712/task/4712/numa_maps"
    file.unlink()
    os.mkfifo(file)
    yield root
    os.close(os.open(file, os.O_RDWR))  # whoever waits goes on


def test_a_process_whose_read_hangs_costs_the_time_and_not_what_is_known_of_the_others(hangs: Path) -> None:
    policies = read_policies({4711, 4712, 4713}, 2, hangs)
    assert {(found.policy.mode, found.pids) for found in policies.found} == {
        ("bind", (4711, 4713)),
        ("prefer", (4711, 4713)),
    }
    assert policies.unknown == "1 processes: no answer in time"


def test_a_command_ends_though_a_read_of_its_own_hangs(hangs: Path) -> None:
    program = (
        "import sys, pathlib; from pageferry.kernel.mempolicy import read_policies;"
        "print(read_policies([4712], 0.1, pathlib.Path(sys.argv[1])).unknown)"
    )
    command = [sys.executable, "-c", program, str(hangs)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=LONG).stdout
    assert said == "1 processes: no answer in time\n"


def test_without_any_time_nothing_is_read_and_that_is_said(root: Path) -> None:
    process(root, 4711, "55d0 bind:0")
    policies = read_policies({4711}, 0, root)
    assert (policies.found, policies.unknown) == ((), "1 processes: no answer in time")


def test_threads_and_mappings_for_which_there_was_no_time_are_counted(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process(root, 4711, "55d0 bind:0", "55d0 default", "55d0 default")
    now = 0.0
    really, clock = os.open, time.monotonic

    def open_(path: str | Path, *words: int) -> int:
        nonlocal now
        now = 2.0 if "/task/" in str(path) else now
        return really(path, *words)

    def monotonic() -> float:
        return 0.0 if threading.current_thread() is threading.main_thread() else now

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(time, "monotonic", monotonic)
    policies = read_policies({4711}, 1, root)
    monkeypatch.setattr(time, "monotonic", clock)
    assert [(found.policy.mode, found.pids) for found in policies.found] == [("bind", (4711,))]
    assert policies.unknown == "2 threads: no answer in time; mappings of 1 processes: no answer in time"


def only_start(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have no more than so many threads start, as under a limit of tasks."""
    really = threading.Thread.start
    left = iter(range(threads))

    def start(thread: threading.Thread) -> None:
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        really(thread)

    monkeypatch.setattr(threading.Thread, "start", start)


def test_where_no_thread_can_start_that_is_the_kernels_no(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process(root, 4711, "55d0 bind:0")
    only_start(0, monkeypatch)
    with pytest.raises(KernelError):
        read_policies({4711}, LONG, root)


def test_where_one_thread_can_start_it_reads_everything(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for pid in (4711, 4712):
        process(root, pid, "55d0 bind:0", maps="7f00 prefer:1\n")
    only_start(1, monkeypatch)
    policies = read_policies({4711, 4712}, LONG, root)
    assert [found.pids for found in policies.found] == [(4711, 4712)] * 2
    assert policies.unknown == ""
