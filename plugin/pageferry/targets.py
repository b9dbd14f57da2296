"""What a command is about: a batch job, processes with their children, or a cgroup → pids, and what may be held.

The differences between them end here.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from pageferry import wire
from pageferry.cpus.assign import Cpusets
from pageferry.errors import UsageError, Vanished
from pageferry.kernel.cgroup import pids as pids_of
from pageferry.kernel.cgroup import read_hierarchies
from pageferry.kernel.files import printable, shown
from pageferry.kernel.procfs import descendants, start_time
from pageferry.schedulers.base import Job
from pageferry.schedulers.pbs import Pbs, is_job_id
from pageferry.schedulers.slurm import Slurm


@dataclass(frozen=True, slots=True)
class Found:
    """A target: its name for people, its processes, the version 2 groups that hold them, and its cpusets.

    `pbs_job`: PBS's ID of a job, which hooks of PBS's may be moving as well; `slurm_job`: Slurm's.
    """

    name: str
    pids: frozenset[int]
    holds: tuple[Path, ...]
    cpusets: Cpusets
    pbs_job: str = ""
    slurm_job: int = 0


class Route(Enum):
    """Who moves a target: this command, the agent of this host, or those of the job's hosts."""

    DIRECT = "this command"
    AGENT = "the agent"
    REMOTE = "Slurm"


def route(job: str | None, pids: Collection[int], cgroup: str | None, *, with_cpus: bool) -> Route:
    """Return who is to move a target; `with_cpus`: it is to get other CPUs, which the agent shares out.

    A Slurm job without cgroups here, on a host that has Slurm's commands, is elsewhere. Raises UsageError.
    """
    if not job or pids or cgroup:
        return Route.DIRECT
    try:
        scheduler = scheduled(job).scheduler
    except UsageError:
        if shutil.which("scontrol") is None:
            raise
        Slurm().parse_job_id(job)
        return Route.REMOTE
    if scheduler == "pbs":
        if with_cpus:
            raise UsageError("--cpus: under PBS a job keeps the CPUs that PBS gave it")
        return Route.DIRECT
    return Route.AGENT if with_cpus and wire.present() else Route.DIRECT


def find(job: str | None, pids: Collection[int], cgroup: str | None) -> Found:
    """Return the one target that was named. Raises UsageError for none, several, or one that is not there."""
    if bool(job) + bool(pids) + bool(cgroup) != 1:
        raise UsageError("name one target: a job id, --pid or --cgroup")
    if job:
        return _job(scheduled(job))
    if cgroup:
        return _cgroup(cgroup)
    return _processes(pids)


def find_all() -> list[Found]:
    """Return all jobs of Slurm's and PBS's on this host that have a process; one may have ended, or not begun."""
    return [_job(job) for job in (*Slurm().jobs(), *Pbs().jobs()) if job.pids]


def scheduled(job: str) -> Job:
    """Return the job of this ID, Slurm's or else PBS's. Raises UsageError where neither has it here."""
    try:
        return Slurm().find(job)
    except UsageError:
        if not is_job_id(job):
            raise
    return Pbs().find(job)


def _job(job: Job) -> Found:
    if not job.pids:
        raise UsageError(f"job {job.id} has no processes on this host")
    ids = (job.id, 0) if job.scheduler == "pbs" else ("", int(job.id))
    return Found(f"job {job.id}", job.pids, job.holds, Cpusets(job.cpusets_outer, job.cpusets_inner), *ids)


def _processes(pids: Collection[int]) -> Found:
    found: set[int] = set()
    for pid in pids:
        try:
            start_time(pid)
            found |= {pid, *descendants(pid)}
        except Vanished as error:
            raise UsageError(f"no such process: {pid}") from error
    return Found("process " + ", ".join(map(str, pids)), frozenset(found), (), Cpusets())


def _cgroup(name: str) -> Found:
    hierarchies = read_hierarchies()
    mounts = [mount for mount in (hierarchies.unified, *hierarchies.legacy.values()) if mount is not None]
    given = Path(name)
    places = [given] if given.is_absolute() else []
    places += [mount / name.lstrip("/") for mount in mounts]
    group = next((place for place in places if (place / "cgroup.procs").is_file()), None)
    if group is None:
        raise UsageError(f"no such cgroup: {shown(name)}")
    members = pids_of(group)
    if not members:
        raise UsageError(f"no process in cgroup {printable(group)}")
    unified = hierarchies.unified is not None and group.is_relative_to(hierarchies.unified)
    return Found(f"cgroup {group}", members, (group,) if unified else (), Cpusets(narrow=(group,)))
