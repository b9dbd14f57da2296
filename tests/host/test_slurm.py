"""What must hold of finding Slurm's jobs in real cgroups; Slurm itself runs in the guest's tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pageferry.errors import UsageError
from pageferry.kernel import cgroup
from pageferry.schedulers.slurm import Slurm
from support.children import child

JOB = 4294000001


@pytest.fixture
def job() -> Iterator[Path]:
    unified = cgroup.read_hierarchies().unified
    if os.geteuid() != 0 or unified is None:
        pytest.skip("needs root and a unified hierarchy")
    top = unified / f"pageferry-test-slurm-{os.getpid()}"
    path = top / f"test_slurmstepd.scope/job_{JOB}"
    try:
        (path / "step_0/slurm").mkdir(parents=True)
        (path / "step_0/user/task_0").mkdir(parents=True)
        yield path
    finally:
        for group in reversed(list(cgroup.walk(top))):
            group.rmdir()


def test_a_job_has_the_processes_of_its_user_and_not_the_daemons(job: Path) -> None:
    slurm = Slurm(scontrol="/nonexistent/scontrol")
    with child() as daemon, child() as task:
        (job / "step_0/slurm/cgroup.procs").write_text(str(daemon.pid))
        (job / "step_0/user/task_0/cgroup.procs").write_text(str(task.pid))
        found = slurm.find(str(JOB))
        assert found.pids == {task.pid}
        assert found.cgroups == (job,)
    assert slurm.find(str(JOB)).pids == frozenset()


def test_a_job_that_is_not_here_is_told_as_such() -> None:
    with pytest.raises(UsageError, match=f"no such job on this host: {JOB}"):
        Slurm(scontrol="/nonexistent/scontrol").find(str(JOB))
