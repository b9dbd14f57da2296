"""Holds a PBS job beyond its resume: MoM sends SIGCONT, and its tasks stay where they are until its pages have arrived.

PBS stops jobs by signals and looks at no freezer, so one is free for us: the job's own group on version 2, a version 2
group of our own for its processes on version 1. What is held is recorded first, and a guardian undoes it if we die; a
record whose lock nobody has is of somebody who has ended, with the guardian.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pageferry.errors import KernelError
from pageferry.gate import guardian, holdable
from pageferry.gate.guard import Guard
from pageferry.gate.holds import Hold
from pageferry.kernel.cgroup import read_hierarchies
from pageferry.pbs.record import FOLDER
from pageferry.schedulers.pbs_cgroups import pbs_job_freezers

_SUFFIX = ".hold"


@contextmanager
def held(job_id: str, pids: frozenset[int], folder: Path = FOLDER, root: Path = Path("/")) -> Iterator[Hold]:
    """Hold a job's tasks, and release them at the end, whatever happens. Raises KernelError, with nothing held.

    What somebody else froze is left out; so is what starts meanwhile, since nothing of the job can.
    """
    found = [group for path in pbs_job_freezers(job_id, root) if (group := holdable.thawed(path)) is not None]
    hold = Hold(0, time.clock_gettime(time.CLOCK_MONOTONIC), time.time(), tuple(found))
    if not found:
        if "cpuset" not in read_hierarchies(root).legacy:
            raise KernelError(f"job {job_id}: no freezer of its own")
        hold = holdable.with_moved(hold, pids, job_id)
    with _recorded(job_id, hold, folder) as record, Guard() as guard:
        guard.hold(0, hold.entries())
        try:
            holdable.set_hold(hold)
            yield hold
        finally:
            if not guardian.undo(hold.entries()):
                record.unlink(missing_ok=True)
            with suppress(KernelError):  # it was killed, and there is nothing left for it to do
                guard.forget(0)


def release_left(folder: Path = FOLDER) -> tuple[str, ...]:
    """Release what somebody who has ended left held, and return the jobs; those that are being held are left alone.

    Raises KernelError, with all else released, when something still stands still.
    """
    released: list[str] = []
    standing: list[str] = []
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        try:
            lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            entries, _ = guardian.read_record(str(path))
            if complaints := guardian.undo(entries):
                standing += complaints
                continue
            path.unlink(missing_ok=True)
            released.append(path.name.removesuffix(_SUFFIX))
        except BlockingIOError:
            continue
        finally:
            os.close(lock)
    if standing:
        raise KernelError(f"not all is released: {'; '.join(standing)}")
    return tuple(released)


@contextmanager
def _recorded(job_id: str, hold: Hold, folder: Path) -> Iterator[Path]:
    """Have a hold on record, locked, before anything of it is set; yield the file, which is to be removed."""
    path = folder / f"{job_id}{_SUFFIX}"
    text = "".join(json.dumps(entry) + "\n" for entry in hold.entries())
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise KernelError(f"the hold of job {job_id} cannot be recorded: {error.strerror}") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(lock, 0)
            os.write(lock, text.encode())
        except OSError as error:
            raise KernelError(f"the hold of job {job_id} cannot be recorded: {error.strerror}") from error
        yield path
    finally:
        os.close(lock)
