"""Steps whose tasks get other CPUs in a group of our own, as version 1 needs: what must change, and the moving of them.

Slurm's group of a step says what Slurm gave it, and is never written. A task that is in it has those CPUs, and one that
has others is in our group: so where a task is tells what its pins stand for. What is remembered, and when to look,
is left to the assignments.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pageferry.cpus.groups import StepGroup, Writer, written
from pageferry.cpus.pins import launched, mapped, read_pins
from pageferry.cpus.record import Applied
from pageferry.cpus.steps import StepChange, inode_of, of_this_group
from pageferry.errors import Vanished
from pageferry.kernel.private_cpuset import make_group
from pageferry_planner.cpu_permutation import CpuPermutation

_ROUNDS = 8
"""Processes that begin while others are moved are looked for so often; those that still escape, the next look finds."""


def survey_apart(
    step: StepGroup, ours: Path, slurm_job: tuple[int, ...], last: Applied | None, permutation: CpuPermutation
) -> tuple[StepChange | None, bool]:
    """Return what must change for a step's tasks to be where they belong, and whether it waits for a launcher.

    Raises Denied and KernelError.
    """
    inode = inode_of(step.path)
    if inode is None:
        return None, False
    last = of_this_group(last, inode)
    slurm = tuple(sorted(written(step.path))) or slurm_job
    real = tuple(permutation[cpu] for cpu in slurm)
    moved = step.moved()
    was = _real(ours, slurm, last) if moved else slurm
    inside = step.inside() if real != slurm else frozenset()
    waiting = False
    if inside:
        waiting = not launched(inside, step.daemons(), step.root)
    elif real != slurm:
        waiting = not moved and (last is None or last.real == last.slurm)  # or else its tasks have ended
    enter = inside if not waiting else frozenset()
    if not enter and not (moved and (was != real or real == slurm)):
        return None, waiting
    fresh, there = read_pins(enter), read_pins(moved)
    pins = mapped(fresh, dict(zip(slurm, real, strict=True))) | mapped(there, dict(zip(was, real, strict=True)))
    return StepChange(step, Applied(inode, slurm, real, was), fresh | there, pins, enters=bool(enter)), waiting


def carry_out_apart(change: StepChange, ours: Path, writer: Writer) -> Callable[[], frozenset[int]]:
    """Move a step's tasks to where they have their CPUs; return how to find those whose pins are to be set then.

    Raises Denied and KernelError; to undo it is the writer's.
    """
    step = change.step
    if change.applied.real == change.applied.slurm:
        _enter(writer, step.path, step.moved, ours)
        return step.inside
    with suppress(Vanished):  # the step has ended
        make_group(ours, step.path)
        writer.write(ours, change.applied.real)
        if change.enters:
            _enter(writer, ours, step.inside, step.path)
    return step.moved


def finish_apart(step: StepGroup, ours: Path, last: Applied) -> tuple[Applied, frozenset[int]]:
    """Return what had been applied when an agent ended, and the processes that were where they were to go by then."""
    had = Applied(last.inode, last.slurm, last.was or last.real)
    if last.real == last.slurm:
        return (had if step.moved() else Applied(last.inode, last.slurm, last.slurm)), step.inside()
    stands = written(ours)
    if stands == frozenset(last.real):
        return Applied(last.inode, last.slurm, last.real), step.moved()
    return (had if stands else Applied(last.inode, last.slurm, last.slurm)), frozenset()


def _real(ours: Path, slurm: tuple[int, ...], last: Applied | None) -> tuple[int, ...]:
    """Return the real CPUs, one for each of Slurm's, of tasks in our group; without a record the order is a guess."""
    has = written(ours)
    if last is not None and last.slurm == slurm and frozenset(last.real) == has:
        return last.real
    return tuple(sorted(has)) if len(has) == len(slurm) else slurm


def _enter(writer: Writer, group: Path, found: Callable[[], frozenset[int]], left: Path) -> None:
    for _ in range(_ROUNDS):
        pids = found()
        if not pids:
            break
        writer.enter(group, sorted(pids), left)
