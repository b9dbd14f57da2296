"""Watches the cgroups that Slurm makes on this host, and says which job to look at when one changes.

An event is a hint: what holds now is read from the files by whoever takes it. Nothing is polled and nothing waits here.
Each file is watched by itself. A watch on its directory would report writes too, but the kernel's own changes only
while the file's inode happens to be cached (fs/kernfs/file.c, kernfs_notify_workfn()), and would wake us for busy files
such as memory.events. Only changes are watched, never reads.

Version 1 gives no event when FREEZING becomes FROZEN: after a FREEZER event, `slurm_job_suspension` has to be asked
again and again until it is frozen, or is no longer asked. Neither version gives one when a process joins a group
that has some already, or when it executes its program. A scope below a group that is no slice (in a container)
and a hierarchy that is mounted later are found by `rescan`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pageferry.errors import Vanished
from pageferry.kernel import inotify
from pageferry.kernel.cgroup import read_hierarchies
from pageferry.kernel.files import translated
from pageferry.kernel.inotify import Inotify, RawEvent
from pageferry.schedulers.slurm_cgroups import slurm_scopes
from pageferry.schedulers.slurm_tree import FREEZERS, LEGACY_MOUNT, SLICE, Kind, Level, level_below

__all__ = ["Event", "Kind", "Watch"]

_GROUPS = (
    inotify.IN_CREATE
    | inotify.IN_DELETE
    | inotify.IN_MOVED_FROM
    | inotify.IN_MOVED_TO
    | inotify.IN_ONLYDIR
    | inotify.IN_DONT_FOLLOW
)
_LOST = inotify.IN_Q_OVERFLOW | inotify.IN_UNMOUNT
_SLICE_DEPTH = 4
_ROUNDS = 16
"""Buffers that are read in one go: whoever writes without end must not keep the agent from its other work."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to `group` of a job; `writes`: how often its freezer was opened, written and closed.

    Two writes and a step that runs are a suspension that was over before it was seen, or the end of a step: Slurm
    thaws a step each time it kills it (src/plugins/proctrack/cgroup/proctrack_cgroup.c, proctrack_p_signal()).
    """

    kind: Kind
    job: int
    group: Path
    writes: int = 0


_News = dict[tuple[Kind, int, Path], int]
"""Events without duplicates, in order of first appearance, and the writes of each."""


@dataclass(slots=True, eq=False)
class _Node:
    """A group that is known. `watches`: descriptors by file name, "" for the directory. `job`: 0 above a job."""

    path: Path
    level: Level
    inode: int = 0
    job: int = 0
    depth: int = 0
    watches: dict[str, int] = field(default_factory=dict)
    below: dict[str, _Node] = field(default_factory=dict)


class Watch:
    """All of Slurm's groups on this host, under watch from the start. Not for several threads."""

    def __init__(self, root: Path = Path("/")) -> None:
        """Find and watch what is there; `jobs` has it. Raises KernelError where inotify has no room."""
        self._root = root
        self._inotify = Inotify()
        self._watched: dict[int, tuple[_Node, str]] = {}
        self._tops: dict[Path, _Node] = {}
        self._ways: frozenset[Path] = frozenset()
        """Groups that a scope was found below, slices or not."""

        self._owner = 0
        self._jobs: dict[int, set[Path]] = {}
        try:
            self.rescan()
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return a descriptor that is readable when `events` has something to do."""
        return self._inotify.fileno()

    def jobs(self) -> tuple[int, ...]:
        """Return the IDs of all jobs that have groups on this host, ascending."""
        return tuple(sorted(self._jobs))

    def events(self) -> list[Event]:
        """Return what has happened since the last call, each once; never waits.

        Of a job that is gone, nothing before that is told. Raises KernelError where inotify has no more room: then
        events are lost, and `rescan` is to be called, and all jobs looked at, when there is room.
        """
        news: _News = {}
        for _ in range(_ROUNDS):
            batch = self._inotify.read()
            if not batch:
                break
            looked: set[_Node] = set()  # once is enough: the events of a batch are older than any look
            for raw in batch:
                self._take(raw, news, looked)
        return _events(news)

    def rescan(self) -> list[Event]:
        """Compare all that is watched with all that is there, mend it, and return what appeared and what is gone."""
        news: _News = {}
        self._rescan(news)
        return _events(news)

    def close(self) -> None:
        """End all watches; twice is once."""
        self._inotify.close()

    def _take(self, raw: RawEvent, news: _News, looked: set[_Node]) -> None:
        if raw.mask & _LOST:
            news[Kind.LOST, 0, self._root] = 0
            self._rescan(news)
            return
        node, name = self._watched.get(raw.watch, (None, ""))
        if node is None:
            return
        if raw.mask & inotify.IN_IGNORED:
            del self._watched[raw.watch]
            del node.watches[name]
        elif name:
            if raw.mask & inotify.IN_MODIFY:
                key = (node.level.files[name], node.job, node.path)
                news[key] = news.get(key, 0) + (name in FREEZERS)
        elif node not in looked and self._wanted(node, os.fsdecode(raw.name)):
            looked.add(node)
            self._look(node, news, deep=False)

    def _rescan(self, news: _News) -> None:
        hierarchies = read_hierarchies(self._root)
        tops = {hierarchies.legacy[name]: LEGACY_MOUNT for name in ("freezer", "cpuset") if name in hierarchies.legacy}
        if (unified := hierarchies.unified) is not None and unified.is_dir():
            tops[unified] = SLICE
            self._owner = unified.stat().st_uid
            ways = (way for scope in slurm_scopes(unified) for way in scope.parents if way.is_relative_to(unified))
            self._ways = frozenset(ways)
        for path in self._tops.keys() - tops.keys():
            self._forget(self._tops.pop(path), news)
        for path, level in tops.items():
            self._look(self._tops.setdefault(path, _Node(path, level)), news, deep=True)

    def _look(self, node: _Node, news: _News, *, deep: bool) -> None:
        """Bring what is known of a group up to date; `deep`: and of the groups below that were known before."""
        if node.level.below:
            self._add(node, "", _GROUPS)  # before the look: what appears after it is an event
        for name in node.level.files:
            self._add(node, name, inotify.IN_MODIFY | (inotify.IN_CLOSE_WRITE if name in FREEZERS else 0))
        found = dict(self._found(node))
        for name, child in list(node.below.items()):
            if name not in found or found[name].inode != child.inode:  # or one of the same name took its place
                self._forget(node.below.pop(name), news)
            elif deep:
                self._look(child, news, deep=True)
        for name, child in found.items():
            if name in node.below:
                continue
            node.below[name] = child
            if child.level.appears is Kind.JOB:
                self._jobs.setdefault(child.job, set()).add(child.path)
            if child.level.appears is not None:
                news.setdefault((child.level.appears, child.job, child.path), 0)
            self._look(child, news, deep=True)

    def _add(self, node: _Node, name: str, mask: int) -> None:
        """Watch a file of a group, or the group; a controller that is not enabled has no file, perhaps not yet.

        Two writes of one file would be one event, were it not for the close between them (fs/notify/inotify,
        inotify_merge()).
        """
        if name in node.watches:
            return
        try:
            watch = self._inotify.watch(node.path / name, mask)
        except Vanished:
            return
        node.watches[name] = watch
        self._watched[watch] = (node, name)

    def _found(self, node: _Node) -> Iterator[tuple[str, _Node]]:
        """Yield the groups below that matter, by name."""
        if not node.level.below:
            return
        try:
            with os.scandir(node.path) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    level = self._wanted(node, entry.name)
                    if level is None or not entry.is_dir(follow_symlinks=False):
                        continue
                    if node.level is SLICE and not self._trusted(entry):
                        continue
                    job = int(entry.name.removeprefix("job_")) if level.appears is Kind.JOB else node.job
                    yield entry.name, _Node(node.path / entry.name, level, entry.inode(), job, node.depth + 1)
        except OSError as error:
            if not isinstance(problem := translated(error, node.path), Vanished):
                raise problem from error

    def _wanted(self, node: _Node, name: str) -> Level | None:
        if (level := level_below(node.level, name)) is not None or node.level is not SLICE:
            return level
        # Slurm's scope is in a slice, but not in that of the logins, which come and go.
        likely = name.endswith(".slice") and name != "user.slice" and node.depth < _SLICE_DEPTH
        return SLICE if likely or node.path / name in self._ways else None

    def _trusted(self, entry: os.DirEntry[str]) -> bool:
        """Say whether a slice or scope has the mount's owner: users make what they like in what is delegated."""
        try:
            return entry.stat(follow_symlinks=False).st_uid == self._owner
        except FileNotFoundError:
            return False

    def _forget(self, node: _Node, news: _News) -> None:
        """End the watches of a group and of all below it: the kernel keeps those of a group that is removed."""
        for child in node.below.values():
            self._forget(child, news)
        for watch in node.watches.values():
            del self._watched[watch]
            self._inotify.unwatch(watch)
        if node.level.appears is not Kind.JOB:
            return
        groups = self._jobs[node.job]
        groups.discard(node.path)
        if not groups:
            del self._jobs[node.job]
            for key in [key for key in news if key[1] == node.job]:
                del news[key]
            news[Kind.GONE, node.job, node.path] = 0


def _events(news: _News) -> list[Event]:
    return [Event(kind, job, group, writes) for (kind, job, group), writes in news.items()]
