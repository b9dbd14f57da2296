"""What is held of a job, and its record: a file for each job in a folder, written before anything is held.

A record is on disk as a whole or not at all; each of its lines can be read alone. Groups are named by path and inode,
processes by ID and start time, so that a record of an earlier job harms no later one. Setting and releasing holds is
the gate's; undoing what a record says, with nothing of pageferry at hand, is the guardian's (guardian.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pageferry.errors import KernelError, PageferryError
from pageferry.gate import guardian
from pageferry.kernel import cgroup, private_cgroup
from pageferry.kernel.files import translated


@dataclass(frozen=True, slots=True)
class Group:
    """A cgroup; the inode is never used again while the host is up, the path is with the next job of that ID."""

    path: Path
    inode: int


@dataclass(frozen=True, slots=True)
class Moved:
    """A process that was moved to a group of our own, when it started in clock ticks since boot, and whence it came."""

    pid: int
    start: int
    origin: Path


@dataclass(frozen=True, slots=True)
class Hold:
    """What is held of a job on this host.

    `since` is by the monotonic clock, which goes on over our restarts, `since_wall` seconds since 1970. `groups` are
    Slurm's own that we froze (version 2), `private` is ours with the processes in `moved` (version 1). What of it is
    gone by now does no harm.
    """

    job: int
    since: float
    since_wall: float
    groups: tuple[Group, ...] = ()
    private: Group | None = None
    moved: tuple[Moved, ...] = ()

    def entries(self) -> list[guardian.Entry]:
        """Return the hold as the guardian and the records have it."""
        private = [["private", str(self.private.path), self.private.inode]] if self.private else []
        return [
            ["job", self.job, self.since, self.since_wall],
            *(["group", str(group.path), group.inode] for group in self.groups),
            *private,
            *(["moved", process.pid, process.start, str(process.origin)] for process in self.moved),
        ]

    @classmethod
    def from_entries(cls, entries: Iterable[guardian.Entry]) -> Self | None:
        """Return the hold that well-formed entries tell of; None if they do not say of which one job."""
        of: dict[str, list[guardian.Entry]] = {"job": [], "group": [], "private": [], "moved": [], "stopped": []}
        for kind, *words in entries:
            of[kind].append(words)
        if len(of["job"]) != 1 or len(of["private"]) > 1:
            return None
        job, since, since_wall = of["job"][0]
        return cls(
            job,
            since,
            since_wall,
            groups=tuple(Group(Path(path), inode) for path, inode in of["group"]),
            private=next((Group(Path(path), inode) for path, inode in of["private"]), None),
            moved=tuple(Moved(pid, start, Path(origin)) for pid, start, origin in of["moved"]),
        )


@dataclass(frozen=True, slots=True)
class Record:
    """What was found of a job's records. `hold` is None if they are damaged, or say that it was being undone."""

    job: int
    hold: Hold | None
    entries: tuple[guardian.Entry, ...]
    damaged: int


def make_folder(folder: Path) -> None:
    """Make the folder of the records, readable and writable for us alone. Raises KernelError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise KernelError(f"{folder}: {error.strerror}") from error
    # Whoever could write here could have any group thawed and any process put anywhere.
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise KernelError(f"{folder}: others than user {os.geteuid()} may write there")


def write(folder: Path, hold: Hold) -> None:
    """Write a job's record, whole or not at all. Raises KernelError."""
    text = "".join(json.dumps(entry) + "\n" for entry in hold.entries())
    new = folder / f"{hold.job}.new"
    try:
        new.write_text(text)
        new.replace(folder / f"{hold.job}{guardian.RECORD}")
    except OSError as error:
        with suppress(OSError):
            new.unlink()
        problem = translated(error, new)
        raise KernelError(f"the hold of job {hold.job} cannot be recorded: {problem}") from error


def is_recorded(folder: Path, job: int) -> bool:
    """Say whether a job has a record of a hold that nobody has begun to undo."""
    return (folder / f"{job}{guardian.RECORD}").exists()


def remove_unfinished(folder: Path) -> None:
    """Remove records that an agent did not finish writing; nothing was held by them."""
    for new in folder.glob("*.new"):
        with suppress(OSError):
            new.unlink()


def read(folder: Path, root: Path = Path("/")) -> list[Record]:
    """Return what records a folder has, by job. Raises KernelError if the folder cannot be read."""
    try:
        names = guardian.recorded(str(folder))
    except OSError as error:
        raise KernelError(f"{folder}: {error.strerror}") from error
    return [_read(folder, job, found, root) for job, found in sorted(names.items())]


def read_record(path: Path, root: Path = Path("/")) -> tuple[list[guardian.Entry], int]:
    """Return the entries of a record, and how many of its lines are damaged: those that name no control group, too."""
    entries, damaged = guardian.read_record(str(path))
    mounts = (private_cgroup.MOUNT_POINT, *_unified_mounts(root))
    good = [entry for entry in entries if all(_is_group(word, mounts) for word in entry if isinstance(word, str))]
    return good, damaged + len(entries) - len(good)


def _unified_mounts(root: Path) -> tuple[Path, ...]:
    try:
        return cgroup.unified_mounts(root)
    except PageferryError:  # nothing is to stay frozen because mounts cannot be told
        return (Path("/"),)


def _is_group(word: str, mounts: Iterable[Path]) -> bool:
    """Say whether a word of an entry is a path below one of these mounts, or no path."""
    path = Path(word)
    return not path.is_absolute() or (".." not in path.parts and any(path.is_relative_to(mount) for mount in mounts))


def _read(folder: Path, job: int, names: list[str], root: Path) -> Record:
    entries: list[guardian.Entry] = []
    damaged = 0
    for name in names:
        more, lines = read_record(folder / name, root)
        entries += more
        damaged += lines
    hold = Hold.from_entries(entries) if not damaged and names == [f"{job}{guardian.RECORD}"] else None
    if hold is not None and hold.job != job:
        hold, damaged = None, 1
    return Record(job, hold, tuple(entries), damaged)
