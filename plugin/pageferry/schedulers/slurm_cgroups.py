"""Finds the cgroups that Slurm made for a job on this host, and those of them that hold the user's processes.

Version 2:  <scope>/job_N/step_X/user/task_Y      with the slurmstepd in step_X/slurm
Version 1:  <mount>/slurm[_node]/uid_U/job_N/step_X   with the slurmstepds in job_N of the freezer hierarchy

Several slurmd on one host have a scope, or a slurm_node, each. Nothing is asked of Slurm, so this works without
slurmctld. Sources: Slurm's src/plugins/cgroup/v2/cgroup_v2.c, src/plugins/cgroup/v1/cgroup_v1.c.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pageferry.errors import Vanished
from pageferry.kernel.cgroup import children, own_pids, pids, read_hierarchies
from pageferry.kernel.files import read_bytes
from pageferry.kernel.freezer import read_freezer_state
from pageferry.kernel.private_cpuset import group_path
from pageferry.kernel.procfs import read_status

_SCOPE_SUFFIX = "slurmstepd.scope"
_SCOPE_DEPTH = 4
"""Slurm's scope is in system.slice, or in the slice that CgroupSlice names, perhaps within a container's group."""

_ROUNDS = 20
_LEGACY_CONTROLLERS = ("freezer", "cpuset", "memory")
_LEGACY_USER = re.compile(r"/uid_([0-9]{1,10})/job_[0-9]+$")


@dataclass(frozen=True, slots=True)
class Suspension:
    """Whether Slurm wants a job suspended here, and whether all of it stands still for that.

    `asked`: Slurm has told at least one step to freeze. `frozen`: asked, and no step has a process that may run.
    """

    asked: bool
    frozen: bool


def slurm_job_cgroups(job_id: int, root: Path = Path("/")) -> tuple[Path, ...]:
    """Return every cgroup of a job on this host, by path: version 2 first, then version 1 by controller."""
    hierarchies = read_hierarchies(root)
    found: list[Path] = []
    if hierarchies.unified is not None:
        found += [scope / f"job_{job_id}" for scope in slurm_scopes(hierarchies.unified)]
    for mount in _legacy_mounts(hierarchies.legacy):
        found += _matches(mount, f"slurm*/uid_*/job_{job_id}")
    return tuple(group for group in found if group.is_dir())


def slurm_job_user_groups(job_id: int, root: Path = Path("/")) -> tuple[Path, ...]:
    """Return the groups that hold the processes of a job's user with all below them, and no slurmstepd.

    On version 1 these are the steps in the freezer hierarchy, which proctrack/cgroup makes.
    """
    freezer = read_hierarchies(root).legacy.get("freezer")
    groups: list[Path] = []
    for job in slurm_job_cgroups(job_id, root):
        steps = [step for step in children(job) if step.name.startswith("step_")]
        if job.parent.name.endswith(_SCOPE_SUFFIX):
            groups += [step / "user" for step in steps]
        elif freezer is not None and job.is_relative_to(freezer):
            groups += steps
    return tuple(group for group in groups if group.is_dir())


def slurm_job_user_pids(job_id: int, root: Path = Path("/")) -> frozenset[int]:
    """Return the processes of a job's user on this host, those of all steps; raises as `cgroup.pids`."""
    return frozenset(pid for group in slurm_job_user_groups(job_id, root) for pid in pids(group, root))


def slurm_job_holds(job_id: int, root: Path = Path("/")) -> tuple[Path, ...]:
    """Return the version 2 groups of a job's tasks: below what Slurm itself freezes, and without slurmstepd."""
    groups = []
    for job in slurm_job_cgroups(job_id, root):
        if job.parent.name.endswith(_SCOPE_SUFFIX):
            groups += [task for task in _matches(job, "step_*/user/task_*") if task.is_dir()]
    return tuple(sorted(groups))


