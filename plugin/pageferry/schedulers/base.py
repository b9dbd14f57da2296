"""A batch job on this host, in words that are no scheduler's own: what a command about a job needs to know of it.

How a job is found is left to its scheduler's module, `slurm` as yet. The agent works on Slurm's cgroups by job ID, and
does without.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Job:
    """A batch job as this host sees it, at one moment.

    `id` is the scheduler's own ID of what runs here, the one in the names of the job's cgroups; `cgroups` are all
    its groups on this host, every hierarchy and daemon; `pids` are the user's processes, without the scheduler's.
    `state` (the scheduler's word), `user_id` and `name` (printable) are None where nobody could be asked.
    `holds` are the version 2 groups that may be frozen without the scheduler's noticing. Of the groups with cpusets,
    `cpusets_inner` are those that decide for the user's processes, `cpusets_outer` those that must allow as much.
    """

    id: str
    scheduler: str
    cgroups: tuple[Path, ...]
    pids: frozenset[int]
    state: str | None
    user_id: int | None
    name: str | None
    holds: tuple[Path, ...] = ()
    cpusets_outer: tuple[Path, ...] = ()
    cpusets_inner: tuple[Path, ...] = ()
