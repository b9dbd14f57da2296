"""The rules: which backings may move, and which rule said so.

A file that the rest of the host uses stays where it is (the reference count of the 2005 proposal), and so does what the
site names, in a list or on the file itself. The rules are asked in one order; the first that has an opinion decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pageferry_planner.model import Backing, Verdict

STAY, MOVE = "stay", "move"

OUTSIDE = Backing("", 0, "outside", "[mapped outside the job, too]")
"""In the place of a backing: memory of the job's processes that processes outside map as well, since they were forked
from one another or the kernel merged equal pages (KSM). The reference count says so of each page."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The site's rules. `stay`: globs of paths that never move; `reference_count` and `xattrs`: whether to ask them.

    `filesystems`: globs of types and mount points of file systems whose files are not touched, whatever else is said.
    """

    stay: tuple[str, ...] = ()
    reference_count: bool = True
    xattrs: bool = True
    filesystems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found out about one backing.

    `external_pids`: processes outside the job that map it. `silent_pids`: those that may, but did not answer when they
    were asked what they map. `xattr_trusted`, `xattr_user`: the values of
    `trusted.pageferry` and `user.pageferry`, "" where not set. `filesystem`: type or mount point by which the rules
    leave its file system alone, "" if they do not.
    """

    external_pids: tuple[int, ...] = ()
    xattr_trusted: str = ""
    xattr_user: str = ""
    filesystem: str = ""
    silent_pids: tuple[int, ...] = ()


def left_alone(names: Iterable[str], rules: Rules) -> str:
    """Return the first of a file system's names (its type, its mount points) that the rules leave alone, else ""."""
    return next((name for name in names if any(fnmatchcase(name, glob) for glob in rules.filesystems)), "")


def decide(backing: Backing, facts: Facts, rules: Rules) -> Verdict:
    """Return the verdict of the first rule that has one.

    They are asked in this order: file system, trusted xattr, site's list, user xattr, reference count.
    """
    return next(_opinions(backing, facts, rules))


def _opinions(backing: Backing, facts: Facts, rules: Rules) -> Iterator[Verdict]:
    if facts.filesystem:
        yield Verdict(False, "filesystem", facts.filesystem)
    if rules.xattrs and facts.xattr_trusted in (STAY, MOVE):
        yield Verdict(facts.xattr_trusted == MOVE, "xattr", f"trusted.pageferry={facts.xattr_trusted}")
    path = backing.path.removesuffix(" (deleted)")
    for glob in rules.stay:
        if fnmatchcase(path, glob):
            yield Verdict(False, "library-list", glob)
    if rules.xattrs and facts.xattr_user == STAY:
        yield Verdict(False, "xattr", "user.pageferry=stay")
    if rules.reference_count and (facts.external_pids or facts.silent_pids):
        yield Verdict(False, "reference-count", _outside(facts))
    if rules.reference_count and backing == OUTSIDE:
        yield Verdict(False, "reference-count", "forked or merged, and mapped outside the job")
    yield Verdict(True, "job-only")


def _outside(facts: Facts) -> str:
    pids = facts.external_pids or facts.silent_pids
    named = f"pid {pids[0]}" + (f" and {len(pids) - 1} more" if len(pids) > 1 else "")
    if facts.external_pids:
        return f"{named} outside the job"
    return f"{named} {'does' if len(pids) == 1 else 'do'} not answer"
