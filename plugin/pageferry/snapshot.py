"""A job at one moment: which processes, what they map, what the rules say of it, and where each resident page is.

The order of reading is the planner's: first the maps, then, of page tables, only the ranges that it names, then what
these did not show. Whether a job stands still meanwhile is left to the caller; a page that comes or goes while we read
is found out when it is asked to move.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from pageferry.errors import Denied, Vanished
from pageferry.kernel import bounded, objects
from pageferry.kernel.answering import require_answers
from pageferry.kernel.files import numbered
from pageferry.kernel.mountinfo import Mount, read_mountinfo
from pageferry.kernel.outsiders import Outside, mapped_outside
from pageferry.kernel.processes import ProcessHandle, enough_descriptors, open_process
from pageferry.kernel.procfs import Status, ipc_namespace, mount_namespace, read_maps, read_status
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
    others,
    runs,
)
from pageferry_planner.policy import Facts, Rules, decide, left_alone
from pageferry_planner.sharing import Sharing, share


@dataclass(frozen=True, slots=True)
class Taken:
    """A snapshot, what the rules were asked of its backings, the handles of its processes, and their page tables."""

    snapshot: Snapshot
    facts: tuple[Facts, ...]
    handles: tuple[ProcessHandle, ...]
    tables: PageTables


@dataclass(frozen=True, slots=True)
class _Devices:
    """What lies on which device (as maps prints it): shared memory, local file systems, device nodes.

    `ambiguous`: the devices of which maps may show one inode for several files.
    `left`: the devices of file systems that are not to be touched, by the name that the rules have for each; they count
    as neither shared memory nor local, so that nothing there is opened.
    """

    shared_memory: frozenset[str]
    local: frozenset[str]
    nodes: frozenset[str]
    ambiguous: frozenset[str]
    left: Mapping[str, str]


@contextmanager
def take(pids: Iterable[int], rules: Rules, topology: Topology) -> Iterator[Taken]:
    """Take the snapshot of a job's processes; handles, page tables and mapped objects stay open inside the context.

    Processes that end meanwhile are left out. Raises Vanished when none is left, Denied for one that we may not read,
    Silent for one that does not answer.
    """
    pids = sorted(pids)
    require_answers(pids)
    with enough_descriptors(), ExitStack() as stack:
        handles, texts, namespaces, processes = [], [], [], []
        for pid in pids:
            with suppress(Vanished):
                handle = stack.enter_context(open_process(pid))
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
        tables = stack.enter_context(PageTables([handle.pid for handle in handles]))
        devices = _devices(rules, handles)
        maps = parse(texts, namespaces)
        spaces, devices = _spaces(maps, handles, devices)
        sharing = share(maps, mmap.PAGESIZE, spaces, devices.nodes)
        seen = _read(sharing, sharing.ranges, tables)
        unseen = holes(sharing, seen)
        if unseen:
            seen = Runs.concatenate([seen, _read_unseen(sharing, unseen, handles, tables, devices, stack)])
        facts = _facts(sharing, handles, rules, devices)
        snapshot = Snapshot(
            page_bytes=mmap.PAGESIZE,
            processes=tuple(processes),
            backings=sharing.backings,
            verdicts=tuple(decide(*asked, rules) for asked in zip(sharing.backings, facts, strict=True)),
            vmas=sharing.vmas,
            runs=seen,
            asked_per_process=asked_per_process(sharing, seen),
        )
        yield Taken(snapshot, facts, tuple(handles), tables)


def _process(handle: ProcessHandle, status: Status, topology: Topology) -> Process:
    cpus = set(status.cpus_allowed)
    if status.threads > 1:
        for thread in numbered(Path(f"/proc/{handle.pid}/task")):
            with suppress(OSError):
                cpus |= os.sched_getaffinity(thread)
    return Process(handle.pid, handle.start_time, status.name, topology.nodes_of_cpus(cpus), status.mems_allowed)


def _devices(rules: Rules, handles: Iterable[ProcessHandle]) -> _Devices:
    mounts = [*read_mountinfo(), *_mounts_of_others(handles)]
    types = {mount.device: mount.fstype for mount in mounts}
    types[objects.shared_memory_device()] = "shmem"
    names: dict[str, list[str]] = {device: [fstype] for device, fstype in types.items()}
    for mount in mounts if rules.filesystems else ():
        names.setdefault(mount.device, []).append(os.fsdecode(mount.point))
    left = {device: name for device, known in names.items() if (name := left_alone(known, rules))}
    touched = {device: fstype for device, fstype in types.items() if device not in left}
    return _Devices(
        shared_memory=frozenset(device for device, fstype in touched.items() if fstype in objects.SHARED_MEMORY),
        local=frozenset(device for device, fstype in touched.items() if fstype in objects.LOCAL),
        nodes=frozenset(device for device, fstype in types.items() if fstype == "devtmpfs"),
        ambiguous=frozenset(device for device, fstype in touched.items() if fstype in objects.AMBIGUOUS),
        left=left,
    )


def _mounts_of_others(handles: Iterable[ProcessHandle]) -> Iterator[Mount]:
    """Yield the mounts of each mount namespace of the job's that is not ours, such as a container's."""
    known = {mount_namespace(os.getpid())}
    for handle in handles:
        with suppress(Vanished, Denied):
            thread = handle.thread()
            if (namespace := mount_namespace(thread)) not in known:
                known.add(namespace)
                yield from read_mountinfo(process=thread)


def _spaces(maps: Maps, handles: Sequence[ProcessHandle], devices: _Devices) -> tuple[dict[int, str], _Devices]:
    """Return what tells the files apart that show one device and inode, by the number of the region.

    And the devices that are to be touched from then on: not an overlay of which a file does not answer.
    """
    paths = {
        region: objects.path_of(handles[process].thread(), start, end)
        for region, process, start, end in maps.of_device(devices.ambiguous)
    }
    answers = bounded.each(paths, lambda region: objects.reached(paths[region]))
    silent = {maps.regions[region].device for region in answers.silent}
    spaces = {region: answers.values.get(region, "") or maps.regions[region].path for region in paths}
    return spaces, replace(devices, local=devices.local - silent) if silent else devices


def _read(sharing: Sharing, ranges: Ranges, tables: PageTables, *, overlapping: bool = False) -> Runs:
    """Read ranges and return each page once; `overlapping`: the ranges may show the same page several times."""
    parts: list[Runs] = []
    rest: list[Entries] = []

    def unsure(entries: Entries | Stretches) -> Bools:
        return np.ones(len(entries), bool) if overlapping else doubtful(sharing, ranges, entries)

    for sure, rest_of_buffer in tables.stretches(ranges, unsure):
        parts.append(runs(ranges, sure))
        rest.append(rest_of_buffer)
    unsure_entries = Entries.concatenate(rest)
    if overlapping:  # these ranges are asked for a file's pages; a forked process's copy was seen, or is another's
        unsure_entries = unsure_entries.take(unsure_entries.file | unsure_entries.exclusive)
    else:
        unsure_entries = tables.through_owners(ranges, unsure_entries)
    carriers_first = unsure_entries.take(np.argsort(unsure_entries.row, kind="stable"))
    parts.append(runs(ranges, tables.owned(first_of_each(ranges, carriers_first))))
    return Runs.concatenate(parts)


def _read_unseen(  # noqa: PLR0917 - one caller, a step of its own
    sharing: Sharing,
    unseen: list[Hole],
    handles: list[ProcessHandle],
    tables: PageTables,
    devices: _Devices,
    stack: ExitStack,
) -> Runs:
    """Find resident pages that the carriers did not show: shared memory through ourselves, files through others."""
    mine: list[Ranges] = []
    ask: list[Hole] = []
    by_extent: dict[int, list[Hole]] = {}
    for hole in askable(sharing, unseen, lambda backing: sharing.backings[backing].device in devices.shared_memory):
        by_extent.setdefault(hole.extent, []).append(hole)
    for extent, part in by_extent.items():
        device = sharing.backings[part[0].backing].device
        if device not in devices.local:
            ask += part
            continue
        try:
            mapped = stack.enter_context(
                objects.mapped(_path(sharing, extent, handles), part[0].lo, part[-1].hi - part[0].lo)
            )
            present = [
                Hole(extent, hole.backing, lo, hi)
                for hole in part
                for lo, hi in objects.resident(mapped, hole.lo, hole.hi)
            ]
            if device in devices.shared_memory:
                for hole in present:
                    objects.populate(mapped, hole.lo, hole.hi)
        except OSError:
            ask += part
        else:
            if device in devices.shared_memory:
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


def _path(sharing: Sharing, extent: int, handles: list[ProcessHandle]) -> Path:
    row = int(sharing.carriers[extent])
    start = int(sharing.vmas.page[row]) * mmap.PAGESIZE
    end = start + int(sharing.vmas.count[row]) * mmap.PAGESIZE
    return objects.path_of(handles[int(sharing.vmas.process[row])].thread(), start, end)


def _facts(sharing: Sharing, handles: list[ProcessHandle], rules: Rules, devices: _Devices) -> tuple[Facts, ...]:
    outside = Outside({}, {})
    if rules.reference_count:
        outside = mapped_outside(sharing.backings, {handle.pid for handle in handles})
    extent_of = {backing: extent for extent, backing in reversed(list(enumerate(sharing.extents.backing.tolist())))}
    facts = []
    for number, backing in enumerate(sharing.backings):
        trusted = user = ""
        if rules.xattrs and backing.device in devices.local:
            path = _path(sharing, extent_of[number], handles)
            trusted, user = (objects.attribute(path, f"{space}.pageferry") for space in ("trusted", "user"))
        left = devices.left.get(backing.device, "")
        facts.append(Facts(outside.mapping.get(backing, ()), trusted, user, left, outside.silent.get(backing, ())))
    return tuple(facts)
