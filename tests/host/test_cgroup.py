"""What must hold of control groups, on this kernel. Each test makes a group of its own and removes it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pageferry.errors import KernelError, Vanished
from pageferry.kernel import cgroup, freezer
from support.children import LEADER_ENDS, child, python, said

DEADLINE_SECONDS = 10.0


@contextlib.contextmanager
def made(parent: Path | None) -> Iterator[Path]:
    """Make a group, and remove it with all below it in the end; its processes must have ended by then."""
    if os.geteuid() != 0 or parent is None:
        pytest.skip("needs root and the hierarchy")
    path = parent / f"pageferry-test-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        for group in reversed(list(cgroup.walk(path))):
            group.rmdir()


@pytest.fixture
def group() -> Iterator[Path]:
    with made(cgroup.read_hierarchies().unified) as path:
        yield path


@pytest.fixture
def legacy() -> Iterator[Path]:
    with made(cgroup.read_hierarchies().legacy.get("freezer")) as path:
        yield path


def enter(group: Path, pid: int) -> None:
    (group / "cgroup.procs").write_text(str(pid))


def test_mounted_hierarchies_are_found() -> None:
    hierarchies = cgroup.read_hierarchies()
    for mount in (hierarchies.unified, *hierarchies.legacy.values()):
        assert mount is None or (mount / "cgroup.procs").exists()
    assert hierarchies.unified is not None or hierarchies.legacy


def test_processes_of_all_groups_below_are_found(group: Path) -> None:
    (group / "a" / "b").mkdir(parents=True)
    with child() as first, child() as second:
        enter(group, first.pid)
        enter(group / "a/b", second.pid)
        assert cgroup.pids(group) == {first.pid, second.pid}
        assert cgroup.own_pids(group) == {first.pid}


def test_a_threaded_group_tells_the_processes_of_its_threads(group: Path) -> None:
    threaded = group / "threaded"
    threaded.mkdir()
    (threaded / "cgroup.type").write_text("threaded")
    with python(LEADER_ENDS) as process:
        enter(group, process.pid)
        thread = said(process)
        (threaded / "cgroup.threads").write_text(str(thread))
        with pytest.raises(OSError, match="not supported"):
            (threaded / "cgroup.procs").read_text()
        assert cgroup.own_pids(threaded) == {process.pid}
        assert cgroup.pids(group) == {process.pid}


def test_a_removed_group_has_no_processes_and_has_vanished(group: Path) -> None:
    gone = group / "gone"
    gone.mkdir()
    fd = os.open(gone / "cgroup.procs", os.O_RDONLY)
    gone.rmdir()
    try:
        with pytest.raises(OSError, match="No such device"):  # what a reader sees that came just before
            os.read(fd, 10)
    finally:
        os.close(fd)
    assert cgroup.pids(gone) == frozenset()
    with pytest.raises(Vanished):
        cgroup.read_cpuset(gone)
    with pytest.raises(Vanished):
        freezer.freeze(gone)


def test_a_cpuset_is_read_where_there_is_one() -> None:
    hierarchies = cgroup.read_hierarchies()
    mount = hierarchies.legacy.get("cpuset", hierarchies.unified)
    assert mount is not None
    cpuset = cgroup.read_cpuset(mount)
    if cpuset is not None:  # the root of version 2 shows what is in effect only, hence None
        assert os.sched_getaffinity(0) <= cpuset.effective_cpus
        assert cpuset.effective_mems


def test_a_frozen_group_is_reported_by_an_event_and_goes_on_when_thawed(group: Path) -> None:
    with child() as process:
        enter(group, process.pid)
        assert not freezer.is_frozen(group)
        freezer.freeze(group)
        assert freezer.wait_frozen(group, frozen=True, seconds=DEADLINE_SECONDS)
        assert freezer.is_frozen(group)
        freezer.thaw(group)
        assert freezer.wait_frozen(group, frozen=False, seconds=DEADLINE_SECONDS)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"on\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"on\n"


def test_a_group_below_a_frozen_one_is_frozen_until_both_are_thawed(group: Path) -> None:
    task = group / "task_0"
    task.mkdir()
    with child() as process:
        enter(task, process.pid)
        freezer.freeze(group)
        assert freezer.wait_frozen(task, frozen=True, seconds=DEADLINE_SECONDS)
        freezer.freeze(task)
        freezer.thaw(group)
        assert freezer.wait_frozen(group, frozen=False, seconds=DEADLINE_SECONDS) or freezer.is_frozen(group)
        assert freezer.is_frozen(task)
        freezer.thaw(task)
        assert freezer.wait_frozen(task, frozen=False, seconds=DEADLINE_SECONDS)


def test_a_wait_for_what_does_not_come_ends_in_time(group: Path) -> None:
    began = time.monotonic()
    assert not freezer.wait_frozen(group, frozen=True, seconds=0.05)
    assert 0.05 <= time.monotonic() - began < DEADLINE_SECONDS


def test_the_root_of_the_hierarchy_cannot_be_frozen() -> None:
    unified = cgroup.read_hierarchies().unified
    if unified is None:
        pytest.skip("no unified hierarchy here")
    with pytest.raises((Vanished, KernelError)):
        freezer.freeze(unified)


def test_the_state_of_a_legacy_freezer_follows_the_kernel(legacy: Path) -> None:
    below = legacy / "below"
    below.mkdir()
    with child() as process:
        enter(below, process.pid)
        assert freezer.read_freezer_state(below) == freezer.FreezerState("THAWED", own=False, parent=False)
        (legacy / "freezer.state").write_text("FROZEN")
        deadline = time.monotonic() + DEADLINE_SECONDS
        while freezer.read_freezer_state(below).state != "FROZEN":  # version 1 sends no event
            assert time.monotonic() < deadline
            os.sched_yield()
        assert freezer.read_freezer_state(below) == freezer.FreezerState("FROZEN", own=False, parent=True)
        (legacy / "freezer.state").write_text("THAWED")
        assert freezer.read_freezer_state(below).state == "THAWED"
