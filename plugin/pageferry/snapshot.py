"""A job at one moment: which processes, what they map, what the rules say of it, and where each resident page is.

The order of reading is the planner's: first the maps, then, of page tables, only the ranges that it names, then what
these did not show. Whether a job stands still meanwhile is left to the caller; a page that comes or goes while we read
is found out when it is asked to move.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pageferry.backings import Kinds, facts_of, kinds_of, path_of, read_devices, told_apart
from pageferry.elsewhere import Job, frames_elsewhere, when_listed
from pageferry.errors import KernelError, Vanished
from pageferry.kernel import objects
from pageferry.kernel.address_spaces import first_of_each as first_of_each_space
from pageferry.kernel.answering import require_answers
from pageferry.kernel.files import numbered
from pageferry.kernel.processes import ProcessHandle, enough_descriptors, open_process
from pageferry.kernel.procfs import Status, ipc_namespace, read_maps, read_status
from pageferry.kernel.residency import PageTables
from pageferry.kernel.topology import Topology
from pageferry_planner.columns import Bools
from pageferry_planner.maps import Maps, parse
from pageferry_planner.model import SELF, Process, Ranges, Runs, Snapshot
from pageferry_planner.pages import (
    Entries,
    Hole,
    Stretches,
    askable,
    asked_per_process,
    doubtful,
    first_of_each,
    holes,
    kernels_own,
    others,
    runs,
    sightings,
)
from pageferry_planner.policy import OUTSIDE, Facts, Rules, decide
from pageferry_planner.sharing import Sharing, share


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot, what the rules were asked of its backings, the handles of its processes, and their page tables.

    `job`: the same processes, if others outside may keep their memory where it is; None: the rules do not ask for them.
    """

    snapshot: Snapshot
    facts: tuple[Facts, ...]
    handles: tuple[ProcessHandle, ...]
    tables: PageTables
    job: Job | None = None


@contextmanager
def take(pids: Iterable[int], rules: Rules, topology: Topology) -> Iterator[Taken]:
    """Take the snapshot of a job's processes; handles, page tables and mapped objects stay open inside the context.

    Processes that end meanwhile are left out. Raises Vanished when none is left, Denied for one that we may not read,
    Silent for one that does not answer.
    """
    pids, listed = sorted(pids), when_listed()
    require_answers(pids)
    with enough_descriptors(), ExitStack() as stack:
        handles, texts, namespaces, processes = [], [], [], []
        for pid in pids:
            with suppress(Vanished):
                handle = stack.enter_context(open_process(pid, sparing=True))
                text = read_maps(pid)
                status = read_status(handle.thread())  # an ended thread's nodes and CPUs are those that it once had
                if not text or not handle.alive():
                    continue
                process = _process(handle, status, topology)
                namespace = ipc_namespace(handle.thread()) if b" /SYSV" in text else 0
                handles.append(handle)
                texts.append(text)
                namespaces.append(namespace)
                processes.append(process)
        if not handles:
            raise Vanished("none of its processes is left")
        rows = _of_their_own(handles, texts)
        handles, texts = [handles[row] for row in rows], [texts[row] for row in rows]
        namespaces, processes = [namespaces[row] for row in rows], [processes[row] for row in rows]
        tables = stack.enter_context(PageTables([handle.pid for handle in handles]))
        devices = read_devices(rules, handles)
        maps = parsed_maps(texts, namespaces)
        spaces, no_files, devices = told_apart(maps, handles, devices)
        sharing = share(maps, mmap.PAGESIZE, spaces, no_files)
        job = Job(handles, listed) if rules.reference_count else None
        seen = _read(sharing, sharing.ranges, tables, job)
        kinds = kinds_of(sharing, seen, tables, devices)
        seen = seen.take(~np.isin(seen.backing, list(kinds.drivers)))
        unseen = [hole for hole in holes(sharing, seen) if hole.backing not in kinds.drivers]
        if unseen:
            seen = Runs.concatenate([seen, _read_unseen(sharing, unseen, handles, tables, kinds, stack)])
        backings, facts = (*sharing.backings, OUTSIDE), (*facts_of(sharing, handles, rules, devices), Facts())
        if not (seen.backing == len(sharing.backings)).any():
            backings, facts = backings[:-1], facts[:-1]
        snapshot = Snapshot(
            page_bytes=mmap.PAGESIZE,
            processes=tuple(processes),
            backings=backings,
            verdicts=tuple(decide(*asked, rules) for asked in zip(backings, facts, strict=True)),
            vmas=sharing.vmas,
            runs=seen,
            asked_per_process=asked_per_process(sharing, seen),
            unread=tables.unread,
        )
        yield Taken(snapshot, facts, tuple(handles), tables, job)


def parsed_maps(texts: Sequence[bytes], namespaces: Sequence[int] | None) -> Maps:
    """Return what `maps.parse` makes of texts of /proc/PID/maps. Raises KernelError for what is none."""
    try:
        return parse(texts, namespaces)
    except ValueError as error:
        raise KernelError(str(error)) from error


