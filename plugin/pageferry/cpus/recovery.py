"""Makes the CPU map again from what the cgroups of moved jobs say, for when its record is lost.

A moved job's own group holds Slurm's CPUs and the real ones; its batch or extern step, which Slurm always gives all of
the job's CPUs, the real ones alone. Where the two overlap that does not tell which are which: such a job is named.
On version 1 Slurm's groups hold Slurm's CPUs, and our own the real ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pageferry.cpus.groups import JobGroup, StepGroup, written
from pageferry.cpus.record import Applied, CpuMap
from pageferry_planner.cpu_permutation import CpuPermutation


def recover(jobs: Mapping[int, tuple[JobGroup, ...]]) -> tuple[CpuMap, list[str]]:
    """Return a map in which the jobs are where they are, and what there is to say of it, a line for each job.

    That the i-th CPU is the i-th is a guess, which is right unless the job was itself displaced piecemeal.
    """
    state, said = CpuMap(), []
    real_of: dict[int, int] = {}
    for job, groups in jobs.items():
        for group in groups:
            stands = written(group.path)
            wholes = [written(step.ours or step.path) for step in group.steps if _has_all(step, group)]
            real = next((cpus for cpus in wholes if cpus), stands)
            slurm = stands if group.apart else stands - real
            if real == stands:
                continue
            place = dict(zip(sorted(slurm), sorted(real), strict=False))
            known = all(real_of.get(cpu, to) == to for cpu, to in place.items())
            fresh = not {to for cpu, to in place.items() if cpu not in real_of} & {*real_of.values()}
            if len(slurm) != len(real) or not known or not fresh:
                said.append(f"job {job}: its cgroups do not tell which CPUs Slurm gave it; it stays where it is")
                continue
            real_of |= place
            state.jobs[job] = state.jobs.get(job, {}) | _records(group, place)
            said.append(f"job {job}: found moved, by its cgroups")
    lost = sorted({*real_of.values()} - real_of.keys())
    left = sorted(real_of.keys() - {*real_of.values()})
    state.permutation = CpuPermutation(real_of | dict(zip(lost, left, strict=True)))
    return state, said


def _has_all(step: StepGroup, group: JobGroup) -> bool:
    if group.apart:
        return written(step.path) == written(group.path)
    return not {"step_batch", "step_extern"}.isdisjoint(step.path.parts[-2:])


def _records(group: JobGroup, place: Mapping[int, int]) -> dict[Path, Applied]:
    """Return what must have been applied: to steps, what they have of the real CPUs."""
    back = {to: cpu for cpu, to in place.items()}
    records = {}
    steps = [(step.path, written(step.ours or step.path)) for step in group.steps]
    for path, cpus in [(group.path, back.keys()), *steps]:
        if cpus and cpus <= back.keys():
            slurm = tuple(sorted(back[cpu] for cpu in cpus))
            with suppress(OSError):
                records[path] = Applied(path.stat().st_ino, slurm, tuple(place[cpu] for cpu in slurm))
    return records
