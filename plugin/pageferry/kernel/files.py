"""Reads small files of /proc, /sys and cgroups, and says what went wrong in this project's own words.

What the bytes mean is left to the readers. They pass paths below a root, so that a captured tree can stand
for a host.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from pageferry.errors import Denied, KernelError, PageferryError, Vanished

_CHUNK_BYTES = 65536
_GONE = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.ENOTDIR})
_REFUSED = frozenset({errno.EACCES, errno.EPERM})


def read_bytes(path: str | Path) -> bytes:
    """Return all of a file, whatever its size; a /proc file hands out about a page per read.

    Raises Vanished when it is not there or went while it was read (ENOENT, ESRCH; ENODEV from a cgroup that
    was removed), Denied for EACCES and EPERM, KernelError for any other error.
    """
    chunks: list[bytes] = []
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while chunk := os.read(fd, _CHUNK_BYTES):
                chunks.append(chunk)
        finally:
            os.close(fd)
    except OSError as error:
        raise translated(error, path) from error
    return b"".join(chunks)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to a kernel file in one write call, which is what the kernel's parsers need.

    Raises as `read_bytes` does. The file is never created.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise translated(error, path) from error


def numbered(directory: Path, prefix: str = "", suffix: str = "") -> list[int]:
    """Return the numbers N of all entries of a directory that are named prefix + N + suffix, ascending.

    Raises as `read_bytes` does.
    """
    try:
        names = os.listdir(directory)  # noqa: PTH208  (thousands of names need no Path each)
    except OSError as error:
        raise translated(error, directory) from error
    pattern = re.compile(re.escape(prefix) + "([0-9]{1,10})" + re.escape(suffix))
    return sorted(int(match[1]) for name in names if (match := pattern.fullmatch(name)))


def translated(error: OSError, path: str | Path) -> PageferryError:
    """Return what an OSError on `path` means here, for the caller to raise from it."""
    text = f"{printable(os.fsencode(path))}: {error.strerror}"
    if error.errno in _GONE:
        return Vanished(text)
    if error.errno in _REFUSED:
        return Denied(text)
    return KernelError(text)


def printable(raw: bytes) -> str:
    r"""Return hostile bytes as one line of text that a terminal shows as it stands.

    Invalid UTF-8, control characters, line ends and direction marks become \xNN, \uNNNN or \UNNNNNNNN.
    """
    text = raw.decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
