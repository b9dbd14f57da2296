"""What a job's mappings map: on which file system it lies, whether it is a file at all, and what the rules ask of it.

A backing is known from the job's own side: its mount namespaces, its files as the kernel names them below map_files,
the flags of its pages. Our own table of mounts may lack what the job has.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from pageferry.errors import Denied, Vanished
from pageferry.kernel import bounded, objects
from pageferry.kernel.mountinfo import Mount, read_mountinfo
from pageferry.kernel.outsiders import Outside, mapped_outside
from pageferry.kernel.processes import ProcessHandle
from pageferry.kernel.procfs import mount_namespace
from pageferry.kernel.residency import PageTables
from pageferry_planner.maps import Maps
from pageferry_planner.model import Ranges, Runs
from pageferry_planner.policy import Facts, Rules, left_alone
from pageferry_planner.sharing import Sharing


@dataclass(frozen=True, slots=True)
class Devices:
    """What lies on which device (as maps prints it): shared memory, local file systems, device nodes.

    `ambiguous`: the devices of which maps may show one inode for several files; `remote`: those of file systems that
    others serve, which may hang, `fuse` among them. `left`: the devices of file systems that are not to be touched, by
    the name that the rules have for each; they count as neither shared memory nor local, so that nothing there is
    opened.
    """

    shared_memory: frozenset[str]
    local: frozenset[str]
    nodes: frozenset[str]
    ambiguous: frozenset[str]
    remote: frozenset[str]
    fuse: frozenset[str]
    left: Mapping[str, str]

    def answers(self, device: str) -> bool:
        """Return whether a file of a device tells its status without a wait for another host or process."""
        return device in self.local - self.ambiguous or device in self.nodes

    def of_one_kind(self, device: str) -> bool:
        """Return whether all files of a device are of a kind that is known without a look at their pages.

        An overlay's files may be of any layer, and layers may be mounted nowhere any more.
        """
        return device in self.shared_memory or device in self.left or (device in self.local - self.ambiguous)


def read_devices(rules: Rules, handles: Iterable[ProcessHandle]) -> Devices:
    """Return what lies on which device, by the mounts that we and the processes see."""
    mounts = [*read_mountinfo(), *_mounts_of_others(handles)]
    types = {mount.device: mount.fstype for mount in mounts}
    types[objects.shared_memory_device()] = "shmem"
    names: dict[str, list[str]] = {device: [fstype] for device, fstype in types.items()}
    for mount in mounts if rules.filesystems else ():
        names.setdefault(mount.device, []).append(os.fsdecode(mount.point))
    left = {device: name for device, known in names.items() if (name := left_alone(known, rules))}
    touched = {device: fstype for device, fstype in types.items() if device not in left}
    return Devices(
        shared_memory=frozenset(device for device, fstype in touched.items() if fstype in objects.SHARED_MEMORY),
        local=frozenset(device for device, fstype in touched.items() if fstype in objects.LOCAL),
        nodes=frozenset(device for device, fstype in types.items() if fstype == "devtmpfs"),
        ambiguous=frozenset(device for device, fstype in touched.items() if fstype in objects.AMBIGUOUS),
        remote=frozenset(device for device, fstype in types.items() if fstype not in objects.LOCAL | {"devtmpfs"}),
        fuse=frozenset(device for device, fstype in types.items() if objects.is_fuse(fstype)),
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


def told_apart(
    maps: Maps, handles: Sequence[ProcessHandle], devices: Devices
) -> tuple[dict[int, str], frozenset[int], Devices]:
    """Return, by the number of the region: what tells files apart that show one device and inode; what is no file.

    And the devices that are to be touched from then on: not an overlay of which a file does not answer. Of device nodes
    in a file system of theirs it is known where nobody may ask.
    """
    unasked = devices.remote - devices.fuse | devices.left.keys() | {objects.shared_memory_device()}
    thread = cache(lambda process: handles[process].thread())
    paths = {
        region: objects.path_of(thread(process), start, end)
        for region, process, start, end in maps.shown(lambda region: not (region.anonymous or region.device in unasked))
    }
    on = {region: maps.regions[region].device for region in paths}

    def told(region: int) -> tuple[bool, str]:
        if on[region] in devices.fuse:
            return True, objects.handle(paths[region])
        if on[region] in devices.ambiguous:
            objects.reach(paths[region])
        status = objects.status(paths[region])
        return objects.is_file(status) if status else on[region] not in devices.nodes, objects.identity(status)

    safe = {region: told(region) for region in paths if devices.answers(on[region])}
    answers = bounded.each(sorted(paths.keys() - safe.keys()), told)
    said = safe | answers.values
    named = devices.ambiguous | devices.fuse
    spaces = {
        region: said.get(region, (True, ""))[1] or maps.regions[region].path for region in paths if on[region] in named
    }
    no_files = frozenset(region for region, (is_file, _) in said.items() if not is_file)
    silent = {on[region] for region in answers.silent}
    return spaces, no_files, replace(devices, local=devices.local - silent) if silent else devices


@dataclass(frozen=True, slots=True)
class Kinds:
    """Which backings' pages nobody but a driver has written (`drivers`), which are shared memory, and on local devices.

    What is shared memory although its device does not say so (an overlay's files) is told from a page of it.
    """

    drivers: frozenset[int]
    shared_memory: frozenset[int]
    local: frozenset[int]


def kinds_of(sharing: Sharing, seen: Runs, tables: PageTables, devices: Devices) -> Kinds:
    """Return of which kind the backings are; `seen`: pages of theirs, of which the first of each is looked at."""
    numbers, first = np.unique(seen.backing, return_index=True)
    asked = [
        row
        for number, row in zip(numbers.tolist(), first.tolist(), strict=True)
        if 0 <= number < len(sharing.backings) and not devices.of_one_kind(sharing.backings[number].device)
    ]
    some = seen.take(np.array(asked, np.int64))
    ranges = Ranges(some.process, some.page, some.count, some.backing, some.index, np.zeros(len(some), bool))
    flags = dict(zip(some.backing.tolist(), tables.flags(ranges).tolist(), strict=True))
    on = {number: backing.device for number, backing in enumerate(sharing.backings)}
    shared = frozenset(number for number, device in on.items() if device in devices.shared_memory)
    shared |= {number for number, found in flags.items() if objects.is_shared_memory(found)}
    return Kinds(
        drivers=frozenset(number for number, found in flags.items() if not objects.is_content(found)),
        shared_memory=shared,
        local=shared | {number for number, device in on.items() if device in devices.local},
    )


def path_of(sharing: Sharing, extent: int, handles: Sequence[ProcessHandle]) -> Path:
    """Return the path that names the object of an extent, through its carrier."""
    row = int(sharing.carriers[extent])
    start = int(sharing.vmas.page[row]) * mmap.PAGESIZE
    end = start + int(sharing.vmas.count[row]) * mmap.PAGESIZE
    return objects.path_of(handles[int(sharing.vmas.process[row])].thread(), start, end)


def facts_of(sharing: Sharing, handles: Sequence[ProcessHandle], rules: Rules, devices: Devices) -> tuple[Facts, ...]:
    """Return what the rules ask of each backing."""
    outside = Outside({}, {})
    if rules.reference_count:
        outside = mapped_outside(sharing.backings, {handle.pid for handle in handles})
    extent_of = {backing: extent for extent, backing in reversed(list(enumerate(sharing.extents.backing.tolist())))}
    facts = []
    for number, backing in enumerate(sharing.backings):
        trusted = user = ""
        if rules.xattrs and backing.device in devices.local:
            path = path_of(sharing, extent_of[number], handles)
            trusted, user = (objects.attribute(path, f"{space}.pageferry") for space in ("trusted", "user"))
        left = devices.left.get(backing.device, "")
        facts.append(Facts(outside.mapping.get(backing, ()), trusted, user, left, outside.silent.get(backing, ())))
    return tuple(facts)
