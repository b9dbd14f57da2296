"""Finds what of a job can be held on this host, and sets a hold that has been promised to the guardian.

Version 2: the groups of tasks, `step_*/user/task_*`, below what Slurm itself freezes and beside the slurmstepds; one
that is frozen by itself is somebody else's hold. Version 1, where Slurm thaws every group that it has: the processes
of all steps, in a version 2 group of our own. Recording and guarding is the gate's, undoing the guardian's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pageferry.errors import KernelError, Vanished
from pageferry.gate import guardian
from pageferry.gate.holds import Group, Hold, Moved
from pageferry.kernel import cgroup, private_cgroup
from pageferry.kernel.files import read_bytes, translated, write_text
from pageferry.kernel.freezer import is_frozen, read_freezer_state
from pageferry.kernel.procfs import start_time
from pageferry.schedulers.slurm_cgroups import slurm_job_holds, slurm_job_user_groups


def grown(hold: Hold, root: Path = Path("/")) -> Hold:
    """Return a hold with all that its job has now and it had not yet; nothing is set. Raises KernelError."""
    known = frozenset(hold.groups)
    found = [group for path in slurm_job_holds(hold.job, root) if (group := thawed(path)) is not None]
    hold = replace(hold, groups=(*hold.groups, *(group for group in found if group not in known)))
    pids = frozenset(pid for step in _legacy_steps(hold.job, root) for pid in cgroup.pids(step, root))
    return with_moved(hold, pids, hold.job) if pids else hold


def with_moved(hold: Hold, pids: frozenset[int], job: int | str) -> Hold:
    """Return a hold with processes that are to be moved to our own group for a job, which is made.

    Raises KernelError.
    """
    mount = private_cgroup.unified_mount()
    private = identified(private_cgroup.make_group(mount, job))
    strangers = pids - {process.pid for process in hold.moved if _is_same(process)}
    moved = [moved for pid in sorted(strangers) if (moved := _origin(pid, mount, private.path)) is not None]
    return replace(hold, private=private, moved=(*hold.moved, *moved))


def set_hold(hold: Hold) -> None:
    """Set what a hold says, of which any part may have been set already or be gone. Raises KernelError."""
    for group in hold.groups:
        freeze(group)
    if hold.private is not None:
        freeze(hold.private)
        inside = cgroup.own_pids(hold.private.path)
        for process in hold.moved:
            if process.pid not in inside and _is_same(process):
                with suppress(Vanished):
                    write_text(hold.private.path / "cgroup.procs", str(process.pid))


def stands(hold: Hold, root: Path = Path("/")) -> bool:
    """Say whether the kernel has stopped all that is held; what is gone is no hindrance. Raises KernelError."""
    if not all(_is_gone_or_frozen(group.path) for group in hold.groups):
        return False
    # Version 2 does not count a task as frozen as long as version 1 has frozen it.
    return (
        hold.private is None
        or _is_gone_or_frozen(hold.private.path)
        or all(_is_frozen_legacy(step) for step in _legacy_steps(hold.job, root))
    )


def remains(hold: Hold) -> bool:
    """Say whether any group of a hold is still there."""
    groups = [*hold.groups, *([hold.private] if hold.private else [])]
    for group in groups:
        with suppress(Vanished, KernelError):  # a path that cannot be is not there
            if identified(group.path) == group:
                return True
    return False


def identified(path: Path) -> Group:
    """Return a group with its inode. Raises Vanished."""
    try:
        return Group(path, path.stat().st_ino)
    except OSError as error:
        raise translated(error, path) from error


def thawed(path: Path) -> Group | None:
    """Return a version 2 group that was not itself asked to freeze; one frozen from above may be held by us too."""
    with suppress(Vanished):
        group = identified(path)
        if read_bytes(path / "cgroup.freeze").strip() == b"0":
            return group
    return None


def freeze(group: Group) -> None:
    """Ask the kernel to freeze a group, unless it is gone or another has its name. Raises KernelError."""
    try:
        guardian.write_group(str(group.path), group.inode, "cgroup.freeze", "1")
    except OSError as error:
        problem = translated(error, group.path / "cgroup.freeze")
        if not isinstance(problem, Vanished):
            raise problem from error


def _legacy_steps(job: int, root: Path) -> Iterator[Path]:
    return (group for group in slurm_job_user_groups(job, root) if (group / "freezer.state").exists())


def _is_same(process: Moved) -> bool:
    with suppress(Vanished):
        return start_time(process.pid) == process.start
    return False


def _origin(pid: int, mount: Path, private: Path) -> Moved | None:
    """Return whence a process is to be moved; None for one that is there: its parent was, when it was forked."""
    with suppress(Vanished):
        start = start_time(pid)
        origin = private_cgroup.group_of(pid, mount)
        return Moved(pid, start, origin) if origin != private else None
    return None


def _is_gone_or_frozen(path: Path) -> bool:
    with suppress(Vanished):
        return is_frozen(path)
    return True


def _is_frozen_legacy(path: Path) -> bool:
    with suppress(Vanished):
        return read_freezer_state(path).state == "FROZEN"
    return True
