"""Freezes and thaws control groups of version 2, and tells whether a group of either version, or a process, is frozen.

When a job is frozen, and for how long, is left to the gate; the version 1 freezer is only read.
Sources: Documentation/admin-guide/cgroup-v2.rst, and cgroup-v1/freezer-subsystem.rst beside it.
"""

from __future__ import annotations

import os
import select
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pageferry.errors import KernelError, Vanished
from pageferry.kernel.cgroup import Hierarchies
from pageferry.kernel.files import read_bytes, translated, write_text
from pageferry.kernel.procfs import living_thread, read_status


@dataclass(frozen=True, slots=True)
class FreezerState:
    """A version 1 freezer: `state` is THAWED, FREEZING or FROZEN; `own` and `parent` say who asked for it."""

    state: str
    own: bool
    parent: bool


def freeze(path: Path) -> None:
    """Ask the kernel to freeze a version 2 group with all below it; `wait_frozen` says when that is so."""
    write_text(path / "cgroup.freeze", "1")


def thaw(path: Path) -> None:
    """Take back `freeze`; the group stays frozen as long as one above it is. Raises Vanished if it is gone."""
    write_text(path / "cgroup.freeze", "0")


def is_frozen(path: Path) -> bool:
    """Say whether no task of a version 2 group runs any more, whoever froze it. Raises Vanished."""
    return b"frozen 1" in read_bytes(path / "cgroup.events").splitlines()


def wait_frozen(path: Path, frozen: bool, seconds: float) -> bool:
    """Wait until `is_frozen(path)` is `frozen`, by the kernel's event; say whether it came within `seconds`."""
    deadline = time.monotonic() + seconds
    wanted = b"frozen 1" if frozen else b"frozen 0"
    try:
        fd = os.open(path / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLPRI)
            while wanted not in os.pread(fd, 4096, 0).splitlines():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                poll.poll(left * 1000)
        finally:
            os.close(fd)
    except OSError as error:
        raise translated(error, path) from error
    return True


def read_freezer_state(path: Path) -> FreezerState:
    """Return the state of a version 1 freezer group. Raises Vanished, and at the hierarchy's root too."""
    state = read_bytes(path / "freezer.state").strip().decode("ascii", "replace")
    if state not in {"THAWED", "FREEZING", "FROZEN"}:
        raise KernelError(f"{path}/freezer.state: not a state: {state[:80]!a}")
    own, parent = (read_bytes(path / f"freezer.{who}_freezing").strip() == b"1" for who in ("self", "parent"))
    return FreezerState(state, own, parent)


def stands_still(pid: int, hierarchies: Hierarchies, root: Path = Path("/")) -> bool:
    """Say whether a process is stopped by a signal, or was asked to freeze in either version, perhaps from above.

    Raises Vanished, Denied and KernelError.
    """
    if read_status(living_thread(pid, root), root).state in {"T", "t"}:
        return True
    for line in read_bytes(root / f"proc/{pid}/cgroup").split(b"\n"):
        _, controllers, path = [*line.split(b":", 2), b"", b""][:3]
        mount = hierarchies.legacy.get("freezer") if b"freezer" in controllers.split(b",") else None
        if line.startswith(b"0::"):
            mount = hierarchies.unified
        if mount is None or b"/.." in path:  # it is in no such group, or in one outside our namespace
            continue
        group = mount / os.fsdecode(path).strip("/").removesuffix(" (deleted)")
        with suppress(Vanished):  # the top of a hierarchy has no such file
            if mount == hierarchies.unified:
                if any(_asked(above) for above in (group, *group.parents) if above.is_relative_to(mount)):
                    return True
            elif read_freezer_state(group).state != "THAWED":
                return True
    return False


def _asked(group: Path) -> bool:
    with suppress(Vanished):
        return read_bytes(group / "cgroup.freeze").strip() == b"1"
    return False
