"""Cpuset groups of our own in the version 1 hierarchy, each for the tasks of one group of a scheduler.

Version 1 refuses a write to a group that leaves out a CPU of a group below it. So a scheduler whose jobs had other CPUs
within its own groups could not write these again; groups beside them leave everything as it was. Which processes are
moved there, and what CPUs they have, is left to the assignments. Source: kernel/cgroup/cpuset.c, validate_change().
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pageferry.errors import KernelError, PageferryError
from pageferry.kernel.cgroup import children, read_hierarchies
from pageferry.kernel.files import read_bytes, translated, write_text

NAME = "pageferry"


def group_path(mount: Path, group: Path) -> Path:
    """Return where our group for a scheduler's group is, or would be."""
    return mount / NAME / ".".join(group.relative_to(mount).parts)


def make_group(ours: Path, group: Path) -> None:
    """Make our group for a scheduler's group, unless it is there, with the same nodes, and no CPUs yet.

    Raises Vanished if the scheduler's group is gone, Denied and KernelError for what the kernel refuses.
    """
    top = ours.parent
    shared = [name for name, mount in read_hierarchies().legacy.items() if mount == top.parent and name != "cpuset"]
    if shared:
        raise KernelError(f"{top.parent}: tasks cannot leave Slurm's groups: {', '.join(sorted(shared))} is there too")
    _make_like(top, top.parent, ("cpuset.mems", "cpuset.cpus"))
    _make_like(ours, group, ("cpuset.mems",))


def remove_empty_groups(root: Path = Path("/")) -> None:
    """Remove all groups of our own that hold no process."""
    mount = read_hierarchies(root).legacy.get("cpuset")
    if mount is None:
        return
    with suppress(PageferryError):
        for group in (*children(mount / NAME), mount / NAME):
            with suppress(OSError):
                group.rmdir()


def _make_like(group: Path, like: Path, names: tuple[str, ...]) -> None:
    wanted = [(name, read_bytes(like / name)) for name in names]
    try:
        group.mkdir(exist_ok=True)
    except OSError as error:
        raise translated(error, group) from error
    for name, value in wanted:
        if read_bytes(group / name) != value:
            write_text(group / name, value.decode())
