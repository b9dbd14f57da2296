"""Freezes and thaws control groups of version 2, and tells whether a group of either version stands still.

When a job is frozen, and for how long, is left to the gate; the version 1 freezer is only read.
Sources: Documentation/admin-guide/cgroup-v2.rst, and cgroup-v1/freezer-subsystem.rst beside it.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from dataclasses import dataclass
from pathlib import Path

from pageferry.errors import KernelError, Vanished
from pageferry.kernel.cgroup import children, own_pids
from pageferry.kernel.files import numbered, read_bytes, translated, write_text
from pageferry.kernel.procfs import read_status

_AT_REST = frozenset("TtZX")
"""States of a process that cannot run: stopped by a signal or a tracer, ended."""


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


def is_stopped(path: Path, root: Path = Path("/")) -> bool:
    """Say whether nothing in a group can run: it is frozen (either version), or all are stopped or ended.

    Each group below may have its own reason; a group that is gone or has no processes is stopped. `root` is
    where /proc is read. Raises Denied and KernelError.
    """
    waiting = [path]
    while waiting:
        group = waiting.pop()
        if _stands_frozen(group):
            continue  # and all below it with it
        if not all(_rests(pid, root) for pid in own_pids(group, root)):
            return False
        waiting.extend(children(group))
    return True


def _rests(pid: int, root: Path) -> bool:
    try:
        status = read_status(pid, root)
        if status.state not in _AT_REST:
            return False
        # The first thread may have ended, or be held by a tracer, while others run.
        threads = numbered(root / f"proc/{pid}/task") if status.threads > 1 else ()
        return all(_thread_rests(thread, root) for thread in threads)
    except Vanished:
        return True


def _thread_rests(thread: int, root: Path) -> bool:
    with contextlib.suppress(Vanished):
        return read_status(thread, root).state in _AT_REST
    return True


def _stands_frozen(path: Path) -> bool:
    with contextlib.suppress(Vanished):  # no such file: version 1, a hierarchy's root, or gone
        return is_frozen(path)
    with contextlib.suppress(Vanished):
        return read_freezer_state(path).state == "FROZEN"
    return False
