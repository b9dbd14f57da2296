"""Who outside the job maps what the job maps: the reference count of the 2005 proposal, at whole files.

pageferry's own process does not count: it is a passing visitor. What a process maps that does not answer, or
whose maps cannot be read, is not known.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pageferry.errors import Denied, KernelError, Vanished
from pageferry.kernel import bounded, objects
from pageferry.kernel.files import shown
from pageferry.kernel.procfs import ipc_namespace, list_pids, living_thread, read_maps
from pageferry_planner.model import Backing

_SYSV = b"/SYSV"


@dataclass(frozen=True, slots=True)
class Outside:
    """For each backing that they map, or may map, processes outside the job, ascending.

    `mapping`: those that map it. `silent`: those that may, but did not answer when they were asked, or with an error.
    """

    mapping: Mapping[Backing, tuple[int, ...]]
    silent: Mapping[Backing, tuple[int, ...]]


def mapped_outside(backings: Collection[Backing], job: Collection[int], root: Path = Path("/")) -> Outside:
    """Return which processes outside the job map the backings; those that do not answer cost a few seconds together.

    Processes that we may not read are passed over: without CAP_SYS_PTRACE that is most of the host.
    """
    wanted: dict[tuple[bytes, bytes], list[Backing]] = {}
    for backing in backings:
        wanted.setdefault((backing.device.encode(), b"%d" % backing.inode), []).append(backing)

    def mapped(pid: int) -> set[Backing] | None:
        try:
            return _mapped_by(pid, wanted, root)
        except (Vanished, Denied):
            return set()
        except KernelError:
            return None

    answers = bounded.each(sorted(list_pids(root) - set(job) - {os.getpid()}), mapped)
    found: dict[Backing, list[int]] = {}
    for pid, theirs in answers.values.items():
        for backing in theirs or ():
            found.setdefault(backing, []).append(pid)
    silent = sorted({*answers.silent, *(pid for pid, theirs in answers.values.items() if theirs is None)})
    return Outside({backing: tuple(pids) for backing, pids in found.items()}, _may_map(backings, silent, root))


def _may_map(backings: Collection[Backing], silent: Collection[int], root: Path) -> dict[Backing, tuple[int, ...]]:
    """Return which silent processes may map a backing: a System V segment only those of its IPC namespace."""
    namespaces = dict.fromkeys(silent, "")
    for pid in silent:
        with suppress(Vanished, KernelError):
            namespaces[pid] = f"sysv:{ipc_namespace(pid, root)}"
    may = {
        backing: tuple(
            pid for pid in silent if not backing.space.startswith("sysv:") or namespaces[pid] in {"", backing.space}
        )
        for backing in backings
    }
    return {backing: pids for backing, pids in may.items() if pids}


def _mapped_by(pid: int, wanted: Mapping[tuple[bytes, bytes], list[Backing]], root: Path) -> set[Backing]:
    mapped: set[Backing] = set()
    namespace = ""
    for line in read_maps(pid, root).split(b"\n")[:-1]:  # a name may hold any other line end
        fields = line.split(None, 5)
        if len(fields) < 5:
            raise KernelError(f"/proc/{pid}/maps: not a mapping: {shown(line)}")
        for backing in wanted.get((fields[3], fields[4]), ()):
            path = fields[5] if len(fields) > 5 else b""
            if path.startswith(_SYSV) != backing.space.startswith("sysv:"):
                continue
            if backing.space.startswith("sysv:"):
                namespace = namespace or f"sysv:{ipc_namespace(living_thread(pid, root), root)}"
                if backing.space != namespace:
                    continue
            elif backing.space and backing.space != (_identity(pid, fields[0], backing, root) or _text(path)):
                continue
            mapped.add(backing)
    return mapped


def _identity(pid: int, addresses: bytes, like: Backing, root: Path) -> str:
    try:
        start, end = (int(address, 16) for address in addresses.split(b"-"))
    except ValueError as error:
        raise KernelError(f"/proc/{pid}/maps: not a mapping: {shown(addresses)}") from error
    if like.space.startswith("handle:"):
        return objects.handle(objects.path_of(living_thread(pid, root), start, end, root))
    return objects.identity(objects.status(objects.path_of(living_thread(pid, root), start, end, root)))


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
