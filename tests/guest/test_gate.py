"""What must hold of the gate under a real Slurm: no slip after its resume, and nothing that it does is in Slurm's way.

Jobs count in their output, so that each step they take can be seen from outside.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from guest.vm.jobs import Slurm, wait_until
from pageferry.gate.gate import Gate, release_all
from pageferry.kernel import private_cgroup

pytestmark = pytest.mark.v1

COUNTING = "while :; do n=$((n+1)); echo $n; sleep 0.05; done"
STEP = "echo begun; for n in 1 2 3; do sleep 0.1; done; echo done"


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path / "holds")
    yield made
    made.close()


@pytest.fixture(scope="module")
def job(slurm: Slurm) -> Iterator[int]:
    """A job that counts, for all tests that leave it running."""
    number = slurm.submit(COUNTING, "--cpus-per-task=2")
    slurm.wait_output(number, "3\n")
    yield number
    slurm.cancel(number)


class Still:
    """A job's output, processes and where in their programs these are: all of it must be as it was."""

    def __init__(self, slurm: Slurm, job: int) -> None:
        self.slurm, self.job = slurm, job
        self.pids = slurm.pids(job)
        self.before = self.now()

    def now(self) -> tuple[str, dict[int, list[str]]]:
        """Return the output, and stack pointer and program counter of each process (proc_pid_syscall(5))."""
        return self.slurm.output(self.job), {
            pid: Path(f"/proc/{pid}/syscall").read_text().split()[-2:] for pid in self.pids
        }

    def check(self) -> None:
        assert self.now() == self.before


def goes_on(slurm: Slurm, job: int) -> None:
    lines = slurm.output(job).count("\n")
    wait_until(lambda: slurm.output(job).count("\n") > lines + 2, f"job {job} counts on")


def stands(gate: Gate, job: int) -> None:
    wait_until(lambda: gate.frozen(job), f"job {job} held")


def suspended_and_held(slurm: Slurm, gate: Gate, job: int) -> Still:
    """Suspend, hold and resume a job; return what it must be still like."""
    slurm.suspend(job)
    hold = gate.hold(job)
    if slurm.cgroup == "v2":
        assert hold.groups
    else:
        assert hold.moved
        assert hold.private is not None
        assert hold.private.path.is_relative_to(private_cgroup.MOUNT_POINT)
    stands(gate, job)
    still = Still(slurm, job)
    slurm.resume(job)
    assert slurm.wait_state(job, "RUNNING") == "RUNNING"
    stands(gate, job)
    still.check()
    return still


def run(*command: str, timeout_s: float = 30.0) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=timeout_s).stdout


def listed_pids(job: int) -> set[int]:
    lines = [line.split() for line in run("scontrol", "listpids", str(job)).splitlines()]
    return {int(words[0]) for words in lines[1:]}


