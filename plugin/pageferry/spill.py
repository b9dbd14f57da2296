"""Which jobs' memory has spilled to nodes far from their CPUs, and what would be gained by bringing it home.

First a cheap look at counters, which needs no page table and no numpy; only who has something to gain there gets a
request. Whether a job may be touched at all (suspended, held) is the caller's to say, and so is carrying requests out:
one after another, in the order given, because each plan looks again at how much room is left.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pageferry.errors import Vanished
from pageferry.kernel.cgroup import read_cpuset
from pageferry.kernel.numa_stat import mapped_bytes_of
from pageferry.kernel.topology import Topology, read_topology
from pageferry.schedulers.pbs_cgroups import pbs_job_cgroups
from pageferry.schedulers.slurm_cgroups import slurm_job_cgroups, slurm_job_cpusets

if TYPE_CHECKING:  # numpy comes with these
    from pageferry import ferry
    from pageferry_planner.policy import Rules

Distances = Mapping[int, Mapping[int, int]]
"""From node → to node → distance."""

JobId = TypeVar("JobId", int, str)
"""Slurm's, or PBS's."""


@dataclass(frozen=True, slots=True)
class Groups:
    """The cgroups of a job: those whose cpusets decide where it runs, and those that may count its memory."""

    cpusets: tuple[Path, ...]
    memory: tuple[Path, ...]


GroupsOf = Callable[[Any, Path], Groups]
"""A job's ID and the root of the host → its groups."""

Seen = Callable[[Mapping[int, int]], None]
"""Is told how many bytes are away from the CPUs of their jobs, on each node with memory."""


def slurm_groups(job: int, root: Path = Path("/")) -> Groups:
    """Return the groups of a Slurm job."""
    return Groups(slurm_job_cpusets(job, root)[1], slurm_job_cgroups(job, root))


def pbs_groups(job: str, root: Path = Path("/")) -> Groups:
    """Return the groups of a PBS job."""
    found = pbs_job_cgroups(job, root)
    return Groups(found, found)


@dataclass(frozen=True, slots=True)
class Counted:
    """What cgroups say of a job: its CPUs, the nodes that it may use, and its bytes on each; empty: they do not say."""

    cpus: frozenset[int]
    allowed: frozenset[int]
    bytes: Mapping[int, int]

    def far(self, topology: Topology, special: frozenset[int] = frozenset()) -> dict[int, int]:
        """Return the bytes on each node that has some, serves none of the CPUs, and is not special."""
        return self._of(topology.nodes_with_memory() - topology.serving(self.cpus) - special)

    def on_purpose(self, topology: Topology, special: frozenset[int]) -> dict[int, int]:
        """Return the bytes on each special node that has some and serves none of the CPUs."""
        return self._of(special - topology.serving(self.cpus))

    def _of(self, nodes: Iterable[int]) -> dict[int, int]:
        return {node: self.bytes[node] for node in sorted(nodes) if self.bytes.get(node)}


@dataclass(frozen=True, slots=True)
class Spilled(Generic[JobId]):
    """A job with memory away from its CPUs.

    `homes`: the nodes that serve its CPUs and that its memory may be on; none if its cpuset.mems leaves none of them,
    which somebody meant. `far`: bytes on each node that serves none of its CPUs and is not special.
    """

    job: JobId
    homes: frozenset[int]
    far: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Share(Generic[JobId]):
    """What of a job's far memory can come home now: bytes in all, the gain (bytes times distance), bytes per node."""

    job: JobId
    bytes: int
    gain: int
    takes: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Homecoming(Generic[JobId]):
    """A job whose far memory is to come home, and the request that does it; `bytes` and `gain` are estimates."""

    job: JobId
    request: ferry.Request
    bytes: int
    gain: int


def candidates(
    jobs: Iterable[JobId],
    *,
    groups_of: GroupsOf = slurm_groups,
    least_bytes: int,
    bytes_per_second: float | None,
    seconds: float | None = None,
    reserve_bytes: int | None = None,
    rules: Rules | None = None,
    special: frozenset[int] = frozenset(),
    seen: Seen = lambda _far: None,
    root: Path = Path("/"),
) -> list[Homecoming[JobId]]:
    """Return which of these jobs have at least so much to bring home, and room for it there; the biggest gain first.

    Leave out of `jobs` those that are suspended or held. `special`: nodes whose memory is at home there. `seen` is told
    what of all of them is away. The other arguments are the request's. A job that has ended, or that has no memory
    controller, is no candidate. Raises KernelError and Denied for what cannot be read.
    """
    topology = read_topology(root)
    looks = [look(job, topology, root, groups_of, special) for job in sorted(set(jobs), key=_order)]
    away = [found.far for found in looks if found is not None]
    seen({node: sum(far.get(node, 0) for far in away) for node in sorted(topology.nodes_with_memory())})
    spilled = [found for found in looks if found and found.homes and sum(found.far.values()) >= least_bytes]
    if not spilled:
        return []
    from pageferry import ferry  # noqa: PLC0415 - mostly, nobody gets this far

    room = {node: pages * mmap.PAGESIZE for node, pages in ferry.host(topology, reserve_bytes).room.items()}
    homes = {found.job: found.homes for found in spilled}
    found = []
    for share in choose(spilled, room, {node.number: node.distances for node in topology.nodes}, least_bytes):
        request = _request(homes[share.job], bytes_per_second, seconds, reserve_bytes, rules, special=special)
        found.append(Homecoming(share.job, request, share.bytes, share.gain))
    return found


