"""The record of narrowed jobs: a file for each, with what the scheduler had written to each of its groups.

It is there before anything is narrowed, and gone when all is as the scheduler had it. It outlives the agent, since an
upgrade leaves jobs narrowed, and holds for one boot, as /run does. What is written to groups, and when, is left to
`narrowing`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from pageferry.errors import KernelError, Vanished
from pageferry.kernel import locks
from pageferry.kernel.files import is_path, numbered, read_file, translated
from pageferry.kernel.lists import parse_list

FOLDER = Path("/run/pageferry/mems")
_SUFFIX = ".json"
_FRESH = ".new"
_LOCK = ".lock"


class Group(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A group whose cpuset.mems is narrowed, by path and inode: what the scheduler wrote, and what we write.

    Both are as the kernel tells them, without the end of the line.
    """

    path: str
    inode: int
    scheduler: str
    ours: str

    def __post_init__(self) -> None:
        if not is_path(self.path) or not 0 <= self.inode < 1 << 64:
            raise ValueError("not a path of a group")
        for nodes in (self.scheduler, self.ours):
            parse_list(nodes)


def load(job: int, folder: Path) -> tuple[Group, ...]:
    """Return what of a job is narrowed, as far as we wrote it. Raises KernelError for a record that cannot be used."""
    path = folder / f"{job}{_SUFFIX}"
    try:
        return msgspec.json.decode(read_file(path), type=tuple[Group, ...])
    except Vanished:
        return ()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise KernelError(f"{path}: damaged, not used: {error}") from error


def save(job: int, groups: Iterable[Group], folder: Path) -> None:
    """Replace a job's record, whole or not at all; none without groups. Raises KernelError."""
    path = folder / f"{job}{_SUFFIX}"
    fresh = path.with_suffix(_FRESH)
    try:
        if kept := tuple(groups):
            fresh.write_bytes(msgspec.json.encode(kept))
            fresh.replace(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise KernelError(str(translated(error, fresh))) from error
    except UnicodeEncodeError as error:
        raise KernelError(f"{fresh}: the name of a group is not UTF-8") from error


def is_recorded(job: int, folder: Path) -> bool:
    """Say whether something of a job may be narrowed."""
    return (folder / f"{job}{_SUFFIX}").exists()


def jobs(folder: Path) -> tuple[int, ...]:
    """Return the jobs of which something may be narrowed, ascending. Raises KernelError."""
    try:
        return tuple(numbered(folder, suffix=_SUFFIX))
    except Vanished:
        return ()


def keep(left: Iterable[int], folder: Path) -> None:
    """Forget all other jobs: they have ended, and their groups with them."""
    here = set(map(str, left))
    with suppress(OSError):
        for path in [path for path in folder.iterdir() if path.stem not in here]:
            if path.suffix == _LOCK:
                locks.remove(path)
            elif path.suffix in {_SUFFIX, _FRESH}:
                path.unlink(missing_ok=True)


@contextmanager
def alone(job: int, folder: Path) -> Iterator[None]:
    """Keep others from a job's record, and wait until they are done with it. Raises KernelError."""
    path = folder / f"{job}{_LOCK}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while (lock := locks.taken(path, wait=True)) is None:
            pass  # it was removed: the job had ended
    except OSError as error:
        raise KernelError(str(translated(error, path))) from error
    try:
        yield
    finally:
        os.close(lock)