def step_during_hold(gate: Gate, job: int) -> subprocess.Popen[str]:
    """Start a step in a held job, and return when it is held."""
    step = subprocess.Popen(
        ["srun", "--overlap", f"--jobid={job}", "-n1", "sh", "-c", STEP],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 30
    grown = 0
    # The step's first task comes in a group of its own (version 2), or to the step's (version 1).
    while not (grown and any_task(job, "step_[0-9]*")):
        grown += gate.extend(job)
        assert time.monotonic() < deadline
        assert step.poll() is None, step.communicate()
    gate.extend(job)
    return step


def any_task(job: int, step: str) -> bool:
    groups = [
        *Path("/sys/fs/cgroup").glob(f"system.slice/*slurmstepd.scope/job_{job}/{step}/user/task_[0-9]*"),
        *Path("/sys/fs/cgroup").glob(f"freezer/slurm*/uid_*/job_{job}/{step}"),
    ]
    return any((group / "cgroup.procs").read_text() for group in groups)


def test_a_held_job_takes_no_step_after_its_resume_and_goes_on_when_released(
    slurm: Slurm, gate: Gate, job: int
) -> None:
    still = suspended_and_held(slurm, gate, job)
    assert listed_pids(job) >= set(still.pids)
    still.check()
    gate.release(job)
    assert gate.held() == {}
    goes_on(slurm, job)
    assert release_all(Path("/nonexistent")) == ()


def test_a_job_that_is_suspended_while_held_stays_so_when_released(slurm: Slurm, gate: Gate, job: int) -> None:
    gate.hold(job)
    stands(gate, job)
    still = Still(slurm, job)
    slurm.suspend(job)
    still.check()
    gate.release(job)
    assert slurm.state(job) == "SUSPENDED"
    assert slurm.frozen(job)
    still.check()
    slurm.resume(job)
    goes_on(slurm, job)


@pytest.mark.long
def test_a_hold_outlasts_slurmd_and_a_step_that_starts_during_it_is_held_and_runs(
    slurm: Slurm, gate: Gate, job: int
) -> None:
    still = suspended_and_held(slurm, gate, job)
    restart_slurmd(slurm)
    run("scontrol", "reconfigure")
    wait_until(lambda: slurm.node_states() == ["mix"], "the node is back")
    still.check()
    step = step_during_hold(gate, job)
    assert listed_pids(job) >= set(still.pids)
    assert gate.extend(job) == 0
    stands(gate, job)
    still.check()
    assert step.poll() is None
    gate.release(job)
    said, _ = step.communicate(timeout=60)
    assert (step.returncode, said) == (0, "begun\ndone\n")
    goes_on(slurm, job)


def test_an_agent_that_is_killed_leaves_the_job_running(slurm: Slurm, job: int, tmp_path: Path) -> None:
    with agent(tmp_path, job) as killed:
        stopped = slurm.output(job)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        goes_on(slurm, job)
        assert slurm.output(job).startswith(stopped)
    after = Gate(tmp_path)
    assert after.recover() == ()
    assert len(after.news()) == 1
    after.close()


def test_what_was_held_from_another_mount_namespace_can_be_released(slurm: Slurm, job: int, tmp_path: Path) -> None:
    if private_cgroup.MOUNT_POINT.is_mount():
        run("umount", str(private_cgroup.MOUNT_POINT))
    with agent(tmp_path, job, "unshare", "--mount") as killed:
        (guard,) = psutil.Process(killed.pid).children()
        killed.send_signal(signal.SIGSTOP)
        guard.kill()
        killed.kill()
    lines = slurm.output(job)
    assert not private_cgroup.MOUNT_POINT.is_mount()
    assert release_all(tmp_path) == (job,)
    goes_on(slurm, job)
    assert slurm.output(job).startswith(lines)
    assert release_all(tmp_path) == ()


def test_a_held_job_and_a_held_step_can_be_cancelled(slurm: Slurm, gate: Gate) -> None:
    number = slurm.submit(COUNTING, "--cpus-per-task=2")
    slurm.wait_output(number, "3\n")
    still = suspended_and_held(slurm, gate, number)
    step = step_during_hold(gate, number)
    still.check()
    slurm.cancel(number)
    assert slurm.state(number) == "CANCELLED"
    step.communicate(timeout=60)
    wait_until(lambda: not slurm.step_freezers(number), "no group of the job is left")
    gate.release(number)
    assert gate.held() == {}


@pytest.mark.long
def test_a_time_limit_ends_a_held_job(slurm: Slurm, gate: Gate) -> None:
    number = slurm.submit(COUNTING, "--time=10")
    slurm.wait_output(number, "3\n")
    suspended_and_held(slurm, gate, number)
    soon = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 3))
    run("scontrol", "update", f"JobId={number}", f"EndTime={soon}")
    wait_until(lambda: slurm.state(number) == "TIMEOUT", "the job is at its limit", 90)
    wait_until(lambda: not slurm.step_freezers(number), "no group of the job is left")
    gate.release(number)


def restart_slurmd(slurm: Slurm) -> None:
    name = slurm.nodes[0]
    pid = int(Path(f"/run/slurm/slurmd-{name}.pid").read_text())
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "slurmd has ended")
    run("setsid", "slurmd", "-N", name)


AGENT = """
import sys
from pathlib import Path
from pageferry.gate.gate import Gate
gate = Gate(Path(sys.argv[1]))
gate.hold(int(sys.argv[2]))
while not gate.frozen(int(sys.argv[2])):
    pass
print("held", flush=True)
sys.stdin.read()
"""


def agent(folder: Path, job: int, *prefix: str) -> subprocess.Popen[str]:
    """Start an agent in a process of its own, and return when it holds the job."""
    folder.chmod(0o700)
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", AGENT, str(folder), str(job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": "plugin:planner"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process
