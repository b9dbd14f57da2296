"""Reads small files, the kernel's (/proc, /sys, cgroups) and those on disk, and says what went wrong in our own words.

What the bytes mean is left to the readers. They pass paths below a root, so that a captured tree can stand
for a host.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from pageferry import errors
from pageferry.errors import Denied, KernelError, PageferryError, Vanished

MOST_BYTES = 16 << 20
"""No file on disk that pageferry reads as a whole is longer."""

_CHUNK_BYTES = 65536
_SHOWN_CHARACTERS = 80
_NULL = os.makedev(1, 3)
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


def read_file(path: str | Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Return all of a regular file that somebody has put on a disk: settings, a record of ours, a script.

    Nothing else is read, and nothing is waited for: a pipe would have us wait for a writer, a device may have no end.
    Raises as `read_bytes` does, and KernelError for what is no regular file or is longer than `most_bytes`.
    """
    chunks: list[bytes] = []
    left = most_bytes
    try:
        with open_file(path) as file:
            while left >= 0 and (
                chunk := file.read(_CHUNK_BYTES)
            ):  # more at once would be set aside, and zeroed, first
                chunks.append(chunk)
                left -= len(chunk)
    except OSError as error:
        raise translated(error, path) from error
    if left < 0:
        raise KernelError(f"{printable(path)}: longer than {most_bytes} bytes")
    return b"".join(chunks)


def open_file(path: str | Path) -> BinaryIO:
    """Return a regular file, opened to be read, or /dev/null, which is an empty one. Raises as `read_file` does."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) or (stat.S_ISCHR(status.st_mode) and status.st_rdev == _NULL):
            return os.fdopen(fd, "rb")
    except OSError as error:
        raise translated(error, path) from error
    os.close(fd)
    raise KernelError(f"{printable(path)}: not a regular file")


def is_path(text: str) -> bool:
    """Say whether a text that was read can be the absolute path of a file."""
    try:
        return text.startswith("/") and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return False


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
    text = f"{printable(path)}: {error.strerror}"
    if error.errno in _GONE:
        return Vanished(text)
    if error.errno in _REFUSED:
        return Denied(text)
    return KernelError(text)


def printable(name: bytes | str | os.PathLike[str]) -> str:
    r"""Return hostile text or bytes as one line of text that a terminal shows as it stands, as `errors.one_line` does.

    Invalid UTF-8 becomes \xNN.
    """
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else os.fspath(name)
    return errors.one_line(text)


def shown(name: bytes | str, most: int = _SHOWN_CHARACTERS) -> str:
    """Return hostile text or bytes for a message, of at most so many characters, as `printable` does."""
    text = name[: 4 * most + 4].decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    return errors.shown(text, most)
