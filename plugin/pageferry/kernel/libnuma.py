"""The system-call boundary of page migration: libnuma's move_pages(2) and migrate_pages(2), declared once.

It knows no policy: it passes vectors, and raises OSError where the
kernel says no. Both calls release the interpreter's lock, so worker threads run side by side.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from functools import cache

import numpy as np
import numpy.typing as npt

from pageferry.errors import KernelError

MPOL_MF_MOVE = 2
MPOL_MF_MOVE_ALL = 4
"""Also pages that several processes map; needs CAP_SYS_NICE."""

NOT_TOLD = -1000
"""Status that the kernel did not write: it stopped before it came to this page (sentinel, not an errno)."""

_MAX_NODES = 1024

Addresses = npt.NDArray[np.uint64]
Nodes = npt.NDArray[np.int32]


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libnuma.so.1", use_errno=True)
    except OSError as error:
        raise KernelError("libnuma.so.1 is not installed (Debian: libnuma1, RHEL: numactl-libs)") from error
    library.move_pages.argtypes = [
        ctypes.c_int,
        ctypes.c_ulong,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_int,
    ]
    library.move_pages.restype = ctypes.c_long
    library.migrate_pages.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_void_p]
    library.migrate_pages.restype = ctypes.c_long
    return library


def require() -> None:
    """Raise KernelError, with what to install, if libnuma cannot be loaded."""
    _library()


def move_pages(pid: int, addresses: Addresses, nodes: Nodes, flags: int) -> tuple[int, Nodes]:
    """Ask the kernel to move pages of a process; return how many it did not migrate, and a status for each.

    `addresses` and `nodes`: vectors of one length, uint64 and int32. Status: the node the page is on, or a negative
    errno, or NOT_TOLD: since Linux 4.17 the call stops at the first batch with a failure, and counts the pages that it
    did not come to among those not migrated. Raises OSError: ESRCH no such process, EPERM, ENOMEM, EACCES (target
    outside the process's cpuset). move_pages(2), kernel mm/migrate.c do_pages_move().
    """
    status = np.full(len(addresses), NOT_TOLD, np.int32)
    nodes = np.ascontiguousarray(nodes, np.int32)
    return _move_pages(pid, addresses, nodes.ctypes.data, status, flags), status


def query_pages(pid: int, addresses: Addresses) -> Nodes:
    """Return, for each address, the node its page is on, or a negative errno (-ENOENT: not present).

    Moves and faults in nothing. Raises OSError as move_pages().
    """
    status = np.full(len(addresses), NOT_TOLD, np.int32)
    _move_pages(pid, addresses, None, status, 0)
    return status


def _move_pages(pid: int, addresses: Addresses, nodes: int | None, status: Nodes, flags: int) -> int:
    addresses = np.ascontiguousarray(addresses, np.uint64)
    result: int = _library().move_pages(pid, len(addresses), addresses.ctypes.data, nodes, status.ctypes.data, flags)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def migrate_pages(pid: int, sources: Iterable[int], targets: Iterable[int]) -> int:
    """Ask the kernel to move all of a process's pages from the source nodes to the target nodes, by its own map.

    Returns the number of pages that it could not move. pageferry itself never moves this way: it is here as the
    measure of the relative map. migrate_pages(2).
    """
    result: int = _library().migrate_pages(pid, _MAX_NODES, _node_mask(sources), _node_mask(targets))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def _node_mask(nodes: Iterable[int]) -> ctypes.Array[ctypes.c_uint64]:
    mask = (ctypes.c_uint64 * (_MAX_NODES // 64))()
    for node in nodes:
        mask[node // 64] |= 1 << (node % 64)
    return mask
