"""From the permutation and what stands in a job's groups to what must be written there, and the writing of it.

What is to be remembered between two calls, and when to look at which job, is left to the assignments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from pageferry.cpus.apart import carry_out_apart, survey_apart
from pageferry.cpus.groups import JobGroup, StepGroup, Writer, written
from pageferry.cpus.pins import Pins, launched, mapped, read_pins, set_pins, set_pins_of_all
from pageferry.cpus.record import Applied
from pageferry.cpus.steps import StepChange, inode_of, of_this_group
from pageferry.errors import KernelError
from pageferry.kernel.lists import format_list
from pageferry.kernel.private_cpuset import remove_empty_groups
from pageferry_planner.cpu_permutation import CpuPermutation


@dataclass(frozen=True, slots=True)
class JobChange:
    """What must become of one job group and its steps.

    `reset`: Slurm wrote its own set over ours, and with it the pins of steps that run were lost. `waiting`: a step has
    a launcher that would fail if it were narrowed now. `standing`: steps that are as they should be, and whose pins a
    write of Slurm's can undo.
    """

    group: JobGroup
    applied: Applied
    reset: bool
    steps: tuple[StepChange, ...]
    standing: tuple[StepGroup, ...]
    waiting: bool


def survey(
    group: JobGroup, known: Mapping[Path, Applied], permutation: CpuPermutation, root: Path = Path("/")
) -> JobChange | None:
    """Return what must change for a job to be where the permutation has it; None if Slurm did not confine it (yet).

    Raises Denied and KernelError.
    """
    stands = written(group.path)
    if not stands or (inode := inode_of(group.path)) is None:
        return None
    last = of_this_group(known.get(group.path), inode)
    if group.apart:
        ours = last if last is not None and stands == frozenset(last.slurm) else None
    else:
        ours = last if last is not None and stands in _stages(last) else None
    slurm = ours.slurm if ours is not None else tuple(sorted(stands))
    steps: list[StepChange] = []
    standing: list[StepGroup] = []
    waiting = False
    for step in group.steps:
        if step.ours is not None:
            change, waits = survey_apart(step, step.ours, slurm, known.get(step.path), permutation)
            steps += [change] if change is not None else []
            waiting |= waits
            continue
        change = _survey_step(step, slurm, known.get(step.path), permutation)
        if change is None:
            standing.append(step)
        elif change.applied.was == change.applied.slurm and not launched(step.pids(), step.daemons(), root):
            waiting = True
        else:
            pins = read_pins(step.pids())
            was = change.applied.was or ()
            steps.append(
                replace(change, before=pins, pins=mapped(pins, dict(zip(was, change.applied.real, strict=True))))
            )
    before = ours.real if ours is not None else slurm
    real = tuple(permutation[cpu] for cpu in slurm)
    applied = Applied(inode, slurm, real, before if before != real else None)
    reset = last is not None and ours is None and not group.apart
    return JobChange(group, applied, reset, tuple(steps), tuple(standing), waiting)


def union(applied: Applied) -> frozenset[int]:
    """Return what the job level holds: Slurm's CPUs, which a launcher asks for, and the real ones."""
    return frozenset(applied.slurm).union(applied.real, applied.was or ())


@dataclass(slots=True)
class Changing:
    """Carries changes out; `undo` takes them back.

    `reset`: the job groups that Slurm wrote meanwhile, or before: writing them again does not bring pins back.
    """

    changes: tuple[JobChange, ...]
    reset: set[Path] = field(default_factory=set)
    _writer: Writer = field(default_factory=Writer)

    def pins(self) -> Pins:
        """Return what pins will be set."""
        return {pid: threads for step in self._steps() for pid, threads in step.pins.items()}

    def carry_out(self) -> None:
        """Write all cpusets and set all pins. Raises Denied and KernelError; then `undo` is due."""
        within = [change for change in self.changes if not change.group.apart]
        for change in within:
            wide = union(change.applied)
            stood = self._writer.widen(change.group.path, wide)
            if change.reset or (change.applied.was is None and not wide <= stood):
                self.reset.add(change.group.path)
        for change in self.changes:
            self._carry_out_steps(change)
        for change in within:
            stood = self._writer.write(change.group.path, union(replace(change.applied, was=None)))
            if not union(change.applied) <= stood:
                self.reset.add(change.group.path)

    def undo(self) -> None:
        """Bring cpusets and pins back to what they were."""
        self._writer.undo()
        for step in self._steps():
            with suppress(KernelError):
                set_pins(step.before)
        remove_empty_groups()

    def _carry_out_steps(self, change: JobChange) -> None:
        places: list[Callable[[], frozenset[int]]] = []
        for step in change.steps:
            if step.step.ours is not None:
                places.append(carry_out_apart(step, step.step.ours, self._writer))
            else:
                self._writer.write(step.step.path, step.applied.real)
                places.append(step.step.pids)
        for step, pids in zip(change.steps, places, strict=True):
            here = pids()  # a process that is ending may not have come along
            refused = set_pins_of_all(pids, {pid: threads for pid, threads in step.pins.items() if pid in here})
            # Slurm may have written the job's group again just now: then the next look sets them.
            if refused and (change.group.apart or union(change.applied) <= written(change.group.path)):
                cpus = format_list(step.applied.real)
                raise KernelError(f"{step.step.path}: CPUs {cpus} cannot be set: Invalid argument")

    def _steps(self) -> Iterator[StepChange]:
        return (step for change in self.changes for step in change.steps)


def repair(step: StepGroup, applied: Applied, remembered: Pins) -> None:
    """Pin those threads again that the kernel gave all CPUs of their step when Slurm wrote the job's group."""
    everywhere = frozenset(applied.real)
    now = read_pins(step.pids())
    lost = {
        pid: {
            thread: cpus
            for thread, cpus in threads.items()
            if cpus < everywhere and now.get(pid, {}).get(thread) == everywhere
        }
        for pid, threads in remembered.items()
    }
    set_pins(lost)


def moved(applied: Iterable[Applied]) -> bool:
    """Say whether any of these is elsewhere than Slurm has it."""
    return any(one.slurm != one.real for one in applied)


def _survey_step(
    step: StepGroup, slurm_job: tuple[int, ...], last: Applied | None, permutation: CpuPermutation
) -> StepChange | None:
    """Return where a step must go, from where it is (`was`), without its pins; None if it is there."""
    inode = inode_of(step.path)
    if inode is None:
        return None
    stands = written(step.path)
    last = of_this_group(last, inode)
    if last is not None and stands == frozenset(last.real):
        slurm, was = last.slurm, last.real
    else:
        slurm = was = tuple(sorted(stands)) or slurm_job
    real = tuple(permutation[cpu] for cpu in slurm)
    return None if real == was else StepChange(step, Applied(inode, slurm, real, was), {}, {})


def _stages(applied: Applied) -> set[frozenset[int]]:
    """Return all that the job level can hold while a change is carried out, and when an agent ended meanwhile."""
    slurm = frozenset(applied.slurm)
    return {slurm.union(applied.real), slurm.union(applied.was or applied.real), union(applied)}
