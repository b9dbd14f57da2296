"""Tells which capabilities we have, and for an operator what does not work without those we lack.

Whether to go on without is left to the caller. Source: the man page capabilities(7).
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from pageferry.errors import KernelError
from pageferry.kernel.files import read_bytes

_NUMBERS = {
    "CAP_DAC_OVERRIDE": 1,
    "CAP_DAC_READ_SEARCH": 2,
    "CAP_FOWNER": 3,
    "CAP_KILL": 5,
    "CAP_IPC_OWNER": 15,
    "CAP_SYS_PTRACE": 19,
    "CAP_SYS_ADMIN": 21,
    "CAP_SYS_NICE": 23,
    "CAP_SYS_RESOURCE": 24,
    "CAP_CHECKPOINT_RESTORE": 40,
}
_EFFECTIVE = re.compile(rb"^CapEff:\t([0-9a-f]{16})$", re.MULTILINE)
_WHOLE_HOST = [b"0", b"0", b"4294967295"]


@dataclass(frozen=True, slots=True)
class Gap:
    """A capability that we lack: `lost` says what does not work without it, `kept` what still does."""

    capability: str
    lost: str
    kept: str


_GAPS = (
    Gap(
        "CAP_SYS_NICE",
        lost="pages that several processes map are not moved: the kernel refuses MPOL_MF_MOVE_ALL",
        kept="pages that one process alone maps are moved",
    ),
    Gap(
        "CAP_SYS_PTRACE",
        lost="processes of other users cannot be read or moved",
        kept="processes of our own user are read and moved",
    ),
    Gap(
        "CAP_SYS_ADMIN",
        lost="pagemap shows no page frame numbers: copy-on-write pages that parent and child share cannot be "
        "recognised as one page, and each is requested once for every process that maps it",
        kept="nodes are asked for with move_pages queries, which are slower; pages of one process and of files are "
        "requested once",
    ),
    Gap(
        "CAP_CHECKPOINT_RESTORE",
        lost="shared objects cannot be mapped through /proc/PID/map_files: a resident page that its carrier never "
        "touched needs a second carrier, and one that no process of the job touched stays",
        kept="pages of shared objects are moved through the processes that touched them",
    ),
    Gap(
        "CAP_DAC_READ_SEARCH",
        lost="files that our user may not read cannot be opened, so shared objects with modes that shut us out "
        "cannot be mapped, and the marks on such files (user.pageferry) cannot be read",
        kept="files that our user may read are opened; others are moved through the processes that touched them",
    ),
    Gap(
        "CAP_FOWNER",
        lost="the kernel does not say which pages of other users' files are in memory, so of shared memory that its "
        "owner alone may write, a page that no process of the job has touched stays",
        kept="pages of such files are moved through the processes that touched them",
    ),
)


def effective(root: Path = Path("/")) -> frozenset[str]:
    """Return the names of the capabilities in effect for us, of those that matter here.

    In a user namespace of its own none counts: the kernel asks for most of them in the first one.
    Raises KernelError for a file that cannot be understood.
    """
    path = root / "proc/self/status"
    match = _EFFECTIVE.search(read_bytes(path))
    if match is None:
        raise KernelError(f"{path}: no line for CapEff")
    if read_bytes(root / "proc/self/uid_map").split() != _WHOLE_HOST:
        return frozenset()
    mask = int(match[1], 16)
    return frozenset(name for name, number in _NUMBERS.items() if mask >> number & 1)


def missing(held: AbstractSet[str]) -> tuple[Gap, ...]:
    """Return what does not work with the capabilities `held` (as `effective` gives them), the worst first.

    CAP_SYS_ADMIN stands in for CAP_CHECKPOINT_RESTORE, and CAP_DAC_OVERRIDE for CAP_DAC_READ_SEARCH.
    """
    covered = set(held)
    if "CAP_SYS_ADMIN" in held:
        covered.add("CAP_CHECKPOINT_RESTORE")
    if "CAP_DAC_OVERRIDE" in held:
        covered.add("CAP_DAC_READ_SEARCH")
    return tuple(gap for gap in _GAPS if gap.capability not in covered)
