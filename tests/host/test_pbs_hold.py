"""What must hold of holding a PBS job beyond its resume: this host's own cgroups, real processes and signals."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from guest.vm.jobs import wait_until
from pageferry.errors import KernelError
from pageferry.gate import guardian
from pageferry.kernel import private_cgroup
from pageferry.kernel.cgroup import read_hierarchies
from pageferry.pbs import hold
from pageferry.schedulers.pbs_cgroups import pbs_job_pids
from support.children import child
from support.slurm_groups import answers

HOLDER = """
import sys, time
from pathlib import Path
from pageferry.pbs import hold
with hold.held(sys.argv[1], frozenset(map(int, sys.argv[3:])), 60, Path(sys.argv[2])):
    print("held", flush=True)
    time.sleep(1000)
"""


@dataclass(frozen=True)
class Job:
    id: str
    processes: tuple[subprocess.Popen[bytes], ...]

    @property
    def pids(self) -> frozenset[int]:
        return frozenset(process.pid for process in self.processes)

    def answers(self) -> bool:
        return all(answers(process, 20) for process in self.processes)

    def is_still(self) -> bool:
        return not any(answers(process, 0.1) for process in self.processes)

    def signal(self, number: int) -> None:
        for pid in self.pids:
            os.kill(pid, number)


@pytest.fixture
def job() -> Iterator[Job]:
    """A job of an array, of two tasks, in a group as pbs_cgroups or a site with version 2 makes it."""
    hierarchies = read_hierarchies()
    mount = hierarchies.legacy.get("memory") or hierarchies.unified
    assert mount is not None
    name = f"{random.randrange(10**6, 10**7)}[1].host"
    group = mount / f"test{os.getpid()}.service/jobid" / name
    with ExitStack() as stack:
        stack.callback(remove, group)
        group.mkdir(parents=True)
        processes = tuple(stack.enter_context(child()) for _ in range(2))
        for process in processes:
            (group / "cgroup.procs").write_text(str(process.pid))
        yield Job(name, processes)


def remove(group: Path) -> None:
    for pid in (group / "cgroup.procs").read_text().split():
        os.kill(int(pid), signal.SIGKILL)
    for folder in (group, group.parent, group.parent.parent):
        wait_until(lambda folder=folder: gone(folder), f"{folder} is removed", 10)  # type: ignore[misc]


def gone(folder: Path) -> bool:
    with suppress(OSError):
        folder.rmdir()
    return not folder.exists()


def test_a_held_job_stands_still_after_sigcont_and_goes_on_when_released(job: Job, tmp_path: Path) -> None:
    assert pbs_job_pids(job.id) == job.pids
    job.signal(signal.SIGSTOP)
    with hold.held(job.id, job.pids, 60, tmp_path):
        job.signal(signal.SIGCONT)
        assert job.is_still()
        assert (tmp_path / f"{job.id}.hold").exists()
        with pytest.raises(hold.HeldAlreadyError), hold.held(job.id, job.pids, 60, tmp_path):
            raise AssertionError("held twice")
    assert job.answers()
    assert list(tmp_path.iterdir()) == []
    assert pbs_job_pids(job.id) == job.pids, "in the groups where PBS has them"


def test_a_job_that_was_stopped_again_stays_so_when_released(job: Job, tmp_path: Path) -> None:
    with hold.held(job.id, job.pids, 60, tmp_path):
        job.signal(signal.SIGSTOP)
    assert job.is_still()
    job.signal(signal.SIGCONT)
    assert job.answers()


def test_a_held_job_can_be_killed(job: Job, tmp_path: Path) -> None:
    with hold.held(job.id, job.pids, 60, tmp_path):
        job.signal(signal.SIGKILL)
        for process in job.processes:
            assert process.wait(20) == -signal.SIGKILL


@pytest.fixture
def holder(job: Job, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the job."""
    words = [sys.executable, "-c", HOLDER, job.id, str(tmp_path), *map(str, job.pids)]
    path = os.pathsep.join(entry for entry in sys.path if entry)
    with subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_whoever_holds_a_job_and_dies_leaves_it_running(
    job: Job, holder: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert job.is_still()
    assert hold.release_left(tmp_path) == (), "what is being held is left alone"
    assert job.is_still()
    holder.kill()
    holder.wait()
    assert job.answers()
    assert hold.release_left(tmp_path) == (job.id,), "its record was left"
    assert list(tmp_path.iterdir()) == []


def test_what_a_holder_and_its_guardian_left_is_released_by_whoever_looks(
    job: Job, holder: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    (watcher,) = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()
    holder.send_signal(signal.SIGSTOP)
    os.kill(int(watcher), signal.SIGKILL)
    holder.kill()
    holder.wait()
    assert job.is_still()
    assert hold.release_left(tmp_path) == (job.id,)
    assert job.answers()


def test_a_hold_that_cannot_be_recorded_is_not_set(job: Job, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KernelError, match="cannot be recorded"), hold.held(job.id, job.pids, 60, tmp_path / "file"):
        raise AssertionError("held")
    assert job.answers()


def test_a_guardian_that_cannot_be_started_is_no_hold(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guardian, "__file__", "/nowhere")
    with pytest.raises(KernelError), hold.held(job.id, job.pids, 60, tmp_path):
        raise AssertionError("held")
    assert job.answers()
    assert list(tmp_path.iterdir()) == []
    assert not private_cgroup.group_path(private_cgroup.unified_mount(), job.id).exists()


def test_whatever_its_holder_is_busy_with_a_job_is_held_no_longer_than_it_may_be(job: Job, tmp_path: Path) -> None:
    with hold.held(job.id, job.pids, 0.5, tmp_path):
        assert job.answers(), "released by the guardian, while we do nothing about it"
    assert list(tmp_path.iterdir()) == []
