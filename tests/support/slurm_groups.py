"""Groups on this host's own hierarchies that are named as Slurm names those of a job, with real processes in them."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pageferry.kernel import cgroup
from support.children import child

SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class SlurmJob:
    """A job whose every task is a `cat` that answers what it is sent, as long as it is not held."""

    number: int
    version: str
    group: Path
    tasks: tuple[Path, ...]
    processes: tuple[subprocess.Popen[bytes], ...]

    def answers(self) -> bool:
        """Say whether each task answers in good time."""
        return all(answers(process, SECONDS) for process in self.processes)

    def is_still(self) -> bool:
        """Say whether no task answers: there is no event to wait for, so a moment must do."""
        return not any(answers(process, 0.1) for process in self.processes)

    def start_task(self, stack: ExitStack, step: str) -> Path:
        """Start one more task in a step of its own, and return its group."""
        task = _task(self.group, self.version, step)
        process = stack.enter_context(child())
        _enter(task, process.pid)
        return task


@contextmanager
def slurm_job(version: str, tasks: int = 2, number: int | None = None) -> Iterator[SlurmJob]:
    """Make a job of cgroup "v1" or "v2" with a task in each of `tasks` steps; all of it is gone in the end."""
    number = number or random.randrange(10**8, 10**9)
    hierarchies = cgroup.read_hierarchies()
    with ExitStack() as stack:
        if version == "v2":
            assert hierarchies.unified is not None
            top = hierarchies.unified / f"test{os.getpid()}_slurmstepd.scope"
            group = top / f"job_{number}"
        else:
            top = hierarchies.legacy["freezer"] / f"slurm_test{os.getpid()}"
            group = top / f"uid_0/job_{number}"
        stack.callback(_remove, top)
        groups = tuple(_task(group, version, f"step_{step}") for step in range(tasks))
        processes = tuple(stack.enter_context(child()) for _ in groups)
        for task, process in zip(groups, processes, strict=True):
            _enter(task, process.pid)
        yield SlurmJob(number, version, group, groups, processes)


def _task(group: Path, version: str, step: str) -> Path:
    task = group / step / "user/task_0" if version == "v2" else group / step
    task.mkdir(parents=True)
    return task


def _enter(group: Path, pid: int) -> None:
    (group / "cgroup.procs").write_text(str(pid))


def answers(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Say whether a `cat` answers within some seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    os.write(process.stdin.fileno(), b".")
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    answered = bool(poll.poll(seconds * 1000))
    if answered:
        os.read(process.stdout.fileno(), 4096)
    return answered


def _end(pid: int) -> None:
    fd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        assert poll.poll(SECONDS * 1000)
    finally:
        os.close(fd)


def _remove(top: Path) -> None:
    for group in reversed(list(cgroup.walk(top))):
        for pid in cgroup.own_pids(group):  # what a task has started
            with suppress(ProcessLookupError):
                _end(pid)
        with suppress(FileNotFoundError):
            group.rmdir()
