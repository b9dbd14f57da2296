"""What must hold of holding a job: it stands still, only what we stopped is released, and nothing leaves it stopped."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pageferry.errors import KernelError
from pageferry.gate import gate, guardian
from pageferry.kernel import cgroup, freezer
from pageferry.kernel.procfs import read_status
from support.children import child, said, wait_stopped

SECONDS = 10.0


@pytest.fixture
def group() -> Iterator[Path]:
    unified = cgroup.read_hierarchies().unified
    assert unified is not None, "cgroup v2 is mounted on every host that these tests run on"
    path = unified / f"pageferry-gate-{os.getpid()}"
    path.mkdir()
    yield path
    path.rmdir()


def enter(group: Path, pid: int) -> None:
    (group / "cgroup.procs").write_text(str(pid))


def is_stopped(pid: int) -> bool:
    return read_status(pid).state == "T"


def test_a_held_group_stands_still_and_runs_on_afterwards(group: Path) -> None:
    with child() as process:
        enter(group, process.pid)
        with gate.held([group]) as holds:
            assert holds == 1
            assert freezer.is_frozen(group)
        assert freezer.wait_frozen(group, False, SECONDS)
        process.kill()
        process.wait()


def test_a_freeze_that_is_not_ours_is_not_undone(group: Path) -> None:
    with child() as process:
        enter(group, process.pid)
        freezer.freeze(group)
        assert freezer.wait_frozen(group, True, SECONDS)
        with gate.held([group]) as holds:
            assert holds == 0
        assert freezer.is_frozen(group)
        freezer.thaw(group)
        process.kill()
        process.wait()


def test_held_processes_are_stopped_and_continue_afterwards() -> None:
    with child() as process:
        with gate.held((), [process.pid]):
            wait_stopped(process)
            assert is_stopped(process.pid)
        os.waitid(os.P_PID, process.pid, os.WCONTINUED)
        assert not is_stopped(process.pid)


def test_a_process_that_was_stopped_before_stays_stopped() -> None:
    with child() as process:
        process.send_signal(signal.SIGSTOP)
        wait_stopped(process)
        with gate.held((), [process.pid]) as holds:
            assert holds == 0
        assert is_stopped(process.pid)


def test_processes_that_have_ended_are_no_hindrance() -> None:
    with child() as process:
        process.kill()
        process.wait()
        with gate.held((), [process.pid]) as holds:
            assert holds == 0


def test_an_error_within_releases(group: Path) -> None:
    with child() as process:
        enter(group, process.pid)
        with pytest.raises(RuntimeError), gate.held([group]):
            raise RuntimeError
        assert freezer.wait_frozen(group, False, SECONDS)
        process.kill()
        process.wait()


HOLDER = """
    import signal, sys
    from pathlib import Path
    from pageferry.gate import gate
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it runs in the background ignore it
    groups = [Path(word) for word in sys.argv[1:] if not word.isdigit()]
    with gate.held(groups, [int(word) for word in sys.argv[1:] if word.isdigit()]):
        print(1, flush=True)
        sys.stdin.read()
"""


def holder(stack: ExitStack, *held: object) -> Callable[[int], None]:
    """Start a pageferry that holds, and return what ends it by a signal."""
    words = [str(word) for word in held]
    process = stack.enter_context(child(sys.executable, "-c", textwrap.dedent(HOLDER), *words))
    assert said(process) == 1

    def end(number: int) -> None:
        process.send_signal(number)
        process.wait()

    return end


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_pageferry_that_dies_leaves_no_group_frozen(group: Path, number: signal.Signals) -> None:
    with ExitStack() as stack:
        process = stack.enter_context(child())
        enter(group, process.pid)
        end = holder(stack, group)
        assert freezer.is_frozen(group)
        end(number)
        assert freezer.wait_frozen(group, False, SECONDS)
        process.kill()
        process.wait()


def test_a_pageferry_that_dies_leaves_no_process_stopped() -> None:
    with ExitStack() as stack:
        process = stack.enter_context(child())
        end = holder(stack, process.pid)
        wait_stopped(process)
        end(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WCONTINUED)
        assert not is_stopped(process.pid)


def test_without_a_guardian_nothing_is_stopped(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardian, "__file__", "/nonexistent")
    with child() as process:
        enter(group, process.pid)
        with pytest.raises(KernelError, match="guardian"), gate.held([group]):
            pytest.fail("must not be reached")
        assert not freezer.is_frozen(group)
        process.kill()
        process.wait()
