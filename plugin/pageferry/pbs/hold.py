"""Holds a PBS job beyond its resume: MoM sends SIGCONT, and its tasks stay where they are until its pages have arrived.

PBS stops jobs by signals and looks at no freezer, so one is free for us: the job's own group on version 2, a version 2
group of our own for its processes on version 1. What is held is recorded first, and a guardian undoes it if we die; a
record whose lock nobody has is of somebody who has ended, with the guardian.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pageferry.errors import KernelError
from pageferry.gate import guardian, holdable, holds
from pageferry.gate.guard import Guard
from pageferry.gate.holds import Hold
from pageferry.kernel import locks
from pageferry.kernel.cgroup import read_hierarchies
from pageferry.pbs.record import FOLDER
from pageferry.schedulers.pbs_cgroups import pbs_job_freezers

_SUFFIX = ".hold"


class HeldAlreadyError(KernelError):
    """Somebody of ours holds the job as yet, for an earlier resume."""


@contextmanager
def held(
    job_id: str, pids: frozenset[int], seconds: float, folder: Path = FOLDER, root: Path = Path("/")
) -> Iterator[Hold]:
    """Hold a job's tasks, and release them at the end, whatever happens; after so many seconds the guardian does.

    What somebody else froze is left out; so is what starts meanwhile, since nothing of the job can. Raises KernelError,
    of which HeldAlreadyError is one, with nothing held by us.
    """
    with _recorded(job_id, folder) as path:
        entries: list[guardian.Entry] = []
        try:
            hold = _found(job_id, pids, root)
            entries = hold.entries()
            _write(path, entries)
            # It hears nothing more of us: whatever we are busy with, a job is held no longer than this.
            with Guard(pulse_seconds=seconds) as guard:
                guard.hold(0, entries)
                holdable.set_hold(hold)
                yield hold
        finally:
            if not guardian.undo(entries):
                path.unlink(missing_ok=True)


def _found(job_id: str, pids: frozenset[int], root: Path) -> Hold:
    """Return what of a job can be held. Raises KernelError if nothing can."""
    groups = [group for path in pbs_job_freezers(job_id, root) if (group := holdable.thawed(path)) is not None]
    hold = Hold(0, time.clock_gettime(time.CLOCK_MONOTONIC), time.time(), tuple(groups))
    if groups:
        return hold
    if "cpuset" not in read_hierarchies(root).legacy:
        raise KernelError(f"job {job_id}: no freezer of its own")
    return holdable.with_moved(hold, pids, job_id)


def release_left(folder: Path = FOLDER, root: Path = Path("/")) -> tuple[str, ...]:
    """Release what somebody who has ended left held, and return the jobs; those that are being held are left alone.

    Raises KernelError, with all else released, when something still stands still.
    """
    released: list[str] = []
    standing: list[str] = []
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        try:
            lock = locks.taken(path)
        except OSError:
            continue
        if lock is None:
            continue
        try:
            entries, _ = holds.read_record(path, root)
            if complaints := guardian.undo(entries):
                standing += complaints
                continue
            path.unlink(missing_ok=True)
            released.append(path.name.removesuffix(_SUFFIX))
        finally:
            os.close(lock)
    if standing:
        raise KernelError(f"not all is released: {'; '.join(standing)}")
    return tuple(released)


@contextmanager
def _recorded(job_id: str, folder: Path) -> Iterator[Path]:
    """Have the record of a job's hold, locked; yield the file. Raises HeldAlreadyError, KernelError."""
    path = folder / f"{job_id}{_SUFFIX}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = locks.taken(path)
    except OSError as error:
        raise KernelError(f"the hold of job {job_id} cannot be recorded: {error.strerror}") from error
    if lock is None:
        raise HeldAlreadyError(f"job {job_id} is held for an earlier resume")
    try:
        yield path
    finally:
        os.close(lock)


def _write(path: Path, entries: list[guardian.Entry]) -> None:
    try:
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    except OSError as error:
        raise KernelError(f"{path}: the hold cannot be recorded: {error.strerror}") from error
