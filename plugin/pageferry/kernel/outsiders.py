"""Who outside the job maps what the job maps: the reference count of the 2005 proposal, at whole files.

pageferry's own process does not count: it is a passing visitor.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

from pageferry.errors import Denied, Vanished
from pageferry.kernel import objects
from pageferry.kernel.procfs import ipc_namespace, list_pids, living_thread, read_maps
from pageferry_planner.model import Backing

_SYSV = b"/SYSV"


def mapped_outside(
    backings: Collection[Backing], job: Collection[int], root: Path = Path("/")
) -> Mapping[Backing, tuple[int, ...]]:
    """Return, for each of the backings that a process outside the job maps, the pids of those processes, ascending.

    Processes that we may not read are passed over: without CAP_SYS_PTRACE that is most of the host.
    """
    wanted: dict[tuple[bytes, bytes], list[Backing]] = {}
    for backing in backings:
        wanted.setdefault((backing.device.encode(), b"%d" % backing.inode), []).append(backing)
    found: dict[Backing, list[int]] = {}
    for pid in sorted(list_pids(root) - set(job) - {os.getpid()}):
        with suppress(Vanished, Denied):
            for backing in _mapped_by(pid, wanted, root):
                found.setdefault(backing, []).append(pid)
    return {backing: tuple(pids) for backing, pids in found.items()}


def _mapped_by(pid: int, wanted: Mapping[tuple[bytes, bytes], list[Backing]], root: Path) -> set[Backing]:
    mapped: set[Backing] = set()
    namespace = ""
    for line in read_maps(pid, root).split(b"\n")[:-1]:  # a name may hold any other line end
        fields = line.split(None, 5)
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
    start, end = (int(address, 16) for address in addresses.split(b"-"))
    if like.space.startswith("handle:"):
        return objects.handle(objects.path_of(living_thread(pid, root), start, end, root))
    return objects.identity(objects.status(objects.path_of(living_thread(pid, root), start, end, root)))


def _text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")
