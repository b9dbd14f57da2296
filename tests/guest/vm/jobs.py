"""Jobs of the guest's Slurm, by the commands that a user or an operator types."""

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
TIMEOUT_S = 60.0
ENDED = frozenset({"COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"})


@dataclass(frozen=True, slots=True)
class Slurm:
    """A running Slurm: its cgroup version ("v1", "v2"), its nodes, and where its logs are."""

    cgroup: str
    nodes: tuple[str, ...]
    logs: Path

    def node_states(self) -> list[str]:
        """Return sinfo's word for each node; none while the controller does not answer."""
        answer = _run("sinfo", "--noheader", "--Node", "--format=%t", check=False)
        return answer.stdout.split()

    def submit(self, script: str, *options: str) -> int:
        """Submit the text of a batch script, with sbatch's `options`, and return the job's id."""
        output = f"--output={self.logs}/job-%j.out"
        text = script if script.startswith("#!") else f"#!/bin/sh\n{script}\n"
        answer = _run("sbatch", "--parsable", "--chdir=/", output, *options, text=text)
        return int(answer.stdout.strip().partition(";")[0])

    def output(self, job: int) -> str:
        """Return what a batch job has written so far."""
        path = self.logs / f"job-{job}.out"
        return path.read_text() if path.exists() else ""

    def state(self, job: int) -> str:
        """Return the job's state as squeue's long word: PENDING, RUNNING, SUSPENDED, COMPLETED ..."""
        return _run("squeue", "--noheader", "--states=all", f"--jobs={job}", "--format=%T").stdout.strip()

    def wait_state(self, job: int, *states: str, timeout_s: float = TIMEOUT_S) -> str:
        """Wait until the job is in one of `states` and return it; AssertionError if it ended otherwise."""
        state = ""

        def there() -> bool:
            nonlocal state
            state = self.state(job)
            assert state in states or state not in ENDED, f"job {job} is {state}: {self.output(job)!r}"
            return state in states

        wait_until(there, f"job {job} {' or '.join(states)}", timeout_s)
        return state

    def wait_output(self, job: int, text: str, timeout_s: float = TIMEOUT_S) -> None:
        """Wait until the batch job has written `text`."""
        wait_until(lambda: text in self.output(job), f"job {job} writes {text!r}", timeout_s)

    def suspend(self, job: int) -> None:
        """Suspend a job and wait until its tasks are frozen: scontrol returns some seconds before."""
        _run("scontrol", "suspend", str(job))
        wait_until(lambda: self.frozen(job), f"job {job} frozen")

    def resume(self, job: int) -> None:
        """Resume a job and wait until its tasks are thawed."""
        _run("scontrol", "resume", str(job))
        wait_until(lambda: not self.frozen(job), f"job {job} thawed")

    def cancel(self, job: int) -> None:
        """Cancel a job, which may have ended already, and wait for its end."""
        _run("scancel", str(job))
        wait_until(lambda: self.state(job) in ENDED, f"job {job} ended")

    def cancel_all(self) -> None:
        """Cancel whatever jobs there are, and wait until their processes are gone."""
        if jobs := _run("squeue", "--noheader", "--format=%A").stdout.split():
            _run("scancel", "--full", *jobs, check=False)
            wait_until(lambda: not _run("squeue", "--noheader").stdout.strip(), "all jobs have ended")
            wait_until(lambda: not any(self.pids(int(job)) for job in jobs), "their processes are gone")

    def step_freezers(self, job: int) -> list[Path]:
        """The cgroup of each step of a job that Slurm freezes: `step_X/user` (v2), freezer `step_X` (v1)."""
        if self.cgroup == "v2":
            return sorted(CGROUP.glob(f"system.slice/*slurmstepd.scope/job_{job}/step_*/user"))
        return sorted(CGROUP.glob(f"freezer/slurm*/uid_*/job_{job}/step_*"))

    def frozen(self, job: int) -> bool:
        """Whether the kernel has frozen every step of a job."""
        steps = self.step_freezers(job)
        return bool(steps) and all(_frozen(step) for step in steps)

    def pids(self, job: int) -> list[int]:
        """The job's processes, without Slurm's own."""
        return sorted(pid for step in self.step_freezers(job) for pid in _pids(step))


def wait_until(done: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Ask again and again until `done`; AssertionError names `what` did not happen."""
    deadline = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline, f"not in {timeout_s:g} s: {what}"
        time.sleep(0.1)


def _pids(group: Path) -> list[int]:
    """Return the processes of a group and of those below it; one that Slurm removes meanwhile has none."""
    found: list[int] = []
    for folder, _, _ in os.walk(group):
        with suppress(OSError):
            found += map(int, Path(folder, "cgroup.procs").read_text().split())
    return found


def _frozen(step: Path) -> bool:
    try:
        if (step / "freezer.state").exists():
            return (step / "freezer.state").read_text().strip() == "FROZEN"
        return "frozen 1" in (step / "cgroup.events").read_text()
    except OSError:
        return False


def _run(*command: str, text: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    answer = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert not check or answer.returncode == 0, f"{' '.join(command)}: {answer.stderr.strip()}"
    return answer
