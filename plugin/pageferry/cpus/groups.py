"""The groups of a Slurm job whose cpusets decide where it runs, and writing them so that it can be undone.

What is to be written there is left to the assignments. Version 2: job_N is what Slurm writes for each new step,
step_X/user is what holds. Version 1: step_X holds, slurmstepd is in it too, and all stays as Slurm wrote it: the kernel
would refuse Slurm's next write of job_N if a step had other CPUs. So tasks are moved to a group of our own.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from pageferry.errors import PageferryError, Vanished
from pageferry.kernel.cgroup import children, own_pids, pids, read_cpuset, read_hierarchies, read_written
from pageferry.kernel.files import write_text
from pageferry.kernel.lists import format_list
from pageferry.kernel.private_cpuset import group_path
from pageferry.schedulers.slurm_cgroups import slurm_job_cgroups


@dataclass(frozen=True, slots=True)
class StepGroup:
    """A step: the group with its user's processes, the one where its slurmstepd is, and on version 1 our own for it."""

    path: Path
    daemon: Path
    root: Path
    ours: Path | None = None

    def pids(self) -> frozenset[int]:
        """Return the user's processes, launchers that have yet to become them included."""
        return self.inside() | self.moved()

    def inside(self) -> frozenset[int]:
        """Return those of them that are where Slurm put them."""
        return pids(self.path, self.root) - self.daemons()

    def moved(self) -> frozenset[int]:
        """Return those of them that are in our own group."""
        return own_pids(self.ours, self.root) if self.ours is not None else frozenset()

    def daemons(self) -> frozenset[int]:
        """Return the slurmstepds of the step; on version 1, of the job."""
        return own_pids(self.daemon, self.root)


@dataclass(frozen=True, slots=True)
class JobGroup:
    """A job, as one slurmd made it: its own group, the one around all jobs, and its steps.

    `apart`: nothing of it may be written, its tasks get other CPUs in groups of our own.
    """

    path: Path
    around: Path
    steps: tuple[StepGroup, ...]
    apart: bool

    def allowed(self) -> frozenset[int]:
        """Return the CPUs that the group around Slurm's jobs has; none if it is gone."""
        with suppress(Vanished):
            around = read_cpuset(self.around)
            return around.effective_cpus if around is not None else frozenset()
        return frozenset()


def job_groups(job: int, root: Path = Path("/")) -> tuple[JobGroup, ...]:
    """Return a job's groups with cpusets: one for each slurmd that made one, none if the job is not here."""
    hierarchies = read_hierarchies(root)
    cpuset, freezer = hierarchies.legacy.get("cpuset"), hierarchies.legacy.get("freezer")
    found = []
    for group in slurm_job_cgroups(job, root):
        steps = [step for step in children(group) if step.name.startswith("step_")]
        if hierarchies.unified is not None and group.is_relative_to(hierarchies.unified):
            inner = tuple(StepGroup(step / "user", step / "slurm", root) for step in steps if (step / "user").is_dir())
            found.append(JobGroup(group, group.parent, inner, apart=False))
        elif cpuset is not None and group.is_relative_to(cpuset):
            daemons = (freezer or cpuset) / group.relative_to(cpuset)
            inner = tuple(StepGroup(step, daemons, root, group_path(cpuset, step)) for step in steps)
            found.append(JobGroup(group, group.parent.parent, inner, apart=True))
    return tuple(found)


def written(group: Path) -> frozenset[int]:
    """Return what was written to a group's cpuset.cpus, as `cgroup.read_written` does."""
    return read_written(group / "cpuset.cpus")


@dataclass(slots=True)
class Writer:
    """Writes cpusets, only where something changes, and moves processes; it can take all of it back."""

    _before: list[tuple[Path, str]] = field(default_factory=list)
    """What to write to which file, to be where we were."""

    def write(self, group: Path, cpus: Iterable[int]) -> frozenset[int]:
        """Make `cpus` the CPUs of a group, and return those before; one that is gone is no hindrance.

        Raises Denied and KernelError.
        """
        before, wanted = written(group), frozenset(cpus)
        if before == wanted:
            return before
        with suppress(Vanished):
            write_text(group / "cpuset.cpus", format_list(wanted))
            self._before.append((group / "cpuset.cpus", format_list(before) or "\n"))
        return before

    def widen(self, group: Path, cpus: Iterable[int]) -> frozenset[int]:
        """Add CPUs to a group's own, and return those before."""
        return self.write(group, written(group) | frozenset(cpus))

    def enter(self, group: Path, pids: Iterable[int], left: Path) -> None:
        """Move processes to a group; `left` is where they were. One that has ended is no hindrance.

        Raises Denied and KernelError.
        """
        for pid in pids:
            with suppress(Vanished):
                write_text(group / "cgroup.procs", str(pid))
                self._before.append((left / "cgroup.procs", str(pid)))

    def undo(self) -> None:
        """Write back what was there, last things first; what the kernel refuses then is left."""
        for path, text in reversed(self._before):
            with suppress(PageferryError):
                write_text(path, text)
        self._before.clear()
