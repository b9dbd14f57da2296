"""Which processes share one address space (CLONE_VM, vfork before exec): kcmp(2), which compares without showing.

Each of them shows the same pages in its page tables, which are one process's memory. kcmp also orders address spaces,
so that sorting finds the equal ones. Source: kcmp(2), kernel kernel/kcmp.c; Linux 3.5 with CONFIG_KCMP.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Sequence
from functools import cmp_to_key
from itertools import pairwise

from pageferry.errors import KernelError
from pageferry.kernel import bounded
from pageferry.kernel.procfs import living_thread

_SYSCALL = {"x86_64": 312, "aarch64": 272, "ppc64le": 354}
_KCMP_VM = 1
_ORDER = {0: 0, 1: -1, 2: 1}

_NUMBER = _SYSCALL.get(platform.machine())

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.argtypes = [ctypes.c_long] * 6
_LIBC.syscall.restype = ctypes.c_long


def first_of_each(pids: Sequence[int]) -> list[int]:
    """Return, in their order, the processes without those that share the address space of one before.

    Give the oldest first: a child between vfork and exec soon has an address space of its own. All are returned where
    the kernel does not tell (no kcmp, no CAP_SYS_PTRACE), or not in time: it waits for a process in exec. Raises
    KernelError where there can be no thread.
    """
    if len(pids) < 2 or _NUMBER is None:
        return list(pids)
    (repeated,) = bounded.each([tuple(pids)], _repeated).values.values() or (frozenset(),)
    return [pid for pid in pids if pid not in repeated]


def _repeated(pids: tuple[int, ...]) -> frozenset[int]:
    """Return the processes that share the address space of one before; none where the kernel does not tell."""
    while True:
        try:
            return _equal(pids)
        except ProcessLookupError:
            left = tuple(pid for pid in pids if _is_there(pid))
            if len(left) == len(pids):
                return frozenset()
            pids = left
        except (OSError, KernelError):
            return frozenset()


def _equal(pids: tuple[int, ...]) -> frozenset[int]:
    threads = {pid: living_thread(pid) for pid in pids}  # of an ended thread the kernel sees no address space

    def compare(one: int, other: int) -> int:
        return _compare(threads[one], threads[other])

    ordered = sorted(pids, key=cmp_to_key(compare))  # equal ones stay in their order
    return frozenset(pid for before, pid in pairwise(ordered) if compare(before, pid) == 0)


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True


def _compare(one: int, other: int) -> int:
    """Return 0 if two threads share an address space, else -1 or 1: an order. Raises OSError."""
    order = int(_LIBC.syscall(_NUMBER, one, other, _KCMP_VM, 0, 0))
    if order not in _ORDER:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return _ORDER[order]