def far_bytes(
    job: int, topology: Topology, root: Path = Path("/"), special: frozenset[int] = frozenset()
) -> int | None:
    """Return how much of a job's memory is on nodes that serve none of its CPUs; None if that cannot be seen.

    What is on `special` nodes is not counted.
    """
    found = look(job, topology, root, special=special)
    return None if found is None else sum(found.far.values())


def look(
    job: JobId,
    topology: Topology,
    root: Path = Path("/"),
    groups_of: GroupsOf = slurm_groups,
    special: frozenset[int] = frozenset(),
) -> Spilled[JobId] | None:
    """Return what of a job's memory is away, by the kernel's counters; None without cpusets or memory controller."""
    found = counted(job, topology, root, groups_of)
    if not found.cpus or not found.bytes:
        return None
    near = topology.serving(found.cpus)
    return Spilled(job, near & found.allowed, found.far(topology, special))


def counted(job: JobId, topology: Topology, root: Path = Path("/"), groups_of: GroupsOf = slurm_groups) -> Counted:
    """Return where a job may run and be, and where its memory is, by its cgroups alone. Raises as `candidates`."""
    cpus: set[int] = set()
    allowed = topology.nodes_with_memory()
    groups = groups_of(job, root)
    for group in groups.cpusets:
        with suppress(Vanished):  # a step has ended
            cpuset = read_cpuset(group)
            if cpuset is not None and cpuset.effective_cpus:
                cpus |= cpuset.effective_cpus
                allowed &= cpuset.effective_mems
    return Counted(frozenset(cpus), allowed, mapped_bytes_of(groups.memory))


def choose(
    spilled: Sequence[Spilled[JobId]], room: Mapping[int, int], distances: Distances, least_bytes: int = 1
) -> list[Share[JobId]]:
    """Return what can come home: always the biggest gain next, each into the room that those before it leave.

    Room that a job leaves where it was is nobody's yet. Ties go to the lower job ID. `room` is in bytes per node.
    """
    left = dict(room)
    waiting = {found.job: found for found in sorted(spilled, key=lambda found: _order(found.job))}
    shares: list[Share[JobId]] = []
    while waiting:
        share = max((_share(found, left, distances) for found in waiting.values()), key=lambda share: share.gain)
        del waiting[share.job]
        if share.gain > 0 and share.bytes >= max(least_bytes, 1):
            shares.append(share)
            for node, count in share.takes.items():
                left[node] -= count
    return shares


def _order(job: object) -> tuple[int, str]:
    """Lower numbers first, whichever scheduler's."""
    return len(str(job)), str(job)


def _share(found: Spilled[JobId], room: Mapping[int, int], distances: Distances) -> Share[JobId]:
    """Fill the homes as the planner will: far nodes by number, each to the nearest home, then to others.

    What a byte gains is what it gains at least, whichever home's CPUs use it: so more room never means less gain.
    """
    left = {home: room.get(home, 0) for home in found.homes}
    takes: dict[int, int] = {}
    gain = 0
    for far, count in sorted(found.far.items()) if left else ():
        waits = count
        saving = min(distances[home][far] - distances[home][home] for home in left)
        for home in _choices(far, found.homes, distances):
            taken = min(waits, max(0, left[home]))
            left[home] -= taken
            waits -= taken
            gain += taken * saving
            takes[home] = takes.get(home, 0) + taken
    takes = {home: taken for home, taken in takes.items() if taken}
    return Share(found.job, sum(takes.values()), gain, takes)


def _choices(far: int, homes: frozenset[int], distances: Distances) -> list[int]:
    """Return the homes for pages on a far node: the nearest, then those nearer to that one than the far node is."""
    first = min(homes, key=lambda home: (distances[far][home], home))
    others = sorted(homes - {first}, key=lambda home: (distances[first][home], home))
    return [first, *(home for home in others if (distances[first][home], home) < (distances[first][far], far))]


def _request(
    homes: frozenset[int],
    bytes_per_second: float | None,
    seconds: float | None,
    reserve_bytes: int | None,
    rules: Rules | None,
    *,
    special: frozenset[int] = frozenset(),
) -> ferry.Request:
    """Return the request that brings only far pages home: each to the nearest home, or to another one with room.

    A relative map without sources leaves every page where it is that is on one of the target's nodes.
    """
    from pageferry import ferry  # noqa: PLC0415
    from pageferry.mover import Limits  # noqa: PLC0415
    from pageferry_planner.model import Strategy, Target, WhenFull  # noqa: PLC0415
    from pageferry_planner.policy import Rules  # noqa: PLC0415

    when_full = WhenFull.SPILL if len(homes) > 1 else WhenFull.PARTIAL
    target = Target(tuple(sorted(homes)), Strategy.RELATIVE, frozenset(), when_full, spill=homes, special=special)
    limits = Limits(workers=1, seconds=seconds, bytes_per_second=bytes_per_second)
    return ferry.Request(target, rules or Rules(), limits, reserve_bytes)
