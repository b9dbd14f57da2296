"""The shape of Slurm's cgroup tree as values: what each level is called, which of its files tell something, and what.

How the levels are found and watched is the watch's matter. Sources: Slurm's src/plugins/cgroup/v2/cgroup_v2.c and
src/plugins/cgroup/v1/cgroup_v1.c.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


class Kind(Enum):
    """What has happened to a job."""

    JOB = "job"
    """A group of the job appeared: one for each slurmd, on version 1 for each hierarchy."""

    STEP = "step"
    """A group that Slurm freezes appeared, `step_X/user` (version 1: `step_X`): look at all of it."""

    TASK = "task"
    """`task_Y` appeared in it, which may have to be held; version 1 has none."""

    FREEZER = "freezer"
    """Slurm wrote a freezer, or on version 2 the group became frozen, thawed, populated or empty."""

    CPUSET = "cpuset"
    """cpuset.cpus or cpuset.mems was written in a group of the job, a step or its user, by Slurm or by us."""

    GONE = "gone"
    """The last group of the job is removed; the job may never have been reported."""

    LOST = "lost"
    """The kernel dropped events: every job is to be looked at. Its job is 0."""


@dataclass(frozen=True, slots=True)
class Level:
    """Groups of one level of Slurm's tree: the event when one appears, its files, and what lies below."""

    appears: Kind | None = None
    files: Mapping[str, Kind] = field(default_factory=dict)
    below: tuple[tuple[str, Level], ...] = ()


_CPUSETS = {"cpuset.cpus": Kind.CPUSET, "cpuset.mems": Kind.CPUSET}
FREEZERS = ("cgroup.freeze", "freezer.state")
"""The files by which Slurm freezes and thaws a step."""

_JOB_NAME = "job_[1-9][0-9]{0,9}"

_TASK = Level(Kind.TASK)
_USER = Level(
    Kind.STEP, {"cgroup.freeze": Kind.FREEZER, "cgroup.events": Kind.FREEZER, **_CPUSETS}, (("task_.*", _TASK),)
)
_STEP = Level(None, _CPUSETS, (("user", _USER),))
_JOB = Level(Kind.JOB, _CPUSETS, (("step_.*", _STEP),))
_SCOPE = Level(below=((_JOB_NAME, _JOB),))
SLICE = Level(below=((".*slurmstepd\\.scope", _SCOPE),))  # and slices, as the watch finds them

_LEGACY_STEP = Level(Kind.STEP, {"freezer.state": Kind.FREEZER, **_CPUSETS})
_LEGACY_JOB = Level(Kind.JOB, _CPUSETS, (("step_.*", _LEGACY_STEP),))
_LEGACY_USER = Level(below=((_JOB_NAME, _LEGACY_JOB),))
_LEGACY_SLURM = Level(below=(("uid_[0-9]{1,10}", _LEGACY_USER),))
LEGACY_MOUNT = Level(below=(("slurm.*", _LEGACY_SLURM),))


def level_below(level: Level, name: str) -> Level | None:
    """Return the level of a group of this name below a group of `level`, or None if it matters to nobody."""
    for pattern, below in level.below:
        if re.fullmatch(pattern, name, re.ASCII | re.DOTALL):
            return below
    return None
