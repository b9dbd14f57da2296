"""Reads control groups, version 1 and version 2: where they are mounted, their processes, their cpusets.

Groups are named by their path in the file system. Which ones a job has is its scheduler's matter; freezing them
is the freezer's. Sources: Documentation/admin-guide/cgroup-v2.rst, and cgroup-v1/cpusets.rst beside it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pageferry.errors import KernelError, Vanished
from pageferry.kernel.files import read_bytes, translated
from pageferry.kernel.lists import parse_list, parse_number
from pageferry.kernel.mountinfo import read_mountinfo
from pageferry.kernel.procfs import read_status

MOST_ID = 1 << 22
"""No process or thread has a greater ID: PID_MAX_LIMIT."""

_NO_CONTROLLERS = frozenset({b"rw", b"ro", b"none", b"xattr", b"noprefix", b"clone_children"})
"""Mount options of version 1 that stand beside the names of controllers."""


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """Where cgroups are mounted, below the root that was read. Hybrid hosts have both versions.

    `unified` is version 2; `legacy` goes from controller, such as "freezer", to its version 1 mount point. A named
    hierarchy without controllers is "name=systemd" or the like.
    """

    unified: Path | None
    legacy: Mapping[str, Path]


@dataclass(frozen=True, slots=True)
class Cpuset:
    """A group's cpuset: what was written there (empty: the parent's), and what holds in effect."""

    cpus: frozenset[int]
    mems: frozenset[int]
    effective_cpus: frozenset[int]
    effective_mems: frozenset[int]


def read_hierarchies(root: Path = Path("/")) -> Hierarchies:
    """Return which cgroup hierarchies are mounted, from our own mount namespace; the first mount of each counts."""
    unified: Path | None = None
    legacy: dict[str, Path] = {}
    for mount in read_mountinfo(root):
        point = root / os.fsdecode(mount.point).lstrip("/")
        if mount.fstype == "cgroup2":
            unified = unified or point
        elif mount.fstype == "cgroup":
            for option in mount.super_options - _NO_CONTROLLERS:
                legacy.setdefault(option.decode("ascii", "replace"), point)
    return Hierarchies(unified, legacy)


def unified_mounts(root: Path = Path("/")) -> tuple[Path, ...]:
    """Return all places where version 2 is mounted, from our own mount namespace."""
    mounts = [mount.point for mount in read_mountinfo(root) if mount.fstype == "cgroup2"]
    return tuple(root / os.fsdecode(point).lstrip("/") for point in mounts)


def walk(path: Path) -> Iterator[Path]:
    """Yield a group and all groups below it, parents first; one that vanishes midway is left out."""
    waiting = [path]  # no recursion: users can nest groups of their own as deep as they like
    while waiting:
        group = waiting.pop()
        yield group
        waiting.extend(reversed(children(group)))


def pids(path: Path, root: Path = Path("/")) -> frozenset[int]:
    """Return the processes of a group and of all groups below it; none if the group is gone.

    A process that forks meanwhile can be missed: ask again until the answer stays the same, or freeze first.
    Raises Denied and KernelError.
    """
    return frozenset(pid for group in walk(path) for pid in own_pids(group, root))


def read_cpuset(path: Path) -> Cpuset | None:
    """Return the cpuset of a group, or None where the controller is not enabled for it.

    Raises Vanished when the group itself is gone, KernelError for a file that cannot be understood.
    """
    for cpus, mems in (("cpus.effective", "mems.effective"), ("effective_cpus", "effective_mems")):
        names = ("cpus", "mems", cpus, mems)
        try:
            return Cpuset(*[parse_list(read_bytes(path / f"cpuset.{name}")) for name in names])
        except Vanished:
            if not path.is_dir():
                raise
        except ValueError as error:
            raise KernelError(f"{path}: {error}") from error
    return None


def read_written(file: Path) -> frozenset[int]:
    """Return what was written to a group's cpuset.cpus or cpuset.mems: none if nothing was, or the group is gone.

    Raises Denied and KernelError.
    """
    try:
        return parse_list(read_bytes(file))
    except Vanished:
        return frozenset()
    except ValueError as error:
        raise KernelError(f"{file}: {error}") from error


def children(path: Path) -> list[Path]:
    """Return the groups just below a group, by name; none if the group is gone. Raises Denied, KernelError."""
    try:
        with os.scandir(path) as entries:
            return sorted(path / entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError as error:
        if isinstance(problem := translated(error, path), Vanished):
            return []
        raise problem from error


def own_pids(path: Path, root: Path = Path("/")) -> frozenset[int]:
    """Return the processes of a group without those of groups below it; none if the group is gone.

    Raises Denied and KernelError.
    """
    try:
        # A process outside our PID namespace shows as 0. Version 1 may name a process twice.
        return _ids(read_bytes(path / "cgroup.procs")) - {0}
    except Vanished:
        return frozenset()
    except KernelError as error:
        # A threaded group of version 2 lists no processes (EOPNOTSUPP), but its threads.
        if not isinstance(error.__cause__, OSError) or error.__cause__.errno != errno.EOPNOTSUPP:
            raise
    except ValueError as error:
        raise KernelError(f"{path}/cgroup.procs: {error}") from error
    return frozenset(_processes_of_threads(path, root))


def _ids(text: bytes) -> frozenset[int]:
    """Return the IDs of processes or threads in a text. Raises ValueError."""
    found = frozenset(map(parse_number, text.split()))
    if found and max(found) > MOST_ID:
        raise ValueError(f"not an ID: {max(found)}")
    return found


def _processes_of_threads(path: Path, root: Path) -> Iterator[int]:
    try:
        threads = sorted(_ids(read_bytes(path / "cgroup.threads")))
    except Vanished:
        return
    except ValueError as error:
        raise KernelError(f"{path}/cgroup.threads: {error}") from error
    for thread in threads:
        try:
            yield read_status(thread, root).thread_group
        except Vanished:
            continue
