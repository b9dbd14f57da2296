"""Narrows a Slurm job's cpuset.mems to the nodes of its memory and its CPUs, where later allocations then come, too.

Slurm writes the job's own group for each new step, and a step's groups once, when the step begins: those are narrowed,
and written back before the job's memory goes elsewhere. On version 2 the kernel itself moves what a narrowed group
leaves outside, whatever it is (kernel/cgroup/cpuset.c, cpuset_migrate_mm): so there the nodes of all that stays are
left in. From a set to a part of it, or back, it touches nothing on the nodes that both have (mm/mempolicy.c,
do_migrate_pages): so a set is never written over another but by way of Slurm's own. When to do what is the callers'.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pageferry import ferry, ledger_json
from pageferry.errors import KernelError, PageferryError, Vanished
from pageferry.kernel.cgroup import read_cpuset, read_hierarchies, read_written, walk
from pageferry.kernel.files import read_bytes, write_text
from pageferry.kernel.lists import format_list, parse_list
from pageferry.kernel.private_cpuset import group_path
from pageferry.kernel.topology import read_topology
from pageferry.mems import record
from pageferry.mems.record import FOLDER, Group
from pageferry.schedulers.slurm_cgroups import slurm_job_cpusets
from pageferry_planner.model import Bucket, Target, WhenFull

_BUCKETS = frozenset(bucket.value for bucket in Bucket)


@dataclass(frozen=True, slots=True)
class Narrowed:
    """The nodes that a job is narrowed to, none if it is not; `why`: what stood in the way, in one line."""

    nodes: frozenset[int] = frozenset()
    why: str = ""

    def as_plain(self) -> dict[str, str]:
        """Return it as plain data."""
        return {"nodes": format_list(self.nodes), "why": self.why}


@dataclass(frozen=True, slots=True)
class Mems:
    """The nodes that a Slurm job may allocate on; `folder` has the records of jobs that are narrowed."""

    job: int
    folder: Path = FOLDER
    root: Path = Path("/")

    def groups(self) -> tuple[Path, ...]:
        """Return the groups that may be narrowed, parents first: those that hold the job's processes.

        Ask before its memory moves: of what begins meanwhile nobody knows where its memory is.
        """
        inner = slurm_job_cpusets(self.job, self.root)[1]
        return tuple(group for step in inner for group in walk(step) if _stands(group))

    def narrow(
        self, groups: Iterable[Path], outcome: Mapping[str, Any], targets: Iterable[int], reserve: int | None = None
    ) -> Narrowed:
        """Narrow groups of a job whose memory was moved to `targets`, with an outcome of `report.outcome_json`.

        Not where none of the nodes has room beyond the reserve, in bytes (None: the default): the job could be killed
        for memory. Nothing is raised: where something is in the way, the job may allocate wherever Slurm lets it.
        """
        try:
            with record.alone(self.job, self.folder):
                return self._narrow(tuple(groups), outcome, frozenset(targets), reserve)
        except PageferryError as error:
            return Narrowed(why=str(error))

    def admit(self, target: Target) -> bool:
        """See that the job's memory may go where it is to: widen it if not, and say so. Raises as `widen`.

        What may spill may go to any of the target's nodes for that.
        """
        needed = {*target.nodes, *(target.spill if target.when_full is WhenFull.SPILL else ())}
        narrowed = record.load(self.job, self.folder)
        return any(not parse_list(group.ours).issuperset(needed) for group in narrowed) and self.widen()

    def widen(self) -> bool:
        """Write back what Slurm had in all groups that are as we wrote them; say whether there were any.

        A group that somebody else has written since is left. Raises KernelError, with all others written back, for what
        the kernel refuses, which stays recorded.
        """
        if not record.is_recorded(self.job, self.folder):
            return False
        with record.alone(self.job, self.folder):
            return self._widen()

    def _widen(self) -> bool:
        wrote, left, complaints = False, [], []
        for group in record.load(self.job, self.folder):
            try:
                ours = [Path(group.path)] if _is_ours(group) else []
                # One that was made for the step's tasks since, on version 1, has what the step had.
                ours += [made for made in _made_of(group, self.root) if _stands(made) == parse_list(group.ours)]
                for path in ours:
                    write_text(path / "cpuset.mems", group.scheduler)
                    wrote = True
            except Vanished:
                continue
            except KernelError as error:
                left.append(group)
                complaints.append(str(error))
        record.save(self.job, left, self.folder)
        if complaints:
            raise KernelError(f"cpuset.mems of job {self.job} cannot be widened: {'; '.join(complaints)}")
        return wrote

    def _narrow(
        self, groups: tuple[Path, ...], outcome: Mapping[str, Any], targets: frozenset[int], reserve: int | None
    ) -> Narrowed:
        if not groups:
            return Narrowed(why="Slurm confines none of its steps to nodes (ConstrainCores=yes in cgroup.conf does)")
        known = {Path(group.path): group for group in record.load(self.job, self.folder) if _is_ours(group)}
        topology = read_topology(self.root)
        wanted = targets | topology.serving(_cpus(groups))
        wanted |= _occupied(outcome, all_of_it=any(map(_migrates, groups)))
        planned = _plan(groups, known, wanted)
        if planned != known:  # what is on record is what stands: nothing else is written before it is Slurm's again
            self._widen()
            planned = _plan(groups, {}, wanted)
        if not planned:
            return Narrowed(why=f"its memory and CPUs are on nodes {format_list(wanted)}, all that it may have")
        nodes, room = _nodes(planned.values()), ferry.host(topology, reserve).room
        if not any(room.get(node) for node in nodes):
            self._widen()
            return Narrowed(why=f"no room beyond the reserve on node {format_list(nodes)}")
        record.save(self.job, planned.values(), self.folder)
        complaints = []
        for path, group in reversed(planned.items()):
            try:
                if not _is_ours(group):
                    write_text(path / "cpuset.mems", group.ours)
            except Vanished:  # the step has ended
                continue
            except KernelError as error:
                complaints.append(str(error))
        return Narrowed(_nodes(filter(_is_ours, planned.values())), "; ".join(complaints))


def _cpus(groups: Iterable[Path]) -> set[int]:
    cpus: set[int] = set()
    for group in groups:
        with suppress(Vanished):
            cpuset = read_cpuset(group)
            cpus |= cpuset.effective_cpus if cpuset is not None else frozenset()
    return cpus


def _occupied(outcome: Mapping[str, Any], *, all_of_it: bool) -> set[int]:
    """Return the nodes that have pages of a job after a move; unless `all_of_it`, without those that rules keep."""
    flows = ledger_json.every_flow(outcome["ledger"])
    return set(ledger_json.after(flow for flow in flows if all_of_it or flow[2] in _BUCKETS))


def _plan(groups: Iterable[Path], known: Mapping[Path, Group], wanted: frozenset[int]) -> dict[Path, Group]:
    """Return how groups are to be narrowed, in this order, without those to which that makes no difference."""
    planned = {}
    for path in groups:
        scheduler = known[path].scheduler if path in known else format_list(_stands(path))
        ours = parse_list(scheduler) & wanted
        if ours and ours != parse_list(scheduler):
            with suppress(OSError):  # the step has ended
                planned[path] = Group(str(path), path.stat().st_ino, scheduler, format_list(ours))
    return planned


def _nodes(groups: Iterable[Group]) -> frozenset[int]:
    return frozenset().union(*(parse_list(group.ours) for group in groups))


def _is_ours(group: Group) -> bool:
    """Say whether a group is there, and as we wrote it."""
    path = Path(group.path)
    with suppress(OSError):
        return path.stat().st_ino == group.inode and _stands(path) == parse_list(group.ours)
    return False


def _made_of(group: Group, root: Path) -> tuple[Path, ...]:
    """Return our own group for the tasks of one of Slurm's, which version 1 may have."""
    cpuset, path = read_hierarchies(root).legacy.get("cpuset"), Path(group.path)
    return (group_path(cpuset, path),) if cpuset is not None and path.is_relative_to(cpuset) else ()


def _stands(group: Path) -> frozenset[int]:
    """Return what was written to a group's cpuset.mems, as `cgroup.read_written` does."""
    return read_written(group / "cpuset.mems")


def _migrates(group: Path) -> bool:
    """Say whether the kernel moves what is outside when a group is narrowed; on version 1 a file says so."""
    try:
        return read_bytes(group / "cpuset.memory_migrate").strip() != b"0"
    except Vanished:
        return True
