"""What every batch scheduler's module gives the rest: from a job's ID to its processes on this host.

What is done with a job is left to the callers; they know no scheduler by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


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


class Scheduler(Protocol):
    """A batch scheduler."""

    def parse_job_id(self, text: str) -> str:
        """Return a job ID in the scheduler's own spelling; raises UsageError for any other text."""
        ...

    def find(self, job_id: str) -> Job:
        """Return a job that runs on this host; the ID may be hostile text.

        Raises UsageError when there is no such job here, SchedulerError when only the scheduler could tell.
        """
        ...

    def jobs(self) -> tuple[Job, ...]:
        """Return all jobs that run on this host, by ID."""
        ...
