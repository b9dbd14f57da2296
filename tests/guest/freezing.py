"""Freezers seen and written from outside: as slurmd writes them, what the agent holds, and the agent's children."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from guest.agents import Agent
from guest.vm.jobs import Slurm
from pageferry.kernel import private_cgroup
from pageferry.kernel.cgroup import read_hierarchies

_DESCRIPTORS = 6
"""More than an errand has at work: the standard ones, its pipe, those of a command; the agent has more."""


def write(slurm: Slurm, job: int, frozen: bool) -> None:
    """Freeze or thaw every step of a job as slurmd does, without its waiting and its signals."""
    name, words = ("cgroup.freeze", "01") if slurm.cgroup == "v2" else ("freezer.state", ("THAWED", "FROZEN"))
    for step in slurm.step_freezers(job):
        with suppress(OSError):  # the step has ended
            (step / name).write_text(words[frozen])


def task_freezers(slurm: Slurm, job: int) -> list[Path]:
    """Return the files by which the agent holds a job: of each task (v2), or of its own group for the job (v1)."""
    if slurm.cgroup == "v2":
        return [task / "cgroup.freeze" for step in slurm.step_freezers(job) for task in sorted(step.glob("task_*"))]
    unified = read_hierarchies().unified
    return [] if unified is None else [private_cgroup.group_path(unified, job) / "cgroup.freeze"]


def held(slurm: Slurm, job: int) -> bool:
    """Say whether any task of a job is held below Slurm's own freezers."""
    for file in task_freezers(slurm, job):
        with suppress(OSError):
            if file.read_text().strip() == "1":
                return True
    return False


def guardian(agent: Agent) -> int:
    """Return the agent's guardian."""
    (pid,) = [pid for pid in _children(agent) if b"guardian.py" in command(pid)]
    return pid


def errands(agent: Agent) -> list[int]:
    """Return the agent's errands: the children that have its own command line."""
    assert agent.process is not None
    own = command(agent.process.pid)
    return [pid for pid in _children(agent) if command(pid) == own]


def stopped_errand(agent: Agent, *, after: int = 0, timeout_s: float = 30.0) -> int:
    """Stop the agent's next errand, another than `after`, and return it; it stays stopped until somebody goes on."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for pid in errands(agent):
            if pid == after or not _at_work(pid):
                continue
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                if stands_still(pid):
                    return pid
        time.sleep(0.001)
    raise AssertionError(f"no errand in {timeout_s:g} s:\n{agent.said()[-2000:]}")


def stands_still(pid: int) -> bool:
    """Wait until a signal has stopped a process, and say so; it may have ended before."""
    while (state := _state(pid)) not in "TZX":
        time.sleep(0.001)
    return state == "T"


def happens(change: Callable[[], bool], seconds: float) -> bool:
    """Say whether something becomes true within some seconds; for what must not happen."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if change():
            return True
        time.sleep(0.05)
    return False


def _children(agent: Agent) -> list[int]:
    assert agent.process is not None
    pid = agent.process.pid
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _at_work(pid: int) -> bool:
    """Say whether an errand has closed what it shared with the agent, and ends with it: all that it begins with."""
    with suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd")) <= _DESCRIPTORS  # noqa: PTH208
    return False


def command(pid: int) -> bytes:
    """Return a process's command line, b"" if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def _state(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return "X"
