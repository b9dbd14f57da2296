"""What must become of one step: the CPUs that it gets, and the pins of its threads before and after.

How that is found out and carried out is left to `changes`, and for version 1 to `apart`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pageferry.cpus.groups import StepGroup
from pageferry.cpus.pins import Pins
from pageferry.cpus.record import Applied


@dataclass(frozen=True, slots=True)
class StepChange:
    """A step that gets other CPUs: its pins as they are, and as they shall be.

    `enters`: it has tasks that go to a group of our own.
    """

    step: StepGroup
    applied: Applied
    before: Pins
    pins: Pins
    enters: bool = False


def of_this_group(last: Applied | None, inode: int) -> Applied | None:
    """Return what was last applied if it was to this group, and not to an earlier one of its name."""
    return last if last is not None and last.inode == inode else None


def inode_of(group: Path) -> int | None:
    """Return what tells a group from a later one of its name, or None if it is gone."""
    try:
        return group.stat().st_ino
    except OSError:
        return None
