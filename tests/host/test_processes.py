"""What must hold of held processes, on this kernel."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest

from guest import rights
from guest.ranks import job
from pageferry import ferry
from pageferry.errors import KernelError, Vanished
from pageferry.kernel.processes import SPARED, ProcessHandle, open_process
from pageferry_planner.policy import Rules
from support.children import LEADER_ENDS, child, python, said, wait_ended, wait_stopped

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def descriptors() -> int:
    gc.collect()  # what tests before have left would be closed at any moment
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_running_and_a_stopped_child_are_alive() -> None:
    with child() as process, open_process(process.pid) as handle:
        assert handle.alive()
        os.kill(process.pid, signal.SIGSTOP)
        wait_stopped(process)
        assert handle.alive()


def test_a_killed_child_is_not_alive_neither_as_a_zombie_nor_reaped() -> None:
    with child() as process, open_process(process.pid) as handle:
        process.kill()
        wait_ended(process)
        assert not handle.alive()
        process.wait()
        assert not handle.alive()


def test_a_zombie_can_be_opened_and_is_not_alive() -> None:
    with child() as process:
        process.kill()
        wait_ended(process)
        with open_process(process.pid) as handle:
            assert not handle.alive()


def test_a_process_whose_first_thread_ended_is_alive() -> None:
    with python(LEADER_ENDS) as process, open_process(process.pid) as handle:
        said(process)
        assert handle.alive()
        assert ProcessHandle(process.pid, -1, handle.start_time).alive(), "also without a descriptor"


def test_a_process_that_is_known_by_its_start_time_alone_is_not_alive_once_it_has_ended() -> None:
    with (
        child() as process,
        open_process(process.pid) as handle,
        ProcessHandle(process.pid, -1, handle.start_time) as by,
    ):
        assert by.alive()
        process.kill()
        wait_ended(process)
        assert not by.alive()
        process.wait()
        assert not by.alive()


def test_a_process_that_runs_another_program_is_the_same() -> None:
    with child("sh", "-c", "read x; exec sh -c 'echo 1; read x'") as process, open_process(process.pid) as handle:
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        said(process)
        assert handle.alive()


def test_a_stranger_with_the_same_process_id_is_not_taken_for_the_old_one() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root chooses process IDs")
    for _ in range(100):  # another process may take the ID first
        with child() as process, open_process(process.pid) as handle:
            process.kill()
            process.wait()
            LAST_PID.write_text(str(process.pid - 1))
            with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as stranger:
                try:
                    assert not handle.alive()
                    if stranger.pid == process.pid:
                        with open_process(stranger.pid) as other:
                            assert other.alive()
                        return
                finally:
                    stranger.kill()
    pytest.fail("no process ID could be used again")


def test_a_process_that_has_ended_has_vanished() -> None:
    with child() as process:
        process.kill()
        process.wait()
        with pytest.raises(Vanished, match=f"process {process.pid} has ended"):
            open_process(process.pid)


def test_a_thread_is_no_process() -> None:
    with python(LEADER_ENDS) as process:
        thread = said(process)
        with pytest.raises(KernelError, match=f"{thread} is not a process"):
            open_process(thread)


def test_a_closed_handle_gives_its_descriptor_back() -> None:
    with open_process(os.getpid()) as handle:
        os.fstat(handle.pidfd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handle.pidfd)


def test_a_failed_open_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def vanish(pid: int) -> int:
        raise Vanished(f"process {pid} has ended")

    monkeypatch.setattr("pageferry.kernel.processes.start_time", vanish)
    before = descriptors()
    with pytest.raises(Vanished):
        open_process(os.getpid())
    assert descriptors() == before


def looks_beyond_the_hard_limit(pids: tuple[int, ...]) -> tuple[int, int]:
    """Return how many processes, and pages, a look finds where no limit allows as many files as there are processes."""
    most = max(map(int, os.listdir("/proc/self/fd"))) + SPARED + 10  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    found = ferry.survey(pids, Rules())[0]
    return len(found.processes), found.runs.pages()


def test_beyond_the_hard_limit_of_open_files_descriptors_are_used_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rights.VARIABLE, "unit")  # a process of its own looks: its limit cannot be raised again
    with job(ranks=300) as made:
        for rank in made.ranks[::50]:
            rank.map(100).write()
        with_plenty = rights.call(ferry.survey, made.pids, Rules())[0]
        found = rights.call(looks_beyond_the_hard_limit, made.pids)
        assert found == (300, with_plenty.runs.pages())
