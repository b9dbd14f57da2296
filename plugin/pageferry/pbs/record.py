"""What is to be known of a PBS job from one event to the next: a small file for each, under /run.

It is written as a whole or not at all, and one that cannot be read or written costs no more than what it would have
saved. The agent and the command that does without one use the same files.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from pageferry.errors import KernelError, PageferryError, Vanished
from pageferry.kernel import locks
from pageferry.kernel.files import printable, read_file
from pageferry.kernel.lists import MOST_NODES
from pageferry.policy import Facts

FOLDER = Path("/run/pageferry/pbs")
_SUFFIX = ".json"
_LOCK = ".lock"
_LOOK_SECONDS = 0.02
_Nodes = tuple[Annotated[int, Meta(ge=0, lt=MOST_NODES)], ...]

_log = logging.getLogger(__name__)


class Record(msgspec.Struct, frozen=True):
    """A job's record.

    `homes`: the nodes that its memory was last brought to, or began on: the sources of the relative map. `placed`:
    those that PBS gave it, at our last look. `settled`: where all of its memory is since it was suspended; none once it
    runs again. `served`: the request that was served last. `told`: the last outcome, for who looks at the job.
    `facts`: what MoM last said of the job, for the site's rules.
    `parked`: where it is parked, as far as there was room, while it is suspended; none: it is not. `left`: all nodes
    that it was parked on before, until all of it has come back.
    `begun`: a move has begun and, if nobody has the job's lock, was cut short: `homes` no longer tells where memory is.
    """

    homes: _Nodes = ()
    placed: _Nodes = ()
    settled: _Nodes = ()
    served: str = ""
    told: str = ""
    begun: bool = False
    parked: _Nodes = ()
    left: _Nodes = ()
    facts: Facts | None = None

    @property
    def parked_or_left(self) -> tuple[int, ...]:
        """Return all nodes that some of its memory may be on because it is, or was, parked there."""
        return tuple(sorted({*self.left, *self.parked}))


def load(job_id: str, folder: Path = FOLDER) -> Record:
    """Return a job's record; an empty one if there is none that can be read."""
    path = folder / f"{job_id}{_SUFFIX}"
    try:
        return msgspec.json.decode(read_file(path), type=Record)
    except Vanished:
        pass
    except PageferryError as error:
        _log.warning("cannot be read: %s", error)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        _log.warning("%s: damaged, not used: %s", printable(path), error)
    return Record()


def save(job_id: str, record: Record, folder: Path = FOLDER) -> None:
    """Write a job's record, if that can be."""
    with suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = folder / f"{job_id}.{os.getpid()}.new"
        fresh.write_bytes(msgspec.json.encode(record))
        fresh.replace(folder / f"{job_id}{_SUFFIX}")


def forget(job_id: str, folder: Path = FOLDER) -> None:
    """Remove what is known of a job that has ended here."""
    with suppress(OSError):
        (folder / f"{job_id}{_SUFFIX}").unlink(missing_ok=True)
    locks.remove(folder / f"{job_id}{_LOCK}")


def forget_others(jobs: Iterable[str], folder: Path = FOLDER) -> None:
    """Remove the records of all jobs but these; holds are not records."""
    kept = {f"{job}{suffix}" for job in jobs for suffix in (_SUFFIX, _LOCK)}
    with suppress(OSError):
        for path in list(folder.iterdir()):
            if path.suffix == _SUFFIX and path.name not in kept:
                path.unlink(missing_ok=True)
            elif path.suffix == _LOCK and path.name not in kept:
                locks.remove(path)


@contextmanager
def alone(job_id: str, folder: Path = FOLDER, until: Callable[[], bool] = lambda: False) -> Iterator[bool]:
    """Wait until nobody else moves a job's memory, and keep others from it; yield False if `until` says so before.

    Raises KernelError if there can be no lock.
    """
    path = folder / f"{job_id}{_LOCK}"
    lock = None
    try:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            while (lock := locks.taken(path)) is None and not until():
                time.sleep(_LOOK_SECONDS)
        except OSError as error:
            raise KernelError(f"{path}: {error.strerror}") from error
        yield lock is not None
    finally:
        if lock is not None:
            os.close(lock)