def slurm_job_cpusets(job_id: int, root: Path = Path("/")) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Return the groups whose cpusets a job's CPUs depend on: the outer ones, outermost first, and the deciding ones.

    Every new step writes the job's own group again, so that one is only ever widened. Where tasks of a version 1 job
    are in groups of our own, these decide, and of Slurm's those that still have tasks.
    """
    legacy = read_hierarchies(root).legacy
    cpuset = legacy.get("cpuset")
    outer: list[Path] = []
    inner: list[Path] = []
    for job in slurm_job_cgroups(job_id, root):
        steps = [step for step in children(job) if step.name.startswith("step_")]
        if job.parent.name.endswith(_SCOPE_SUFFIX):
            outer.append(job)
            inner += [step / "user" for step in steps if (step / "user").is_dir()]
        elif cpuset is not None and job.is_relative_to(cpuset):
            outer += [job.parent, job]
            moved = {step: ours for step in steps if (ours := group_path(cpuset, step)).is_dir()}
            daemons = own_pids(legacy.get("freezer", cpuset) / job.relative_to(cpuset), root) if moved else frozenset()
            inner += [
                moved.get(step, step) for step in steps if not moved or step in moved or pids(step, root) - daemons
            ]
    return tuple(outer), tuple(inner)


def slurm_jobs(root: Path = Path("/")) -> tuple[int, ...]:
    """Return the IDs of all jobs that have cgroups on this host, ascending."""
    hierarchies = read_hierarchies(root)
    places = [_matches(scope, "job_*") for scope in slurm_scopes(hierarchies.unified)] if hierarchies.unified else []
    places += [_matches(mount, "slurm*/uid_*/job_*") for mount in _legacy_mounts(hierarchies.legacy)]
    numbers = (group.name.removeprefix("job_") for place in places for group in place)
    return tuple(sorted({int(number) for number in numbers if number.isascii() and number.isdigit()}))


def slurm_job_suspension(job_id: int, root: Path = Path("/")) -> Suspension:
    """Return whether Slurm has a job suspended on this host; a job that is not here is not.

    Slurm freezes every step, the extern step with them, and thaws each on its own: a job of which a part is asked is
    on its way to either side. A hold on the tasks below, or on a group above, is not Slurm's wish. A step without
    processes stands still. Source: src/slurmd/slurmd/req.c, _rpc_suspend_job(). Raises Denied and KernelError.
    """
    return slurm_suspension(slurm_job_user_groups(job_id, root), root)


def slurm_suspension(groups: Iterable[Path], root: Path = Path("/")) -> Suspension:
    """Return the same for a job whose `slurm_job_user_groups` are known; one that is gone since is left out."""
    steps = [step for group in groups if (step := _step_suspension(group, root)) is not None]
    asked = any(step.asked for step in steps)
    return Suspension(asked, asked and all(step.frozen for step in steps))


def legacy_user_id(cgroups: tuple[Path, ...]) -> int | None:
    """Return the user ID that version 1 has in the path of a job's cgroup, or None where there is none."""
    for group in cgroups:
        if match := _LEGACY_USER.search(str(group)):
            return int(match[1])
    return None


def slurm_job_owner(job_id: int, root: Path = Path("/")) -> int | None:
    """Return the ID of a job's user, by its cgroups or else by all of its processes; None if these do not say."""
    owner = legacy_user_id(slurm_job_cgroups(job_id, root))
    if owner is not None:
        return owner
    owners = set()
    for pid in slurm_job_user_pids(job_id, root):
        with suppress(Vanished):
            owners.add(read_status(pid, root).uids[0])
    return owners.pop() if len(owners) == 1 else None


def slurm_scopes(mount: Path) -> Iterator[Path]:
    """Yield Slurm's scopes below a version 2 mount.

    Only groups of the mount's own owner are looked at: a user to whom systemd delegated a group could make a
    scope with any job in it there.
    """
    try:
        owner = mount.stat().st_uid
    except OSError:  # another mount hides it
        return
    waiting = [(mount, 0)]
    while waiting:
        group, depth = waiting.pop()
        for child in children(group):
            try:
                trusted = child.stat().st_uid == owner
            except OSError:
                continue
            if trusted and child.name.endswith(_SCOPE_SUFFIX):
                yield child
            elif trusted and depth < _SCOPE_DEPTH:
                waiting.append((child, depth + 1))


def _step_suspension(group: Path, root: Path) -> Suspension | None:
    """Return what holds for one of `slurm_job_user_groups`, or None if it is gone."""
    try:
        if group.name == "user":
            asked = read_bytes(group / "cgroup.freeze").strip() == b"1"
            events = read_bytes(group / "cgroup.events").splitlines()
            return Suspension(asked, b"frozen 1" in events or b"populated 0" in events)
        # Reading the state is what makes the kernel look whether FREEZING has become FROZEN.
        freezer = read_freezer_state(group)
        return Suspension(freezer.own, freezer.state == "FROZEN" or not pids(group, root))
    except Vanished:
        return None


def _legacy_mounts(legacy: Mapping[str, Path]) -> list[Path]:
    """Return the mounts that Slurm uses, once each: two controllers may share one."""
    return list(dict.fromkeys(legacy[name] for name in _LEGACY_CONTROLLERS if name in legacy))


def _matches(place: Path, pattern: str) -> list[Path]:
    """Return the groups below a place that a pattern matches; Path.glob gives up when one goes while it looks."""
    for _ in range(_ROUNDS):
        with suppress(FileNotFoundError):
            return sorted(place.glob(pattern))
    return []