def _of_their_own(handles: Sequence[ProcessHandle], texts: Sequence[bytes]) -> list[int]:
    """Return the rows of the processes that have an address space of their own: of those that share one, the first."""
    alike: dict[bytes, list[int]] = {}
    for row, text in enumerate(texts):
        alike.setdefault(text, []).append(row)
    kept = {pid for rows in alike.values() for pid in first_of_each_space(sorted(handles[row].pid for row in rows))}
    return [row for row, handle in enumerate(handles) if handle.pid in kept]


def _process(handle: ProcessHandle, status: Status, topology: Topology) -> Process:
    cpus = set(status.cpus_allowed)
    if status.threads > 1:
        for thread in numbered(Path(f"/proc/{handle.pid}/task")):
            with suppress(OSError):
                cpus |= os.sched_getaffinity(thread)
    return Process(handle.pid, handle.start_time, status.name, topology.nodes_of_cpus(cpus), status.mems_allowed)


def _read(
    sharing: Sharing,
    ranges: Ranges,
    tables: PageTables,
    job: Job | None = None,
    *,
    overlapping: bool = False,
) -> Runs:
    """Read ranges and return each page once; `overlapping`: the ranges may show the same page several times.

    What processes outside the `job` map as well, if it is given, has the number after those of the backings.
    """
    parts: list[Runs] = []
    rest: list[Entries] = []

    def unsure(entries: Entries | Stretches) -> Bools:
        return np.ones(len(entries), bool) if overlapping else doubtful(sharing, ranges, entries)

    for sure, rest_of_buffer in tables.stretches(ranges, unsure):
        if (kernels := kernels_own(ranges, sure)).any():
            sure = sure.take(~kernels)  # noqa: PLW2901 - what of it counts
        parts.append(runs(ranges, sure))
        rest.append(rest_of_buffer.take(~kernels_own(ranges, rest_of_buffer)))
    unsure_entries = Entries.concatenate(rest)
    seen = sightings(unsure_entries)
    mapped = tables.mappings(seen.frame)
    unmapped, elsewhere = seen.frame[mapped == 0], seen.frame[:0]
    if job is not None:
        own = len(ranges) - int(sharing.own.sum())  # the ranges before these are read through one process alone
        elsewhere = frames_elsewhere(job, ranges, unsure_entries, seen.take(mapped > seen.shown), tables, own)
    if overlapping:  # these ranges are asked for a file's pages; a forked process's copy was seen, or is another's
        unsure_entries = unsure_entries.take(unsure_entries.file | unsure_entries.exclusive)
    else:
        unsure_entries = tables.through_owners(ranges, unsure_entries, seen.frame[mapped != seen.shown])
    carriers_first = unsure_entries.take(np.argsort(unsure_entries.row, kind="stable"))
    unique = first_of_each(ranges, carriers_first)
    if len(unmapped) or len(elsewhere):
        unique = unique.take(unique.file | ~np.isin(unique.pfn, unmapped))
        apart = ~unique.file & np.isin(unique.pfn, elsewhere)
        outside = runs(ranges, unique.take(apart))
        parts.append(replace(outside, backing=np.full(len(outside), len(sharing.backings))))
        unique = unique.take(~apart)
    parts.append(runs(ranges, unique))
    return Runs.concatenate(parts)


def _read_unseen(  # noqa: PLR0917 - one caller, a step of its own
    sharing: Sharing,
    unseen: list[Hole],
    handles: list[ProcessHandle],
    tables: PageTables,
    kinds: Kinds,
    stack: ExitStack,
) -> Runs:
    """Find resident pages that the carriers did not show: shared memory through ourselves, files through others."""
    mine: list[Ranges] = []
    ask: list[Hole] = []
    by_extent: dict[int, list[Hole]] = {}
    for hole in askable(sharing, unseen, kinds.shared_memory.__contains__):
        by_extent.setdefault(hole.extent, []).append(hole)
    for extent, part in by_extent.items():
        backing = part[0].backing
        if backing not in kinds.local:
            ask += part
            continue
        try:
            mapped = stack.enter_context(
                objects.mapped(
                    path_of(sharing, extent, handles),
                    part[0].lo,
                    part[-1].hi - part[0].lo,
                    in_memory=backing in kinds.shared_memory,
                )
            )
            present = [
                Hole(extent, hole.backing, lo, hi)
                for hole in part
                for lo, hi in objects.resident(mapped, hole.lo, hole.hi)
            ]
            if backing in kinds.shared_memory:
                for hole in present:
                    objects.populate(mapped, hole.lo, hole.hi)
        except OSError:
            ask += part
        else:
            if backing in kinds.shared_memory:
                mine += [_range(mapped, hole) for hole in present]
            else:
                ask += present
    parts = []
    if mine:
        parts.append(_read(sharing, Ranges.concatenate(mine), tables))
    through_others = others(sharing, ask)
    if len(through_others):
        parts.append(_read(sharing, through_others, tables, overlapping=True))
    return Runs.concatenate(parts)


def _range(mapped: objects.Mapped, hole: Hole) -> Ranges:
    page = mapped.page + hole.lo - mapped.index
    process, first, count, of, index = np.array([[SELF], [page], [hole.hi - hole.lo], [hole.backing], [hole.lo]])
    return Ranges(process, first, count, of, index, np.zeros(1, bool))
