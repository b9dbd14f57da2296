"""Holds on to a process, so that a process ID that is used again cannot hit a stranger.

What is done to the process is left to others; they ask here, before and after, whether it is still the same one.
"""

from __future__ import annotations

import errno
import os
import resource
import select
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from pageferry.errors import KernelError, Vanished
from pageferry.kernel.procfs import has_ended, living_thread, start_time

SPARED = 128
"""So many file descriptors are left for page tables, threads and what else a look opens."""


@dataclass(frozen=True, slots=True)
class ProcessHandle:
    """A process that was there when it was opened. Use it as a context manager, or close it once.

    `pidfd` is our file descriptor, -1 where there was none to spare; `start_time` in clock ticks since boot. The
    process ID stays the process's own until its parent has reaped it, hence it is safe to use between two calls of
    `alive` that both say True.
    """

    pid: int
    pidfd: int
    start_time: int

    def alive(self) -> bool:
        """Say whether the process still runs or stands still, its memory with it.

        A zombie does not count as alive; a process whose first thread has ended while others run does, although
        its /proc/PID/maps is empty.
        """
        poll = select.poll()
        if self.pidfd >= 0:
            poll.register(self.pidfd, select.POLLIN)
        if poll.poll(0):  # readable once every thread has ended: the man page pidfd_open(2)
            return False
        try:
            return start_time(self.pid) == self.start_time and (self.pidfd >= 0 or not has_ended(self.pid))
        except Vanished:
            return False

    def thread(self) -> int:
        """Return the ID of a thread through which its memory is reached now; its own ID if it has ended."""
        return living_thread(self.pid)

    def close(self) -> None:
        """Give the file descriptor back."""
        if self.pidfd >= 0:
            os.close(self.pidfd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def enough_descriptors() -> Iterator[None]:
    """Let this process open as many files as it ever may: a process that is held takes one, its page table another.

    A shell's soft limit is 1024; the hard one is what an administrator means. It is put back for what is started later.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def descriptors_left() -> int:
    """Return how many files this process may open still."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def open_process(pid: int, *, sparing: bool = False) -> ProcessHandle:
    """Open a process by its ID; each handle holds one file descriptor until it is closed.

    `sparing`: where few are left, it holds none, and goes by the start time alone. Raises Vanished when there is no
    such process (a zombie can be opened, and is not alive), and KernelError for the ID of a thread, and when file
    descriptors run out or the kernel has no pidfd_open (before 5.3).
    """
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        if error.errno == errno.ESRCH:
            raise Vanished(f"process {pid} has ended") from error
        # ENOENT since 6.9, EINVAL before it: the ID of a thread that is not the first of its process.
        if error.errno in {errno.ENOENT, errno.EINVAL}:
            raise KernelError(f"{pid} is not a process but a thread of one") from error
        raise KernelError(f"process {pid} cannot be held: {error.strerror}") from error
    try:
        if (
            sparing and pidfd >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARED
        ):  # the lowest number that is free
            os.close(pidfd)
            pidfd = -1
        return ProcessHandle(pid, pidfd, start_time(pid))
    except BaseException:
        if pidfd >= 0:
            os.close(pidfd)
        raise
