"""Keeps the jobs of a host on the CPUs that are theirs: the image of Slurm's under one permutation.

Slurm writes cpusets as if no job had ever been moved; each is brought in line when the agent says that it changed. Two
jobs to which Slurm gave the same CPUs (gang scheduling: one is suspended) share their image, as they shall. When to
look at which job, and to bring memory after it, is left to the agent. It runs in one thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pageferry.cpus.apart import finish_apart
from pageferry.cpus.changes import Changing, JobChange, moved, repair, survey, union
from pageferry.cpus.groups import JobGroup, job_groups, written
from pageferry.cpus.pins import Pins, read_pins, set_pins
from pageferry.cpus.record import Applied, load, save
from pageferry.cpus.recovery import recover
from pageferry.errors import PageferryError, UsageError
from pageferry.kernel.cgroup import pids
from pageferry.kernel.files import read_bytes
from pageferry.kernel.lists import format_list, parse_list
from pageferry.kernel.private_cpuset import remove_empty_groups
from pageferry.kernel.topology import read_topology
from pageferry.schedulers.slurm_cgroups import slurm_jobs
from pageferry_planner.cpu_permutation import CpuPermutation, choose

RUN = Path("/run/pageferry")


class Assignments:
    """The CPU permutation of this host, and all that follows from it. `restore` comes first.

    Methods that write raise KernelError or Denied for what the kernel refuses; everything is as before then.
    """

    def __init__(self, folder: Path = RUN, root: Path = Path("/")) -> None:
        self._folder = folder
        self._root = root
        self._state, self._complaint = load(folder, root)
        self._waiting: set[int] = set()
        self._pins: dict[Path, Pins] = {}

    def seen(self, job: int) -> frozenset[int]:
        """Look at a job: it, or a step of it, appeared, or one of its cpusets changed, or all of it is gone.

        Return the job if its real CPUs are others than before, so that its memory can follow.
        """
        return self._look(job, remember=True)

    def settle(self) -> bool:
        """Look again at steps that were being launched; say whether any still are: then call again some ms later.

        One that cannot be looked at keeps no other from its turn. Raises the last such error, at the end.
        """
        failed: PageferryError | None = None
        for job in sorted(self._waiting):
            try:
                self._look(job, remember=False)
            except PageferryError as error:
                failed = error
        if failed is not None:
            raise failed
        return bool(self._waiting)

    def gone(self, job: int) -> None:
        """Forget a job; with the last one the permutation is forgotten."""
        self._waiting.discard(job)
        remove_empty_groups(self._root)
        groups = self._state.jobs.pop(job, None)
        if groups is None:
            return
        for path in groups:
            self._pins.pop(path, None)
        if not any(self._state.jobs.values()):
            self._state.permutation = CpuPermutation()
        self._save()

    def move(self, job: int, cpus: Collection[int]) -> tuple[int, ...]:
        """Give a job these real CPUs; what was on them goes where the job was.

        Return all jobs that have other CPUs now, this one first. Raises UsageError for a job that is not here or not
        confined to CPUs, CPUs that are not there, and another number of them than the job has.
        """
        self._look_at_unknown()
        now, wanted = self.cpus(job), frozenset(cpus)
        if beyond := wanted - self._available(job):
            raise UsageError(f"CPUs that Slurm's jobs cannot have on this host: {format_list(beyond)}")
        if len(wanted) != len(now):
            text = format_list(wanted) or "none"
            raise UsageError(
                f"job {job} has {len(now)} CPUs on this host ({format_list(now)}), not {len(wanted)}: {text}"
            )
        before = self._state.permutation
        after = before.swapped(self._by_node(now), self._by_node(wanted))
        changed = [
            other
            for other in self._state.jobs
            if any(before[cpu] != after[cpu] for cpu in self._slurm_cpus(other))
        ]  # fmt: skip
        changed.sort(key=lambda other: (other != job, other))
        if changed:
            self._apply(changed, after)
        return tuple(changed)

    def give_back(self) -> tuple[int, ...]:
        """Put every job back on the CPUs that Slurm gave it, and return those that were elsewhere.

        For when no agent is to follow, which would keep newcomers apart from them. Their memory stays where it is.
        """
        turned = self._state.permutation.differs.keys()
        away = tuple(job for job in sorted(self._state.jobs) if self._slurm_cpus(job) & turned)
        self._apply(away, CpuPermutation())
        return away

    def choose(self, job: int, nodes: Collection[int]) -> frozenset[int]:
        """Return the CPUs on these nodes that a job should be moved to. Raises UsageError if they have too few."""
        self._look_at_unknown()
        slurm, available = self.slurm_cpus(job), self._available(job)
        by_node = {node.number: node.cpus & available for node in read_topology(self._root).nodes}
        owned = (self._slurm_cpus(other) for other in self._state.jobs if other != job)
        try:
            return choose(self._state.permutation, slurm, nodes, by_node, frozenset().union(*owned))
        except ValueError as error:
            raise UsageError(f"no CPUs for job {job} on nodes {format_list(nodes) or '(none)'}: {error}") from error

    def cpus(self, job: int) -> frozenset[int]:
        """Return the real CPUs of a job. Raises UsageError as `slurm_cpus`."""
        return self._state.permutation.image(self.slurm_cpus(job))

    def slurm_cpus(self, job: int) -> frozenset[int]:
        """Return the CPUs that Slurm gave a job. Raises UsageError if it is not here, or not confined to CPUs."""
        cpus = self._slurm_cpus(job)
        if cpus:
            return cpus
        if job_groups(job, self._root):
            raise UsageError(f"job {job} is not confined to CPUs: ConstrainCores=yes in cgroup.conf is needed")
        raise UsageError(f"no such job on this host: {job}")

    def view(self) -> dict[str, Any]:
        """Return the permutation and, for each job, its CPUs as Slurm has them and as they are, as plain data."""
        jobs = {
            str(job): {
                "slurm": format_list(self._slurm_cpus(job)),
                "real": format_list(self._state.permutation.image(self._slurm_cpus(job))),
                "launching": job in self._waiting,
            }
            for job in sorted(self._state.jobs)
            if self._slurm_cpus(job)
        }
        return {"map": self._state.permutation.as_plain(), "jobs": jobs}

    def restore(self) -> tuple[str, ...]:
        """Complete what was begun, look at all jobs that are here, forget the others; return what there is to say.

        If the record cannot be used, it is made again from what the job's groups say, as far as they do.
        """
        said = [self._complaint] if self._complaint else []
        here = slurm_jobs(self._root)
        if not self._state.jobs:
            found = {job: job_groups(job, self._root) for job in here}
            self._state, more = recover(found)
            said += more
        for job in [job for job in self._state.jobs if job not in here]:
            self.gone(job)
        self._finish()
        for job in here:
            try:
                self._look(job, remember=True)
            except PageferryError as error:
                said.append(f"job {job}: {error}")
        remove_empty_groups(self._root)
        self._save()
        return tuple(said)

    def _look(self, job: int, remember: bool) -> frozenset[int]:
        groups = job_groups(job, self._root)
        if not groups:
            self.gone(job)
            return frozenset()
        before = self._state.permutation.image(self._slurm_cpus(job)) or frozenset().union(
            *(written(group.path) for group in groups)
        )
        changes = self._apply([job], self._state.permutation, {job: groups})
        known = self._state.jobs.get(job, {})
        self._pins = {path: one for path, one in self._pins.items() if path in known or not _of(path, groups)}
        if remember:
            for change in changes:
                self._remember(change, known)
        after = self._state.permutation.image(self._slurm_cpus(job))
        return frozenset({job}) if after != before else frozenset()

    def _look_at_unknown(self) -> None:
        for job in slurm_jobs(self._root):
            if not self._slurm_cpus(job):
                self._look(job, remember=True)

    def _apply(
        self, jobs: Iterable[int], permutation: CpuPermutation, groups: dict[int, tuple[JobGroup, ...]] | None = None
    ) -> tuple[JobChange, ...]:
        """Bring jobs in line with a permutation, which is the host's afterwards; all is as before on failure."""
        state, waiting = self._state.copy(), set(self._waiting)
        changes: list[JobChange] = []
        new = state.copy()
        new.permutation = permutation
        concerned = frozenset(jobs)
        for job in sorted(concerned):
            found = groups[job] if groups else job_groups(job, self._root)
            ours = [
                change for group in found if (change := survey(group, state.jobs.get(job, {}), permutation, self._root))
            ]
            here = {step.path for change in ours for step in change.group.steps}
            kept = {path: one for path, one in state.jobs.get(job, {}).items() if path in here}
            done = [(change.group.path, change.applied) for change in ours]
            done += [(step.step.path, step.applied) for change in ours for step in change.steps]
            if ours or job in new.jobs:
                new.jobs[job] = kept | dict(done)
            (waiting.add if any(change.waiting for change in ours) else waiting.discard)(job)
            changes += ours
        changing = Changing(tuple(changes))
        new.pins = changing.pins()
        if new != state:
            self._state = new
        try:
            if new != state:
                self._save()
            changing.carry_out()
        except PageferryError:
            changing.undo()
            self._state = state
            with suppress(PageferryError):
                self._save()
            raise
        self._waiting = waiting
        self._pins.update({step.step.path: step.pins for change in changes for step in change.steps})
        for change in changes:
            if change.group.path in changing.reset:
                self._repair(change, new.jobs)
        if new != state:
            self._state.pins = {}
            self._state.jobs = {job: _done(groups) if job in concerned else groups for job, groups in new.jobs.items()}
            self._save()
        if any(change.group.apart for change in changes):
            remove_empty_groups(self._root)  # of steps that are back, or have ended
        return tuple(changes)

    def _remember(self, change: JobChange, known: Mapping[Path, Applied]) -> None:
        """Read the pins that Slurm's next write to the job's group will undo."""
        for step in change.standing:
            if step.path in known and moved([known[step.path]]):
                now = read_pins(step.pids())
                # What was written shows before the pins are undone, so these are the threads' own.
                if union(change.applied) <= written(change.group.path):
                    self._pins[step.path] = now

    def _repair(self, change: JobChange, jobs: Mapping[int, Mapping[Path, Applied]]) -> None:
        for step in change.group.steps:
            for groups in jobs.values():
                if step.path in groups and moved([groups[step.path]]):
                    repair(step, groups[step.path], self._pins.get(step.path, {}))

    def _finish(self) -> None:
        """Tell what the last agent had written from what it had only begun: the next look does the latter."""
        for job, groups in self._state.jobs.items():
            steps = {step.path: step for group in job_groups(job, self._root) for step in group.steps}
            for path, one in groups.items():
                if one.was is None or _is_job(path, job):
                    continue
                if path in steps and (ours := steps[path].ours) is not None:
                    groups[path], inside = finish_apart(steps[path], ours, one)
                else:
                    begun = set(one.was) != set(one.real) and written(path) == frozenset(one.was)
                    groups[path] = replace(one, real=one.was if begun else one.real, was=None)
                    inside = frozenset() if begun else pids(path, self._root)
                set_pins({pid: threads for pid, threads in self._state.pins.items() if pid in inside})
        self._state.pins = {}

    def _slurm_cpus(self, job: int) -> frozenset[int]:
        groups = self._state.jobs.get(job, {})
        return frozenset(cpu for path, one in groups.items() if _is_job(path, job) for cpu in one.slurm)

    def _available(self, job: int) -> frozenset[int]:
        """Return the CPUs that are online and that the groups around the job have."""
        available = parse_list(read_bytes(self._root / "sys/devices/system/cpu/online"))
        for group in job_groups(job, self._root):
            available &= group.allowed()
        return available

    def _by_node(self, cpus: Iterable[int]) -> list[int]:
        """Return CPUs by node: a move must not tear a thread from the memory that follows it node by node."""
        node_of = {cpu: node.number for node in read_topology(self._root).nodes for cpu in node.cpus}
        return sorted(cpus, key=lambda cpu: (node_of.get(cpu, -1), cpu))

    def _save(self) -> None:
        save(self._folder, self._state, self._root)


def _is_job(path: Path, job: int) -> bool:
    return path.name == f"job_{job}"


def _of(path: Path, groups: Iterable[JobGroup]) -> bool:
    return any(path.is_relative_to(group.path) for group in groups)


def _done(groups: dict[Path, Applied]) -> dict[Path, Applied]:
    return {path: replace(one, was=None) for path, one in groups.items()}
