"""A version 2 hierarchy for groups of our own, on hosts whose scheduler uses version 1.

The kernel has one such hierarchy, mounted or not, and every process has a place in it. Where it is mounted already
(hybrid hosts) we use a group in it, otherwise we mount it for ourselves. When processes are moved there is left to
the gate. Source: Documentation/admin-guide/cgroup-v2.rst, "Mounting" and "Freezer".
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from pathlib import Path

from pageferry.errors import KernelError, Vanished
from pageferry.kernel.cgroup import read_hierarchies
from pageferry.kernel.files import read_bytes, translated

MOUNT_POINT = Path("/run/pageferry/cgroup2")
NAME = "pageferry"
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8


def unified_mount() -> Path:
    """Return where version 2 is mounted, after mounting it at MOUNT_POINT if it was nowhere. Raises KernelError."""
    unified = read_hierarchies().unified
    if unified is not None:
        return unified
    MOUNT_POINT.mkdir(parents=True, exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    if libc.mount(NAME.encode(), os.fsencode(MOUNT_POINT), b"cgroup2", flags, None) != 0:
        problem = os.strerror(ctypes.get_errno())
        raise KernelError(f"{MOUNT_POINT}: a cgroup2 hierarchy cannot be mounted: {problem}")
    return MOUNT_POINT


def group_path(mount: Path, job: int | str) -> Path:
    """Return where our group for a job is, or would be; the ID of Slurm's is a number, of PBS's a text."""
    return mount / NAME / f"job_{job}"


def make_group(mount: Path, job: int | str) -> Path:
    """Return our group for a job, made if it was not there. Raises as files.read_bytes does."""
    group = group_path(mount, job)
    try:
        group.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise translated(error, group) from error
    return group


def remove_group(job: int | str) -> None:
    """Remove our group for a job if it was made and nothing is in it."""
    unified = read_hierarchies().unified
    if unified is not None:
        with suppress(OSError):
            group_path(unified, job).rmdir()


def group_of(pid: int, mount: Path) -> Path:
    """Return the version 2 group that a process is in, below `mount`; the top for one outside our namespace.

    Raises Vanished when the process has ended.
    """
    for line in read_bytes(f"/proc/{pid}/cgroup").split(b"\n"):
        number, _, rest = line.partition(b":")
        if number == b"0":
            path = os.fsdecode(rest.partition(b":")[2])
            return mount if "/.." in path else mount / path.strip("/").removesuffix(" (deleted)")
    raise Vanished(f"process {pid} is in no version 2 group")
