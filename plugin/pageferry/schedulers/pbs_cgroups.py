"""Finds the cgroups that OpenPBS made for a job on this host: `<mount>/PREFIX.service/jobid/ID`, in each hierarchy.

So does its pbs_cgroups hook, on version 1, with the prefix `pbs_jobs` unless the site has another; a site with
version 2 lays them out likewise. MoM's own processes are in none of them. A job's ID may hold brackets, so it is never
a pattern here, always a name. Source: OpenPBS's src/hooks/cgroups/pbs_cgroups.PY, _assemble_path().
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pageferry.errors import Vanished
from pageferry.kernel.cgroup import children, pids, read_cpuset, read_hierarchies

_SERVICE = ".service"
_CONTROLLERS = ("cpuset", "memory", "cpuacct", "freezer", "devices")


def pbs_job_ids(root: Path = Path("/")) -> tuple[str, ...]:
    """Return the IDs of all jobs that have cgroups on this host, as their groups are called."""
    return tuple(sorted({group.name for place in _places(root) for group in children(place)}))


def pbs_job_cgroups(job_id: str, root: Path = Path("/")) -> tuple[Path, ...]:
    """Return every cgroup of a job on this host: version 2 first, then version 1 by controller."""
    return tuple(group for place in _places(root) if (group := place / job_id).is_dir())


def pbs_job_pids(job_id: str, root: Path = Path("/")) -> frozenset[int]:
    """Return the processes in a job's cgroups, whichever hierarchy has them; raises as `cgroup.pids`."""
    return frozenset(pid for group in pbs_job_cgroups(job_id, root) for pid in pids(group, root))


def pbs_job_freezers(job_id: str, root: Path = Path("/")) -> tuple[Path, ...]:
    """Return the version 2 groups of a job, which can be frozen: PBS itself stops jobs by signals, and never looks."""
    unified = read_hierarchies(root).unified
    groups = pbs_job_cgroups(job_id, root)
    return tuple(group for group in groups if unified is not None and group.is_relative_to(unified))


def pbs_job_cpuset(job_id: str, root: Path = Path("/")) -> tuple[frozenset[int], frozenset[int]]:
    """Return the CPUs and the nodes that a job's cpuset leaves it; empty where it has none, or is not confined by it.

    Without mem_fences pbs_cgroups gives all nodes to every job: then the nodes say nothing, and are left out.
    """
    for group in pbs_job_cgroups(job_id, root):
        with suppress(Vanished):  # the job has ended
            cpuset = read_cpuset(group)
            if cpuset is not None and cpuset.cpus:
                return cpuset.effective_cpus, cpuset.effective_mems
    return frozenset(), frozenset()


def _places(root: Path) -> Iterator[Path]:
    """Yield the groups that hold those of jobs; a site may have given them another prefix."""
    hierarchies = read_hierarchies(root)
    mounts = [hierarchies.unified] if hierarchies.unified is not None else []
    mounts += [hierarchies.legacy[name] for name in _CONTROLLERS if name in hierarchies.legacy]
    for mount in dict.fromkeys(mounts):
        for service in children(mount):
            if service.name.endswith(_SERVICE) and (service / "jobid").is_dir():
                yield service / "jobid"
