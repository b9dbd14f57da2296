"""Which of the job's anonymous pages processes outside map as well: forked from one another, or merged (KSM).

A page that is not exclusive is mapped as often as the kernel counts (/proc/kpagecount); what the job's page tables show
is less where somebody else maps it. The count may include a process that the job forked after its processes were
listed: that is the job's own. So it is asked for again, and what such a process shares with its parent is not judged.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from pageferry.errors import Denied, Vanished
from pageferry.kernel.pageflags import ANON, KSM
from pageferry.kernel.processes import ProcessHandle
from pageferry.kernel.procfs import cgroups, has_memory, list_pids, parent, processes_forked, start_time
from pageferry.kernel.residency import PageTables
from pageferry_planner.columns import Bools, Ints
from pageferry_planner.model import Ranges
from pageferry_planner.pages import Entries, Sightings

ROUNDS = 20
"""A page is asked about again, at most so often, until nobody on the host has forked meanwhile."""


_COUNTED_SECONDS = 0.01
"""Within this time a child is counted whose parent's memory has been copied."""

SINCE_SECONDS = 2
"""The job's processes were listed no longer ago than this when a look at them begins."""


@dataclass(frozen=True, slots=True)
class Job:
    """The job's processes, and since when others may have been forked, in clock ticks since boot."""

    handles: Sequence[ProcessHandle]
    listed: int


def when_listed() -> int:
    """Return when the processes that are to be looked at now were listed at the earliest, in clock ticks since boot."""
    return int((time.clock_gettime(time.CLOCK_BOOTTIME) - SINCE_SECONDS) * os.sysconf("SC_CLK_TCK"))


def frames_elsewhere(  # noqa: PLR0917 - one caller, a step of its own
    job: Job, ranges: Ranges, entries: Entries, found: Sightings, tables: PageTables, own: int
) -> Ints:
    """Return which frames, ascending, processes outside the job map, of those `found` to be mapped more than is shown.

    `entries` shows what the job maps of them; in ranges from the row `own` on, each process's own mapping. What else
    shows is read through one process only, and is not judged, nor is anything where page tables were not read whole.
    """
    if not len(found) or tables.unread:
        return found.frame[:0]
    found = found.take(~np.isin(found.frame, entries.pfn[entries.row < own]))
    kinds = tables.kinds(found.frame)
    anonymous = (kinds & ANON) != 0  # a huge page of a file may look like it in a page table (before Linux 6.11)
    found, merged = found.take(anonymous), (kinds[anonymous] & KSM) != 0
    if not tables.tells_merged():
        merged[:] = False
    for _ in range(ROUNDS if len(found) else 0):
        forks = processes_forked()
        spared = _shared_with_the_young(job, ranges, entries, found.frame)
        still = (~spared | merged) & (tables.mappings(found.frame) > found.shown)
        found, merged = found.take(still), merged[still]
        if not len(found) or _nobody_has_forked(forks, job, tables):
            return found.frame
    return found.take(merged).frame


def are_elsewhere(job: Job, frames: Ints, shown: Ints, of_process: Callable[[int], Ints], tables: PageTables) -> Bools:
    """Return which frames processes outside the job map; `shown`: how often the job does.

    `of_process` tells of which frames (their rows) a process of the job shows the folio. What may be a young child's is
    not judged, nor is anything while somebody forks.
    """
    for _ in range(ROUNDS if len(frames) and not tables.unread else 0):
        forks = processes_forked()
        forked = _forked_lately(job)
        found: Bools = tables.mappings(frames) > shown
        if not found.any() or _nobody_has_forked(forks, job, tables):
            if forked is None:
                break
            for process in forked:
                found[of_process(process)] = False
            return found
    return np.zeros(len(frames), bool)


def _nobody_has_forked(since: int, job: Job, tables: PageTables) -> bool:
    """Return whether nobody on the host has forked since so many processes were.

    A child maps pages before it is counted, or to be seen. While they are copied, its parent's mmap_lock is held, for
    which a read of the parent's page table waits; soon after it is counted (kernel/fork.c dup_mmap(), copy_process()).
    """
    if processes_forked() != since:
        return False
    for number in range(len(job.handles)):
        with suppress(OSError):
            os.pread(tables.descriptor(number), 8, 0)
    time.sleep(_COUNTED_SECONDS)
    return processes_forked() == since


def _shared_with_the_young(job: Job, ranges: Ranges, entries: Entries, frames: Ints) -> Bools:
    """Return which frames a process shows that has forked in the job's cgroups since, or of which a child is ending.

    All of them if such a process has ended itself.
    """
    forked = _forked_lately(job)
    if forked is None:
        return np.ones(len(frames), bool)
    return np.isin(frames, entries.pfn[np.isin(ranges.process[entries.row], list(forked))])


def _forked_lately(job: Job) -> set[int] | None:
    """Return the numbers of the processes that have forked in the job's cgroups since, or of which a child is ending.

    One that is ending shows nothing, but its mappings still count. None: such a process has ended itself.
    """
    known = {handle.pid: number for number, handle in enumerate(job.handles)}
    groups = {_cgroups(pid) for pid in known} - {b""}
    ending = {pid for pid in known if not has_memory(pid)}
    parents: dict[int, int] = {}
    for pid in sorted(list_pids() - (known.keys() - ending) - {os.getpid()}, reverse=True):  # the young may end soon
        with suppress(Vanished, Denied):
            if pid in ending or (start_time(pid) > job.listed and _cgroups(pid) in groups):
                parents[pid] = parent(pid)
    strangers = set(parents.values()) - known.keys() - parents.keys()
    if any(_cgroups(pid) not in groups for pid in strangers):  # they have been given to init, or to a job's reaper
        return None
    return {known[pid] for pid in set(parents.values()) & known.keys()}


def _cgroups(pid: int) -> bytes:
    with suppress(Vanished, Denied):
        return cgroups(pid)
    return b""
