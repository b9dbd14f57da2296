"""The system-call boundary of inotify(7): watches on files and directories, and what the kernel reports of them.

It knows nothing of what is watched, and never waits: the descriptor becomes readable when there is something to read.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pageferry.errors import KernelError
from pageferry.kernel.files import translated

IN_MODIFY = 0x2
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_UNMOUNT = 0x2000
IN_Q_OVERFLOW = 0x4000
"""Events were lost: more than fs.inotify.max_queued_events were waiting. The watch descriptor is -1."""

IN_IGNORED = 0x8000
"""The watch is gone, by `unwatch` or with its file; its descriptor is not soon used again (allocation is cyclic)."""

IN_ONLYDIR = 0x1000000
IN_DONT_FOLLOW = 0x2000000
IN_ISDIR = 0x40000000

_HEADER = struct.Struct("=iIII")
_BUFFER_BYTES = 65536


@dataclass(frozen=True, slots=True)
class RawEvent:
    """One struct inotify_event: the watch descriptor, IN_ bits, the cookie of a move, and a directory entry's name."""

    watch: int
    mask: int
    cookie: int
    name: bytes


class Inotify:
    """One inotify instance, non-blocking and closed on exec. Not for several threads."""

    def __init__(self) -> None:
        """Open the instance. Raises KernelError where the user has too many."""
        self._fd: int = _library().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            error = _last_error()
            hint = ": raise the sysctl fs.inotify.max_user_instances" if error.errno == errno.EMFILE else ""
            raise KernelError(f"inotify_init1: {error.strerror}{hint}") from error

    def fileno(self) -> int:
        """Return the descriptor, which is readable when events wait."""
        return self._fd

    def watch(self, path: Path, mask: int) -> int:
        """Watch what `path` names, and return the watch descriptor, which is the same for the same inode.

        Raises Vanished, Denied, and KernelError where the user has too many watches.
        """
        watch: int = _library().inotify_add_watch(self._fd, os.fsencode(path), mask)
        if watch < 0:
            error = _last_error()
            if error.errno == errno.ENOSPC:
                raise KernelError("no inotify watch is left: raise the sysctl fs.inotify.max_user_watches") from error
            raise translated(error, path) from error
        return watch

    def unwatch(self, watch: int) -> None:
        """End a watch; one that the kernel has ended is no error. IN_IGNORED comes after the last of its events."""
        if _library().inotify_rm_watch(self._fd, watch) < 0 and (error := _last_error()).errno != errno.EINVAL:
            raise KernelError(f"inotify_rm_watch: {error.strerror}") from error

    def read(self) -> tuple[RawEvent, ...]:
        """Return events that wait, a buffer full at most, in the order in which they happened; none is no error."""
        with suppress(BlockingIOError):
            return tuple(parse(os.read(self._fd, _BUFFER_BYTES)))
        return ()

    def close(self) -> None:
        """End all watches; twice is once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def parse(buffer: bytes) -> Iterator[RawEvent]:
    """Yield the events of a buffer as read(2) fills it: whole ones, in this machine's byte order."""
    at = 0
    while at < len(buffer):
        watch, mask, cookie, length = _HEADER.unpack_from(buffer, at)
        at += _HEADER.size + length
        yield RawEvent(watch, mask, cookie, buffer[at - length : at].rstrip(b"\0"))


def _last_error() -> OSError:
    error = ctypes.get_errno()
    return OSError(error, os.strerror(error))


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.inotify_init1.argtypes = [ctypes.c_int]
    library.inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
    library.inotify_rm_watch.argtypes = [ctypes.c_int, ctypes.c_int]
    return library
