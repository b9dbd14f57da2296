"""Whether a process answers: whether its mmap_lock can be had, which reads and moves of its pages take.

A thread of it that waits for a dead file system may hold this lock for ever. A process that is to be moved must answer;
that is found out here, before anything else is read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from pageferry.errors import Denied, KernelError, Silent, Vanished
from pageferry.kernel import bounded
from pageferry.kernel.files import numbered, printable, read_bytes
from pageferry.kernel.procfs import living_thread, read_status

_MOST_THREADS = 1000
"""Of so many threads of a process it is found out what they wait in."""


def require_answers(pids: Iterable[int], root: Path = Path("/")) -> None:
    """Raise Silent, within a few seconds, if any of these processes does not answer."""
    silent = bounded.each(pids, lambda pid: _ask(pid, root)).silent
    if silent:
        others = f" (nor do {len(silent) - 1} more)" if len(silent) > 1 else ""
        raise Silent(f"{_named(silent[0], root)} does not answer{others}: {_why(silent[0], root)}")


def _ask(pid: int, root: Path) -> None:
    """Read one entry of a process's page table, which takes its mmap_lock on every kernel; any answer is one."""
    with suppress(OSError, KernelError):  # whoever reads all of it says why not
        descriptor = os.open(root / f"proc/{living_thread(pid, root)}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.pread(descriptor, 8, 0)
        finally:
            os.close(descriptor)


def _named(pid: int, root: Path) -> str:
    with suppress(Vanished, KernelError):
        return f"process {pid} ({read_status(pid, root).name})"
    return f"process {pid}"


def _why(pid: int, root: Path) -> str:
    stuck = sorted(set(_waits(pid, root)))
    waits = f", as long as a thread of it waits in the kernel ({', '.join(stuck[:3])})" if stuck else ""
    return f"its memory map is locked{waits}"


def _waits(pid: int, root: Path) -> Iterator[str]:
    """Yield in which functions of the kernel threads of a process wait, those that no signal reaches."""
    threads: list[int] = []
    with suppress(Vanished, KernelError):
        threads = numbered(root / f"proc/{pid}/task")
    for thread in threads[:_MOST_THREADS]:
        with suppress(Vanished, Denied, KernelError):
            if read_status(thread, root).state == "D":
                yield printable(read_bytes(root / f"proc/{thread}/wchan"))
