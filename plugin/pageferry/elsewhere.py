"""Which of the job's anonymous pages processes outside map as well: forked from one another, or merged (KSM).

A page that is not exclusive is mapped as often as the kernel counts (/proc/kpagecount); what the job's page tables show
is less where somebody else maps it. The count may include a process that the job forked after its processes were
listed: that is the job's own. So it is asked for again, and what such a process shares with its parent is not judged.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from pageferry.errors import Denied, Vanished
from pageferry.kernel.pageflags import ANON, KSM
from pageferry.kernel.processes import ProcessHandle
from pageferry.kernel.procfs import cgroups, list_pids, parent, start_time
from pageferry.kernel.residency import PageTables
from pageferry_planner.columns import Bools, Ints
from pageferry_planner.model import Ranges
from pageferry_planner.pages import Entries, Sightings

ROUNDS, CLEAN = 6, 2
"""A page is asked about again, at most so often, until so many rounds have seen no process end meanwhile."""


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
    job: Job, ranges: Ranges, entries: Entries, seen: Sightings, mapped: Ints, tables: PageTables
) -> Ints:
    """Return which frames, ascending, processes outside the job map; `mapped`: how often each that was seen is mapped.

    `entries` shows what all processes of the job map of them. Where page tables could not be read whole, nothing is
    judged.
    """
    found = seen.take(mapped > seen.shown)
    if not len(found) or tables.unread:
        return found.frame[:0]
    kinds = tables.kinds(found.frame)
    anonymous = (kinds & ANON) != 0  # a huge page of a file may look like it in a page table (before Linux 6.11)
    found, merged = found.take(anonymous), (kinds[anonymous] & KSM) != 0
    clean = 0
    for _ in range(ROUNDS):
        if not len(found) or clean == CLEAN:
            return found.frame
        spared, all_seen = _shared_with_the_young(job, ranges, entries, found.frame)
        still = (~spared | merged) & (tables.mappings(found.frame) > found.shown)
        found, merged = found.take(still), merged[still]
        clean += all_seen
    return found.frame if clean == CLEAN else found.frame[merged]


def _shared_with_the_young(job: Job, ranges: Ranges, entries: Entries, frames: Ints) -> tuple[Bools, bool]:
    """Return which frames a process shows that has forked in the job's cgroups since; all, if it has ended since.

    And whether all that there were could be asked: none has ended meanwhile.
    """
    known = {handle.pid: number for number, handle in enumerate(job.handles)}
    groups = {_cgroups(pid) for pid in known} - {b""}
    parents: dict[int, int] = {}
    all_seen = True
    for pid in sorted(list_pids() - known.keys() - {os.getpid()}, reverse=True):  # the young first: they may end soon
        try:
            if start_time(pid) > job.listed and _cgroups(pid) in groups:
                parents[pid] = parent(pid)
        except Vanished:
            all_seen = False
    strangers = set(parents.values()) - known.keys() - parents.keys()
    if any(_cgroups(pid) not in groups for pid in strangers):  # they have been given to init, or to a job's reaper
        return np.ones(len(frames), bool), all_seen
    forked = [known[pid] for pid in set(parents.values()) & known.keys()]
    return np.isin(frames, entries.pfn[np.isin(ranges.process[entries.row], forked)]), all_seen


def _cgroups(pid: int) -> bytes:
    with suppress(Vanished, Denied):
        return cgroups(pid)
    return b""
